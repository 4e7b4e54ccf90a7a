"""Metrics that are no averages over batches: rows wait on the device for a chunk to fill, and some are kept."""

from collections.abc import Callable
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from minilearn import distributed
from minilearn.data.shares import share_of
from minilearn.errors import did_you_mean, whole
from minilearn.metrics.streaming import Batch, Metric, function_name, single_target

CHUNK_NUMBERS = 1 << 20
"""How many numbers of predictions and targets wait on the device before they are passed on: 8 MB of int64."""
CHUNK_BATCHES = 256
"""How many batches wait on the device before they are passed on."""


class ActivationType(StrEnum):
    """What `AccumMetric` makes of a model's output first; the names and values are fastai's."""

    No = "no"
    Sigmoid = "sigmoid"
    Softmax = "softmax"
    BinarySoftmax = "binarysoftmax"


class InChunks(Metric):
    """Gathers batches on the device, and passes them on a chunk at a time: what waits for the device does so rarely.

    A subclass says what is kept of a batch (`_prepare`) and takes a chunk on (`_take`).
    """

    def reset(self) -> None:
        """Forgets what was accumulated."""
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._held = 0

    def accumulate(self, learn: Batch) -> None:
        """Takes a batch on; nothing is read from the device but once a chunk."""
        target = single_target(self.name, learn)
        pred, target = self._prepare(answer := learn.pred.detach(), given := target.detach())
        self._note(learn, len(pred))
        self._held += pred.numel() + target.numel()
        full = self._held >= CHUNK_NUMBERS or len(self._waiting) + 1 >= CHUNK_BATCHES
        if not full:  # what waits must not change: a model may write its next answer to the same memory
            pred, target = _apart(pred, answer), _apart(target, given)
        self._waiting.append((pred, target))
        if full:
            self._pass_on()

    def _prepare(self, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _note(self, learn: Any, rows: int) -> None:
        """Looks at where the rows come from, before they are kept."""

    def _take(self, pred: Tensor, target: Tensor) -> None:
        raise NotImplementedError

    def _pass_on(self) -> None:
        if self._waiting:
            preds, targets = zip(*self._waiting, strict=True)
            self._waiting, self._held = [], 0
            self._take(torch.cat(preds), torch.cat(targets))


def _apart(part: Tensor, whole: Tensor) -> Tensor:
    """`part` in memory of its own, if it is not."""
    return part.clone() if part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr() else part


class AccumMetric(InChunks):
    """A function of all predictions and targets of the validation set at once, which it keeps in the CPU's memory.

    Of a batch are kept what `activation`, `dim_argmax` and `thresh` leave of the predictions, and the targets: 8 to 16
    bytes a row where each is one number. They are copied a chunk at a time, and no batch waits for it.

    Args:
        func: called with predictions and targets and `kwargs`, gives one number.
        dim_argmax: the axis over which the largest is taken; with a softmax, that axis, and no argmax.
        activation: what is done first: an `ActivationType` or its value. "binarysoftmax" gives the probability of the
            last class; of a single logit it is the sigmoid.
        thresh: makes predictions 1 where they are at least this, else 0. 0.0 is a threshold too.
        to_np: gives `func` arrays, not tensors.
        invert_arg: gives `func` the targets first, as scikit-learn's have it.
        flatten: whether all axes become one. Without it the first axis is the rows'.
        name: the column's heading; by default the function's name.
        max_rows: how many rows are kept at most; past that every second one is let go, evenly over the whole set, so
            that memory stays flat and the figure becomes an estimate. None keeps all.
        kwargs: for `func`.
    Raises:
        ValueError: an argument is not what it may be, or a batch's predictions and targets do not match.
    Source: the arguments' meaning is that of `AccumMetric` in fastai 2.8.

    >>> spread = AccumMetric(lambda pred, target: (pred - target).max(), name="largest_error")
    >>> spread(torch.tensor([1.0, 5.0]), torch.tensor([1.0, 2.0]))
    3.0
    """

    def __init__(
        self,
        func: Callable[..., Any],
        dim_argmax: int | None = None,
        activation: str = ActivationType.No,
        thresh: float | None = None,
        to_np: bool = False,
        invert_arg: bool = False,
        flatten: bool = True,
        name: str | None = None,
        max_rows: int | None = None,
        **kwargs: Any,
    ) -> None:
        known = [kind.value for kind in ActivationType]
        if activation not in known:
            raise ValueError(
                f"activation must be one of {known}, got {activation!r}{did_you_mean(str(activation), known)}"
            )
        self.func, self.kwargs, self.name = func, kwargs, name or function_name(func)
        self.dim_argmax, self.activation, self.thresh = dim_argmax, ActivationType(activation), thresh
        self.to_np, self.invert_arg, self.flatten = to_np, invert_arg, flatten
        self.max_rows = None if max_rows is None else whole("max_rows", max_rows, 1)
        self.reset()

    def reset(self) -> None:
        """Forgets what was accumulated."""
        super().reset()
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._on_its_way: tuple[Tensor, Tensor, torch.cuda.Event | None, list[tuple[int, int]]] | None = None
        self._seen, self._rows, self._stride = 0, 0, 1
        self._begins: list[tuple[int, int]] = []
        self._numbers: list[Tensor] = []

    def __call__(self, pred: Tensor, target: Tensor) -> float | None:
        """The metric of one batch, taken as it is: without activation, argmax and threshold, as in fastai."""
        self.reset()
        self._waiting.append(self._matched(pred.detach(), target.detach()))
        value = self.value
        self.reset()
        return value

    @property
    def value(self) -> float | None:
        """`func` over all rows; None where there were none. Waits for the device."""
        self._pass_on()
        self._arrive()
        if not self._kept:
            return None
        preds, targets = zip(*self._kept, strict=True)
        pair = [_plain(torch.cat(parts), self.to_np) for parts in (preds, targets)]
        return one_number(self.name, self.func(*(reversed(pair) if self.invert_arg else pair), **self.kwargs))

    def join(self) -> None:
        """Takes on the rows that the other processes have kept: all have all of them then, in one process's order."""
        self._pass_on()
        self._arrive()
        self._thin(int(distributed.largest([self._stride])[0]))
        total = round(distributed.sum_numbers([self._rows])[0])
        while self.max_rows is not None and total > self.max_rows:
            self._thin(2 * self._stride)
            total = round(distributed.sum_numbers([self._rows])[0])
        if self._kept and not self._numbers:  # rows that came without a place among those of all
            self._numbers = [torch.arange(self._rows)]
        several: list[Any] = [*zip(*self._kept, strict=True), self._numbers] if self._kept else [None] * 3
        preds, targets, numbers = (
            [part for part in distributed.gathered_tensors(parts and torch.cat(list(parts))) if part is not None]
            for parts in several
        )
        if numbers:
            order = torch.cat(numbers).argsort()
            self._kept, self._numbers = [(torch.cat(preds)[order], torch.cat(targets)[order])], []
            self._rows = len(order)

    def state_dict(self) -> dict[str, Any]:
        """The rows that are kept. Waits for the device."""
        self._arrive()
        return super().state_dict()

    def _prepare(self, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return self._matched(activated(pred, self.activation, self.dim_argmax, self.thresh), target)

    def _matched(self, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        fits = pred.numel() == target.numel() if self.flatten else pred.shape[:1] == target.shape[:1]
        if not fits:
            wanted = "as many numbers" if self.flatten else "as many rows"
            raise ValueError(
                f"{self.name}: predictions are {tuple(pred.shape)} and targets are {tuple(target.shape)}: they must"
                f" have {wanted}. dim_argmax=... takes the largest over the classes' axis."
            )
        return (pred.reshape(-1), target.reshape(-1)) if self.flatten else (pred, target)

    def _take(self, pred: Tensor, target: Tensor) -> None:
        self._arrive()
        event = None
        if pred.is_cuda:
            stream = torch.cuda.current_stream(pred.device)
            pred, target = (part.to("cpu", non_blocking=True) for part in (pred, target))  # pinned, valid after event
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(stream)
        self._on_its_way, self._begins = (pred.cpu(), target.cpu(), event, self._begins), []

    def _arrive(self) -> None:
        """Keeps the chunk whose copy was started a chunk ago."""
        if self._on_its_way is None:
            return
        pred, target, event, begins = self._on_its_way
        self._on_its_way = None
        if event is not None:
            event.synchronize()
        numbers = torch.cat([torch.arange(begin, begin + n) for begin, n in begins]) if begins else None
        self._keep(pred, target, event is not None, numbers)
        while self.max_rows is not None and self._rows > self.max_rows:
            self._thin(2 * self._stride)

    def _keep(self, pred: Tensor, target: Tensor, pinned: bool, numbers: Tensor | None) -> None:
        """Keeps every `stride`-th row, of those of all processes where rows have numbers among them."""
        chosen: Any = slice(-self._seen % self._stride, None, self._stride)
        self._seen += len(pred)
        if numbers is not None:
            chosen = (numbers % self._stride == 0) if self._stride > 1 else slice(None)
            self._numbers.append(numbers[chosen])
        # A copy where it is a part of a chunk, which would be held by it, or in pinned memory.
        pred, target = pred[chosen], target[chosen]
        if pinned or self._stride > 1:
            pred, target = pred.clone(), target.clone()
        self._kept.append((pred, target))
        self._rows += len(pred)

    def _thin(self, stride: int) -> None:
        """Lets rows go until every `stride`-th is left."""
        if stride == self._stride:
            return
        if self._kept:
            preds, targets = (torch.cat(parts) for parts in zip(*self._kept, strict=True))
            chosen: Any = slice(None, None, stride // self._stride)
            if self._numbers:
                numbers = torch.cat(self._numbers)
                chosen = numbers % stride == 0
                self._numbers = [numbers[chosen]]
            self._kept = [(preds[chosen].clone(), targets[chosen].clone())]
            self._rows = len(self._kept[0][0])
        self._stride = stride

    def _note(self, learn: Any, rows: int) -> None:
        share = share_of(getattr(learn, "dl", None))
        if share is not None:  # a row may have become several, such as pixels
            each = rows // share.own
            self._begins.append(((share.rows_before + share.before) * each, rows))


def activated(pred: Tensor, activation: str, dim: int | None = None, thresh: float | None = None) -> Tensor:
    """A model's output as a metric wants it: after an activation, or the largest of an axis, then a threshold."""
    if pred.is_floating_point() and pred.itemsize < 4:
        pred = pred.float()  # what mixed precision leaves has too few digits for ranks and thresholds
    if activation == ActivationType.Softmax:
        pred = pred.softmax(-1 if dim is None else dim)
    elif activation == ActivationType.BinarySoftmax:
        axis = -1 if dim is None else dim
        pred = pred.sigmoid().squeeze(axis) if pred.shape[axis] == 1 else pred.softmax(axis).select(axis, -1)
    elif activation == ActivationType.Sigmoid:
        pred = pred.sigmoid()
    elif dim is not None:
        pred = pred.argmax(dim)
    return pred if thresh is None else pred >= thresh


def _plain(rows: Tensor, to_np: bool) -> Any:
    """Rows as a function is given them."""
    if not to_np:
        return rows
    return (rows.float() if rows.dtype == torch.bfloat16 else rows).numpy()


def one_number(name: str, value: Any) -> float | None:
    """A metric's figure as a float; None stays.

    Raises:
        ValueError: there are several.
    """
    if value is None:
        return None
    shape = tuple(getattr(value, "shape", ()))
    if isinstance(value, (dict, list, tuple)) or any(size != 1 for size in shape):
        came = f"shape {shape}" if shape else f"an object of {type(value).__name__}"
        raise ValueError(f"metric '{name}' must give one number, got {came}: average it")
    return float(value)


def skm_to_fastai(
    func: Callable[..., Any],
    is_class: bool = True,
    thresh: float | None = None,
    axis: int = -1,
    activation: str | None = None,
    **kwargs: Any,
) -> AccumMetric:
    """A function of scikit-learn's, ``func(y_true, y_pred)``, as a metric; fastai's name and meaning.

    Args:
        func: called with arrays, the targets first.
        is_class: whether predictions are of classes: then the largest of `axis` is taken, or with `thresh` the sigmoid.
        thresh: the probability from which an answer is 1.
        axis: the classes' axis.
        activation: what is done with the predictions first, an `ActivationType`; nothing is taken the largest of then.
        kwargs: for `func`, or for `AccumMetric` (`name`, `flatten`, `max_rows`).
    """
    chosen = ActivationType.Sigmoid if is_class and thresh is not None else ActivationType.No
    largest_of = axis if is_class and thresh is None else None
    if activation in {ActivationType.No, ActivationType.Sigmoid}:
        largest_of = None
    return AccumMetric(
        func,
        largest_of,
        chosen if activation is None else activation,
        thresh,
        to_np=True,
        invert_arg=True,
        **kwargs,
    )
