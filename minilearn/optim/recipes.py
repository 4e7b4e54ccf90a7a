"""The optimizers: each puts a few steppers together, in one to five lines.

Common to all, and not repeated below: `params` are parameters or groups of them; `lr` is the learning rate; `wd` is
weight decay per unit of learning rate, which shrinks the parameters by lr·wd (decoupled), or with `decouple_wd=False`
adds wd·p to the gradients (L2). The options are `l1`, which adds l1·sign(p) to the gradients, and `compile`, which
makes one kernel of the rule with `torch.compile`. A hyperparameter out of its range raises a `ValueError` that names
it, also in a group.
"""

from functools import partial
from typing import Any, Unpack

from minilearn.optim import kernels
from minilearn.optim.optimizer import Optimizer, Options
from minilearn.optim.steppers import (
    Stepper,
    adadelta_step,
    adagrad_step,
    adam_step,
    centred_rms_scale,
    dampened_momentum,
    l2_reg,
    lamb_step,
    larc_scale,
    lion_step,
    momentum,
    nadam_step,
    nesterov_momentum,
    qhadam_step,
    radam_step,
    rms_scale,
    sgd_step,
    weight_decay,
)


class SGD(Optimizer):
    """Stochastic gradient descent: p ← p - lr·g, with momentum if asked for.

    Args:
        params: parameters or groups of them.
        lr: learning rate, in parameter units per gradient unit.
        mom: momentum, the share of the last update that is kept, in [0, 1).
        wd: weight decay, in [0, ∞).
        decouple_wd: decoupled decay; False for L2.
        nesterov: look ahead along the momentum.
        dampening: the share of the gradient that momentum leaves out, in [0, ∞).
        options: `l1` and `compile`.
    Raises:
        ValueError: a hyperparameter is out of its range, or `nesterov` comes with `dampening`.
    Source: with `decouple_wd=False` equal to `torch.optim.SGD(momentum=mom, weight_decay=wd)`.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        mom: float = 0.0,
        wd: float = 0.0,
        decouple_wd: bool = True,
        *,
        nesterov: bool = False,
        dampening: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        if nesterov and dampening:
            raise ValueError("SGD: nesterov looks ahead along the whole momentum: give it without dampening")
        average = nesterov_momentum if nesterov else dampened_momentum if dampening else momentum
        rules = [_decay(decouple_wd), average, sgd_step]
        fast: list[Any] = [kernels.plain_sgd]
        if not dampening:
            fast.append(partial(kernels.sgd, decouple_wd=decouple_wd, nesterov=nesterov))
        hypers: Any = {"lr": lr, "mom": mom, "wd": wd, "dampening": dampening}
        super().__init__(params, rules, kernels=fast, sparse=True, **hypers, **options)


class RMSProp(Optimizer):
    """SGD with each gradient in units of its own recent size.

    Args:
        params: parameters or groups of them.
        lr: learning rate, in parameter units.
        mom: momentum, in [0, 1).
        sqr_mom: the decay of the squared gradients' average, in [0, 1).
        eps: added to the root, in gradient units.
        wd: weight decay, in [0, ∞).
        decouple_wd: decoupled decay; False for L2.
        centered: in units of the spread around the mean gradient.
        options: `l1` and `compile`.
    Source: `torch.optim.RMSprop(alpha=sqr_mom, centered=centered)`.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        mom: float = 0.0,
        sqr_mom: float = 0.99,
        eps: float = 1e-8,
        wd: float = 0.0,
        decouple_wd: bool = True,
        *,
        centered: bool = False,
        **options: Unpack[Options],
    ) -> None:
        rules = [_decay(decouple_wd), centred_rms_scale if centered else rms_scale, momentum, sgd_step]
        fast = [] if centered or not decouple_wd else [kernels.rms_prop]
        super().__init__(params, rules, kernels=fast, lr=lr, mom=mom, sqr_mom=sqr_mom, eps=eps, wd=wd, **options)


class Adagrad(Optimizer):
    """Steps that shrink as a parameter's squared gradients add up: large for rare features, small for frequent ones.

    Args:
        params: parameters or groups of them.
        lr: learning rate, in parameter units.
        eps: added to the root, in gradient units.
        wd: weight decay, in [0, ∞).
        decouple_wd: decoupled decay; False for L2.
        options: `l1` and `compile`.
    Source: Duchi et al. 2011; `torch.optim.Adagrad`.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        eps: float = 1e-10,
        wd: float = 0.0,
        decouple_wd: bool = True,
        **options: Unpack[Options],
    ) -> None:
        rules, fast = [_decay(decouple_wd), adagrad_step], [partial(kernels.adagrad, decouple_wd=decouple_wd)]
        super().__init__(params, rules, kernels=fast, sparse=True, lr=lr, eps=eps, wd=wd, **options)


class Adadelta(Optimizer):
    """Steps in the parameters' own units, so that lr=1 is a usual rate.

    Args:
        params: parameters or groups of them.
        lr: learning rate, without a unit.
        sqr_mom: the decay of both averages, in [0, 1).
        eps: added under both roots, in squared units.
        wd: weight decay, in [0, ∞).
        decouple_wd: decoupled decay; False for L2.
        options: `l1` and `compile`.
    Source: Zeiler 2012 (arXiv:1212.5701); `torch.optim.Adadelta(rho=sqr_mom)`.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        sqr_mom: float = 0.9,
        eps: float = 1e-6,
        wd: float = 0.0,
        decouple_wd: bool = True,
        **options: Unpack[Options],
    ) -> None:
        rules = [_decay(decouple_wd), adadelta_step]
        super().__init__(params, rules, lr=lr, sqr_mom=sqr_mom, eps=eps, wd=wd, **options)


class Adam(Optimizer):
    """Adam with decoupled weight decay (AdamW): steps in units of each parameter's own recent gradient.

    Args:
        params: parameters or groups of them.
        lr: learning rate, in parameter units: about the size of a step.
        mom: the decay of the gradients' average, in [0, 1).
        sqr_mom: the decay of the squared gradients' average, in [0, 1).
        eps: added to the root, in gradient units; it bounds the step where gradients vanish.
        wd: weight decay, in [0, ∞).
        decouple_wd: decoupled decay; False for L2.
        options: `l1` and `compile`.
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
        **options: Unpack[Options],
    ) -> None:
        rules, fast = [_decay(decouple_wd), adam_step], [partial(kernels.adam, decouple_wd=decouple_wd)]
        super().__init__(params, rules, kernels=fast, lr=lr, mom=mom, sqr_mom=sqr_mom, eps=eps, wd=wd, **options)


class RAdam(Optimizer):
    """Adam that goes without its squared average until that can be trusted: a warm-up of its own.

    Args:
        params: parameters or groups of them.
        lr: learning rate, in parameter units.
        mom: the decay of the gradients' average, in [0, 1).
        sqr_mom: the decay of the squared gradients' average, in [0, 1).
        eps: added to the root, in gradient units.
        wd: weight decay, in [0, ∞).
        decouple_wd: decoupled decay; False for L2.
        options: `l1` and `compile`.
    Source: Liu et al. 2020 (arXiv:1908.03265); `torch.optim.RAdam`.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        mom: float = 0.9,
        sqr_mom: float = 0.99,
        eps: float = 1e-5,
        wd: float = 0.0,
        decouple_wd: bool = True,
        **options: Unpack[Options],
    ) -> None:
        rules, fast = [_decay(decouple_wd), radam_step], [partial(kernels.radam, decouple_wd=decouple_wd)]
        super().__init__(params, rules, kernels=fast, lr=lr, mom=mom, sqr_mom=sqr_mom, eps=eps, wd=wd, **options)


class NAdam(Optimizer):
    """Adam with Nesterov's look ahead.

    Args:
        params: parameters or groups of them.
        lr: learning rate, in parameter units.
        mom: the decay of the gradients' average, in [0, 1).
        sqr_mom: the decay of the squared gradients' average, in [0, 1).
        eps: added to the root, in gradient units.
        wd: weight decay, in [0, ∞).
        decouple_wd: decoupled decay; False for L2.
        mom_decay: how fast the momentum warms up, in [0, ∞).
        options: `l1` and `compile`.
    Source: Dozat 2016; `torch.optim.NAdam(momentum_decay=mom_decay)`.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        mom: float = 0.9,
        sqr_mom: float = 0.99,
        eps: float = 1e-5,
        wd: float = 0.0,
        decouple_wd: bool = True,
        *,
        mom_decay: float = 4e-3,
        **options: Unpack[Options],
    ) -> None:
        rules, fast = [_decay(decouple_wd), nadam_step], [kernels.nadam] if decouple_wd else []
        hypers: Any = {"lr": lr, "mom": mom, "sqr_mom": sqr_mom, "eps": eps, "mom_decay": mom_decay, "wd": wd}
        super().__init__(params, rules, kernels=fast, **hypers, **options)


class QHAdam(Optimizer):
    """Adam whose step lies between its averages and the gradient of the moment.

    Args:
        params: parameters or groups of them.
        lr: learning rate, in parameter units.
        mom: the decay of the gradients' average, in [0, 1).
        sqr_mom: the decay of the squared gradients' average, in [0, 1).
        nu_1: the average's share against the gradient, in [0, ∞).
        nu_2: the squared average's share against the squared gradient, in [0, ∞).
        eps: added to the root, in gradient units.
        wd: weight decay, in [0, ∞).
        decouple_wd: decoupled decay; False for L2.
        options: `l1` and `compile`.
    Source: Ma and Yarats 2019 (arXiv:1810.06801); defaults as in fastai 2.8.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        mom: float = 0.999,
        sqr_mom: float = 0.999,
        nu_1: float = 0.7,
        nu_2: float = 1.0,
        eps: float = 1e-8,
        wd: float = 0.0,
        decouple_wd: bool = True,
        **options: Unpack[Options],
    ) -> None:
        rules, fast = [_decay(decouple_wd), qhadam_step], [kernels.qhadam] if decouple_wd else []
        hypers: Any = {"lr": lr, "mom": mom, "sqr_mom": sqr_mom, "nu_1": nu_1, "nu_2": nu_2, "eps": eps, "wd": wd}
        super().__init__(params, rules, kernels=fast, **hypers, **options)


class Lion(Optimizer):
    """Steps of the same size in every parameter, in the direction of the averaged gradient's sign.

    Args:
        params: parameters or groups of them.
        lr: learning rate, in parameter units: the size of a step; a third to a tenth of Adam's is usual.
        mom: the average's share in the direction, in [0, 1).
        avg_mom: the decay of the average, in [0, 1).
        wd: weight decay, in [0, ∞); three to ten times Adam's is usual.
        decouple_wd: decoupled decay; False for L2.
        options: `l1` and `compile`.
    Source: Chen et al. 2023 (arXiv:2302.06675).
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        mom: float = 0.9,
        avg_mom: float = 0.99,
        wd: float = 0.0,
        decouple_wd: bool = True,
        **options: Unpack[Options],
    ) -> None:
        rules, fast = [_decay(decouple_wd), lion_step], [kernels.lion] if decouple_wd else []
        super().__init__(params, rules, kernels=fast, lr=lr, mom=mom, avg_mom=avg_mom, wd=wd, **options)


class Lamb(Optimizer):
    """Adam whose step is as long for each tensor as the tensor itself: for very large batches.

    Args:
        params: parameters or groups of them.
        lr: learning rate, a share of each tensor's length.
        mom: the decay of the gradients' average, in [0, 1).
        sqr_mom: the decay of the squared gradients' average, in [0, 1).
        eps: added to the root, in gradient units.
        wd: weight decay, in [0, ∞).
        decouple_wd: decoupled decay; False for L2.
        options: `l1` and `compile`.
    Source: You et al. 2020 (arXiv:1904.00962); the bound of 10 and the defaults as in fastai 2.8.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        mom: float = 0.9,
        sqr_mom: float = 0.99,
        eps: float = 1e-5,
        wd: float = 0.0,
        decouple_wd: bool = True,
        **options: Unpack[Options],
    ) -> None:
        rules, fast = [_decay(decouple_wd), lamb_step], [kernels.lamb] if decouple_wd else []
        super().__init__(params, rules, kernels=fast, lr=lr, mom=mom, sqr_mom=sqr_mom, eps=eps, wd=wd, **options)


class Larc(Optimizer):
    """SGD with momentum and a rate for each tensor, from its length and its gradient's.

    Args:
        params: parameters or groups of them.
        lr: learning rate, in parameter units per gradient unit; the largest with `clip`.
        mom: momentum, in [0, 1).
        clip: at most `lr` (LARC); False scales `lr` in any case (LARS).
        trust: the share of its length by which a tensor may move in a step, in (0, ∞).
        eps: added to the gradient's length.
        wd: weight decay, in [0, ∞).
        decouple_wd: decoupled decay; False for L2.
        options: `l1` and `compile`.
    Source: You et al. 2017 (arXiv:1708.03888), momentum over the scaled gradients as there; fastai 2.8's defaults.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        mom: float = 0.9,
        clip: bool = True,
        trust: float = 0.02,
        eps: float = 1e-8,
        wd: float = 0.0,
        decouple_wd: bool = True,
        **options: Unpack[Options],
    ) -> None:
        rules = [_decay(decouple_wd), larc_scale, momentum, sgd_step]
        super().__init__(params, rules, lr=lr, mom=mom, clip=clip, trust=trust, eps=eps, wd=wd, **options)


def _decay(decouple_wd: bool) -> Stepper:
    return weight_decay if decouple_wd else l2_reg
