"""Transforms of a whole batch: each against a naive form, image by image."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minilearn.data import IntToFloat, Normalize, RandomFlip, RandomShift, mnist
from minilearn.data.handwritten import _mnist_bytes

IMAGES = torch.rand(40, 3, 6, 5, generator=torch.Generator().manual_seed(0))
BYTES = (IMAGES * 255).to(torch.uint8)
ALL = [IntToFloat(), Normalize(0.5, 0.25), Normalize([0.1, 0.2, 0.3], [1, 2, 3]), RandomFlip(), RandomShift(2)]


def name(tfm: object) -> str:
    return type(tfm).__name__


def shifted(image: Tensor, down: int, right: int, fill: float) -> Tensor:
    """One image moved, pixel by pixel."""
    moved = torch.full_like(image, fill)
    height, width = image.shape[-2:]
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                moved[..., row, column] = image[..., row - down, column - right]
    return moved


@pytest.mark.parametrize("tfm", ALL, ids=name)
def test_input_is_left_as_it_was(tfm: Any) -> None:
    x = BYTES if isinstance(tfm, IntToFloat) else IMAGES
    before = x.clone()
    tfm(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("tfm", ALL, ids=name)
def test_shape_stays(tfm: Any) -> None:
    x = BYTES if isinstance(tfm, IntToFloat) else IMAGES
    assert tfm(x).shape == x.shape


@pytest.mark.parametrize("tfm", ALL, ids=name)
def test_only_random_ones_are_for_training_alone(tfm: Any) -> None:
    assert getattr(tfm, "train_only", False) == isinstance(tfm, (RandomFlip, RandomShift))


@pytest.mark.parametrize("tfm", [RandomFlip(), RandomShift(2)], ids=name)
def test_random_ones_are_reproduced_by_torch_manual_seed(tfm: Any) -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append(tfm(IMAGES))
    assert torch.equal(*runs)
    assert not torch.equal(runs[0], tfm(IMAGES))


@pytest.mark.parametrize("tfm", [RandomFlip(), RandomShift(2)], ids=name)
@pytest.mark.parametrize("images", [BYTES, IMAGES.bfloat16(), IMAGES[:, 0]], ids=["bytes", "bfloat16", "no channels"])
def test_random_ones_keep_dtype_and_form(tfm: Any, images: Tensor) -> None:
    moved = tfm(images)
    assert moved.dtype is images.dtype
    assert moved.shape == images.shape


@pytest.mark.parametrize("tfm", [RandomFlip(), RandomShift(2)], ids=name)
def test_random_ones_work_where_the_batch_is(tfm: Any) -> None:
    assert tfm(IMAGES.to("meta")).device.type == "meta"


def test_bytes_become_what_mnist_gives(mnist_root: Any) -> None:
    bytes_ = _mnist_bytes(mnist_root).test_images[:500]
    assert torch.equal(IntToFloat()(bytes_).flatten(1), mnist(mnist_root).valid_x[:500])


def test_bytes_are_divided() -> None:
    assert IntToFloat(51)(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == [0, 1, 5]


def test_normalize_is_by_channel() -> None:
    mean, std = [0.1, 0.2, 0.3], [1.0, 2.0, 3.0]
    expected = torch.stack([(IMAGES[:, i] - mean[i]) / std[i] for i in range(3)], dim=1)
    torch.testing.assert_close(Normalize(mean, std)(IMAGES), expected)


def test_normalize_is_by_feature_where_there_is_no_height() -> None:
    found = Normalize(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))(torch.tensor([[2.0, 4.0]]))
    assert found.tolist() == [[1, 1]]


def test_normalize_keeps_the_dtype() -> None:
    assert Normalize([0.1] * 3, [1.0] * 3)(IMAGES.bfloat16()).dtype is torch.bfloat16


def test_normalize_takes_batches_of_several_dtypes_in_turn() -> None:
    tfm = Normalize([0.1] * 3, [2.0] * 3)
    assert [tfm(IMAGES.to(dtype)).dtype for dtype in (torch.float32, torch.float64)] == [torch.float32, torch.float64]


def test_from_batch_normalizes_each_channel() -> None:
    x = Normalize.from_batch(IMAGES)(IMAGES)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(3))


def test_from_batch_of_rows_has_one_mean() -> None:
    """Some pixels of a digit are black in every row: they have no deviation of their own."""
    rows = torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    tfm = Normalize.from_batch(rows)
    assert tfm.mean == [1.0]
    assert tfm.std == pytest.approx([2**0.5])


def test_from_batch_can_be_by_feature() -> None:
    tfm = Normalize.from_batch(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), by_channel=True)
    assert tfm.mean == [1.0, 2.0]


def test_from_stats_is_fastais_name() -> None:
    tfm = Normalize.from_stats([0.1, 0.2], [0.3, 0.4])
    assert (tfm.mean, tfm.std) == ([0.1, 0.2], [0.3, 0.4])


@pytest.mark.parametrize("p", [0, 1])
def test_flip_is_of_none_or_of_all_at_the_ends(p: int) -> None:
    assert torch.equal(RandomFlip(p)(IMAGES), IMAGES.flip(-1) if p else IMAGES)


def test_each_image_is_flipped_or_not_by_its_own_draw() -> None:
    torch.manual_seed(0)
    found = RandomFlip(0.25)(IMAGES)
    flipped = [torch.equal(new, old.flip(-1)) for new, old in zip(found, IMAGES, strict=True)]
    kept = [torch.equal(new, old) for new, old in zip(found, IMAGES, strict=True)]
    assert all(one != other for one, other in zip(flipped, kept, strict=True))
    assert 3 <= sum(flipped) <= 17  # of 40, 10 on average; four standard deviations are 11


@pytest.mark.parametrize("fill", [0.0, 7.0])
@pytest.mark.parametrize("images", [IMAGES, IMAGES[:, 0]], ids=["channels", "no channels"])
def test_each_image_is_one_of_its_shifts(images: Tensor, fill: float) -> None:
    torch.manual_seed(0)
    found = RandomShift(1, fill)(images)
    steps = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    taken = []
    for new, old in zip(found, images, strict=True):
        (step,) = [step for step in steps if torch.equal(new, shifted(old, *step, fill))]
        taken.append(step)
    assert set(taken) == set(steps)  # of nine, 40 draws


def test_shift_of_bytes_is_filled_with_bytes() -> None:
    found = RandomShift(1, fill=255)(torch.zeros(50, 2, 2, dtype=torch.uint8))
    assert set(found.flatten().tolist()) == {0, 255}


def test_shifted_images_are_laid_out_as_usual() -> None:
    assert RandomShift(2)(IMAGES).is_contiguous()


@pytest.mark.parametrize(
    "images",
    [
        IMAGES,
        IMAGES[:, 0],
        IMAGES.contiguous(memory_format=torch.channels_last),
        IMAGES.half(),
        IMAGES[:1],
        IMAGES[::2],
    ],
    ids=["channels", "none", "channels last", "half", "one", "every other"],
)
def test_shift_that_a_gradient_goes_through_is_the_same(images: Tensor) -> None:
    """That of an input which needs a gradient takes another way."""
    for seed in range(5):
        torch.manual_seed(seed)
        found = RandomShift(3)(images)
        torch.manual_seed(seed)
        wanted = RandomShift(3)(images.clone().requires_grad_())
        assert wanted.requires_grad
        assert torch.equal(found, wanted)


def test_gradient_of_shifted_images_is_shifted_back() -> None:
    x = torch.ones(20, 1, 4, 4, requires_grad=True)
    RandomShift(1)(x).sum().backward()
    assert x.grad is not None
    assert {0.0, 1.0} == set(x.grad.flatten().tolist())  # 0 where a pixel moved out


def test_no_images_are_none() -> None:
    assert RandomShift(2)(IMAGES[:0]).shape == (0, 3, 6, 5)


def test_shift_goes_as_far_as_it_may_and_no_farther() -> None:
    torch.manual_seed(0)
    dot = F.pad(torch.ones(200, 1, 1, 1), [3] * 4)
    rows = RandomShift(2)(dot).sum((1, 3)).argmax(1)
    assert set(rows.tolist()) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: IntToFloat(0), "div must be a finite number greater than 0, got 0"),
        (
            lambda: IntToFloat()(IMAGES[:2]),
            "IntToFloat: the input must be whole numbers, such as uint8, got float32 (2, 3, 6, 5)",
        ),
        (lambda: Normalize(0, 0), "std must be a finite number greater than 0, got 0"),
        (lambda: Normalize("0", 1), "mean must be a number, got '0'"),  # type: ignore[arg-type]
        (lambda: Normalize([0, 0], [1, 1, 1]), "mean and std must be of the same length, got 2 and 3"),
        (
            lambda: Normalize([0, 0], [1, 1])(IMAGES),
            "Normalize: mean and std are for 2 channels, but the input is float32 (40, 3, 6, 5)",
        ),
        (
            lambda: Normalize(0, 1)(BYTES),
            "Normalize: the input must be floats, got uint8 (40, 3, 6, 5). Put IntToFloat() before it in batch_tfms.",
        ),
        (
            lambda: Normalize.from_batch(BYTES),
            "Normalize: x must be floats, got uint8 (40, 3, 6, 5): IntToFloat()(x) makes them",
        ),
        (
            lambda: Normalize.from_batch(torch.ones(1, 3, 1, 1)),
            "Normalize: a standard deviation needs two numbers, got float32 (1, 3, 1, 1)",
        ),
        (lambda: Normalize.from_batch(torch.ones(4, 3)), "std must be a finite number greater than 0, got 0.0"),
        (lambda: RandomFlip(2), "p must be in [0, 1], got 2"),
        (
            lambda: RandomFlip()(torch.rand(4, 784)),
            "RandomFlip: the input must be images, (batch, channels, height, width) or (batch, height, width), got"
            " float32 (4, 784)",
        ),
        (lambda: RandomShift(0), "pixels must be a whole number of at least 1, got 0"),
        (lambda: RandomShift(1, fill=float("nan")), "fill must be a finite number greater than -inf, got nan"),
        (
            lambda: RandomShift(5)(IMAGES),
            "RandomShift: pixels must be less than the images' sides, got 5 for float32 (40, 3, 6, 5)",
        ),
    ],
)
def test_bad_arguments_are_refused(call: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert str(caught.value) == message
