"""What is done to a whole batch's input on the device: ``DataLoaders(…, batch_tfms=[IntToFloat(), RandomShift(2)])``.

A transform is a function of the input, (batch, …), that gives a new tensor. One with ``train_only = True`` is left out
in validation. Random ones draw on the batch's device, from the numbers that `torch.manual_seed` starts.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from minilearn.errors import in_range, positive, share, whole
from minilearn.tensors import shape_text


class IntToFloat:
    """Bytes as floats: ``x / div``, in torch's default float type; pixels of 0 to 255 come to lie in [0, 1].

    Data can stay bytes in memory and on its way to the device: a quarter of the size.

    Args:
        div: what to divide by, greater than 0.
    Raises:
        TypeError: when called: the input is floats already.
    Source: fastai 2.8, `IntToFloatTensor`, which divides floats too.

    >>> IntToFloat()(torch.tensor([[0, 51, 255]], dtype=torch.uint8))
    tensor([[0.0000, 0.2000, 1.0000]])
    """

    def __init__(self, div: float = 255.0) -> None:
        self.div = positive("div", div)

    def __call__(self, x: Tensor) -> Tensor:
        if x.is_floating_point():
            raise TypeError(f"IntToFloat: the input must be whole numbers, such as uint8, got {shape_text(x)}")
        return x / self.div


class Normalize:
    """``(x - mean) / std``, for all channels alike or for each its own.

    Args:
        mean: a number, or one for each channel (axis 1 of the input).
        std: the same, greater than 0.
    Raises:
        ValueError: `std` is not greater than 0, or the two differ in length; when called: the input has another number
            of channels.
        TypeError: one is no number; when called: the input is whole numbers.
    Source: fastai 2.8, `Normalize`.

    >>> Normalize(0.5, 0.25)(torch.tensor([[0.0, 1.0]]))
    tensor([[-2.,  2.]])
    """

    def __init__(self, mean: float | Sequence[float] | Tensor, std: float | Sequence[float] | Tensor) -> None:
        self.mean = [in_range("mean", number, -torch.inf, open_low=True) for number in _numbers(mean)]
        self.std = [positive("std", number) for number in _numbers(std)]
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean and std must be of the same length, got {len(self.mean)} and {len(self.std)}")
        self._placed: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    @classmethod
    def from_stats(cls, mean: float | Sequence[float] | Tensor, std: float | Sequence[float] | Tensor) -> Self:
        """The same as the class itself; fastai's name."""
        return cls(mean, std)

    @classmethod
    def from_batch(cls, x: Tensor, *, by_channel: bool | None = None) -> Self:
        """With the mean and the standard deviation of a batch's input, or of all training data.

        Args:
            x: floats, (batch, channels, …).
            by_channel: whether each channel gets its own; by default where there are axes after them, as in images.
        Raises:
            TypeError: `x` is whole numbers.
            ValueError: it is constant, or has no more than one number a channel.
        """
        if not x.is_floating_point():
            raise TypeError(f"Normalize: x must be floats, got {shape_text(x)}: IntToFloat()(x) makes them")
        by_channel = x.ndim > 2 if by_channel is None else by_channel
        axes = [axis for axis in range(x.ndim) if axis != 1] if by_channel else list(range(x.ndim))
        if x.numel() <= (x.shape[1] if by_channel else 1):
            raise ValueError(f"Normalize: a standard deviation needs two numbers, got {shape_text(x)}")
        std, mean = torch.std_mean(x.float(), dim=axes)
        return cls(mean, std)

    def __call__(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            raise TypeError(
                f"Normalize: the input must be floats, got {shape_text(x)}. Put IntToFloat() before it in batch_tfms."
            )
        if len(self.mean) == 1:
            return (x - self.mean[0]).div_(self.std[0])
        if x.ndim < 2 or x.shape[1] != len(self.mean):
            raise ValueError(
                f"Normalize: mean and std are for {len(self.mean)} channels, but the input is {shape_text(x)}"
            )
        mean, std = (part.view(-1, *[1] * (x.ndim - 2)) for part in self._on(x))
        return (x - mean).div_(std)

    def _on(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The numbers as tensors like `x`, sent to its device once: each copy from a list would wait for it."""
        key = x.device, x.dtype
        if key not in self._placed:
            self._placed[key] = x.new_tensor(self.mean), x.new_tensor(self.std)
        return self._placed[key]


class RandomFlip:
    """Mirrors images left to right, each with probability `p`; in training only.

    Args:
        p: in [0, 1].
    Raises:
        ValueError: `p` is out of its range; when called: the input is no images.
    """

    train_only = True

    def __init__(self, p: float = 0.5) -> None:
        self.p = share("p", p)

    def __call__(self, x: Tensor) -> Tensor:
        _check_images(self, x)
        mirrored = torch.rand(len(x), device=x.device) < self.p  # (batch,)
        return torch.where(mirrored.view(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)


class RandomShift:
    """Moves images by up to so many pixels, down or up and right or left, each by its own draw; in training only.

    Every shift is equally likely. What moves out is lost, and what comes in is `fill`.

    Args:
        pixels: the farthest shift, at least 1 and less than the images' height and width.
        fill: the pixels that come in; after `Normalize`, 0 is the mean.
    Raises:
        ValueError: `pixels` is out of its range; when called: the input is no images, or they are too small.
    """

    train_only = True

    def __init__(self, pixels: int, fill: float = 0.0) -> None:
        self.pixels = whole("pixels", pixels, 1)
        self.fill = in_range("fill", fill, -torch.inf, open_low=True)

    def __call__(self, x: Tensor) -> Tensor:
        _check_images(self, x)
        height, width = x.shape[-2:]
        if self.pixels >= min(height, width):
            raise ValueError(
                f"RandomShift: pixels must be less than the images' sides, got {self.pixels} for {shape_text(x)}"
            )
        padded = F.pad(x, [self.pixels] * 4, value=self.fill)
        number = torch.arange(len(x), device=x.device)
        down, right = torch.randint(2 * self.pixels + 1, (2, len(x)), device=x.device)
        if x.requires_grad or not len(x):
            windows = padded.unfold(-2, height, 1).unfold(-2, width, 1).movedim((-4, -3), (1, 2))
            return windows[number, down, right]
        # In half of the time, though its gradient would need memory for every place: wherever an image of that size can
        # begin in memory, as a view, (places, …, height, width), of which each image takes one, by a single gather.
        image, *_, below, beside = padded.stride()
        places = (len(x) - 1) * image + 2 * self.pixels * (below + beside) + 1
        everywhere = padded.as_strided((places, *x.shape[1:]), (1, *padded.stride()[1:]))
        return everywhere.index_select(0, number * image + down * below + right * beside)


def _check_images(tfm: object, x: Tensor) -> None:
    if x.ndim not in (3, 4):
        raise ValueError(
            f"{type(tfm).__name__}: the input must be images, (batch, channels, height, width) or (batch, height,"
            f" width), got {shape_text(x)}"
        )


def _numbers(value: Any) -> list[Any]:
    """One number or several as a list."""
    if isinstance(value, Tensor):
        numbers: list[Any] = value.flatten().tolist()
        return numbers
    return list(value) if isinstance(value, (list, tuple)) else [value]
