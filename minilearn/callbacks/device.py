"""The model and each batch on the device."""

import torch
from torch import Tensor, nn

from minilearn.callback import Callback
from minilearn.callbacks.train_eval import TrainEval
from minilearn.optim import Optimizer
from minilearn.tensors import default_device, to_device


class DevicePlacement(Callback):
    """Moves the model, a loss that is a module, and each batch to the GPU where there is one.

    A batch in pinned memory is copied while the device is still at work on the one before it.

    Args:
        device: where to; by default the loaders' `device`, else the current CUDA GPU, else Apple's, else the CPU.
    """

    order = TrainEval.order + 1  # before any callback that works on the batch

    def __init__(self, device: torch.device | str | None = None) -> None:
        self.device = torch.device(device) if device is not None else None
        self._target: torch.device | None = None

    def before_fit(self) -> None:
        self._target = self._place_model()
        ours = isinstance(getattr(self.opt, "opt", self.opt), Optimizer)  # a Lookahead has one within
        for p, state in self.opt.state.items():  # the model may have been moved, or made double, since the last fit
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == p.shape and p.ndim:
                    # Other optimizers may keep averages in a precision of their own.
                    dtype = p.dtype if ours else value.dtype
                    state[name] = value.to(p.device, dtype)

    def before_validate(self) -> None:
        self._target = self._place_model()

    def before_batch(self) -> None:
        learn = self.learn
        if self._target is None:
            self._target = self._place_model()
        learn.xb = to_device(learn.xb, self._target)
        learn.yb = to_device(learn.yb, self._target)

    def _place_model(self) -> torch.device:
        wanted = self.device or self.dls.device or default_device()
        try:
            target = torch.empty(0, device=wanted).device  # "cuda" with its number, as tensors have it
        except (AssertionError, RuntimeError) as error:
            raise ValueError(f"the device '{wanted}' is not there: {str(error).splitlines()[0]}") from error
        for part in (self.model, self.learn.loss_func):  # a loss may hold weights
            if isinstance(part, nn.Module):
                part.to(target)
        return target
