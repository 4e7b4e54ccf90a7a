"""Models in files: saved whole, checked when read, and loaded only where they fit."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from minilearn import distributed
from minilearn.errors import did_you_mean, warn
from minilearn.files import FileError
from minilearn.optim.pieces import as_sharded, is_sharded, own_piece, piece_of, whole_of
from minilearn.predictions import PredictingLoop
from minilearn.states import flatten_state, unflatten_state
from minilearn.tensor_files import read_tensors, safetensors_path, write_tensors
from minilearn.tensors import existing_device, map_tensors

KIND = "model"
WRAPPERS = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before the names of a model's parameters."""
SHOWN = 5
"""How many names a message lists."""


def save_model(file: str | Path, model: nn.Module, opt: Optimizer | None = None, with_opt: bool = True) -> Path:
    """Writes a model's parameters and buffers, and an optimizer's state to one safetensors file.

    Its weights have the names of `model.state_dict()`, so that every reader of safetensors finds them; the optimizer's
    tensors begin with ``optimizer.``. Tied weights are written once. The file is there whole or, after a power cut or
    on a full disk, still the one before. Of a model that is sharded over processes all take part, and rank 0 writes.

    Args:
        file: the file; ``.safetensors`` is added where it is not there. Its folder is made.
        model: any module; of DataParallel or a module from torch.compile, the model within.
        opt: its optimizer.
        with_opt: whether the optimizer's state is written, where there is one.
    Returns:
        The file's path.
    Raises:
        TypeError: a state holds what is neither a tensor nor a plain value; nothing is written.
        OSError: the folder cannot be made or written to, or the disk is full.
    """
    path = safetensors_path(file)
    inner = within(model)
    weights = inner.state_dict()
    sharded = any(map(is_sharded, weights.values()))
    if lazy := [name for name, value in weights.items() if is_lazy(value)]:
        raise ValueError(f"the model cannot be saved before its first batch: {lazy[0]} has no shape yet")
    versions = {name: about.get("version") for name, about in getattr(weights, "_metadata", {}).items()}
    flat, tensors = flatten_state(in_whole(dict(weights)))
    values = {"model": flat, "versions": versions, "opt": None, "opt_class": None}
    if opt is not None and with_opt:
        values["opt"], tensors = flatten_state(in_whole(opt.state_dict()), "optimizer", tensors)
        values["opt_class"] = type(opt).__name__
    if sharded and not distributed.is_main():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, values, kind=KIND)
    return path


def load_model(
    file: str | Path,
    model: nn.Module,
    opt: Optimizer | None = None,
    with_opt: bool = True,
    device: torch.device | str | int | None = None,
    strict: bool = True,
) -> list[str]:
    """Loads a file of `save_model` into a model and its optimizer, once all of it is known to fit.

    Numbers are copied into the parameters that are there, on the device and in the dtype that these have.

    Args:
        file: the file, with or without ``.safetensors``.
        model: the model, of the same names and shapes.
        opt: its optimizer, made in the same way.
        with_opt: whether the optimizer's state is loaded. Where the file has none, a warning says so.
        device: where the file's numbers are put on their way to the model; by default they come from the CPU.
        strict: refuse what does not fit. Otherwise just that is left out.
    Returns:
        What was left out, a sentence each; nothing where `strict`.
    Raises:
        FileNotFoundError: there is no such file.
        FileError: it is damaged, cut short, or minilearn did not write it.
        ValueError: it does not fit; neither the model nor the optimizer has been changed.
    """
    return _load(safetensors_path(file), model, (lambda: opt) if with_opt else None, opt is not None, device, strict)


def load_weights(path: Path, model: nn.Module, weights: Mapping[str, Tensor], strict: bool) -> list[str]:
    """Loads the weights alone of a file, once they are known to fit; gives and raises what `load_model` does."""
    inner = within(model)
    fitting, left_out = _fitting(inner, weights)
    if strict and left_out:
        raise ValueError(f"{path} does not fit, and nothing was loaded: {'; '.join(left_out)}.")
    inner.load_state_dict(in_pieces(fitting, inner), strict=False)
    return left_out


def _load(
    path: Path,
    model: nn.Module,
    opt_of: Callable[[], Optimizer | None] | None,
    has_opt: bool,
    device: torch.device | str | int | None,
    strict: bool,
) -> list[str]:
    """`load_model` with an optimizer that is asked for (`opt_of`, with_opt) where the file has the state of one."""
    weights, versions, saved_opt, opt_class = _read(path)
    if device is not None:
        where = existing_device(f"cuda:{device}" if isinstance(device, int) else device)
        weights = {name: value.to(where) if isinstance(value, Tensor) else value for name, value in weights.items()}
    inner = within(model)
    weights, left_out = _fitting(inner, weights)
    opt, misfit = opt_of() if opt_of and saved_opt is not None else None, ""
    if opt is not None and saved_opt is not None:
        misfit = "it is that of all the file's weights" if left_out else _opt_misfit(opt, saved_opt, opt_class)
    if strict and (left_out or misfit):
        alone = f"the optimizer's state: {misfit}. with_opt=False loads the weights alone"
        raise ValueError(f"{path} does not fit, and nothing was loaded: {'; '.join(left_out) or alone}.")
    if opt is not None and saved_opt is not None and not misfit:
        opt.load_state_dict(_opt_in_pieces(saved_opt, opt))
    numbered: Any = OrderedDict(in_pieces(weights, inner))
    numbered._metadata = {name: {"version": version} for name, version in versions.items()}  # where torch has them
    inner.load_state_dict(numbered, strict=False)
    if opt_of and saved_opt is None and has_opt:
        warn(f"{path} has no optimizer's state, so the optimizer stays as it is: with_opt=False says that it is meant")
    return [*left_out, *([f"the optimizer's state: {misfit}"] if misfit else [])]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None, str]:
    """The weights of a file, the versions of the modules that they are of, the optimizer's state and its class."""
    tensors, values = read_tensors(path, kind=KIND)
    try:
        weights = _mapping(unflatten_state(values["model"], tensors))
        opt = None if values["opt"] is None else _mapping(unflatten_state(values["opt"], tensors))
        return weights, _mapping(values["versions"]), opt, str(values["opt_class"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileError(f"{path} is no saved model: {error}") from error


class SavedLoop(PredictingLoop):
    """A Learner's model and optimizer, saved to files and loaded from them."""

    path: Path
    model_dir: Path

    def save(self, file: str | Path, with_opt: bool = True) -> Path:
        """Saves the model, and the optimizer where there is one, to ``path/model_dir/file.safetensors``: `save_model`.

        Of several processes rank 0 does, and the others go on at once; where the model is sharded, all take part.

        Args:
            file: a name, one with folders in it, or an absolute path.
            with_opt: whether the optimizer's state is saved.
        Returns:
            The file's path.
        """
        path = self._saved_path(file)
        if distributed.is_main() or any(map(is_sharded, self.model.parameters())):
            save_model(path, self.model, self.__dict__.get("opt"), with_opt)
        return path

    def load(
        self,
        file: str | Path,
        device: torch.device | str | int | None = None,
        with_opt: bool = True,
        strict: bool = True,
    ) -> Self:
        """Loads what `save` saved, once all of it is known to fit; the model keeps its device: `load_model`.

        Of several processes all do, and wait for each other first: rank 0 may be writing the file.

        Args:
            file: as it was given to `save`.
            device: where the file's numbers are put on their way to the model.
            with_opt: whether the optimizer's state is loaded; an optimizer is made where there is none.
            strict: refuse what does not fit. Otherwise just that is left out, and a line says what.
        Returns:
            The Learner.
        Raises:
            FileNotFoundError: there is no such file.
            FileError: it is damaged, cut short, or minilearn did not write it.
            ValueError: it does not fit; neither the model nor the optimizer has been changed.
        """
        distributed.barrier()

        def opt_of_learner() -> Optimizer:
            if self._opt_is_stale():
                self.create_opt()
            return self.opt

        opt_of, has_opt = opt_of_learner if with_opt else None, "opt" in self.__dict__
        for left_out in _load(self._saved_path(file), self.model, opt_of, has_opt, device, strict):
            self.logger(f"load('{file}', strict=False): {left_out}")
        return self

    def _saved_path(self, file: str | Path) -> Path:
        return self.path / self.model_dir / safetensors_path(file)


def within(model: nn.Module) -> nn.Module:
    """The model itself, without what data parallelism and torch.compile put around it."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def in_whole(state: Any) -> Any:
    """A state with whole tensors in the place of sharded ones, on the CPU; but for rank 0 they are left empty.

    All processes call it.
    """

    def whole(value: Tensor) -> Tensor:
        if not is_sharded(value):
            return value
        found = whole_of(piece_of(value), value)
        return found.cpu() if distributed.is_main() else found[:0]

    return map_tensors(whole, state)


def in_pieces(weights: Mapping[str, Any], model: nn.Module) -> Mapping[str, Any]:
    """Whole weights as a model has its own: where those are sharded, this process's pieces."""
    own = model.state_dict()
    if not any(map(is_sharded, own.values())):
        return weights
    return {name: _piece_like(value, own[name]) if name in own else value for name, value in weights.items()}


def _piece_like(value: Any, like: Any) -> Any:
    if not is_sharded(like) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return as_sharded(own_piece(value, like).to(piece_of(like).device, copy=True), like)


def _opt_in_pieces(state: Mapping[str, Any], opt: Optimizer) -> dict[str, Any]:
    """An optimizer's whole state with this process's pieces of what belongs to sharded parameters."""
    params = [p for group in opt.param_groups for p in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    held = {
        number: {key: _piece_like(value, p) for key, value in state["state"][number].items()}
        for number, p in zip(numbers, params, strict=True)
        if number in state["state"]
    }
    return {**state, "state": {**state["state"], **held}}


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"it has {type(value).__name__} where a state should be")
    return value


def _fitting(model: nn.Module, weights: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Those of a file's weights that fit a model, and sentences on what does not."""
    own = model.state_dict()
    missing = [name for name in own if name not in weights]
    unexpected = [name for name in weights if name not in own]
    shapes = [
        f"{name} is {_shape(value)} in the file and {_shape(own[name])} in the model"
        for name, value in weights.items()
        if name in own and not _fits(value, own[name])
    ]
    left_out = []
    if missing:
        left_out.append(f"the file has no {_some(missing)}, which the model has{_cause(missing, unexpected)}")
    if unexpected:
        left_out.append(f"the model has no {_some(unexpected)}, which the file has")
    if shapes:
        left_out.append(_some(shapes))
    fitting = {name: value for name, value in weights.items() if name not in own or _fits(value, own[name])}
    return fitting, left_out  # what the model does not have comes along: a module may know older names


def _fits(value: Any, own: Any) -> bool:
    if not isinstance(own, Tensor) or not isinstance(value, Tensor):
        return isinstance(own, Tensor) == isinstance(value, Tensor)
    return is_lazy(own) or own.shape == value.shape


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"of type {type(value).__name__}"


def _some(texts: Sequence[str]) -> str:
    more = len(texts) - SHOWN
    return ", ".join(texts[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _cause(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """Why names differ, where that can be seen."""
    for wrapper in WRAPPERS:
        if any(wrapper in name and name.replace(wrapper, "") in unexpected for name in missing):
            return f" (the model's names have '{wrapper}' in them, the file's do not)"
        if any(wrapper in name and name.replace(wrapper, "") in missing for name in unexpected):
            return f" (the file's names have '{wrapper}' in them, the model's do not)"
    near = did_you_mean(missing[0], unexpected)
    return f" ({near[2:]})" if near != "." else ""


def _opt_misfit(opt: Optimizer, saved: Mapping[str, Any], saved_class: Any) -> str:
    """Why an optimizer cannot take on a saved state; empty where it can."""
    kind = type(opt).__name__
    if saved_class != kind:
        return f"it is of {saved_class!s:.40}, and the Learner's is {kind}"
    own = opt.state_dict()["param_groups"]
    groups: Any = saved.get("param_groups")
    if not _are_groups(groups):
        return "it has no parameter groups"
    state = saved.get("state")
    if not isinstance(state, dict) or not all(isinstance(of_one, dict) for of_one in state.values()):
        return "it has no state for each parameter"
    if [_made(group) for group in groups] != [_made(group) for group in own]:
        return (
            f"its groups of {_sizes(groups)} are not the optimizer's, of {_sizes(own)}: it was made with another"
            " splitter, other layers or another wd_bn_bias"
        )
    return ""


def _are_groups(groups: Any) -> bool:
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        return False
    numbers = [group.get("params") for group in groups]
    return all(isinstance(listed, list) and all(isinstance(n, int) for n in listed) for listed in numbers)


def _made(group: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells a group from another: how many parameters it has, of which layer, whether spared weight decay."""
    return len(group["params"]), group.get("layer"), group.get("no_wd")


def _sizes(groups: Iterable[Mapping[str, Any]]) -> str:
    return ", ".join(str(len(group["params"])) for group in groups) + " parameters"
