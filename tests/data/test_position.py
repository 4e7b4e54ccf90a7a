"""The middle of an epoch: what comes from there on is what comes there in a whole epoch."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, WeightedRandomSampler

from minilearn.data import DataLoader
from minilearn.data.position import batches_from

N = 22


class Noisy(Dataset[Tensor]):
    """Rows that are read one by one, each with a random number."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Tensor:
        return torch.tensor([float(i), torch.rand(()).item()])


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.arange(float(N)))


ROWS = torch.arange(float(N))[:, None]
LOADERS: dict[str, Callable[[], Any]] = {
    "tensors, shuffled": lambda: DataLoader(ROWS, 4, shuffle=True),
    "tensors in order": lambda: DataLoader(ROWS, 4),
    "tensors, last left out": lambda: DataLoader(ROWS, 4, shuffle=True, drop_last=True),
    "tensors, own generator": lambda: DataLoader(ROWS, 4, shuffle=True, generator=torch.Generator().manual_seed(9)),
    "tensors, sampler": lambda: DataLoader(ROWS, 4, sampler=WeightedRandomSampler([1.0] * N, N)),
    "rows": lambda: DataLoader(Noisy(), 4, shuffle=True),
    "rows, own generator": lambda: DataLoader(Noisy(), 4, shuffle=True, generator=torch.Generator().manual_seed(9)),
    "rows, batch sampler": lambda: DataLoader(Noisy(), batch_sampler=[[0, 5], [3], [2, 7, 1], [4]]),
    "workers": lambda: DataLoader(Noisy(), 4, shuffle=True, num_workers=2),
    "stream": lambda: DataLoader(Stream(), 4),
    "torch's": lambda: torch.utils.data.DataLoader(Noisy(), 4, shuffle=True),
    "list": lambda: list(ROWS.split(4)),
}


def tail(loader: Any, first: int) -> tuple[list[Tensor], Tensor]:
    """The batches from number `first` on as a later process would get them, and what is random after them."""
    torch.manual_seed(1)
    epoch_begins = torch.get_rng_state()
    whole = iter(loader)
    for _ in range(first):
        next(whole)
    interrupted = torch.get_rng_state()
    torch.manual_seed(99)  # whatever has been drawn since
    torch.set_rng_state(epoch_begins)
    if getattr(loader, "generator", None) is not None:
        loader.generator.manual_seed(9)
    rest = list(batches_from(loader, first, lambda: torch.set_rng_state(interrupted)))
    return rest, torch.rand(3)


@pytest.mark.parametrize("first", [1, 3, 4])
@pytest.mark.parametrize("name", LOADERS)
def test_rest_of_an_epoch_is_what_comes_in_a_whole_one(name: str, first: int) -> None:
    torch.manual_seed(1)
    loader = LOADERS[name]()
    expected = list(loader)[first:]
    after = torch.rand(3)
    rest, drawn = tail(LOADERS[name](), first)
    assert len(rest) == len(expected)
    for one, another in zip(rest, expected, strict=True):
        torch.testing.assert_close(one, another, rtol=0, atol=0)
    torch.testing.assert_close(drawn, after, rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in LOADERS if name != "rows, batch sampler"])
def test_epoch_that_is_over_has_no_rest(name: str) -> None:
    loader = LOADERS[name]()
    called: list[bool] = []
    assert list(batches_from(loader, len(list(loader)), lambda: called.append(True))) == []
    assert called == [True]


def test_next_epoch_is_whole_again() -> None:
    loader = LOADERS["rows"]()
    list(batches_from(loader, 3, lambda: None))
    assert len(list(loader)) == 6


def test_batches_before_are_not_read() -> None:
    class Count(Noisy):
        def __getitem__(self, i: int) -> Tensor:
            read.append(i)
            return super().__getitem__(i)

    read: list[int] = []
    list(batches_from(DataLoader(Count(), 4), 3, lambda: None))
    assert read == list(range(12, N))


@pytest.mark.parametrize("name", ["rows", "list", "stream"])
def test_loader_that_has_become_shorter_says_so(name: str) -> None:
    with pytest.raises(ValueError, match="the loader cannot go on with batch 9: it has 6 batches"):
        list(batches_from(LOADERS[name](), 9, lambda: None))


def test_workers_agree_whatever_their_number() -> None:
    found = []
    for workers in (1, 2):
        torch.manual_seed(1)
        found.append(torch.cat(list(DataLoader(Noisy(), 4, shuffle=True, num_workers=workers))))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_living_workers_and_new_ones_agree_in_a_later_epoch() -> None:
    def epochs(persistent: bool) -> Tensor:
        torch.manual_seed(1)
        loader = DataLoader(Noisy(), 4, shuffle=True, num_workers=2, persistent_workers=persistent)
        return torch.cat([batch for _ in range(3) for batch in loader])

    torch.testing.assert_close(epochs(True), epochs(False), rtol=0, atol=0)


def test_random_rows_differ_from_batch_to_batch_and_epoch_to_epoch() -> None:
    loader = DataLoader(Noisy(), 4, num_workers=2)
    drawn = [number for _ in range(2) for batch in loader for number in batch[:, 1].tolist()]
    assert len(set(drawn)) == 2 * N


def test_order_is_the_one_that_torchs_loader_has() -> None:
    found = []
    for kind in (DataLoader, torch.utils.data.DataLoader):
        torch.manual_seed(1)
        found.append(torch.cat(list(kind(Noisy(), 4, shuffle=True))))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_dataset_with_its_own_way_of_reading_a_batch_is_asked_so_in_workers_too() -> None:
    class Whole(Noisy):
        def __getitems__(self, rows: list[int]) -> list[Tensor]:
            assert type(rows) is list
            return [torch.tensor([-float(i)]) for i in rows]

    assert torch.cat(list(DataLoader(Whole(), 4, num_workers=1))).min() == -(N - 1)


def test_loader_shows_the_dataset_that_it_was_given() -> None:
    dataset = Noisy()
    loader = DataLoader(dataset, 4, num_workers=1)
    next(iter(loader))
    assert loader.dataset is dataset


def test_copy_with_another_sampler_goes_by_that() -> None:
    loader = DataLoader(Noisy(), 4, shuffle=True)
    list(loader)
    twin = copy.copy(loader)
    vars(twin).update(batch_sampler=[[3, 1]])
    assert [batch[:, 0].tolist() for batch in twin] == [[3.0, 1.0]]
