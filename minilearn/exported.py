"""Exported models in files: graphs that plain torch runs, read here without running anything that a file says.

The file is a .pt2 archive of torch, ``torch.export.load`` reads it. That function unpickles some members of an archive
and evaluates texts of others, so `load_exported` gives it only what `minilearn.exported_graph` found to be a graph and
plain bytes. Beside torch's members there is one of ours, a manifest with the size and the SHA-256 of each other one.
"""

import hashlib
import io
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from minilearn.archives import archive_of, members_of, read_archive
from minilearn.errors import describe
from minilearn.exported_graph import Unfit, check_graph, check_weights, without_traces
from minilearn.files import FileError, NewerFormatError, whole_file
from minilearn.tensors import existing_device

FORMAT = 1
"""The number of the manifest's format; a reader takes those up to its own."""
SUFFIX = ".pt2"
MANIFEST, GRAPH, SAMPLES = "extra/minilearn.json", "models/model.json", "data/sample_inputs/model.pt"
WEIGHTS = {"data/weights/": "model_weights_config.json", "data/constants/": "model_constants_config.json"}
"""The folders of tensors, each with the file that lists them."""
KNOWN = re.compile(
    r"archive_format|archive_version|byteorder|\.data/version|\.data/serialization_id|\.format_version"
    r"|\.storage_alignment|version|models/model\.json|data/sample_inputs/model\.pt|extra/minilearn\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
)
"""All members that an archive may have: one graph, plain tensors, no compiled libraries, no pickles."""
MAX_JSON_BYTES = 256 << 20


def write_exported(path: Path, program: ExportedProgram, about: dict[str, Any]) -> None:
    """Writes an exported program without traces of its source, so that `load_exported` and plain torch read it.

    Args:
        path: the file, which gets its name when it is whole.
        program: what ``torch.export.export`` gave.
        about: plain values for the manifest.
    Raises:
        ValueError: the program holds what `load_exported` does not take, such as operators beside torch's own.
        FileError: the folder cannot be written to, or the disk is full; the old file stays as it was.
    """
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    members = members_of(buffer, str(path))
    members[GRAPH] = json.dumps(without_traces(json.loads(members[GRAPH])), separators=(",", ":")).encode()
    members[SAMPLES] = b""  # a pickle; torch does without
    members.pop(".data/serialization_id", None)  # another one each time
    files = {name: {"bytes": len(data), "sha256": _sha256(data)} for name, data in members.items()}
    manifest = {"format": FORMAT, "kind": "exported", "torch": torch.__version__, "about": about, "files": files}
    members[MANIFEST] = json.dumps(manifest).encode()
    try:
        _checked(members)
    except Unfit as error:
        raise ValueError(f"{path} was not written: {error}") from None
    try:
        with whole_file(path) as file:
            file.write(archive_of(members).getbuffer())
    except OSError as error:
        raise FileError(f"{path} was not written: {error.strerror or error}") from error


def load_exported(path: str | Path, device: torch.device | str | None = None) -> nn.Module:
    """The module in a file of `Learner.export`: it takes inputs as the loader gives them, and gives predictions.

    Nothing in the file is run: no pickle is opened, and its graph calls operators of torch that compute, no others.

    Args:
        path: the .pt2 file.
        device: where the model goes; by default the CPU.
    Returns:
        A module for batches of any size, in evaluation.
    Raises:
        FileNotFoundError: there is no such file.
        FileError: it is damaged, cut short, of a newer format, minilearn did not write it, or it holds what may be
            code; ``torch.export.load`` reads what others wrote, and can run code from it.
    """
    if not isinstance(path, (str, Path)):
        raise TypeError(f"path must be a file, got {describe(path)}")
    path = Path(path)
    where = existing_device(device) if device is not None else None
    members = read_archive(path)
    try:
        sound = _checked(members)
    except NewerFormatError as error:
        raise NewerFormatError(f"{path} was not loaded: {error}") from None
    except Unfit as error:
        raise FileError(f"{path} was not loaded: {error}") from None
    try:
        program = torch.export.load(archive_of(sound))
        if where is not None:
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, where)
        _try_out(program)
        module = program.module()
        for tensor in (*module.parameters(), *module.buffers()):  # a file may say of either that it is trained
            tensor.requires_grad_(False)
    except Exception as error:  # a graph that is none makes torch raise errors of every kind
        raise FileError(f"{path} was not loaded: torch says {type(error).__name__}: {str(error)[:200]}") from error
    return module


def _try_out(program: ExportedProgram) -> None:
    """Carries a graph out with shapes alone: what its operators do not take is an error now, not at the first batch.

    A graph whose shapes depend on numbers cannot be tried so, and is taken as it is.
    """
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

    held = {**program.state_dict, **program.constants}
    rows = max([2, *(int(found.lower) for found in program.range_constraints.values())])
    mode, given = FakeTensorMode(), []
    places = [node for node in program.graph.nodes if node.op == "placeholder"]
    for spec, place in zip(program.graph_signature.input_specs, places, strict=True):
        value = held.get(spec.target, place.meta["val"])
        if isinstance(value, Tensor):
            size = [n if isinstance(n, int) else rows for n in value.shape]  # the only size that is open is the batch's
            with mode:
                value = torch.empty(size, dtype=value.dtype, device=value.device)
        given.append(value)
    with mode, torch.no_grad(), suppress(DataDependentOutputException, DynamicOutputShapeException):
        torch.fx.Interpreter(program.graph_module).run(*given)


def _checked(members: dict[str, bytes]) -> dict[str, bytes]:
    """The members that torch gets, each as the manifest says, and none with anything but a graph and numbers.

    Raises:
        Unfit: there is something else.
    """
    if odd := [name for name in members if not KNOWN.fullmatch(name)]:
        raise Unfit(f"it has {odd[0][:80]!r}, which is no part of a plain exported model and can be code")
    _check_manifest(members)
    if GRAPH not in members or any(folder + listed not in members for folder, listed in WEIGHTS.items()):
        raise Unfit("its graph or its list of tensors is not there: torch 2.9 or newer writes these")
    if members.get(SAMPLES):
        raise Unfit("it has sample inputs, which are a pickle")
    for name in (GRAPH, *(folder + listed for folder, listed in WEIGHTS.items())):
        if len(members[name]) > MAX_JSON_BYTES:
            raise Unfit(f"its {name} has {len(members[name]) >> 20} MiB, and {MAX_JSON_BYTES >> 20} are allowed")
    sound = {name: data for name, data in members.items() if name != MANIFEST}
    sound[GRAPH] = json.dumps(check_graph(members[GRAPH])).encode()
    sizes = {name: len(data) for name, data in members.items()}
    for folder, listed in WEIGHTS.items():
        sound[folder + listed] = json.dumps(check_weights(members[folder + listed], sizes, folder)).encode()
    return sound


def _check_manifest(members: dict[str, bytes]) -> None:
    if MANIFEST not in members:
        raise Unfit("minilearn did not write it: torch.export.load reads what others wrote, and can run code from it")
    try:
        found = json.loads(members[MANIFEST])
        number, files = found["format"], dict(found["files"])
        if type(number) is not int or number < 1:
            raise Unfit("its manifest is damaged")
        if number > FORMAT:
            raise NewerFormatError(f"it has the format {number!s:.20}, and this minilearn reads formats up to {FORMAT}")
        if set(files) != set(members) - {MANIFEST}:
            raise Unfit("its members are not those that were written")
        for name, about in files.items():
            if about["bytes"] != len(members[name]) or about["sha256"] != _sha256(members[name]):
                raise Unfit(f"it is damaged: its {name} is not as it was written")
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Unfit("its manifest is damaged") from None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
