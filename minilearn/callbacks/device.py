"""The model and each batch on the device, and the batch's transforms there."""

from typing import Any

import torch
from torch import Tensor, nn

from minilearn.callback import Callback
from minilearn.callbacks.train_eval import TrainEval
from minilearn.data.loader import DataLoader
from minilearn.data.rounds import beneath
from minilearn.optim import Optimizer
from minilearn.tensors import default_device, existing_device, shape_text, to_device

SIDE_BYTES = 1 << 20
"""Tensors smaller than this are copied in line: the copy is over before the host has arranged for another stream."""


class DevicePlacement(Callback):
    """Moves the model, a loss that is a module, and each batch to the GPU where there is one; transforms it there.

    A batch in pinned memory is copied while the device is still at work on the one before it. Then the loaders'
    `batch_tfms` are carried out, in the order given; callbacks see the batch after them.

    Args:
        device: where to; by default the loaders' `device`, else the current CUDA GPU, else Apple's, else the CPU.
    Raises:
        ValueError: in a fit: there is no such device, or there are transforms for a batch that has several inputs.
    """

    order = TrainEval.order + 1  # before any callback that works on the batch

    def __init__(self, device: torch.device | str | None = None) -> None:
        self.device = torch.device(device) if device is not None else None
        self._move: Mover | None = None

    def before_fit(self) -> None:
        self.place_model()
        ours = isinstance(getattr(self.opt, "opt", self.opt), Optimizer)  # a Lookahead has one within
        for p, state in self.opt.state.items():  # the model may have been moved, or made double, since the last fit
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == p.shape and p.ndim:
                    # Other optimizers may keep averages in a precision of their own.
                    dtype = p.dtype if ours else value.dtype
                    state[name] = value.to(p.device, dtype)

    def before_train(self) -> None:
        self._rest_where_idle()

    def before_validate(self) -> None:
        self.place_model()
        self._rest_where_idle()

    def before_batch(self) -> None:
        learn = self.learn
        move = self._move or self.place_model()
        learn.xb, learn.yb = move(learn.xb, learn.yb)
        if self.dls.batch_tfms:
            learn.xb = self._transformed(learn.xb)

    def cleanup_fit(self) -> None:
        self._move = None  # the room that it keeps on the device

    def _rest_where_idle(self) -> None:
        """Nothing is to be done to rows that are cut from tensors on the CPU, where they are to be, as they are."""
        learn, on_cpu = self.learn, self._move is not None and self._move.device.type == "cpu"
        loader = beneath(learn.dl)
        columns = loader.columns if isinstance(loader, DataLoader) else None
        if on_cpu and columns and not learn.dls.batch_tfms and all([column.is_cpu for column in columns]):  # noqa: C419
            learn.rest_cb(self, "before_batch")

    def _transformed(self, xb: Any) -> tuple[Tensor]:
        if not isinstance(xb, tuple) or len(xb) != 1 or not isinstance(xb[0], Tensor):
            raise ValueError(
                f"batch_tfms are for batches with one input tensor, got {shape_text(xb)}."
                " For others write a callback whose before_batch sets self.learn.xb."
            )
        return (self.dls.transform(xb[0], training=self.training),)

    def place_model(self) -> "Mover":
        """Puts the model where it is to be, and gives what moves batches there."""
        learn = self.learn
        target = existing_device(self.device or learn.dls.device or default_device())
        for part in (learn.model, learn.loss_func, *learn.dls.batch_tfms):  # a loss or a transform may hold weights
            if isinstance(part, nn.Module) and not is_on(part, target):
                part.to(target)
        if self._move is None or self._move.device != target:
            self._move = Mover(target)
        return self._move


class Mover:
    """Moves batches to a CUDA GPU, one after the other, each while the device is at work on the one before it.

    Copies go through a stream of their own. The room for the next batch is set aside when this one is moved, at a
    point, `_ready`, where all that the device had been told to do so far may still use that memory, but nothing later
    does: the next copy waits for that point, not for the work on this batch, which is queued after it. So a copy
    overlaps with that work, the host waits for nothing, and on the device there is room for one batch more, however
    far the host runs ahead. The room's memory is the work stream's, which waits for the copy before anything can let go
    of it, so `record_stream` is not needed. Nothing is read from the loader before its time.

    What cannot go this way is moved by `to_device`, on the stream of the work: parts that are not in pinned memory, are
    small, or are not the size of the batch before (the first and the ragged last one), and dicts.

    Args:
        device: where to, with its number; on any but CUDA this is `to_device`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._rooms: dict[int, Tensor] = {}
        self._side: torch.cuda.Stream | None = None
        self._ready: torch.cuda.Event | None = None

    def __call__(self, xb: Any, yb: Any) -> tuple[Any, Any]:
        """A batch's inputs and targets on the device, ready for the current stream."""
        if self.device.type == "cuda" and isinstance(xb, tuple):
            parts = [*xb, *yb]
            large = {i: part for i, part in enumerate(parts) if is_worth_a_stream(part)}
            if large:
                parts = self._through_side(parts, large)
                xb, yb = tuple(parts[: len(xb)]), tuple(parts[len(xb) :])
        elif self.device.type == "cpu" and isinstance(xb, tuple) and _are_on_cpu(xb + yb):
            return xb, yb
        return to_device(xb, self.device), to_device(yb, self.device)

    def _through_side(self, parts: list[Any], large: dict[int, Tensor]) -> list[Any]:
        """Moves those of the large parts for which there is room, and sets room aside for the next batch's."""
        work = torch.cuda.current_stream(self.device)
        if self._side is None:
            self._side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        moved = {i: room for i, room in self._rooms.items() if i in large and is_room_for(large[i], room)}
        start = self._ready
        # Before the work stream waits for this copy, so that the next one need not; and first of all, as memory may run
        # out here, and then no copy is on its way.
        self._rooms = {i: torch.empty_like(part, device=self.device) for i, part in large.items()}
        self._ready = work.record_event()
        if moved and start is not None:
            try:
                self._side.wait_event(start)
                with torch.cuda.stream(self._side):
                    for i, room in moved.items():
                        room.copy_(large[i], non_blocking=True)
            finally:
                work.wait_stream(self._side)  # whatever happens: the room's memory is the work stream's
        return [moved.get(i, part) for i, part in enumerate(parts)]


def is_on(module: nn.Module, device: torch.device) -> bool:
    """Whether moving a module to a device would change nothing: a tenth of the time of moving it all the same.

    Where one of its modules has a way of its own to be moved, only that can tell.
    """
    for m in module.modules():
        if type(m)._apply is not nn.Module._apply or type(m).to is not nn.Module.to:
            return False
        for tensor in (*m._parameters.values(), *m._buffers.values()):
            if tensor is not None and tensor.device != device:
                return False
    return True


def _are_on_cpu(parts: tuple[Any, ...]) -> bool:
    return all([part.__class__ is Tensor and part.is_cpu for part in parts])  # noqa: C419 -- a list is twice as fast


def is_worth_a_stream(part: Any) -> bool:
    """Whether a part of a batch can be copied without the host's waiting, and is large enough for it to matter."""
    return (
        isinstance(part, Tensor)
        and part.is_cpu
        and part.layout is torch.strided
        and not part.requires_grad
        and part.numel() * part.element_size() >= SIDE_BYTES
        and part.is_pinned()
    )


def is_room_for(part: Tensor, room: Tensor) -> bool:
    """Whether a tensor set aside on the device can take `part`: of its shape and dtype, and made for the same use."""
    return (
        room.shape == part.shape
        and room.dtype == part.dtype
        and room.is_inference() == torch.is_inference_mode_enabled()  # else autograd would refuse it
    )
