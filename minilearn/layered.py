"""The optimizer of a Learner: made of the model's layers when a fit needs it, and which layers are trained."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from minilearn.managed import ManagedLoop
from minilearn.optim import groups
from minilearn.optim.foreign import make_optimizer

Splitter = Callable[[nn.Module], Sequence[Any]]
"""Gives the parameters to train, or lists of them, one for each layer."""


def trainable_params(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of `model` that are trained: those that require a gradient."""
    return [p for p in model.parameters() if p.requires_grad]


def params(module: nn.Module) -> list[nn.Parameter]:
    """All parameters of a module, as a list.

    >>> two_layers = lambda model: [params(model[0]), params(model[1])]  # a splitter for `Learner`
    """
    return list(module.parameters())


class LayeredLoop(ManagedLoop):
    """A loop that makes its optimizer over the layers that `splitter` gives, and freezes and unfreezes them."""

    opt_func: Callable[..., Optimizer]
    splitter: Splitter
    lr: groups.Spread
    wd_bn_bias: bool
    train_bn: bool

    def _opt_is_stale(self) -> bool:
        """Whether there is no optimizer yet, or the one that was made trains other parameters than the model's."""
        if "opt" not in self.__dict__:
            return True
        opt, opt_func, made = self.__dict__.get("_made", (None, None, {}))
        if self.opt is not opt:  # set by hand: the user knows
            return False
        found = self.splitter(self.model)
        if opt_func is self.opt_func and groups.still_made_of(made, self.model, found, wd_bn_bias=self.wd_bn_bias):
            return False
        self.logger("a new optimizer is made, as the model's parameters, or opt_func, are others than before")
        return True

    def _ready_opt(self, reset_opt: bool) -> Optimizer:
        if reset_opt or self._opt_is_stale():
            self.create_opt()
        if not groups.has_trainable(self.opt):
            raise ValueError(groups.NOTHING_TO_TRAIN.format(type(self.model).__name__))
        return self.opt

    def create_opt(self) -> None:
        """Makes the optimizer anew, from `opt_func`, over the parameters that `splitter` gives.

        Normalisation layers and biases are in groups of their own, without weight decay, unless `wd_bn_bias`; for an
        optimizer that takes one group only, as LBFGS, all are in one.

        Raises:
            ValueError: there is no parameter to train.
            TypeError: `opt_func` gives no optimizer.
        """
        given = groups.param_groups(self.model, self.splitter(self.model), wd_bn_bias=self.wd_bn_bias)
        lr = groups.spread(self.lr, given[-1]["layer"] + 1, "lr")[-1]
        self.opt = make_optimizer(self.opt_func, given, lr, self.model)
        self._made = self.opt, self.opt_func, groups.made_of(given)
        groups.set_hypers(self.opt, lr=self.lr)

    def freeze_to(self, n: int) -> None:
        """Freezes the layers before number `n`, as `splitter` gives them, and trains those from `n` on.

        The optimizer goes on with its averages. Normalisation layers are trained in frozen layers too, with `train_bn`.
        """
        if self._opt_is_stale():
            self.create_opt()
        groups.freeze_to(self.opt, n, train_bn=self.train_bn)
        if note := groups.freeze_note(self.opt, self.model, n):
            self.logger(note)

    def freeze(self) -> None:
        """Freezes all layers but the last: `freeze_to(-1)`."""
        self.freeze_to(-1)

    def unfreeze(self) -> None:
        """Trains all layers: `freeze_to(0)`."""
        self.freeze_to(0)
