"""A Learner in another precision, or with its images laid out otherwise in memory."""

from typing import Any, Self

import torch

from minilearn.callback import Callback
from minilearn.callbacks.memory_format import ChannelsLast, lay_out
from minilearn.callbacks.precision import AMPMode, MixedPrecision
from minilearn.exchange import ExchangingLoop


class ConvertibleLoop(ExchangingLoop):
    """The scheduled fits of a Learner, and what changes how all that follows is computed."""

    def to_fp16(self, **kwargs: Any) -> Self:
        """Goes on in mixed precision with float16 and a scaler for the gradients.

        Args:
            kwargs: the scaler's options, as in `MixedPrecision`.
        """
        return self._mixed(MixedPrecision(AMPMode.FP16, **kwargs))

    def to_bf16(self) -> Self:
        """Goes on in mixed precision with bfloat16."""
        return self._mixed(MixedPrecision(AMPMode.BF16))

    def to_fp32(self) -> Self:
        """Goes on in float32: without `MixedPrecision`, and the model's weights in float32, whatever they were."""
        self.model.float()
        return self._without(MixedPrecision)

    def to_channelslast(
        self, use_amp: bool = True, amp_mode: AMPMode | str | torch.dtype | None = None, **kwargs: Any
    ) -> Self:
        """Goes on with images channels last in memory (`ChannelsLast`), and in mixed precision.

        Args:
            use_amp: whether to add `MixedPrecision`, where there is none yet: it is for half precision that kernels
                want channels last most.
            amp_mode: as in `MixedPrecision`.
            kwargs: the scaler's options, as in `MixedPrecision`.
        """
        if use_amp and not any(isinstance(cb, MixedPrecision) for cb in self.cbs):
            self.add_cb(MixedPrecision(amp_mode, **kwargs))
        return self if any(isinstance(cb, ChannelsLast) for cb in self.cbs) else self.add_cb(ChannelsLast())

    def to_contiguous(self, to_fp32: bool = False) -> Self:
        """Goes on without `ChannelsLast`, the model in memory as it was made.

        Args:
            to_fp32: whether to leave mixed precision too, as `to_fp32` does.
        """
        self._without(ChannelsLast)
        lay_out(self.model, self.__dict__.get("opt"), torch.contiguous_format)
        return self.to_fp32() if to_fp32 else self

    def _mixed(self, precision: MixedPrecision) -> Self:
        """Adds a callback in the place of the one that was there."""
        return self._without(MixedPrecision).add_cb(precision)

    def _without(self, kind: type[Callback]) -> Self:
        """Removes the callbacks of a class; there may be none."""
        return self.remove_cbs([cb for cb in self.cbs if isinstance(cb, kind)])
