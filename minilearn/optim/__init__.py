"""Optimizers: `steppers` (one function an update rule) → `optimizer` (the engine) → `recipes` (SGD, Adam); `groups`."""

from minilearn.optim.optimizer import Optimizer
from minilearn.optim.recipes import SGD, Adam

__all__ = ["SGD", "Adam", "Optimizer"]
