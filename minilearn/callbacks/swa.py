"""The average of the weights at the ends of epochs."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_swa_multi_avg_fn, update_bn

from minilearn import distributed
from minilearn.callbacks.average import Update, WeightAverage
from minilearn.callbacks.device import DevicePlacement
from minilearn.callbacks.schedule import ParamScheduler, put_back
from minilearn.data.loader import ANEW
from minilearn.data.shares import Share
from minilearn.errors import share, whole
from minilearn.graphs import call
from minilearn.loop import OF_A_BATCH
from minilearn.optim.groups import Spread, numbers_of, set_hypers


class SWA(WeightAverage):
    """Averages the weights of the epochs' ends, all alike, from a share of the training on.

    After each such epoch the average is in the model, and where that has batch normalisation, its running statistics
    are measured anew for it, by a pass over the training batches without their gradients (`update_bn`; the loaders'
    `batch_tfms` but for those that are for training only). When it is in the model: see `WeightAverage`. A fit that
    breaks off between the average and its statistics leaves the model's own weights.

    A batch costs nothing but, with `swa_lr`, the setting of the rate (17 µs on a CPU). Nothing waits for a device; a
    compiled step stays one graph.

    Args:
        swa_start: the share of the training before the first weights that count, in [0, 1].
        swa_lr: the learning rate from there on, as `fit` takes it, whatever a schedule says; None leaves the schedule.
        bn_batches: how many training batches to measure the statistics on; None for all.
        leaves_average: whether the average is in the model after the fit; else the weights are, and `average` has it.
    Raises:
        ValueError: an argument is out of its range; when a fit begins: there are two averages, the optimizer has its
            own, or the training loader can be run through only once and there is batch normalisation.
    Source: Izmailov et al. 2018 (arXiv:1803.05407), algorithm 1; `get_swa_multi_avg_fn`, `update_bn` of
        torch.optim.swa_utils.

    >>> swa = SWA(0.6, swa_lr=0.01)
    """

    order = ParamScheduler.order + 1  # has the last word on the rate

    def __init__(
        self,
        swa_start: float = 0.75,
        swa_lr: Spread | None = None,
        *,
        bn_batches: int | None = None,
        leaves_average: bool = True,
    ) -> None:
        self._lrs: list[dict[str, float]] | None = None
        super().__init__(leaves_average)
        self.swa_start = share("swa_start", swa_start)
        self.swa_lr = None if swa_lr is None else _rate(swa_lr)
        self.bn_batches = None if bn_batches is None else whole("bn_batches", bn_batches, 1)
        self._function: Update = get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]

    def state_dict(self) -> dict[str, Any]:
        """As of `WeightAverage`; and of which average the statistics are, and the rates before `swa_lr`."""
        return {**super().state_dict(), "n_measured": self._n_measured, "lrs": self._lrs}

    def before_fit(self) -> None:
        super().before_fit()
        if _batch_norms(self.model) and hasattr(self.dls.train, "__next__"):
            raise ValueError(
                "SWA goes through the training loader once more for the statistics of batch normalisation, and it can"
                f" be run through only once. {ANEW}"
            )

    def before_batch(self) -> None:
        super().before_batch()
        if self.swa_lr is not None and self.learn.pct_train >= self.swa_start:
            if self._lrs is None:
                self._lrs = [{"lr": float(group["lr"])} for group in self.opt.param_groups]
            set_hypers(self.opt, lr=self.swa_lr)

    def after_train(self) -> None:
        if (self.epoch + 1) / self.n_epoch >= self.swa_start:
            self._average_with(self._function)
        super().after_train()

    def cleanup_fit(self) -> None:
        if self._lrs is not None:
            put_back(self.opt, self._lrs)
            self._lrs = None
        super().cleanup_fit()

    def set_aside(self) -> dict[str, Tensor]:
        """The model's parameters, and all that its batch normalisation counts and measures, by name."""
        return self.averaged() | {
            f"{place}.{name}" if place else name: t
            for place, module in _batch_norms(self.model).items()
            for name, t in module.named_buffers(recurse=False)
        }

    def _forget(self) -> None:
        super()._forget()
        self._n_measured, self._lrs = 0, None
        self._seen = 0

    def _put_in(self) -> None:
        already = bool(self._weights)
        super()._put_in()
        if not already and self._weights and self._n_measured != self.n_averaged:
            self._measure()
            for name in self._own.keys() - self.averaged().keys():
                self.average[name].copy_(self._own[name])
            self._n_measured = self.n_averaged

    def _end(self) -> None:
        if self._n_measured != self.n_averaged:  # an error or Ctrl-C came before the statistics, or in their midst
            self._take_out()
            self.n_averaged = 0
        super()._end()

    def _take_on(self, state: Mapping[str, Any]) -> None:
        super()._take_on(state)
        self._n_measured, self._lrs = state["n_measured"], state["lrs"]

    def _measure(self) -> None:
        """Measures the statistics of batch normalisation over the training batches, of layers that are in training."""
        norms, learn = _batch_norms(self.model), self.learn
        if not norms:
            return
        modes = [(module, module.training) for module in self.model.modules()]
        momenta = [(module, module.momentum) for module in norms.values()]
        frozen = [(t, t.clone()) for module in norms.values() if not module.training for t in module.buffers()]
        kept = {name: learn.__dict__[name] for name in (*OF_A_BATCH, "training") if name in learn.__dict__}
        try:
            learn.training = False  # for the transforms
            self._seen = 0
            update_bn(self._inputs(), _OfInputs(self.model))
            self._join([t for module in norms.values() for t in module.buffers()])
            for t, before in frozen:
                t.copy_(before)
        finally:
            for module, mode in modes:
                module.training = mode
            for module, momentum in momenta:
                module.momentum = momentum
            learn._forget(*OF_A_BATCH)
            learn.__dict__.update(kept)

    def _join(self, measured: list[Tensor]) -> None:
        """Puts the mean of what all processes have measured into each, by the batches that each has had."""
        if distributed.world_size() > 1:
            weight = self._seen / distributed.sum_numbers([self._seen])[0]
            for t in measured:
                if t.is_floating_point():
                    t.copy_(distributed.sum_all(t * weight if self._seen else torch.zeros_like(t)))
            distributed.same_as_main(t for t in measured if not t.is_floating_point())

    def _inputs(self) -> Iterator[Any]:
        """The inputs of the training batches on the device, each in a tuple, of which `update_bn` takes the first."""
        place = [cb for cb in self.learn.cbs if isinstance(cb, DevicePlacement)]
        part = Share(self.dls.train) if distributed.world_size() > 1 else None
        for i, batch in enumerate(self.dls.train if part is None else part):
            if i == self.bn_batches:
                return
            if part is not None and not part.own:
                continue
            self._seen += 1
            self.learn._take(batch)
            for cb in place:
                cb.before_batch()
            yield (self.learn.xb,)


def _rate(swa_lr: Spread) -> Spread:
    try:
        return numbers_of(swa_lr, "lr")
    except (TypeError, ValueError) as error:
        raise type(error)(f"swa_{error}") from None


class _OfInputs(nn.Module):
    """A model that takes all of a batch's inputs as one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, xb: Any) -> Any:
        return call(self.model, xb)


def _batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The layers whose running statistics `update_bn` measures, by name."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    return {name: module for name, module in found.items() if module.running_mean is not None}
