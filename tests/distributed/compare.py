"""Figures of several processes held against those of one."""

import json
import math
from typing import Any


def flat(value: Any) -> list[Any]:
    """The numbers and texts in nested lists and dicts, in order."""
    if isinstance(value, dict):
        return [number for key in sorted(value) for number in flat(value[key])]
    return [number for part in value for number in flat(part)] if isinstance(value, list) else [value]


def same(a: Any, b: Any, rel: float) -> bool:
    """Whether two figures are the same but for rounding; nan is nan."""
    if not isinstance(a, float) or not isinstance(b, (int, float)):
        return bool(a == b) and type(a) is type(b)
    return math.isclose(a, b, rel_tol=rel, abs_tol=1e-12) or (math.isnan(a) and math.isnan(b))


def differences(printed: list[str], alone: dict[str, Any], rel: float = 1e-6) -> list[Any]:
    """Where what a rank printed, as JSON, is not what one process found: (rank, path, here, there)."""
    found = []
    for rank, text in enumerate(printed):
        together = json.loads(text.splitlines()[-1])
        found += [(rank, *odd) for odd in _odd(together, alone, rel, "")]
    return found


def _odd(here: Any, there: Any, rel: float, path: str) -> list[Any]:
    if isinstance(there, dict) and isinstance(here, dict) and here.keys() == there.keys():
        return [odd for key in there for odd in _odd(here[key], there[key], rel, f"{path}/{key}")]
    a, b = flat(here), flat(there)
    if len(a) != len(b):
        return [(path, len(a), len(b))]
    return [(path, i, x, y) for i, (x, y) in enumerate(zip(a, b, strict=True)) if not same(x, y, rel)]
