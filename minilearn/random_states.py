"""The states of all sources of random numbers that belong to nobody, as tensors and plain values, and back."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


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


def host_states() -> tuple[Any, ...]:
    """How those of the computer itself stand, without its devices': quick to take, and to send to another process."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state().numpy()


def set_host_states(states: tuple[Any, ...]) -> None:
    """Puts the random numbers where `host_states` found them."""
    python, numpy, of_torch = states
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(torch.from_numpy(of_torch))


def seed_anew(seed: int) -> None:
    """Starts all of them from a number of at most 63 bits."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def _cuda_devices() -> list[int]:
    """The GPUs whose random numbers are this process's."""
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    return list(range(torch.cuda.device_count())) if alone else [torch.cuda.current_device()]
