"""Weights from a file that somebody else wrote with ``torch.save``: a pickle, which is a program, so it is read twice.

First by a machine of our own (`_Machine`), which knows the few steps of which a state dict is made, carries none of
them out on real objects, and refuses all others: no name beside those in `ALLOWED`, no tensor beyond its bytes. What is
found sound goes to ``torch.load(weights_only=True)``, from an archive made anew of the members that were looked at.
There is no way around either. ``weights_only=True`` alone has been broken twice (CVE-2025-32434, repaired in torch 2.6;
CVE-2026-24747, in 2.10).
"""

import math
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minilearn.archives import archive_of, read_archive
from minilearn.files import FileError

SAFE_TORCH = (2, 10)
"""The first torch whose ``weights_only`` has no known hole."""
MAX_PICKLE_BYTES = 64 << 20
HOLDERS = ("state_dict", "model_state_dict", "model", "module")
"""Under which names files keep the weights where they hold other things too, as fastai's and Lightning's do."""


class Name(NamedTuple):
    """A name that the pickle asks for; it is never looked up."""

    text: str


class Storage(NamedTuple):
    """A tensor's memory: how many elements of how many bytes; of untyped memory, one."""

    elements: int
    itemsize: int


STORAGES = {
    f"torch.{kind}Storage": size
    for kind, size in {
        "Bool": 1, "Byte": 1, "Char": 1, "Short": 2, "Half": 2, "BFloat16": 2, "Int": 4, "Float": 4, "Long": 8,
        "Double": 8, "ComplexFloat": 8, "ComplexDouble": 16,
    }.items()
} | {"torch.storage.UntypedStorage": 1}  # fmt: skip
"""The kinds of memory by the names that torch gives them in pickles, with their elements' bytes."""
DTYPES = {f"torch.{name}" for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}
REBUILD = "torch._utils._rebuild_tensor_v2"
REBUILD_DTYPE = "torch._utils._rebuild_tensor_v3"
PARAMETER = "torch._utils._rebuild_parameter"
ALLOWED = {REBUILD, REBUILD_DTYPE, PARAMETER, "collections.OrderedDict", "torch.Size", *STORAGES, *DTYPES}
"""All that a pickle of weights may name."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a file of ``torch.save``, on the CPU.

    The file is a state dict, or a dict with one under a name of `HOLDERS`.

    Raises:
        FileNotFoundError: there is no such file.
        FileError: it is damaged, holds more than tensors, plain values and lists, tuples and dicts of them, or was
            written by a torch before 1.6.
        RuntimeError: this torch has a known hole.
    """
    check_torch(torch.__version__)
    members = read_archive(path)
    if "constants.pkl" in members or any(name.startswith("code/") for name in members):
        raise FileError(f"{path} is TorchScript, which is a program: save the model's state_dict() instead")
    if "data.pkl" not in members:
        raise FileError(f"{path} is no file of torch.save: it has no data.pkl")
    storages = {name.removeprefix("data/"): len(data) for name, data in members.items() if name.startswith("data/")}
    try:
        _Machine(members["data.pkl"], storages).run()
    except Refused as error:
        raise FileError(f"{path} was not read: {error}") from None
    known = {name: data for name, data in members.items() if name.startswith("data/")}
    known |= {
        name: members[name] for name in ("data.pkl", "version", "byteorder", ".format_version") if name in members
    }
    try:
        loaded = torch.load(archive_of(known), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch raises for a file that it does not take
        raise FileError(f"{path} was not read: {type(error).__name__}: {str(error)[:200]}") from error
    return _state_dict(loaded, path)


def check_torch(version: str) -> None:
    """Refuses a torch whose ``weights_only`` is known to be no wall.

    Raises:
        RuntimeError: it is older than 2.10.
    """
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if numbers < SAFE_TORCH:
        raise RuntimeError(
            f"importing weights from a pickle needs torch 2.10 or newer, and this is {version}: until then a file could"
            " get past weights_only=True (CVE-2025-32434, CVE-2026-24747)"
        )


def _state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    found: Any = loaded
    if isinstance(loaded, dict) and not _all_tensors(loaded):
        holders = [name for name in HOLDERS if isinstance(loaded.get(name), dict)]
        found = loaded[holders[0]] if len(holders) == 1 else loaded
    if not isinstance(found, dict) or not found or not _all_tensors(found):
        what = f"a dict of {', '.join(map(str, list(found)[:5]))}" if isinstance(found, dict) else type(found).__name__
        raise FileError(
            f"{path} holds no state dict, but {what[:200]}: a dict of tensors is wanted, alone or as one of {HOLDERS}"
        )
    return {str(name): value for name, value in found.items()}


def _all_tensors(value: dict[Any, Any]) -> bool:
    return all(isinstance(name, str) and isinstance(part, Tensor) for name, part in value.items())


class Refused(Exception):  # noqa: N818 -- its text goes on from the file's name
    """Why a pickle is not carried out."""


_MARK = Name("the mark")
_TENSOR = Name("a tensor")


class _Machine:
    """Goes through a pickle with stand-ins for all that it would make, and refuses what weights have no need of.

    Args:
        program: the pickle.
        storages: the bytes of each storage that the file has, by its key.
    """

    def __init__(self, program: bytes, storages: dict[str, int]) -> None:
        if len(program) > MAX_PICKLE_BYTES:
            raise Refused(f"its pickle is of {len(program) >> 20} MiB, and 64 are allowed")
        self.program, self.storages = program, storages
        self.stack: list[Any] = []
        self.memo: dict[Any, Any] = {}

    def run(self) -> None:
        """Raises `Refused` where the pickle is not that of weights."""
        end = 0
        try:
            for opcode, argument, place in pickletools.genops(self.program):
                end = 1 + (place or 0)
                if opcode.name == "STOP":
                    break
                step = STEPS.get(opcode.name)
                if step is None:
                    raise Refused(
                        f"its pickle has the step {opcode.name}, at byte {end - 1}, which weights do not need"
                    )
                step(self, argument)
            if len(self.stack) != 1 or end != len(self.program):
                raise Refused("its pickle does not end with one object")
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise Refused(f"its pickle is damaged: {type(error).__name__}: {error!s:.100}") from None

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def memoize(self, key: Any) -> None:
        self.memo[key] = self.stack[-1]

    def since_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("no mark")
        found, self.stack[at:] = self.stack[at + 1 :], []
        return found

    def top(self, n: int) -> None:
        if n > len(self.stack):
            raise ValueError("an empty stack")
        found = tuple(self.stack[len(self.stack) - n :])
        del self.stack[len(self.stack) - n :]
        self.push(found)

    def name(self, argument: str) -> None:
        text = argument.replace(" ", ".")
        if text not in ALLOWED:
            raise Refused(
                f"it names {text[:80]}, and a file is never code; weights need no more than tensors and dicts"
            )
        self.push(Name(text))

    def items(self, pairs: list[Any]) -> None:
        into = self.stack[-1]
        if type(into) is not dict or len(pairs) % 2:
            raise ValueError("entries for what is no dict")
        for key in pairs[::2]:
            if type(key) not in (str, int, float, bool, type(None)):
                raise Refused("it has a dict whose keys are not plain")
            into[key] = None  # what it was is not asked for again

    def elements(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("elements for what is no list")
        self.stack[-1].extend(values)

    def storage(self) -> None:
        told = self.stack.pop()
        if type(told) is not tuple or len(told) != 5 or told[0] != "storage" or type(told[1]) is not Name:
            raise Refused("it refers to something beside it that is no storage")
        _, kind, key, location, count = told
        if kind.text not in STORAGES or type(key) is not str or type(location) is not str or type(count) is not int:
            raise Refused("it has a storage of a kind that is none")
        size, there = count * STORAGES[kind.text], self.storages.get(key, -1)
        if count < 0 or size != there:
            raise Refused(f"its storage {key[:20]!r} is to have {size} bytes, and the file has {max(there, 0)} for it")
        self.push(Storage(count, STORAGES[kind.text]))

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not Name or type(arguments) is not tuple:
            raise Refused("it calls what is no function")
        made: Any
        if function.text in (REBUILD, REBUILD_DTYPE):
            made = _tensor(function.text, arguments)
        elif function.text == PARAMETER and len(arguments) == 3 and arguments[0] is _TENSOR:
            made = _TENSOR
        elif function.text == "collections.OrderedDict" and not arguments:
            made = {}
        elif function.text == "torch.Size" and len(arguments) == 1 and _whole_numbers(arguments[0]):
            made = arguments[0]
        else:
            raise Refused(f"it calls {function.text} with what it does not take")
        self.push(made)

    def build(self) -> None:
        state = self.stack.pop()
        if type(self.stack[-1]) is not dict or type(state) is not dict or set(state) != {"_metadata"}:
            raise Refused("it sets attributes of an object beside a state dict's versions")


def _tensor(function: str, arguments: tuple[Any, ...]) -> Name:
    """A tensor's stand-in, where its elements lie within its storage."""
    if not 6 <= len(arguments) <= 8 or type(arguments[0]) is not Storage:
        raise Refused("it has a tensor made of what is no storage")
    storage, offset, shape, stride = arguments[:4]
    if type(offset) is not int or offset < 0 or not _whole_numbers(shape) or not _whole_numbers(stride):
        raise Refused("it has a tensor whose shape is none")
    if type(arguments[5]) is not dict or arguments[5] or any(type(more) is not Name for more in arguments[6:7]):
        raise Refused("it has a tensor with hooks, or marks of its own")
    count = storage.elements
    if function == REBUILD_DTYPE:
        name = arguments[6].text.removeprefix("torch.") if len(arguments) > 6 else ""
        dtype = getattr(torch, name, None)
        if not isinstance(dtype, torch.dtype):
            raise Refused("it has a tensor of a dtype that is none")
        count = storage.elements * storage.itemsize // dtype.itemsize
    elif len(arguments) > 6:
        raise Refused("it has a tensor with hooks, or marks of its own")
    if len(shape) != len(stride):
        raise Refused("it has a tensor whose shape is none")
    size = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if size and (last >= count or size > count):
        raise Refused(
            f"it has a tensor of shape {shape[:8]} in a storage of {count} elements: it is larger than the file"
        )
    return _TENSOR


def _whole_numbers(value: Any) -> bool:
    return type(value) is tuple and all(type(n) is int and n >= 0 for n in value)


def _nothing(machine: _Machine, argument: Any) -> None:
    """For steps that change nothing."""


def _protocol(machine: _Machine, argument: Any) -> None:
    if argument != 2:
        raise Refused(f"its pickle is of protocol {argument}, and torch.save writes protocol 2")


STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _protocol,
    "MARK": lambda m, _: m.push(_MARK),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    **{
        name: lambda m, value: m.push(value)
        for name in ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE")
    },
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "TUPLE": lambda m, _: m.push(tuple(m.since_mark())),
    "TUPLE1": lambda m, _: m.top(1),
    "TUPLE2": lambda m, _: m.top(2),
    "TUPLE3": lambda m, _: m.top(3),
    **{name: lambda m, key: m.memoize(key) for name in ("BINPUT", "LONG_BINPUT")},
    **{name: lambda m, key: m.push(m.memo[key]) for name in ("BINGET", "LONG_BINGET")},
    "SETITEM": lambda m, _: m.items([m.stack.pop(), m.stack.pop()][::-1]),
    "SETITEMS": lambda m, _: m.items(m.since_mark()),
    "APPEND": lambda m, _: m.elements([m.stack.pop()]),
    "APPENDS": lambda m, _: m.elements(m.since_mark()),
    "GLOBAL": _Machine.name,
    "BINPERSID": lambda m, _: m.storage(),
    "REDUCE": lambda m, _: m.call(),
    "BUILD": lambda m, _: m.build(),
}
"""The steps of which weights are made, as ``torch.save`` writes them (pickle protocol 2)."""
