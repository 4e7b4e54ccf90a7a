"""The states of all random numbers: taken and put back, they go on as they would have."""

import random
from typing import Any

import numpy as np
import pytest
import torch

from minilearn.random_states import host_states, random_states, seed_anew, set_host_states, set_random_states


def drawn() -> list[Any]:
    """Numbers of each source; an odd number of Gaussian ones, of which two are made at a time."""
    return [random.random(), random.gauss(0, 1), *np.random.randn(3).tolist(), *torch.randn(3).tolist()]


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize(
    ("take", "put"), [(host_states, set_host_states), (random_states, set_random_states)], ids=["host", "all"]
)
def test_numbers_go_on_from_where_they_were_taken(take: Any, put: Any, before: int) -> None:
    seed_anew(3)
    for _ in range(before):
        drawn()  # one Gaussian number of each is kept for later
    states = take()
    expected = [drawn(), drawn()]
    seed_anew(4)
    put(states)
    assert [drawn(), drawn()] == expected


def test_states_of_the_computer_are_as_many_bytes_whatever_they_say() -> None:
    seed_anew(0)
    first = host_states()
    drawn()
    assert host_states().shape == first.shape
