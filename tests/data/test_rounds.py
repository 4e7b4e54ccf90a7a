"""data/rounds.py: a loader gone through several times, and the loader at the bottom of others."""

import pytest

from minilearn.data import DataLoader
from minilearn.data.rounds import Rounds, beneath
from minilearn.data.shares import Share


def test_goes_through_a_loader_until_there_are_batches_enough() -> None:
    rounds = Rounds(["a", "b", "c"], 7)
    assert list(rounds) == ["a", "b", "c", "a", "b", "c", "a"]
    assert len(rounds) == 7


def test_loader_without_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="the training loader is empty: it has 0 batches"):
        list(Rounds([], 1))


def test_what_else_is_asked_for_is_the_loaders() -> None:
    assert Rounds(DataLoader(list(range(6)), 2), 5).bs == 2


def test_loader_beneath_rounds_and_shares_is_found() -> None:
    loader = DataLoader(list(range(6)), 2)
    assert beneath(loader) is loader
    assert beneath(Rounds(loader, 5)) is loader
    assert beneath(Rounds(Share(loader, 0, 2), 5)) is loader


def test_loader_of_another_kind_is_not_looked_into() -> None:
    class Other:
        loader = DataLoader(list(range(6)), 2)

    other = Other()
    assert beneath(other) is other
