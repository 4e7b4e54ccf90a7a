"""Damages files in every way and reads them: python tests/faults/mutated_files.py [--files 10000] [--seed 0]

Five kinds of files: a saved model, a checkpoint, one in shards (its manifest and a shard, here one after the other), an
exported model (.pt2), weights made elsewhere (.pth). Each is

- cut, flipped, overwritten, lengthened or shortened anywhere: reading it must be a clear error, or give the very
  numbers of the whole file (some bytes of a zip say nothing);
- or made anew with right checksums and a lie in it, as nobody does by accident: sizes, offsets, dtypes, shapes, names,
  depth. A lie about what is there must be refused; whatever happens, the process lives and nothing is run.

Reading takes place in child processes that note when one dies, and that watch for started programs, connections, and
files opened for writing elsewhere. It ends with status 1 where anything but a clear error came.
"""

import argparse
import collections
import copy
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from minilearn.archives import archive_of, read_archive
from minilearn.checkpoints import CheckpointFolder
from minilearn.data import DataLoaders
from minilearn.exchange import import_weights
from minilearn.exported import GRAPH, MANIFEST, WEIGHTS, load_exported
from minilearn.learner import Learner
from minilearn.optim import Adam
from minilearn.sharded_conversions import merge_checkpoint, shard_checkpoint
from minilearn.sharded_manifest import MANIFEST as SHARDED_MANIFEST
from minilearn.states import flatten_state
from minilearn.tensor_files import DTYPES, UNSIGNED

KINDS = ("model", "checkpoint", "checkpoint", "sharded", "exported", "weights")
"""What is damaged, in turn; checkpoints twice as often."""
SHARD = "shard-00001-model-00001-of-00001.safetensors"
WATCHED = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect", "ctypes.dlopen")
AT_A_TIME = 500
ITEM_BYTES = {name: dtype.itemsize for dtype, name in DTYPES.items()}


# ---- the whole files, and how each is read ----


def learner(path: Path) -> Learner:
    torch.manual_seed(0)
    x = torch.randn(16, 3)
    dls = DataLoaders.from_tensors(x, x.sum(1, keepdim=True), bs=4, device="cpu")
    learn = Learner(
        dls, nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), F.mse_loss, Adam, path=path
    )
    learn.logger = lambda text: None
    return learn


def make_whole(folder: Path) -> None:
    """One whole file of each kind in `folder`."""
    learn = learner(folder)
    with learn.no_bar():
        learn.fit(1, checkpoint="run")
    learn.save(folder / "model")
    newest = max((folder / "run").glob("*.safetensors"))
    newest.rename(folder / "checkpoint.safetensors")
    learn.export("exported.pt2")
    torch.save(learn.model.state_dict(), folder / "weights.pth")
    parts = shard_checkpoint(folder / "checkpoint.safetensors", folder / "parts")
    manifest, shard = [(parts / name).read_bytes() for name in (SHARDED_MANIFEST, SHARD)]
    (folder / "sharded.parts").write_bytes(packed(manifest, shard))


def packed(manifest: bytes, shard: bytes) -> bytes:
    """A sharded checkpoint's two files as one."""
    return len(manifest).to_bytes(8, "little") + manifest + shard


def unpacked(data: bytes) -> tuple[bytes, bytes]:
    n = int.from_bytes(data[:8], "little")
    return data[8 : 8 + n], data[8 + n :]


def whole_file_of(folder: Path, kind: str) -> Path:
    return next(folder.glob(f"{kind}.*"))


def read(kind: str, file: Path) -> str:
    """Reads a file as its user would; a digest of all that came."""
    if kind == "model":
        learn = learner(file.parent)
        learn.load(file)
        return digest([dict(learn.model.state_dict()), learn.opt.state_dict()])
    if kind == "checkpoint":
        folder = file.parent / "run"
        folder.mkdir(exist_ok=True)
        place = folder / "000001.safetensors"
        file.rename(place)
        try:
            found = CheckpointFolder(folder, keep=2).newest()
            assert found is not None
            return digest(found[1])
        finally:
            for left in folder.iterdir():
                left.unlink()
    if kind == "sharded":
        merged = file.parent / "merged.safetensors"
        with tempfile.TemporaryDirectory(dir=file.parent) as parts:
            for name, data in zip((SHARDED_MANIFEST, SHARD), unpacked(file.read_bytes()), strict=True):
                (Path(parts) / name).write_bytes(data)
            try:
                return hashlib.sha256(merge_checkpoint(parts, merged).read_bytes()).hexdigest()
            finally:
                merged.unlink(missing_ok=True)
    if kind == "exported":
        module = load_exported(file)
        return digest([dict(module.state_dict()), module(torch.ones(2, 3))])
    learn = learner(file.parent)
    import_weights(file, learn.model)
    return digest(dict(learn.model.state_dict()))


def digest(state: Any) -> str:
    value, tensors = flatten_state(state)
    numbers = {name: [str(t.dtype), list(t.shape), t.contiguous().view(-1).tolist()] for name, t in tensors.items()}
    return hashlib.sha256(repr((value, numbers)).encode()).hexdigest()


# ---- damage without a right checksum ----


def damaged(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    n = rng.choice((1, 2, 7, 8, 64, 1000))
    match rng.randrange(8):
        case 0:
            return data[:at]
        case 1 | 2:
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        case 3:
            return data[:at] + rng.randbytes(n) + data[at + n :]
        case 4:
            return data[:at] + bytes(n) + data[at + n :]
        case 5:
            return data[:at] + rng.randbytes(n) + data[at:]
        case 6:
            return data[:at] + data[at + n :]
    return data[:at] + data[:n] + data[at + n :]


# ---- lies with a right checksum ----

Lie = tuple[bytes, bool]
"""A file, and whether it must be refused."""


def lying_tensors(data: bytes, rng: random.Random) -> Lie:
    """A safetensors file of ours with another header, signed anew."""
    n = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + n]), data[8 + n :]
    manifest = json.loads(header["__metadata__"]["minilearn"])
    name = rng.choice([name for name in header if name != "__metadata__" and header[name]["shape"]])
    entry, huge = header[name], rng.choice((-1, 1 << 31, 1 << 40, 1 << 62, 1 << 63, 10**30))
    text, length, must = "", None, True
    match rng.randrange(14):
        case 0:
            entry["shape"][rng.randrange(len(entry["shape"]))] = huge
        case 1:
            entry["shape"] += [rng.randrange(2, 9)]
        case 2:
            others = ("NONE", "", 7, *(d for d in ITEM_BYTES if ITEM_BYTES[d] != ITEM_BYTES[entry["dtype"]]))
            entry["dtype"] = rng.choice(others)
        case 3:
            entry["data_offsets"][rng.randrange(2)] = huge
        case 4:
            entry["data_offsets"] = entry["data_offsets"][::-1]
        case 5:
            other = rng.choice([o for o in header if o not in ("__metadata__", name)])
            entry["data_offsets"] = header[other]["data_offsets"]
        case 6:
            del header[name]
        case 7:
            header["__metadata__"][rng.choice(("format", "minilearn"))] = rng.choice((1, None, [], {}))
        case 8:
            manifest["format"] = rng.choice((0, 2, -1, 10**9, "1", None, 1.0, True, [1]))
        case 9:
            manifest["kind"] = rng.choice(("model2", "", None, 1, ["model"], {}))
        case 10:
            manifest["values"] = rng.choice((None, 1, [], {}, {"tensor": name}, {"dict": []}, {"no": 1}, {"tuple": {}}))
        case 11:
            text = json.dumps(manifest)
            deep = rng.choice((500, 5_000, 100_000))
            text = text.replace('"values":', '"values": ' + '{"tuple":[' * deep + "1" + "]}" * deep + ', "was":', 1)
        case 12:
            length = rng.choice((0, 1, n - 1, n + 8, len(data), 1 << 40, (1 << 64) - 1))
        case _:
            places = list(leaves(manifest["values"]))
            put, must = rng.choice(places), False
            put(
                rng.choice(
                    (None, -1, 1e308, "x", [], {}, {"tensor": "no"}, {"float": "no"}, {"items": [[[], 1]]}, huge)
                )
            )
    if header["__metadata__"].get("minilearn") and isinstance(header["__metadata__"]["minilearn"], str):
        header["__metadata__"]["minilearn"] = text or json.dumps(manifest)
    header["__metadata__"]["sha256"] = UNSIGNED
    packed = json.dumps(header, separators=(",", ":")).encode()
    packed += b" " * (-len(packed) % 8)
    made = (len(packed) if length is None else length).to_bytes(8, "little") + packed + body
    return made.replace(UNSIGNED.encode(), hashlib.sha256(made).hexdigest().encode(), 1), must


def lying_parts(data: bytes, rng: random.Random) -> Lie:
    """A sharded checkpoint with a lie in its manifest, or in a shard that the manifest then vouches for."""
    manifest, shard = unpacked(data)
    held, must = json.loads(manifest), True
    if rng.random() < 0.3:
        shard, must = lying_tensors(shard, rng)[0], False
        held["files"][0][1:] = [len(shard), hashlib.sha256(shard).hexdigest()]
    else:
        name = rng.choice([name for name, (_, shape, _) in held["tensors"].items() if shape])
        tensor, huge = held["tensors"][name], rng.choice((-1, 1 << 31, 1 << 40, 1 << 62, 1 << 63, 10**30))
        match rng.randrange(9):
            case 0:
                tensor[1][rng.randrange(len(tensor[1]))] = huge
            case 1:  # and its piece says so too
                at = rng.randrange(len(tensor[1]))
                tensor[1][at] = tensor[2][0][2][at] = huge
            case 2:
                others = ("NONE", "", 7, *(d for d in ITEM_BYTES if ITEM_BYTES[d] != ITEM_BYTES[tensor[0]]))
                tensor[0] = rng.choice(others)
            case 3:
                tensor[2] = rng.choice(([], [*tensor[2], *tensor[2]], None, [[1, *tensor[2][0][1:]]]))
            case 4:
                held["files"][0][0] = rng.choice(("../" + SHARD, "/etc/passwd", "", ".", "other.safetensors", 1))
            case 5:
                held["format"] = rng.choice((0, 2, -1, 10**9, "1", None, 1.0, True, [1]))
            case 6:
                held["files"][0][rng.choice((1, 2))] = rng.choice((0, -1, huge, "x", None))
            case 7:
                held["tensors"]["not.there"] = tensor
            case _:
                rng.choice(list(leaves(held)))(rng.choice((None, -1, 1e308, "x", [], {}, {"tensor": "no"}, huge)))
                must = False
    held["sha256"] = UNSIGNED
    made = json.dumps(held, separators=(",", ":")).encode()
    return packed(made.replace(UNSIGNED.encode(), hashlib.sha256(made).hexdigest().encode(), 1), shard), must


def leaves(value: Any) -> Iterator[Callable[[Any], None]]:
    """A function for each place in nested lists and dicts, which puts something else there."""
    for key in range(len(value)) if isinstance(value, list) else value:
        yield lambda new, key=key: value.__setitem__(key, new)
        if isinstance(value[key], (list, dict)):
            yield from leaves(value[key])


def lying_archive(file: Path, kind: str, rng: random.Random) -> Lie:
    """A .pt2 or .pth made anew with a change in one of its members."""
    members = read_archive(file)
    if kind == "exported":
        names = [GRAPH, GRAPH, *(folder + listed for folder, listed in WEIGHTS.items())]
        name = rng.choice(names)
        graph = json.loads(members[name])
        places = list(leaves(graph))
        odd = ("x; import os", "__import__('os').system('touch run')", "torch.os.system", "a\nb", "\0", "builtins.exec")
        values = (None, -1, 0, 1 << 40, 1 << 63, 1e308, [], {}, "weight_0", "self", "x", *odd)
        for _ in range(rng.choice((1, 1, 1, 3))):
            rng.choice(places)(rng.choice(values))
        members[name] = json.dumps(graph).encode()
    elif rng.random() < 0.8:
        pickle = bytearray(members["data.pkl"])
        for _ in range(rng.choice((1, 1, 2, 5))):
            pickle[rng.randrange(len(pickle))] = rng.choice((rng.randrange(256), *b"cR.0ib\x93\x81\x85tQ2("))
        members["data.pkl"] = bytes(pickle)
    else:
        name = rng.choice(list(members))
        members[name] = damaged(members[name] or b"0", rng)
    if kind == "exported":
        manifest = json.loads(members[MANIFEST])
        manifest["files"] = {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in members.items()
            if name != MANIFEST
        }
        members[MANIFEST] = json.dumps(manifest).encode()
    return archive_of(members).getvalue(), False


# ---- one after the other ----


def try_files(whole: Path, first: int, count: int, seed: int) -> None:
    """Reads mutated files and prints what came of each sort, as JSON; a wrong one with its number."""
    torch.set_num_threads(1)
    watched: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        came: collections.Counter[str] = collections.Counter()
        wrong = []
        expected = {}
        for kind in dict.fromkeys(KINDS):
            place = Path(folder) / whole_file_of(whole, kind).name
            place.write_bytes(whole_file_of(whole, kind).read_bytes())
            expected[kind] = read(kind, place)
        for left in Path(folder).glob("*.*"):
            left.unlink()
        watch(Path(folder), watched)
        for number in range(first, first + count):
            rng = random.Random(f"{seed} {number}")
            kind = KINDS[number % len(KINDS)]
            source = whole_file_of(whole, kind)
            data, lies, must = source.read_bytes(), rng.random() < 0.4, False
            if not lies:
                made = damaged(data, rng)
            elif kind in ("model", "checkpoint"):
                made, must = lying_tensors(copy.copy(data), rng)
            elif kind == "sharded":
                made, must = lying_parts(data, rng)
            else:
                made, must = lying_archive(source, kind, rng)
            file = Path(folder) / source.name
            file.write_bytes(made)
            print(f"at {number}", file=sys.stderr, flush=True)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    got = read(kind, file)
                if got == expected[kind] and not must:
                    outcome = "the same numbers"
                elif lies and not must:
                    outcome = "another file, as it says"
                else:
                    outcome = "SILENTLY WRONG"
            except (OSError, ValueError) as error:
                outcome = "a clear error" if str(error) else "NO TEXT"
            except BaseException as error:
                outcome = f"NO CLEAR ERROR: {type(error).__name__}: {error!s:.200}"
            came[f"{kind}, {'a lie' if lies else 'damage'}: {outcome.split(':')[0]}"] += 1
            if outcome[0].isupper():
                wrong.append(f"{number}: {kind}: {outcome}")
            if watched:
                wrong.append(f"{number}: {kind}: RAN {watched}")
                watched.clear()
            file.unlink(missing_ok=True)
    print(json.dumps([came, wrong]))


def watch(folder: Path, seen: list[str]) -> None:
    """Notes programs that are started, connections, and files that are opened for writing outside `folder`."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in WATCHED:
            seen.append(f"{event} {arguments!r:.100}")
        elif event == "open" and isinstance(arguments[0], (str, bytes)) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            path = os.fsdecode(arguments[0])
            if not Path(path).absolute().is_relative_to(folder) and not path.endswith(".pyc") and path != os.devnull:
                seen.append(f"writes {path}")

    sys.addaudithook(hook)


def run(files: int, seed: int = 0, at_a_time: int = AT_A_TIME) -> tuple[collections.Counter[str], list[str]]:
    """What came of so many mutated files, by sort; and what must not have come, with each file's number."""
    came: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        make_whole(Path(folder))
        for first in range(0, files, at_a_time):
            count = min(at_a_time, files - first)
            command = [sys.executable, __file__, "--child", folder, str(first), str(count), str(seed)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
            except subprocess.TimeoutExpired as late:
                wrong.append(f"files {first} to {first + count - 1}: HANGS: {(late.stderr or b'')[-200:]!r}")
                continue
            if done.returncode:
                wrong.append(
                    f"files {first} to {first + count - 1}: THE PROCESS DIED, {done.returncode}: {done.stderr[-600:]}"
                )
                continue
            part, bad = json.loads(done.stdout.splitlines()[-1])
            came.update(part)
            wrong += bad
    return came, wrong


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        try_files(Path(given.child[0]), *map(int, given.child[1:]))
        return
    began = time.monotonic()
    came, wrong = run(given.files, given.seed)
    for sort in sorted(came):
        print(f"{came[sort]:6} {sort}")
    print("\n".join(wrong))
    print(f"{sum(came.values())} files in {time.monotonic() - began:.0f} s, {len(wrong)} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
