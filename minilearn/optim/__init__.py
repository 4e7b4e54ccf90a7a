"""Optimizers: `steppers` (one function a rule), `optimizer` (the engine), `recipes` (SGD, Adam, …).

Beside the recipes: `lookahead` (around any optimizer) and `muon`. For torch's optimizers too: `hypers` (hyperparameters
by name), `groups` (layers, freezing), `wrapper` (`OptimWrapper`), `foreign` (what optimizers from elsewhere ask for).
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
from minilearn.optim.wrapper import OptimWrapper

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
    "OptimWrapper",
    "Optimizer",
    "QHAdam",
    "RAdam",
    "RMSProp",
    "ranger",
]
