"""Optimizers: `steppers` (one function a rule), `optimizer` (the engine), `recipes` (SGD, Adam, …).

For torch's optimizers too: `hypers` (hyperparameters by name), `groups` (layers, freezing), `wrapper` (`OptimWrapper`).
"""

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
    "NAdam",
    "OptimWrapper",
    "Optimizer",
    "QHAdam",
    "RAdam",
    "RMSProp",
]
