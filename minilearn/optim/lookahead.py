"""Lookahead: any optimizer, whose weights are drawn back every few steps towards slow ones; and `ranger`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minilearn.errors import describe, whole
from minilearn.optim import groups, lists
from minilearn.optim.groups import GroupMethods
from minilearn.optim.pieces import piece_of
from minilearn.optim.recipes import RAdam

STATE_HOOKS = (
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)
COUNT = "lookahead_step"
"""The name in each group of the number of steps that it has made."""
SLOW = "slow"
"""The name of the slow weights in each parameter's state."""


class Lookahead(GroupMethods):
    """An optimizer that takes `k` steps and then goes back part of the way: a smoother path, less hurt by a high rate.

    Every k steps, for the weights of the inner optimizer (fast) and their slow copies:
    slow ← slow + alpha·(fast - slow), fast ← slow.

    The slow weights begin as the weights before a parameter's first step. The model always holds the fast weights,
    which equal the slow ones after every k-th step. Groups, state and defaults are the inner optimizer's own, so that
    a scheduler may be given either; `state[p]["slow"]` and each group's ``"lookahead_step"`` are all that is added, and
    a saved state of the inner optimizer alone can be loaded too. A group that is added later counts its own steps.

    Args:
        opt: any `torch.optim.Optimizer`.
        k: the number of steps from one look back to the next, at least 1.
        alpha: the share of the way that the slow weights go, in [0, 1].
    Raises:
        TypeError: `opt` is no optimizer.
        ValueError: `k` or `alpha` is out of its range.
    Source: Zhang et al. 2019, algorithm 1 (arXiv:1907.08610); names and defaults of fastai 2.8.

    >>> from minilearn.optim import Adam
    >>> weight = torch.ones(2, requires_grad=True)
    >>> opt = Lookahead(Adam([weight], lr=0.1), k=5)
    """

    opt: torch.optim.Optimizer
    """The inner optimizer."""
    k: int
    alpha: float

    def __init__(self, opt: torch.optim.Optimizer, k: int = 6, alpha: float = 0.5) -> None:
        if not isinstance(opt, torch.optim.Optimizer):
            raise TypeError(f"Lookahead: opt must be a torch.optim.Optimizer, got {describe(opt)}")
        if not 0 <= alpha <= 1:
            raise ValueError(f"Lookahead: alpha must be in [0, 1], got {alpha}")
        # What torch's constructor makes, its hooks, without groups and state, which are the inner optimizer's.
        self.__setstate__({"opt": opt, "k": whole("Lookahead: k", k, 1), "alpha": float(alpha)})

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The inner optimizer's groups."""
        return self.opt.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.opt.param_groups = groups

    @property
    def state(self) -> Any:
        """The inner optimizer's state, the slow weights among it."""
        return self.opt.state

    @state.setter
    def state(self, state: Any) -> None:
        self.opt.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """The inner optimizer's defaults."""
        return self.opt.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.opt.defaults = defaults

    def uses_hyper(self, name: str) -> bool:
        """Whether the inner optimizer's rule takes a hyperparameter."""
        return not isinstance(self.opt, GroupMethods) or self.opt.uses_hyper(name)

    def clear_state(self) -> None:
        """Forgets the inner optimizer's averages, the slow weights and the count of steps."""
        if isinstance(self.opt, GroupMethods):
            self.opt.clear_state()
        else:
            groups.clear_state(self.opt)
        for values in self.opt.state.values():
            values.pop(SLOW, None)
        for group in self.opt.param_groups:
            group.pop(COUNT, None)

    def __getstate__(self) -> dict[str, Any]:
        return {"opt": self.opt, "k": self.k, "alpha": self.alpha}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name in STATE_HOOKS:  # the inner optimizer makes and loads the state: hooks of either act there
            self.__dict__[name] = self.opt.__dict__[name]

    def __repr__(self) -> str:
        return f"Lookahead(k={self.k}, alpha={self.alpha:g}) around {self.opt!r}"

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group to the inner optimizer."""
        self.opt.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Lets go of every parameter's gradient; with `set_to_none=False` fills it with zeros."""
        self.opt.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state, with the slow weights and the number of steps."""
        return self.opt.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes on a saved state, of a Lookahead or of the inner optimizer alone; slow weights are copied."""
        self.opt.load_state_dict(state_dict)
        for values in self.opt.state.values():
            if SLOW in values:
                values[SLOW] = values[SLOW].clone()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A step of the inner optimizer, and every k-th time the look back.

        Args:
            closure: computes the loss and the gradients anew; handed on to the inner optimizer.
        Returns:
            What the inner optimizer's step returned.
        """
        if torch.compiler.is_dynamo_compiling():  # as in `Optimizer.step`
            return _step_untraced(self, closure)
        return self._step(closure)

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        # Optimizers of torch set a parameter's state up where they find it empty: the copies join it afterwards.
        before = self._without_slow(closure is not None)
        copies = [torch.empty_like(p, memory_format=torch.preserve_format) for p in before]
        if before:
            lists.copy_([piece_of(copy) for copy in copies], [piece_of(p) for p in before])
        loss = self.opt.step() if closure is None else self.opt.step(closure)
        for p, copy in zip(before, copies, strict=True):
            if p.grad is not None:
                self.opt.state[p][SLOW] = copy
        for group in self.opt.param_groups:
            group[COUNT] = count = group.get(COUNT, 0) + 1
            if count % self.k == 0:
                self._look_back(group["params"])
        return loss

    def _without_slow(self, all_of_them: bool) -> list[Tensor]:
        """The parameters without slow weights that this step may move: those with a gradient, or that will have one."""
        state = self.opt.state
        return [
            p
            for group in self.opt.param_groups
            for p in group["params"]
            if (p.grad is not None or all_of_them) and (p not in state or SLOW not in state[p])
        ]

    def _look_back(self, params: list[Tensor]) -> None:
        state = self.opt.state
        fast = [p for p in params if p in state and SLOW in state[p]]
        if not fast:
            return
        slow = [state[p][SLOW] for p in fast]
        for i, p in enumerate(fast):
            if slow[i].dtype != p.dtype or slow[i].device != p.device:  # the model has been moved or converted since
                slow[i] = state[p][SLOW] = slow[i].to(p)
        slow, fast = [piece_of(one) for one in slow], [piece_of(p) for p in fast]
        lists.lerp_(slow, fast, self.alpha)
        lists.copy_(fast, slow)


_step_untraced = lists.untraced(Lookahead._step)


def ranger(
    params: Any,
    lr: float,
    mom: float = 0.95,
    wd: float = 0.01,
    eps: float = 1e-6,
    k: int = 6,
    alpha: float = 0.5,
    **kwargs: Any,
) -> Lookahead:
    """Lookahead around RAdam.

    Args:
        params: parameters or groups of them.
        lr: learning rate, in parameter units.
        mom: the decay of the gradients' average, in [0, 1).
        wd: weight decay, in [0, ∞).
        eps: added to the root, in gradient units.
        k: the number of steps from one look back to the next, at least 1.
        alpha: the share of the way that the slow weights go, in [0, 1].
        kwargs: what else `RAdam` takes.
    Source: defaults of fastai 2.8.
    """
    return Lookahead(RAdam(params, lr, mom=mom, wd=wd, eps=eps, **kwargs), k, alpha)
