"""Tensors in nested batches, and numbers that are read late."""

from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from minilearn.tensors import LateScalars, batch_size, cloned, default_device, set_seed, shape_text, tensor, to_device

Point = namedtuple("Point", "x y")
META = torch.device("meta")


def test_to_device_moves_every_tensor_and_keeps_the_form() -> None:
    value = ([torch.zeros(2)], {"a": torch.zeros(3), "b": "text"}, Point(torch.zeros(1), 5))
    moved = to_device(value, META)
    assert moved[0][0].device == moved[1]["a"].device == moved[2].x.device == META
    assert isinstance(moved[2], Point)
    assert (moved[1]["b"], moved[2].y) == ("text", 5)


def test_to_device_gives_back_what_is_there_already() -> None:
    value = (torch.zeros(2), [torch.zeros(3)])
    assert to_device(value, torch.device("cpu")) is value


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (torch.zeros(5, 2), 5),
        ((torch.zeros(4), torch.zeros(3)), 4),
        ({"a": torch.zeros(6)}, 6),
        ([[torch.zeros(2)]], 2),
        (torch.tensor(1.0), 1),
        ((), 1),
    ],
)
def test_batch_size_is_of_the_first_tensor(value: Any, size: int) -> None:
    assert batch_size(value) == size


def test_shape_text_shows_nested_values() -> None:
    value = {"image": torch.zeros(2, 3), "rest": (torch.zeros(1, dtype=torch.int64), "text")}
    assert shape_text(value) == "{'image': float32 (2, 3), 'rest': (int64 (1,), str)}"


def test_tensor_takes_images_arrays_lists_and_numbers() -> None:
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert torch.equal(tensor(Image.fromarray(grey)), torch.from_numpy(grey))
    assert torch.equal(tensor(grey), torch.from_numpy(grey))
    assert tensor(Image.new("RGB", (4, 2))).shape == (2, 4, 3)
    assert tensor([1.0, 2.0]).tolist() == [1.0, 2.0]
    assert tensor(1, 2, 3).tolist() == [1, 2, 3]
    assert tensor(2.5).item() == 2.5
    assert tensor([1, 2], dtype=torch.float64).dtype is torch.float64
    assert tensor(np.zeros(2)).dtype is torch.float32  # as models are
    assert tensor(np.zeros(2), dtype=torch.float64).dtype is torch.float64
    assert tensor(torch.zeros(2), requires_grad=True).requires_grad
    same = torch.zeros(2)
    assert tensor(same) is same


def test_set_seed_reproduces_torch_numpy_and_python() -> None:
    import random

    def draw() -> tuple[float, float, float]:
        set_seed(5)
        return torch.rand(1).item(), float(np.random.rand()), random.random()

    assert draw() == draw()


def test_default_device_is_one_that_is_there() -> None:
    assert torch.zeros(1, device=default_device()).device.type == default_device().type


class AsOnADevice(LateScalars):
    """Holds numbers back as it does those of a device that must be waited for."""

    chunk = 4
    reads_from_cpu = False


@pytest.mark.parametrize("late_class", [LateScalars, AsOnADevice])
@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 9, 16])
def test_late_scalars_come_out_in_order_with_their_tags(late_class: type[LateScalars], n: int) -> None:
    seen: list[tuple[float, Any]] = []
    late = late_class(lambda numbers, tags: seen.extend(zip(numbers, tags, strict=True)))
    for i in range(n):
        late.append(torch.tensor(float(i), requires_grad=True), f"tag {i}")
    late.read()
    assert seen == [(float(i), f"tag {i}") for i in range(n)]


def test_late_scalars_hold_back_until_read_and_at_most_two_chunks() -> None:
    seen: list[float] = []
    late = AsOnADevice(lambda numbers, tags: seen.extend(numbers))
    for i in range(3):
        late.append(torch.tensor(float(i)))
    assert seen == []
    for i in range(3, 100):
        late.append(torch.tensor(float(i)))
        assert i + 1 - len(seen) <= 8
    late.clear()
    late.read()
    assert len(seen) < 100


def test_cloned_copies_tensors_in_tuples_and_dicts_and_leaves_other_things() -> None:
    x = torch.ones(2)
    copy = cloned((x, {"a": [x]}))
    x.zero_()
    assert copy[0].tolist() == copy[1]["a"][0].tolist() == [1, 1]
    assert cloned("text") == "text"


def test_a_reproducible_seed_asks_cudnn_for_kernels_that_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    set_seed(1)
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (False, True)
    set_seed(1, reproducible=True)
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (True, False)
