"""The model and each batch on the device."""

import torch

from minilearn.callback import Callback
from minilearn.callbacks.train_eval import TrainEval
from minilearn.tensors import default_device, to_device


class DevicePlacement(Callback):
    """Moves the model, and each batch, to the GPU where there is one.

    A batch in pinned memory is copied while the device is still at work on the one before it.

    Args:
        device: where to; by default the loaders' `device`, else the current CUDA GPU, else Apple's, else the CPU.
    """

    order = TrainEval.order + 1  # before any callback that works on the batch

    def __init__(self, device: torch.device | str | None = None) -> None:
        self.device = torch.device(device) if device is not None else None

    def before_fit(self) -> None:
        self._place_model()

    def before_validate(self) -> None:
        self._place_model()

    def before_batch(self) -> None:
        learn = self.learn
        learn.xb = to_device(learn.xb, self._target)
        learn.yb = to_device(learn.yb, self._target)

    def _place_model(self) -> None:
        wanted = self.device or self.dls.device or default_device()
        self._target = torch.empty(0, device=wanted).device  # "cuda" with its number, as tensors have it
        self.model.to(self._target)
