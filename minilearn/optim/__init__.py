"""Optimizers: `steppers` (one function a rule), `optimizer` (the engine), `recipes` (SGD, Adam, …), `groups`.

Beside the recipes: `lookahead` (around any optimizer) and `muon`; `foreign` has what optimizers from elsewhere ask for.
"""

from minilearn.optim.lookahead import Lookahead, ranger
from minilearn.optim.muon import Muon
from minilearn.optim.optimizer import Optimizer
from minilearn.optim.recipes import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Lamb,
    Larc,
    Lion,
    NAdam,
    QHAdam,
    RAdam,
    RMSProp,
)

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "Lamb",
    "Larc",
    "Lion",
    "Lookahead",
    "Muon",
    "NAdam",
    "Optimizer",
    "QHAdam",
    "RAdam",
    "RMSProp",
    "ranger",
]
