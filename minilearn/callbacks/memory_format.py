"""Images and convolutions with the channels last in memory, as fast kernels want them."""

from typing import Any

import torch
from torch import Tensor, nn

from minilearn.callback import Callback
from minilearn.callbacks.device import DevicePlacement
from minilearn.tensors import map_tensors


class ChannelsLast(Callback):
    """Lays the model's weights and inputs of four dimensions (batch, channels, height, width) out channels last.

    The model, and the optimizer's averages with it, when a fit or a validation begins; the inputs in each
    `before_batch`, after the loaders' transforms. Shapes and numbers stay what they are. The model stays so after the
    fit: `Learner.to_contiguous` puts it back. A batch costs about 13 µs on a CPU and the copy of its images, and goes
    into a compiled step as it is.

    Source: `ChannelsLast` of fastai 2.8, which leaves the inputs to the first layer.
    """

    order = DevicePlacement.order + 1  # once model and batch are on the device, and the batch is transformed
    acts_in_step = False

    def before_fit(self) -> None:
        lay_out(self.model, self.opt, torch.channels_last)

    def before_validate(self) -> None:
        lay_out(self.model, self.learn.__dict__.get("opt"), torch.channels_last)

    def before_batch(self) -> None:
        self.learn.xb = map_tensors(_channels_last, self.xb)


def _channels_last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value


def lay_out(model: nn.Module, opt: Any, memory_format: torch.memory_format) -> None:
    """Lays a model out in memory, and with it what its optimizer keeps: fused kernels go by memory alone."""
    model.to(memory_format=memory_format)  # type: ignore[call-overload]
    for p, state in ({} if opt is None else opt.state).items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.ndim == 4 and value.shape == p.shape:
                state[name] = value.contiguous(memory_format=memory_format)


ChannelsLastCallback = ChannelsLast
"""`ChannelsLast`, named as fastai names its other callbacks."""
