"""What each of several processes has of a loader: together the batches of one process, each row once.

A `Share` is told its rank and world, so that no other process is needed.
"""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, IterableDataset, RandomSampler, Sampler, get_worker_info

from minilearn.data import DataLoader
from minilearn.data.loader import auto_workers
from minilearn.data.own_rows import share_sizes
from minilearn.data.rounds import Rounds
from minilearn.data.shares import Share, share_of, steps
from minilearn.random_states import random_states, set_random_states

SIZES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 24, 31)
BS = 4


class Stream(IterableDataset[int]):
    """Numbers that come; several workers share them."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        return iter(range(first, self.n, step))


class Numbers(Sampler[int]):
    """An order from Python's, NumPy's or torch's random numbers."""

    def __init__(self, n: int, kind: str) -> None:
        self.n, self.kind = n, kind

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        if self.kind == "python":
            return iter(random.sample(range(self.n), self.n))
        if self.kind == "numpy":
            return iter(np.random.permutation(self.n).tolist())
        return iter(torch.randperm(self.n).tolist())


class NoLength:
    """Batches of which nobody knows how many there are."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def loader(kind: str, n: int, bs: int) -> Any:
    rows, listed = torch.arange(n), [{"row": i} for i in range(n)]
    made = {
        "columns": lambda: DataLoader(rows, bs),
        "shuffled": lambda: DataLoader(rows, bs, shuffle=True),
        "dropping": lambda: DataLoader(rows, bs, shuffle=True, drop_last=True),
        "rows": lambda: DataLoader(listed, bs, shuffle=True),
        "torch's": lambda: torch.utils.data.DataLoader(listed, bs, shuffle=True),  # type: ignore[arg-type]
        "generator": lambda: DataLoader(rows, bs, shuffle=True, generator=torch.Generator().manual_seed(9)),
        "replaced": lambda: DataLoader(rows, bs, sampler=RandomSampler(range(n), True, n + 3)),
        "python": lambda: DataLoader(rows, bs, sampler=Numbers(n, "python")),
        "numpy": lambda: DataLoader(rows, bs, sampler=Numbers(n, "numpy")),
        "stream": lambda: DataLoader(Stream(n), bs),
        "dropping stream": lambda: DataLoader(Stream(n), bs, drop_last=True),
    }
    return made[kind]()


KINDS = (
    "columns", "shuffled", "dropping", "rows", "torch's", "generator", "replaced", "python", "numpy", "stream",
    "dropping stream",
)  # fmt: skip


def numbers(batch: Any) -> list[int]:
    found = batch["row"] if isinstance(batch, dict) else batch
    return [int(i) for i in found]


def together(make: Any, world: int) -> list[list[tuple[list[int], int, int, int]]]:
    """By rank: each step's batch, own rows, rows before them, rows of all; every rank has the same random numbers."""
    states, found = random_states(), []
    for rank in range(world):
        set_random_states(states)
        share = Share(make(), rank, world)
        found.append([(numbers(batch), share.own, share.before, share.total) for batch in share])
    return found


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_have_the_rows_of_one_process_with_larger_batches(kind: str, world: int) -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    for n in SIZES:
        states = random_states()
        shares = together(lambda n=n: loader(kind, n, BS), world)
        set_random_states(states)
        alone = [numbers(batch) for batch in loader(kind, n, BS * world)]
        assert {len(share) for share in shares} == {len(alone)}, n
        for i, expected in enumerate(alone):
            step = [share[i] for share in shares]
            assert [row for rows, own, _, _ in step for row in rows[:own]] == expected, (n, i)
            assert {total for *_, total in step} == {len(expected)}
            assert [before for _, _, before, _ in step] == [sum(s[1] for s in step[:r]) for r in range(world)]
            assert all(own == len(rows) or (own == 0 and len(rows)) for rows, own, _, _ in step)
            assert all(len(rows) > 1 for rows, *_ in step) or len(expected) == 1, "batch normalisation needs two rows"
        if "stream" not in kind:
            assert all(len(Share(loader(kind, n, BS), r, world)) == len(alone) for r in range(world))


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("with_length", [True, False])
def test_whole_batches_are_dealt_out_one_by_one(world: int, with_length: bool) -> None:
    batches = [torch.arange(10 * i, 10 * i + 3 + i % 2) for i in range(7)]
    shares = together(lambda: batches if with_length else NoLength(batches), world)
    assert {len(share) for share in shares} == {-(-7 // world)}
    dealt = [rows[:own] for step in zip(*shares, strict=True) for rows, own, _, _ in step if own]
    assert dealt == [batch.tolist() for batch in batches]
    if with_length:
        assert len(Share(batches, 0, world)) == -(-7 // world)
    else:
        with pytest.raises(TypeError, match="NoLength has no length"):
            len(Share(NoLength(batches), 0, world))


def test_own_batches_of_a_batch_sampler_stay_together() -> None:
    groups = [[0, 1, 2], [7], [3, 4], [5, 6, 8, 9], [10]]
    shares = together(lambda: DataLoader(torch.arange(11), batch_sampler=groups), 2)
    assert [rows for step in zip(*shares, strict=True) for rows, own, _, _ in step if own] == groups
    assert [own for _, own, _, _ in shares[1]] == [1, 4, 0]


@pytest.mark.parametrize("kind", ["shuffled", "rows", "python", "stream"])
def test_a_share_goes_on_in_the_middle_of_an_epoch(kind: str) -> None:
    for rank in range(2):
        random.seed(3)
        torch.manual_seed(3)
        whole = [numbers(batch) for batch in Share(loader(kind, 31, BS), rank, 2)]
        random.seed(3)
        torch.manual_seed(3)
        share = Share(loader(kind, 31, BS), rank, 2)
        assert [numbers(batch) for batch in share.begin_at(2, lambda: None)] == whole[2:]


def test_worker_processes_read_what_the_share_has() -> None:
    listed = [{"row": i} for i in range(17)]
    for rank in range(2):
        torch.manual_seed(1)
        plain = [numbers(batch) for batch in Share(DataLoader(listed, BS, shuffle=True), rank, 2)]
        torch.manual_seed(1)
        share = Share(DataLoader(listed, BS, shuffle=True, num_workers=2), rank, 2)
        assert [numbers(batch) for batch in share] == plain


def test_a_stream_of_workers_gives_each_row_once() -> None:
    seen = []
    for rank in range(2):
        share = Share(DataLoader(Stream(19), 2, num_workers=2), rank, 2)
        for batch in share:
            seen += numbers(batch)[: share.own]
    assert sorted(seen) == list(range(19))


def test_a_data_set_that_splits_itself_is_all_the_processes_own() -> None:
    stream = Stream(5)
    stream.splits_itself = True  # type: ignore[attr-defined]
    share = Share(DataLoader(stream, 2), 0, 1)
    assert [(numbers(batch), share.own, share.total) for batch in share] == [
        ([0, 1], 2, 2),
        ([2, 3], 2, 2),
        ([4], 1, 1),
    ]


def test_steps_of_a_share_gone_through_again_and_again_are_not_divided_twice() -> None:
    share = Share(DataLoader(torch.arange(20), BS), 0, 2)
    rounds = Rounds(share, 7)
    assert (len(share), steps(share), steps(rounds), share_of(rounds)) == (3, 3, 7, share)
    assert share_of([1]) is None


def test_means_over_the_shares_are_the_mean_over_the_rows() -> None:
    values = torch.randn(13, dtype=torch.float64)
    made: list[Tensor] = []
    for rank in range(4):
        share = Share(DataLoader(torch.arange(13), BS), rank, 4)
        (batch,) = share
        made.append(values[batch].mean() * share.weight)
    assert torch.stack(made).mean().item() == pytest.approx(values.mean().item(), rel=1e-12)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("bs", [1, 2, 3, 8])
def test_what_is_left_is_dealt_out_whole_and_in_no_lonely_rows(world: int, bs: int) -> None:
    for rows in range(1, world * bs):
        sizes = share_sizes(rows, world, bs)
        assert sum(sizes) == rows
        assert max(sizes) <= bs
        assert sizes == sorted(sizes, reverse=True)
        assert bs < 3 or rows == 1 or min(size for size in sizes if size) > 1


def test_processes_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)), raising=False)
    found = []
    for processes in ("1", "2", "4", "16"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        found.append(auto_workers())
    assert found == [8, 5, 2, 0]


def test_a_batch_sampler_of_torchs_own_is_told_from_others() -> None:
    ours = DataLoader(torch.arange(9), batch_sampler=BatchSampler(range(9), 2, drop_last=False))
    assert steps(ours, 2) == 3
    assert [numbers(batch) for batch in Share(ours, 1, 2)] == [[2, 3], [6, 7], [8]]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("rows", SIZES)
def test_lent_batches_are_those_that_are_copied(rows: int, world: int, drop_last: bool) -> None:
    data = torch.arange(2.0 * rows).view(rows, 2), torch.arange(rows)
    for rank in range(world):
        share = Share(DataLoader(data, BS, drop_last=drop_last), rank, world)

        def read(batches: Iterator[Any], share: Share = share) -> list[Any]:
            return [(x.tolist(), y.tolist(), share.own, share.before, share.total, share.reached) for x, y in batches]

        assert read(share.lent()) == read(iter(share))


def test_lent_batches_are_the_data_sets_rows_but_for_the_first() -> None:
    data = torch.arange(48.0).view(24, 2)
    first, second, third = Share(DataLoader(data, BS), 1, 2).lent()
    assert [batch.data_ptr() == data[4 * i :].data_ptr() for i, batch in ((1, first), (3, second), (5, third))] == [
        False,
        True,
        True,
    ]


def test_a_first_lent_batch_that_is_changed_makes_all_copies_and_a_later_one_is_an_error() -> None:
    data = torch.arange(48.0).view(24, 2)
    before = data.clone()
    for batch in Share(DataLoader(data, BS), 0, 2).lent():
        batch.zero_()
    assert torch.equal(data, before)
    batches = Share(DataLoader(data, BS), 0, 2).lent()
    next(batches)
    next(batches).zero_()
    with pytest.raises(ValueError, match="changed in place"):
        list(batches)
