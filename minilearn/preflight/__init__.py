"""What is looked at before a run costs an hour: pure functions of a batch, a model, loaders, that give `Finding`s."""

from minilearn.preflight.finding import ITEMS, Finding
from minilearn.preflight.page import Check

__all__ = ["ITEMS", "Check", "Finding"]
