"""Nested state taken apart into named tensors and values that JSON can hold, and put together again, exactly."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

PLAIN = (bool, int, str, type(None))
"""What JSON holds as it is; floats are among them where they are finite."""


def flatten_state(
    state: Any, name: str = "", tensors: dict[str, Tensor] | None = None
) -> tuple[Any, dict[str, Tensor]]:
    """A nested state as a value for JSON, and the tensors in it by names made of their places.

    Tensors, None, bool, int, float, str, and lists, tuples and dicts of them come back from `unflatten_state` as they
    were: a tuple as a tuple, an int as a key, nan, the order of a dict. A tensor that is there twice (tied weights) is
    taken once, and its second place refers to the first.

    Args:
        state: what `state_dict` gives.
        name: where the state is to be found, the beginning of the tensors' names.
        tensors: tensors of other parts of the same file; those of this state join them.
    Returns:
        The value, in which an object with one entry says what a plain value cannot (``{"tensor": "0.weight"}``,
        ``{"tuple": […]}``, ``{"dict": {…}}``, ``{"items": [[key, value], …]}``, ``{"float": "nan"}``); and `tensors`.
    Raises:
        TypeError: there is something else in it; the message says where.

    >>> import torch
    >>> flatten_state({"step": 3, "betas": (0.9, 0.99), "mom": torch.zeros(2)})
    ({'dict': {'step': 3, 'betas': {'tuple': [0.9, 0.99]}, 'mom': {'tensor': 'mom'}}}, {'mom': tensor([0., 0.])})
    """
    tensors = {} if tensors is None else tensors
    names = {_identity(tensor): known for known, tensor in tensors.items() if tensor.numel()}

    def named(tensor: Tensor, place: str) -> str:
        same = _identity(tensor) if tensor.numel() else None
        if same in names:
            return names[same]
        place = place or "state"
        while place in tensors or place == "__metadata__":  # which is not for tensors in a safetensors file
            place += "'"
        tensors[place] = tensor.detach()
        if same is not None:
            names[same] = place
        return place

    def flat(value: Any, place: str) -> Any:
        if isinstance(value, Tensor):
            return {"tensor": named(value, place)}
        if type(value) is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if type(value) in PLAIN:
            return value
        if type(value) is list:
            return [flat(part, _join(place, i)) for i, part in enumerate(value)]
        if type(value) is tuple:
            return {"tuple": [flat(part, _join(place, i)) for i, part in enumerate(value)]}
        if type(value) is dict:
            if all(type(key) is str for key in value):
                return {"dict": {key: flat(part, _join(place, key)) for key, part in value.items()}}
            return {"items": [[_flat_key(key, place), flat(part, _join(place, key))] for key, part in value.items()]}
        raise TypeError(
            f"{place or 'the state'} is of type {_type_name(value)}, which cannot be saved: a state holds tensors,"
            " None, bool, int, float, str, and lists, tuples and dicts of them"
        )

    return flat(state, name), tensors


def unflatten_state(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `flatten_state` took apart.

    Args:
        value: the value that it gave, or what JSON made of it.
        tensors: the tensors by their names; the state holds these very ones.
    Raises:
        ValueError: it is not what `flatten_state` gives, or a tensor is not there.
    """
    if isinstance(value, (float, *PLAIN)):
        return value
    if isinstance(value, list):
        return [unflatten_state(part, tensors) for part in value]
    if isinstance(value, dict) and len(value) == 1:
        ((tag, content),) = value.items()
        if tag in READERS:
            return READERS[tag](content, tensors)
    raise ValueError(f"a state cannot be made of {str(value)[:80]}")


def _tensor(name: Any, tensors: Mapping[str, Tensor]) -> Tensor:
    if not isinstance(name, str) or name not in tensors:
        raise ValueError(f"the state has a tensor {str(name)[:80]!r} that is not among the tensors")
    return tensors[name]


def _float(text: Any, tensors: Mapping[str, Tensor]) -> float:
    if text not in ("nan", "inf", "-inf"):  # a tuple: what came may have no hash
        raise ValueError(f"a state cannot have the number {str(text)[:80]!r}")
    return float(text)


def _tuple(parts: Any, tensors: Mapping[str, Tensor]) -> tuple[Any, ...]:
    return tuple(unflatten_state(part, tensors) for part in _checked(parts, list))


def _dict(entries: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {key: unflatten_state(part, tensors) for key, part in _checked(entries, dict).items()}


def _items(pairs: Any, tensors: Mapping[str, Tensor]) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for pair in _checked(pairs, list):
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"a state's dict cannot have the entry {str(pair)[:80]}")
        key = unflatten_state(pair[0], {})
        try:
            made[key] = unflatten_state(pair[1], tensors)
        except TypeError:
            raise ValueError(f"a state's dict cannot have the key {str(key)[:80]}") from None
    return made


READERS: dict[str, Callable[[Any, Mapping[str, Tensor]], Any]] = {
    "tensor": _tensor,
    "float": _float,
    "tuple": _tuple,
    "dict": _dict,
    "items": _items,
}


def _checked(content: Any, kind: type) -> Any:
    if not isinstance(content, kind):
        raise ValueError(f"a state cannot be made of {str(content)[:80]}")
    return content


def _flat_key(key: Any, place: str) -> Any:
    """A dict's key for JSON: a plain value, or a tuple of them."""
    if type(key) is tuple:
        return {"tuple": [_flat_key(part, place) for part in key]}
    if type(key) is float and not math.isfinite(key):
        return {"float": repr(key)}
    if type(key) is float or type(key) in PLAIN:
        return key
    raise TypeError(
        f"{place or 'the state'} has a key of type {_type_name(key)}, which cannot be saved: a key is None, a bool,"
        " int, float or str, or a tuple of them"
    )


def _join(place: str, part: Any) -> str:
    return f"{place}.{part}" if place else str(part)


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """What two tensors share that are the same elements at the same place, seen in the same way."""
    if tensor.layout is not _STRIDED or tensor.is_meta:
        return (id(tensor),)
    if hasattr(tensor, "to_local"):
        # A DTensor has no memory of its own. Its shard may be empty here, and then has no address that tells it from
        # another; what it was cut from has one, so that all processes find the same tensors tied.
        distributed: Any = tensor.detach()
        own = distributed.to_local()
        storage = own.untyped_storage()._cdata
        return storage, own.storage_offset(), tensor.dtype, tuple(tensor.shape), tensor.stride()
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


_STRIDED = Tensor().layout
