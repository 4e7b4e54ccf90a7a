"""Optimizers: `steppers` (one function a rule), `optimizer` (the engine), `recipes` (SGD, Adam, …), `groups`."""

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
    "NAdam",
    "Optimizer",
    "QHAdam",
    "RAdam",
    "RMSProp",
]
