"""Tensors in nested tuples, lists and dicts: moving, sizing, showing them; and numbers that are read late."""

import copy
import random
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def set_seed(s: int, reproducible: bool = False) -> None:
    """Starts the random numbers of torch (every device), NumPy and Python from `s`: a run can be had again.

    Args:
        s: the seed.
        reproducible: whether cuDNN is to take only kernels that give the same numbers twice, from now on, which are
            slower. A CPU's do in any case.
    """
    random.seed(s)
    np.random.seed(s % 2**32)
    torch.manual_seed(s)
    if reproducible:
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False


CPU = torch.device("cpu")


def default_device() -> torch.device:
    """Where work goes when nobody says otherwise: the current CUDA GPU, else Apple's, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def existing_device(wanted: torch.device | str) -> torch.device:
    """A device with its number, as the tensors on it have it: "cuda" is "cuda:0".

    Raises:
        ValueError: it is not there.
    """
    if wanted == CPU:
        return CPU
    try:
        return torch.empty(0, device=wanted).device
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"the device '{wanted}' is not there: {str(error).splitlines()[0]}") from error


def to_device(value: Any, device: torch.device) -> Any:
    """`value` with every tensor in it on `device`; `value` itself where nothing had to move.

    The copy to a GPU is not waited for: from pinned memory it overlaps with the work that is queued already.
    """
    if isinstance(value, Tensor):
        return value if value.device == device else value.to(device, non_blocking=device.type == "cuda")
    if isinstance(value, (tuple, list)):
        if all([part.__class__ is Tensor and part.device == device for part in value]):  # noqa: C419 -- the usual case
            return value
        moved = [to_device(part, device) for part in value]
        if all(new is old for new, old in zip(moved, value, strict=True)):
            return value
        return type(value)(*moved) if hasattr(value, "_fields") else type(value)(moved)
    if isinstance(value, Mapping):
        entries = {key: to_device(part, device) for key, part in value.items()}
        return value if all(entries[key] is value[key] for key in entries) else entries
    return value


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`value` with `function` of every tensor in it, in containers of the same classes; itself where all stay.

    >>> map_tensors(torch.neg, (torch.ones(1), {"x": torch.zeros(1, dtype=torch.int64)}))
    (tensor([-1.]), {'x': tensor([0])})
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (tuple, list)):
        parts = [map_tensors(function, part) for part in value]
        if all(new is old for new, old in zip(parts, value, strict=True)):
            return value
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, Mapping):
        entries = {key: map_tensors(function, part) for key, part in value.items()}
        if all(entries[key] is value[key] for key in entries):
            return value
        if not isinstance(value, MutableMapping):
            return entries
        out = copy.copy(value)  # of its own class, as what Hugging Face's models give
        for key, part in entries.items():
            out[key] = part
        return out
    return value


def leaves(value: Any) -> list[Any]:
    """What is in nested tuples, lists and dicts, in order."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return [leaf for part in value for leaf in leaves(part)] if isinstance(value, (tuple, list)) else [value]


def detached(value: Any) -> Any:
    """`value` with every tensor in it cut off from its graph.

    Raises:
        TypeError: it holds something else than tensors in tuples, lists and dicts.
    """
    return _each(Tensor.detach, value)


def cloned(value: Any) -> Any:
    """`value` with a copy of every tensor in it; itself where it holds anything that `detached` does not take."""
    try:
        return _each(Tensor.clone, value)
    except TypeError:
        return value


def _each(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if type(value) in (tuple, list):
        return type(value)([_each(function, part) for part in value])
    if type(value) is dict:
        return {key: _each(function, part) for key, part in value.items()}
    raise TypeError(f"a model's answer of type {type(value).__name__}")


def to_np(value: Tensor) -> np.ndarray:
    """A tensor's numbers as an array, from any device."""
    return value.detach().cpu().numpy()


def batch_size(value: Any) -> int:
    """The length of the first dimension of the first tensor in `value` that has one; 1 where none has."""
    if value.__class__ is tuple and value and value[0].__class__ is Tensor and value[0].ndim:  # nearly always
        return value[0].shape[0] or 1
    return _rows(value) or 1


def _rows(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.shape[0] if value.ndim else 0
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    for part in parts:
        if rows := _rows(part):
            return rows
    return 0


def shape_text(value: Any) -> str:
    """What `value` is, for an error message.

    >>> shape_text((torch.zeros(64, 1), torch.zeros(64, dtype=torch.int64)))
    '(float32 (64, 1), int64 (64,))'
    """
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {shape_text(part)}" for key, part in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(map(shape_text, value)) + ")"
    return type(value).__name__


def tensor(x: Any, *rest: Any, **kwargs: Any) -> Tensor:
    """`torch.tensor` that also takes images, arrays and several numbers; fastai's name and meaning.

    Args:
        x: a PIL image (uint8 (height, width) or (height, width, channels)), an array, a tensor, a number or a list.
        rest: further numbers, so that ``tensor(1, 2, 3)`` is ``tensor([1, 2, 3])``.
        kwargs: `dtype`, `device` and `requires_grad`, as in `torch.tensor`. Without a `dtype`, float64 becomes float32,
            which is what models are made of.

    >>> tensor(1, 2, 3)
    tensor([1, 2, 3])
    """
    if isinstance(x, Tensor) and not rest and not kwargs:
        return x
    requires_grad = kwargs.pop("requires_grad", False)
    if rest:
        x = (x, *rest)
    elif isinstance(x, Tensor):
        x = x.detach().clone()
    elif hasattr(x, "__array_interface__"):  # an image answers to the array protocol, a list of numbers does not
        x = np.array(x)
    if "dtype" not in kwargs and getattr(x, "dtype", None) == np.float64:
        kwargs["dtype"] = torch.float32
    return torch.as_tensor(x, **kwargs).requires_grad_(requires_grad)


def on_its_way(value: Any, loss: Tensor) -> Any:
    """A figure as it stands in this batch, where it is a tensor, which the next one may change in place; else itself.

    Args:
        value: a hyperparameter: a number, or a 0-d tensor.
        loss: what is read after it. From a GPU the copy is queued before the loss's, so that it has arrived when the
            loss has; nothing waits.
    """
    if not isinstance(value, Tensor):
        return value
    return value.detach().to("cpu", non_blocking=True) if value.is_cuda and loss.is_cuda else value.detach().clone()


class LateScalars:
    """Numbers that stay on the device until somebody needs them, so that no batch waits to read one.

    `append` takes a 0-d tensor as the batch makes it; `sink(numbers, tags)` gets them as Python floats, in order, a
    list at a time: from the CPU's memory, where reading is free, `together` of them, or up to one that is not finite;
    from a GPU when `read` is called, and a chunk at a time before that, so that a long epoch fills no memory. On CUDA a
    full chunk's copy is started without waiting, and looked at one chunk later, when it has long arrived.
    """

    chunk = 256
    together = 16
    """One after another they take a third of the time, as the code that takes them on is at hand then."""
    reads_from_cpu = True
    """Whether numbers in the CPU's memory are read as they come; else they are treated as those of a device."""

    def __init__(self, sink: Callable[[list[Any], list[Any]], object]) -> None:
        self._sink = sink
        self.clear()

    def append(self, scalar: Tensor, tag: Any = None) -> None:
        """Takes a number on, with anything that should come out beside it; its graph is let go."""
        if scalar.is_cpu and self.reads_from_cpu:
            number = scalar.item()
            self._numbers.append(number)
            self._their_tags.append(tag)
            if len(self._numbers) >= self.together or number - number != 0:
                self._hand_on()
            return
        self._waiting.append(scalar.detach())
        self._tags.append(tag)
        if len(self._waiting) >= self.chunk:
            self._arrive()
            self._send()

    def read(self) -> None:
        """Gives the sink every number not yet given; waits for the device."""
        self._hand_on()
        self._arrive()
        if self._waiting:
            self._send()
            self._arrive()

    def clear(self) -> None:
        """Forgets the numbers not yet given."""
        self._numbers: list[float] = []
        self._their_tags: list[Any] = []
        self._waiting: list[Tensor] = []
        self._tags: list[Any] = []
        self._on_its_way: tuple[Tensor, list[Any], torch.cuda.Event | None] | None = None

    def _hand_on(self) -> None:
        if self._numbers:
            numbers, tags, self._numbers, self._their_tags = self._numbers, self._their_tags, [], []
            self._sink(numbers, tags)

    def _send(self) -> None:
        """Starts the copy of what is waiting."""
        numbers, tags = torch.stack(self._waiting), self._tags
        self._waiting, self._tags = [], []
        event = None
        if numbers.is_cuda:
            stream = torch.cuda.current_stream(numbers.device)
            numbers = numbers.to("cpu", non_blocking=True)  # into pinned memory: valid once the event has passed
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(stream)
        self._on_its_way = numbers, tags, event

    def _arrive(self) -> None:
        """Gives the sink the chunk whose copy was started."""
        if self._on_its_way is None:
            return
        numbers, tags, event = self._on_its_way
        self._on_its_way = None
        if event is not None:
            event.synchronize()
        self._sink(self._values(numbers), tags)

    def _values(self, numbers: Tensor) -> list[Any]:
        """A chunk's numbers one by one."""
        values: list[Any] = numbers.tolist()
        return values
