"""The scheduled fits: each is a schedule of the rates, and a fit with it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from torch.optim import Optimizer

from minilearn.callback import Callbacks
from minilearn.callbacks.checkpoint import Kept, part_of
from minilearn.callbacks.schedule import LayerSchedule, ParamScheduler
from minilearn.described import DescribedLoop
from minilearn.errors import in_range, positive, share, whole
from minilearn.optim.groups import GroupMethods, Spread, has_momentum, layer_count, spread
from minilearn.optim.hypers import place
from minilearn.schedule import SEAM, SchedCos, SchedLin, SchedNo, SchedPoly, Schedule, combine_scheds, combined_cos

Moms = tuple[float, float, float]

USUAL_MOMS: Moms = (0.95, 0.85, 0.95)
"""The momenta of one cycle where nobody names any, and the optimizer has momentum. Source: fastai 2.8."""


def check_moms(moms: Any) -> Moms | None:
    """`moms` as three numbers, or None.

    Raises:
        TypeError: they are not three numbers.
        ValueError: one is not in [0, 1).
    """
    if moms is None:
        return None
    several = list(moms) if isinstance(moms, Iterable) and not isinstance(moms, str) else []
    if len(several) != 3:
        raise TypeError(f"moms must be three momenta, at the start, the middle and the end, got {moms!r}")
    start, middle, end = (in_range("moms", mom, 0, 1) for mom in several)
    return start, middle, end


class ScheduledFits(DescribedLoop, ABC):
    """The fits of a Learner whose hyperparameters follow a schedule; what they share with `fit` is said there.

    `lr` and `lr_max` are `Spread`, by default the Learner's `lr`. The schedule goes by the share of training that is
    done, so that a fit cut short goes on with ``start_epoch`` at the very rates it would have had. After the fit the
    optimizer has again the momenta it had before, and `fit` sets its own rate: see `ParamScheduler`.
    """

    wd: float | None
    moms: Moms | None

    @abstractmethod
    def fit(
        self,
        n_epoch: int,
        lr: Spread | None = None,
        wd: float | None = None,
        cbs: Callbacks = None,
        reset_opt: bool = False,
        start_epoch: int = 0,
        checkpoint: Kept = None,
    ) -> None:
        """Trains for `n_epoch` epochs, and validates after each."""

    def fit_one_cycle(
        self,
        n_epoch: int,
        lr_max: Spread | None = None,
        div: float = 25.0,
        div_final: float = 1e5,
        pct_start: float = 0.25,
        wd: float | None = None,
        moms: Moms | None = None,
        cbs: Callbacks = None,
        reset_opt: bool = False,
        start_epoch: int = 0,
        checkpoint: Kept = None,
    ) -> None:
        """Trains with one cycle: the rate rises and falls along cosines while the momentum falls and rises.

        Args:
            n_epoch: the number at which epochs end.
            lr_max: the highest rate.
            div: `lr_max` over the rate at the start.
            div_final: `lr_max` over the rate at the end.
            pct_start: the share of training in which the rate rises, in [0, 1].
            wd: weight decay, as in `fit`.
            moms: the momenta at the start, at `pct_start` and at the end; by default the Learner's, and where that has
                none either, (0.95, 0.85, 0.95) for an optimizer that was made with momentum, none for another.
            cbs: callbacks for this fit only.
            reset_opt: begin with a new optimizer.
            start_epoch: the epoch to begin with.
            checkpoint: as in `fit`.
        Raises:
            ValueError: an argument is out of its range, there is not one rate a layer, or momenta are asked for from
                an optimizer that was made without.
        Source: Smith and Topin 2018 (arXiv:1708.07120); shape and defaults of fastai 2.8.
        """
        div, div_final = positive("div", div), positive("div_final", div_final)
        pct = share("pct_start", pct_start)

        def shape(lr: float) -> Schedule:
            return combined_cos(pct, lr / div, lr, lr / div_final)

        cycle = pct, self.moms if moms is None else check_moms(moms)
        self._fit_by(shape, n_epoch, ("lr_max", lr_max), wd, cbs, reset_opt, start_epoch, checkpoint, cycle)

    def fit_flat_cos(
        self,
        n_epoch: int,
        lr: Spread | None = None,
        div_final: float = 1e5,
        pct_start: float = 0.75,
        wd: float | None = None,
        cbs: Callbacks = None,
        reset_opt: bool = False,
        start_epoch: int = 0,
        checkpoint: Kept = None,
    ) -> None:
        """Trains at one rate, and then lets it fall along a cosine.

        Args:
            n_epoch: the number at which epochs end.
            lr: the rate.
            div_final: `lr` over the rate at the end.
            pct_start: the share of training at `lr`, in [0, 1].
            wd: weight decay, as in `fit`.
            cbs: callbacks for this fit only.
            reset_opt: begin with a new optimizer.
            start_epoch: the epoch to begin with.
            checkpoint: as in `fit`.
        Raises:
            ValueError: an argument is out of its range, or there is not one rate a layer.
        Source: shape and defaults of fastai 2.8.
        """
        div_final, pct = positive("div_final", div_final), share("pct_start", pct_start)

        def shape(lr: float) -> Schedule:
            return combine_scheds([pct, 1 - pct], [SchedNo(lr, lr), SchedCos(lr, lr / div_final)])

        self._fit_by(shape, n_epoch, ("lr", lr), wd, cbs, reset_opt, start_epoch, checkpoint)

    def fit_sgdr(
        self,
        n_cycles: int,
        cycle_len: int,
        lr_max: Spread | None = None,
        cycle_mult: int = 2,
        cbs: Callbacks = None,
        reset_opt: bool = False,
        wd: float | None = None,
        start_epoch: int = 0,
        checkpoint: Kept = None,
    ) -> None:
        """Trains in cycles: in each the rate falls from `lr_max` to 0 along a cosine, and the next starts anew.

        Args:
            n_cycles: how many cycles, at least 1.
            cycle_len: the epochs of the first, at least 1.
            lr_max: the rate at the start of each.
            cycle_mult: a cycle's epochs over those of the one before it, a whole number of at least 1.
            cbs: callbacks for this fit only.
            reset_opt: begin with a new optimizer.
            wd: weight decay, as in `fit`.
            start_epoch: the epoch to begin with, counted over all cycles.
            checkpoint: as in `fit`.
        Raises:
            ValueError: an argument is out of its range, or there is not one rate a layer.
        Source: Loshchilov and Hutter 2017, section 3 (arXiv:1608.03983); defaults of fastai 2.8.
        """
        first, mult = whole("cycle_len", cycle_len, 1), whole("cycle_mult", cycle_mult, 1)
        epochs = [first * mult**i for i in range(whole("n_cycles", n_cycles, 1))]
        n_epoch = sum(epochs)

        def shape(lr: float) -> Schedule:
            return combine_scheds([n / n_epoch for n in epochs], [SchedCos(lr, 0.0)] * len(epochs))

        self._fit_by(shape, n_epoch, ("lr_max", lr_max), wd, cbs, reset_opt, start_epoch, checkpoint)

    def fit_warmup_cos(
        self,
        n_epoch: int,
        lr: Spread | None = None,
        pct_warmup: float = 0.1,
        div: float = 100.0,
        div_final: float = 1e5,
        wd: float | None = None,
        cbs: Callbacks = None,
        reset_opt: bool = False,
        start_epoch: int = 0,
        checkpoint: Kept = None,
    ) -> None:
        """Trains with a warm-up along a line and a fall along a cosine: the usual schedule of transformers.

        Args:
            n_epoch: the number at which epochs end.
            lr: the highest rate.
            pct_warmup: the share of training in which the rate rises, in [0, 1].
            div: `lr` over the rate at the start.
            div_final: `lr` over the rate at the end; 10 for the tenth that is usual in language models.
            wd: weight decay, as in `fit`.
            cbs: callbacks for this fit only.
            reset_opt: begin with a new optimizer.
            start_epoch: the epoch to begin with.
            checkpoint: as in `fit`.
        Raises:
            ValueError: an argument is out of its range, or there is not one rate a layer.
        Source: the shape of Brown et al. 2020, appendix B (arXiv:2005.14165).
        """
        div, div_final, pct = positive("div", div), positive("div_final", div_final), share("pct_warmup", pct_warmup)

        def shape(lr: float) -> Schedule:
            return combine_scheds([pct, 1 - pct], [SchedLin(lr / div, lr), SchedCos(lr, lr / div_final)])

        self._fit_by(shape, n_epoch, ("lr", lr), wd, cbs, reset_opt, start_epoch, checkpoint)

    def fit_wsd(
        self,
        n_epoch: int,
        lr: Spread | None = None,
        pct_warmup: float = 0.05,
        pct_decay: float = 0.2,
        div: float = 100.0,
        div_final: float = 1e5,
        wd: float | None = None,
        cbs: Callbacks = None,
        reset_opt: bool = False,
        start_epoch: int = 0,
        checkpoint: Kept = None,
    ) -> None:
        """Trains with a warm-up along a line, at one rate, and with a fall as 1 - √s over its share s: WSD.

        Up to the fall nothing depends on where training ends: weights from there can be trained on for longer.

        Args:
            n_epoch: the number at which epochs end.
            lr: the rate in the middle, the highest.
            pct_warmup: the share of training in which the rate rises, in [0, 1].
            pct_decay: the share in which it falls, in [0, 1]; both together are at most 1.
            div: `lr` over the rate at the start.
            div_final: `lr` over the rate at the end.
            wd: weight decay, as in `fit`.
            cbs: callbacks for this fit only.
            reset_opt: begin with a new optimizer.
            start_epoch: the epoch to begin with.
            checkpoint: as in `fit`.
        Raises:
            ValueError: an argument is out of its range, or there is not one rate a layer.
        Source: Hu et al. 2024, section 4 (arXiv:2404.06395); the fall is the one that Hägele et al. 2024, section 3
            (arXiv:2405.18392), found better than a line.
        """
        div, div_final = positive("div", div), positive("div_final", div_final)
        rise, fall = share("pct_warmup", pct_warmup), share("pct_decay", pct_decay)
        flat = 1 - rise - fall
        if flat < -SEAM:
            raise ValueError(f"pct_warmup and pct_decay must add up to at most 1, got {pct_warmup} and {pct_decay}")

        def shape(lr: float) -> Schedule:
            parts = [SchedLin(lr / div, lr), SchedNo(lr, lr), SchedPoly(lr, lr / div_final, 0.5)]
            return combine_scheds([rise, max(flat, 0.0), fall], parts)

        self._fit_by(shape, n_epoch, ("lr", lr), wd, cbs, reset_opt, start_epoch, checkpoint)

    def fine_tune(
        self,
        epochs: int,
        base_lr: float = 2e-3,
        freeze_epochs: int = 1,
        lr_mult: float = 100,
        pct_start: float = 0.3,
        div: float = 5.0,
        *,
        div_final: float = 1e5,
        wd: float | None = None,
        moms: Moms | None = None,
        cbs: Callbacks = None,
        reset_opt: bool = False,
        start_epoch: int = 0,
        checkpoint: Kept = None,
    ) -> None:
        """Trains the last layer alone for `freeze_epochs`, then all of them for `epochs`, the first ones gently.

        Two fits of one cycle: frozen, at ``slice(base_lr)``, rising over 0.99 of it from 1/25; then unfrozen, at half
        of that, from ``base_lr / 2 / lr_mult`` for the first layer to ``base_lr / 2`` for the last. No layer stays
        frozen, whatever ended it.

        Args:
            epochs: the epochs of the second fit.
            base_lr: the highest rate of the first fit.
            freeze_epochs: the epochs of the first fit; 0 leaves it out.
            lr_mult: the last layer's rate over the first layer's in the second fit.
            pct_start: the share of the second fit in which the rate rises, in [0, 1].
            div: the highest rate over that at the start, in the second fit.
            div_final: the highest rate over that at the end, in both.
            wd: weight decay, as in `fit`.
            moms: as in `fit_one_cycle`.
            cbs: callbacks for both fits.
            reset_opt: begin each fit with a new optimizer.
            start_epoch: the epoch to begin with, counted over both fits: from `freeze_epochs` on, the first is left
                out.
            checkpoint: as in `fit`; each fit has a folder in it, `frozen` and `unfrozen`.
        Raises:
            ValueError: an argument is out of its range, or momenta are asked for from an optimizer that was made
                without.
        Source: fastai 2.8.
        """
        self._not_running()
        epochs, freeze_epochs = whole("epochs", epochs), whole("freeze_epochs", freeze_epochs)
        start_epoch = whole("start_epoch", start_epoch)
        if start_epoch > freeze_epochs + epochs:
            total = freeze_epochs + epochs
            raise ValueError(f"start_epoch must be at most freeze_epochs + epochs, {total} here, got {start_epoch}")
        base_lr, lr_mult = positive("base_lr", base_lr), positive("lr_mult", lr_mult)
        div, div_final, pct = positive("div", div), positive("div_final", div_final), share("pct_start", pct_start)
        fit = partial(
            self.fit_one_cycle, div_final=div_final, wd=wd, moms=check_moms(moms), cbs=cbs, reset_opt=reset_opt
        )
        try:
            if start_epoch < freeze_epochs:
                self.freeze()
                kept = part_of(checkpoint, "frozen")
                fit(freeze_epochs, slice(base_lr), pct_start=0.99, start_epoch=start_epoch, checkpoint=kept)
        finally:
            self.unfreeze()
        rates = slice(base_lr / 2 / lr_mult, base_lr / 2)
        start_epoch, kept = max(start_epoch - freeze_epochs, 0), part_of(checkpoint, "unfrozen")
        fit(epochs, rates, div=div, pct_start=pct, start_epoch=start_epoch, checkpoint=kept)

    def _fit_by(
        self,
        shape: Callable[[float], Schedule],
        n_epoch: int,
        named_lr: tuple[str, Spread | None],
        wd: float | None,
        cbs: Callbacks,
        reset_opt: bool,
        start_epoch: int,
        checkpoint: Kept,
        cycle: tuple[float, Moms | None] | None = None,
    ) -> None:
        """A fit in which each layer's rate follows `shape` of that layer's highest rate.

        The optimizer is made before the fit, so that what does not go with it is refused before anything is done.
        """
        self._not_running()
        whole("n_epoch", n_epoch)
        whole("start_epoch", start_epoch)
        opt = self._ready_opt(reset_opt)
        name, lr = named_lr
        rates = [in_range(name, rate, 0) for rate in spread(self.lr if lr is None else lr, layer_count(opt), name)]
        scheds: dict[str, LayerSchedule] = {"lr": _by_layer([shape(rate) for rate in rates], rates)}
        if cycle is not None and (moms := _moms_for(opt, cycle[1])) is not None:
            scheds["mom"] = combined_cos(cycle[0], *moms)
        given = cbs if isinstance(cbs, Iterable) else () if cbs is None else (cbs,)
        given = [ParamScheduler(scheds), *given]
        self.fit(n_epoch, wd=wd, cbs=given, start_epoch=start_epoch, checkpoint=checkpoint)


def _by_layer(scheds: Sequence[Schedule], rates: Sequence[float]) -> LayerSchedule:
    """The schedules of all layers as one; where all have the same rate it is the first."""
    if len(set(rates)) == 1:
        return scheds[0]
    return lambda t: [sched(t) for sched in scheds]


def _moms_for(opt: Optimizer, asked: Moms | None) -> Moms | None:
    """The momenta of a cycle: those asked for, else the usual ones for an optimizer that was made with momentum.

    Raises:
        ValueError: momenta are asked for from an optimizer that was made without.
    """
    if has_momentum(opt):
        return asked or USUAL_MOMS
    if asked is None:
        return None
    inner: Any = opt
    while isinstance(around := getattr(inner, "opt", None), Optimizer):  # Lookahead has the momentum of another
        inner = around
    kind = type(inner).__name__
    says = f"moms asks for momenta {asked}, but {kind}"
    spot = place(inner.param_groups[-1], "mom")
    if spot is None:
        raise ValueError(f"{says} has no momentum: leave moms out")
    fix = f"{spot[0]}={'0.9' if spot[1] is None else '(0.9, 0.999)'}"
    if inner is opt and type(opt).__module__.startswith(("torch.optim.", "minilearn.optim.recipes")):
        torchs = "" if isinstance(opt, GroupMethods) else "torch.optim."
        fix += f", opt_func=partial({torchs}{kind}, {fix})"
    raise ValueError(f"{says} was made without momentum: make it with {fix}, or leave moms out")
