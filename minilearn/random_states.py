"""The states of all sources of random numbers that belong to nobody, as tensors and plain values, and back."""

import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def random_states() -> dict[str, Any]:
    """How Python's, NumPy's and torch's random numbers stand, on every device: tensors and plain values.

    In one of several processes that is its own device: each has one.
    """
    version, numbers, spare = random.getstate()
    kind, keys, place, has_spare, numpy_spare = np.random.get_state()
    states: dict[str, Any] = {
        "python": {"version": version, "numbers": torch.tensor(numbers, dtype=torch.int64), "spare": spare},
        "numpy": {
            "kind": kind,
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "place": int(place),
            "has_spare": int(has_spare),
            "spare": float(numpy_spare),
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = [torch.cuda.get_rng_state(device) for device in _cuda_devices()]
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """Puts the random numbers where `random_states` found them; devices that are not here are passed over."""
    python, numpy = states["python"], states["numpy"]
    random.setstate((python["version"], tuple(python["numbers"].tolist()), python["spare"]))
    np.random.set_state(
        (numpy["kind"], numpy["keys"].numpy().astype(np.uint32), numpy["place"], numpy["has_spare"], numpy["spare"])
    )
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        for device, state in zip(_cuda_devices(), states["cuda"], strict=False):
            torch.cuda.set_rng_state(state, device)
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])


def host_states() -> Tensor:
    """How those of the computer itself stand, without its devices': as many bytes each time, quick to send."""
    _, numbers, spare = random.getstate()
    _, keys, place, has_spare, numpy_spare = np.random.get_state()
    words = np.concatenate([np.asarray(numbers, dtype=np.uint32), np.asarray(keys, dtype=np.uint32)])
    others = np.array([math.nan if spare is None else spare, place, has_spare, numpy_spare])
    parts = words.view(np.uint8), others.view(np.uint8), torch.get_rng_state().numpy()
    return torch.from_numpy(np.concatenate(parts))


def set_host_states(states: Tensor) -> None:
    """Puts the random numbers where `host_states` found them."""
    words, others, of_torch = np.split(states.numpy(), [4 * (WORDS + KEYS), 4 * (WORDS + KEYS) + 8 * 4])
    numbers, keys = np.split(words.view(np.uint32), [WORDS])
    spare, place, has_spare, numpy_spare = others.view(np.float64).tolist()
    random.setstate((random.Random.VERSION, tuple(numbers.tolist()), None if math.isnan(spare) else spare))
    np.random.set_state(("MT19937", keys, int(place), int(has_spare), numpy_spare))
    torch.set_rng_state(torch.from_numpy(of_torch.copy()))


WORDS, KEYS = 625, 624
"""How many numbers the state of Python's generator has, and that of NumPy's."""


def seed_anew(seed: int) -> None:
    """Starts all of them from a number of at most 63 bits."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def _cuda_devices() -> list[int]:
    """The GPUs whose random numbers are this process's."""
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    return list(range(torch.cuda.device_count())) if alone else [torch.cuda.current_device()]
