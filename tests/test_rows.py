"""Rows that come several batches at once are those that come batch by batch."""

from typing import Any

import pytest
import torch
from torch import Tensor

from minilearn.rows import InMemory


def parts_of(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize("rows", [None, 4, 11, 100])
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize(
    "parts",
    [
        parts_of((4, 2), (4, 2), (3, 2)),
        parts_of((4, 2), (1, 2), (4, 2), (4, 2)),
        parts_of((4, 2), (4, 3), (4, 2)),
        parts_of((4, 2), (4, 2), (0,)),
        parts_of((4, 0), (4, 0)),
        parts_of((0, 2), (4, 2)),
        parts_of((4, 2), (4, 2)) + parts_of((4, 2), dtype=torch.float64),
    ],
    ids=["ragged", "short", "shapes", "empty", "no columns", "no rows", "dtypes"],
)
def test_several_parts_at_once_are_the_same_as_one_by_one(parts: list[Tensor], rows: int | None, dim: int) -> None:
    def result(split: int) -> Any:
        found = InMemory(rows, len(parts), dim)
        try:
            for part in parts[:split]:
                found.append(part)
            if split < len(parts):
                found.append_all(parts[split:])
            return found.result()
        except RuntimeError as error:  # along another axis parts must fit
            return str(error)

    want = result(len(parts))
    for split in range(len(parts)):
        got = result(split)
        assert type(got) is type(want)
        assert got == want if isinstance(got, str) else all(map(torch.equal, got, want))
        assert len(got) == len(want)


def test_single_numbers_are_a_row_each() -> None:
    found = InMemory(3, 3)
    found.append_all([torch.tensor(1.0), torch.tensor(2.0)])
    found.append_all([torch.tensor(3.0)])
    assert found.result().tolist() == [1.0, 2.0, 3.0]


def test_parts_that_need_a_gradient_are_cut_off() -> None:
    parts = [part.requires_grad_() for part in parts_of((2, 2), (2, 2))]
    found = InMemory(4, 2)
    found.append_all(parts)
    assert not found.result().requires_grad
