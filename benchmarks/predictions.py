"""Predictions for many rows of 784 floats by a linear layer 784 → 10, in batches of 1,024, and the same by hand."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from harness import Case, Measured, Outcome, Run, Setting, race
from torch import Tensor, nn

from minilearn.data import DataLoader, DataLoaders
from minilearn.learner import Learner

BATCH, FEATURES, CLASSES = 1_024, 784, 10


class Stream:
    """Batches without targets and without a length, `rows` rows in all; none of them is kept."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Tensor]:
        for start in range(0, self.rows, BATCH):
            yield torch.ones(min(BATCH, self.rows - start), FEATURES)


def saved(rows: int) -> None:
    """Predictions for so many rows, written to a file as they come."""
    learn = Learner([Stream(rows)], nn.Linear(FEATURES, CLASSES), nn.functional.cross_entropy)
    with tempfile.TemporaryDirectory() as folder:
        preds, _ = learn.get_preds(ds_idx=0, save_preds=Path(folder) / "preds.npy")
        assert preds.shape == (rows, CLASSES)
        assert preds[-1].sum().isclose(torch.ones(()))


def many_rows(setting: Setting) -> Measured:
    """Over a data set of tensors; by hand into a tensor as long as the data."""
    generator = torch.Generator().manual_seed(0)
    rows = setting.of(1_000_000, 100_000)
    x, y = torch.rand(rows, FEATURES, generator=generator), torch.randint(CLASSES, (rows,), generator=generator)
    model = nn.Linear(FEATURES, CLASSES).eval()

    def ours() -> Run:
        model.load_state_dict(nn.Linear(FEATURES, CLASSES).state_dict())
        learn = Learner(DataLoaders(DataLoader((x, y), BATCH), device="cpu"), model, nn.functional.mse_loss)
        return lambda: [learn.get_preds(ds_idx=0)[0]]

    def by_hand() -> Outcome:
        preds = torch.empty(rows, CLASSES)
        with torch.no_grad():
            for start in range(0, rows, BATCH):
                preds[start : start + BATCH] = model(x[start : start + BATCH])
        return [preds]

    def theirs() -> Run:
        model.load_state_dict(nn.Linear(FEATURES, CLASSES).state_dict())
        return by_hand

    return race(ours, theirs, setting.rounds(15, 7))


CASES = [
    Case("get_preds, many rows", "learn.get_preds()", "loop by hand", "1,000,000 rows, 784→10", many_rows, 1.05),
]
