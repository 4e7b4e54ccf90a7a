"""What makes a fit the fit that it is: plain values by name, by which a checkpoint of another one is told."""

import inspect
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from minilearn.callback import Callback
from minilearn.callbacks.distributed import Distributed
from minilearn.callbacks.lr_find import ON_THE_STEP
from minilearn.callbacks.schedule import ParamScheduler, TorchScheduler
from minilearn.data.loader import length
from minilearn.data.position import generators_of
from minilearn.optim.hypers import HYPERS, named, read
from minilearn.tensors import shape_text

if TYPE_CHECKING:
    from minilearn.learner import Learner

PLAIN = (bool, int, float, str, type(None))
UNKNOWN = "found by the first batch"
"""What stands for a loss that nobody named, or a parameter without a shape yet: it goes with any."""
ROWS_LOOKED_AT = 8
"""How many rows of data in memory are part of a job: other data of the same shape is other data."""


def job_of(learn: "Learner") -> dict[str, Any]:
    """What must be the same for a fit to be gone on with.

    Not part of it: what may change from one process to the next without another result (where data lies, how many
    workers read it, what is logged, how many processes there are), and what nobody can look at for free: the contents
    of a data set that is read row by row, functions that are called the same.
    """
    job: dict[str, Any] = {"epochs": learn.n_epoch, "model": _model_class(learn.model), **_of_model(learn.model)}
    job["loss"] = UNKNOWN if learn.loss_func is None else _in_words(learn.loss_func)
    job["metrics"] = [metric.name for metric in learn.metrics]
    job |= _of_optimizer(learn.opt)
    for name, dl in {"training": learn.dls.train, **learn.dls.valid_sets}.items():
        job |= {f"{what} of the {name} set": value for what, value in _of_loader(dl).items()}
    job["batch_tfms"] = [_in_words(tfm) for tfm in learn.dls.batch_tfms]
    for cb in learn.cbs:
        if isinstance(cb, ParamScheduler):
            job |= {f"schedule of {name}": [_plain(s(i / 8)) for i in range(9)] for name, s in cb.scheds.items()}
        elif isinstance(cb, TorchScheduler):
            job["scheduler"] = _in_words(cb.sched)
    those = by_class([cb for cb in learn.cbs if _acts(cb) or keeps(cb)])
    return job | {f"callback {name}": _in_words(cb) if _acts(cb) else "there" for name, cb in those.items()}


def _model_class(model: nn.Module) -> str:
    """The name of a model's class; of one that torch's `fully_shard` derived from it, that of the model's own."""
    kinds = [kind.__name__ for kind in type(model).__mro__]
    return kinds[2] if kinds[1] == "FSDPModule" else kinds[0]


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """Where two jobs differ, a line each."""
    for name in [*there, *(name for name in here if name not in there)]:
        was, now = there.get(name, "none"), here.get(name, "none")
        if was != now and UNKNOWN not in (was, now):
            yield f"{name}: {was} in the checkpoint, {now} here"


def keeps(cb: Callback) -> bool:
    """Whether a callback keeps something over batches or epochs."""
    return type(cb).state_dict is not Callback.state_dict


def by_class(cbs: Iterable[Callback]) -> dict[str, Callback]:
    """Callbacks by the names of their classes, the second of a class with a number."""
    named_so: dict[str, Callback] = {}
    for cb in cbs:
        name = kind = type(cb).__name__
        n = 1
        while name in named_so:
            n += 1
            name = f"{kind} {n}"
        named_so[name] = cb
    return named_so


def _acts(cb: Callback) -> bool:
    """Whether it is one of minilearn's that act between a batch's arrival and its step.

    Of somebody's own nobody knows whether it acts or looks on; with one more that prints, a fit should still go on.
    """
    own = type(cb).__module__.startswith("minilearn.") and not isinstance(cb, (ParamScheduler, Distributed))
    return own and any(hasattr(type(cb), event) for event in ON_THE_STEP)


def _of_model(model: nn.Module) -> dict[str, str]:
    found = {
        f"model's {name}": f"{type(module).__name__}({module.extra_repr()})"
        for name, module in model.named_modules()
        if name
    }
    for name, value in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        frozen = ", frozen" if isinstance(value, nn.Parameter) and not value.requires_grad else ""
        found[f"model's {name}"] = UNKNOWN if is_lazy(value) else shape_text(value) + frozen
    return found


def _of_optimizer(opt: Optimizer) -> dict[str, Any]:
    found: dict[str, Any] = {"optimizer": _class_of(opt)}
    found["parameter groups"] = [len(group["params"]) for group in opt.param_groups]
    switches = [key for key, value in opt.defaults.items() if isinstance(value, bool) and key != "train_mode"]
    by_name: dict[str, list[Any]] = {}
    for group in opt.param_groups:
        spots = {name: spot for name, spot in named(group).items() if name in HYPERS}
        values = {name: read(group, spot) for name, spot in spots.items()}
        for name, value in {**values, **{key: group[key] for key in switches if key in group}}.items():
            by_name.setdefault(name, []).append(value)
    return found | {name: values[0] if len({*values}) == 1 else values for name, values in by_name.items()}


def _of_loader(dl: Any) -> dict[str, Any]:
    dataset: Any = getattr(dl, "dataset", None)
    columns: Any = getattr(dl, "_given", None)
    found = {
        "batches": length(dl),
        "batch size": getattr(dl, "batch_size", None),
        "data": type(dataset).__name__,
        "rows": len(dataset) if isinstance(dataset, Sized) else None,
        "order": type(getattr(dl, "sampler", None)).__name__,
        "random numbers": "by batch" if getattr(dl, "num_workers", 0) else "one after another",
        "generators": len(generators_of(dl)),
    }
    if columns:
        found["data"] = [shape_text(column[0]) for column in columns]
        found["contents"] = f"{_checksum(columns):08x}"
    return found


def _checksum(columns: tuple[Tensor, ...]) -> int:
    """Of a few rows, spread over all of them."""
    found = 0
    for column in columns:
        rows = torch.linspace(0, len(column) - 1, min(len(column), ROWS_LOOKED_AT), dtype=torch.float64).long()
        data: Any = column.detach()[rows.to(column.device)].cpu().resolve_conj().contiguous()
        found = zlib.crc32(data.reshape(-1).view(torch.uint8).numpy(), found)
    return found


def _in_words(thing: Any) -> str:
    """A function, or an object's class with those of its public attributes that are plain values.

    >>> _in_words(nn.CrossEntropyLoss(label_smoothing=0.1))
    "CrossEntropyLoss(reduction='mean', ignore_index=-100, label_smoothing=0.1)"
    """
    if isinstance(thing, partial):
        given = [*map(_short, thing.args), *(f"{name}={_short(value)}" for name, value in thing.keywords.items())]
        return f"{_in_words(thing.func)}({', '.join(given)})"
    if isinstance(thing, Callable) and hasattr(thing, "__qualname__"):  # type: ignore[arg-type]
        return str(thing.__qualname__)
    settings = {
        name: value
        for name, value in getattr(thing, "__dict__", {}).items()
        if name[0] != "_" and name not in CHANGING and type(value) in PLAIN
    }
    if isinstance(thing, Callback):  # whose other attributes are how far it is
        asked = inspect.signature(type(thing)).parameters
        settings = {name: value for name, value in settings.items() if name in asked}
    return f"{type(thing).__name__}({', '.join(f'{name}={value!r}' for name, value in settings.items())})"


CHANGING = ("training", "last_epoch", "best", "num_bad_epochs", "cooldown_counter", "T_cur", "T_i")
"""Attributes of losses and of torch's schedulers that say how far they are."""


def _class_of(opt: Any) -> str:
    """An optimizer's class, with that of the one which it is around, or is made by."""
    inner = getattr(opt, "opt", None)
    return f"{type(opt).__name__}({_class_of(inner)})" if isinstance(inner, Optimizer) else type(opt).__name__


def _short(value: Any) -> str:
    return repr(value) if type(value) in PLAIN else type(value).__name__


def _plain(value: Any) -> Any:
    return [float(each) for each in value] if isinstance(value, (list, tuple)) else float(value)
