"""The optimizers: each puts a few steppers together, in one to five lines."""

from typing import Any

from minilearn.optim.optimizer import Optimizer
from minilearn.optim.steppers import Stepper, adam_step, l2_reg, momentum, sgd_step, weight_decay


class SGD(Optimizer):
    """Stochastic gradient descent: p ← p - lr·g, with momentum if asked for.

    Args:
        params: parameters or groups of them.
        lr: learning rate, in parameter units per gradient unit.
        mom: momentum, the share of the last update that is kept, in [0, 1).
        wd: weight decay, per unit of learning rate, in [0, ∞).
        decouple_wd: shrink the parameters by lr·wd; False adds wd·p to the gradients instead (L2).
    Raises:
        ValueError: a hyperparameter is out of its range.
    Source: with `decouple_wd=False` equal to `torch.optim.SGD(momentum=mom, weight_decay=wd)`.
    """

    def __init__(self, params: Any, lr: float, mom: float = 0.0, wd: float = 0.0, decouple_wd: bool = True) -> None:
        rules = [_decay(decouple_wd), momentum, sgd_step]
        super().__init__(params, rules, lr=lr, mom=mom, wd=wd)


class Adam(Optimizer):
    """Adam with decoupled weight decay (AdamW): steps in units of each parameter's own recent gradient.

    Args:
        params: parameters or groups of them.
        lr: learning rate, in parameter units: about the size of a step.
        mom: the decay of the gradients' average, in [0, 1).
        sqr_mom: the decay of the squared gradients' average, in [0, 1).
        eps: added to the root, in gradient units; it bounds the step where gradients vanish.
        wd: weight decay, per unit of learning rate, in [0, ∞).
        decouple_wd: shrink the parameters by lr·wd; False adds wd·p to the gradients instead (L2).
    Raises:
        ValueError: a hyperparameter is out of its range.
    Source: Kingma and Ba 2015 (arXiv:1412.6980), Loshchilov and Hutter 2019 (arXiv:1711.05101); equal to
        `torch.optim.AdamW(betas=(mom, sqr_mom), eps=eps, weight_decay=wd)`.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        mom: float = 0.9,
        sqr_mom: float = 0.99,
        eps: float = 1e-5,
        wd: float = 0.01,
        decouple_wd: bool = True,
    ) -> None:
        rules = [_decay(decouple_wd), adam_step]
        super().__init__(params, rules, lr=lr, mom=mom, sqr_mom=sqr_mom, eps=eps, wd=wd)


def _decay(decouple_wd: bool) -> Stepper:
    return weight_decay if decouple_wd else l2_reg
