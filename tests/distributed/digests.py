"""What a nested state comes down to."""

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from minilearn.states import flatten_state


def digest(state: Any) -> str:
    """The SHA-256 of every bit of a nested state."""
    value, tensors = flatten_state(state)
    found = hashlib.sha256(json.dumps(value).encode())
    for name in sorted(tensors):
        data: Tensor = tensors[name].detach().contiguous().reshape(-1)
        found.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        found.update(data.view(torch.uint8).numpy().tobytes() if data.numel() else b"")
    return found.hexdigest()
