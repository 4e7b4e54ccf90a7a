"""A model over several processes, each of which holds a piece of every parameter (FSDP2); activations computed twice.

The engine is torch's `fully_shard`. What is here decides which modules are gathered together, says beforehand what
cannot be sharded, and sees to it that all processes begin with the same numbers.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from minilearn.errors import describe, did_you_mean
from minilearn.optim.pieces import is_sharded

Classes = type[nn.Module] | Iterable[type[nn.Module]]

LARGE = 1 << 20
"""Numbers from which on a layer is worth a gathering of its own; below it the call is felt more than the bytes."""

PIECES_DEVICE = "_pieces_device"
"""The attribute of a sharded model that says where its pieces are kept, where that is not where it runs."""

CONTAINERS = (nn.ModuleList, nn.ModuleDict)
"""Modules that are never called themselves."""


def shard_model(
    model: nn.Module,
    *,
    mixed_precision: torch.dtype | None = None,
    cpu_offload: bool = False,
    blocks: Classes | None = None,
    device_mesh: Any = None,
    reshard_after_forward: bool | int | None = None,
) -> nn.Module:
    """Shards a model in place over all processes (FSDP2): each holds a piece of every parameter, cut along axis 0.

    Parameters become `DTensor`s. A unit of modules is gathered before its forward pass and let go of after it, and its
    gradients are averaged into pieces. An optimizer is made afterwards, of the new parameters; minilearn's and torch's
    both take them. All processes begin with the weights and buffers of process 0. Buffers are held in full by each.

    After a forward pass without gradients, the parameters are in pieces again, so that whoever looks at them finds the
    ones that the optimizer has.

    Args:
        model: on the CPU or the processes' own GPU, or on the meta device; then `materialize` comes next.
        mixed_precision: bfloat16 or float16: the precision of weights and activations within the model. Gradients are
            added up in float32, and the sharded parameters and what the model gives stay in theirs. float16 wants a
            scaler. Buffers stay as they are, and layers with running averages, which are kept beside their weights,
            compute in full precision, each a unit of its own.
        cpu_offload: where the model runs on a GPU, keep pieces, gradients and the optimizer's state on the CPU.
        blocks: classes of modules, each of which makes a unit. By default those that `sharding_units` finds.
        device_mesh: over which processes, as from `init_device_mesh`, of one axis, or of two (whole copies, pieces).
        reshard_after_forward: False keeps what was gathered until the backward pass; a whole number cuts it into so
            many pieces; by default it is let go of, but for what belongs to no unit of its own.
    Returns:
        The model itself.
    Raises:
        ValueError: there is no process group, the model or a part of it is sharded or wrapped already, a parameter has
            not got its shape yet, has none (a single number), or is not contiguous; there is no module of `blocks`, or
            one shares a parameter with a module outside it; `mixed_precision` is no half precision; or the processes
            have no way to add up what is kept on the CPU.
        TypeError: `model` is no module, or `blocks` holds something else than classes of modules.

    Source: `torch.distributed.fsdp.fully_shard` of torch 2.6 to 2.13.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            "shard_model needs processes to shard over, and there is no process group: start the script by torchrun,"
            " or call torch.distributed.init_process_group first"
        )
    _check(model)
    units = sharding_units(model) if blocks is None else _units_of(model, classes_of("blocks", blocks))
    if mixed_precision not in {None, torch.bfloat16, torch.float16}:
        raise ValueError(f"mixed_precision must be torch.bfloat16 or torch.float16, got {mixed_precision}")
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    mesh = device_mesh if device_mesh is not None else _mesh_for(model)
    offload = OffloadPolicy()
    if cpu_offload and mesh.device_type != "cpu":
        if "cpu:" not in dist.get_backend_config():
            raise ValueError(
                "cpu_offload keeps gradients on the CPU, whose lengths are added up there: make the process group with"
                ' a backend for both, init_process_group("cpu:gloo,cuda:nccl")'
            )
        offload = CPUOffloadPolicy()
    same_start(model, mesh)
    half: dict[str, Any] = (
        {} if mixed_precision is None else {"param_dtype": mixed_precision, "reduce_dtype": torch.float32}
    )
    options: dict[str, Any] = {"mesh": mesh, "offload_policy": offload, "reshard_after_forward": reshard_after_forward}
    if half:
        for norm in _with_running_averages(model):
            fully_shard(norm, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False), **options)
    for unit in reversed(units):  # inner ones first
        if unit is not model:
            fully_shard(unit, mp_policy=MixedPrecisionPolicy(**half), **options)
    outer = MixedPrecisionPolicy(**half, output_dtype=_output_dtype(model) if half else None)
    fully_shard(model, mp_policy=outer, **options)
    if isinstance(offload, CPUOffloadPolicy):
        vars(model)[PIECES_DEVICE] = "cpu"
    model.register_forward_hook(_in_pieces_again)
    return model


def is_sharded_model(model: nn.Module) -> bool:
    """Whether a module has been sharded, by `shard_model` or by `fully_shard` itself."""
    return hasattr(model, "set_requires_gradient_sync") and hasattr(model, "reshard")


def reshard(model: nn.Module) -> None:
    """Puts every parameter of a sharded model into pieces again, whatever was gathered; nothing for any other model.

    After a forward pass that no backward pass followed, what belongs to no unit is still whole.
    """
    for module in model.modules():
        if is_sharded_model(module):
            sharded: Any = module
            sharded.reshard()


def _in_pieces_again(model: nn.Module, args: Any, output: Any) -> None:
    if not torch.is_grad_enabled():
        reshard(model)


def sharding_units(model: nn.Module) -> list[nn.Module]:
    """The modules that are gathered one by one: what the model repeats, and large parts that are no single layer.

    That is, of an `nn.Sequential` or `nn.ModuleList`, blocks of the same class, and layers of at least `LARGE` numbers;
    and elsewhere a part of other layers that has at least so many and no unit in it. Within torch's own modules none is
    looked for but in containers: they read the weights of their parts without calling them, as attention does. A
    module that shares a parameter with one outside it is none: the two have to be gathered together.

    Args:
        model: any.
    Returns:
        The units, outer ones before inner ones. What is in none of them belongs to the model itself.
    """
    outside = _shared_outside(model)
    found: list[nn.Module] = []

    def walk(module: nn.Module) -> int:
        """Looks for units below a module; how many numbers are in them."""
        listed = isinstance(module, (nn.Sequential, nn.ModuleList))
        kinds = Counter(type(child) for child in module.children())
        inside = 0
        for child in module.children():
            size, fits = _size(child), child not in outside and not isinstance(child, CONTAINERS)
            has_parts = any(_size(part) for part in child.children())
            if not size:
                continue
            if listed and fits and (size >= LARGE or (has_parts and kinds[type(child)] > 1)):
                found.append(child)
                inside += size
                continue
            at = len(found)
            below = walk(child) if _is_looked_into(child) else 0
            if fits and has_parts and not below and size >= LARGE and not _is_torchs(module):
                found.insert(at, child)
                below = size
            inside += below
        return inside

    walk(model)
    return list(dict.fromkeys(found))


def _is_torchs(module: nn.Module) -> bool:
    return type(module) is not nn.Module and type(module).__module__.startswith("torch.nn.")


def _is_looked_into(module: nn.Module) -> bool:
    whole = (nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder)
    return not _is_torchs(module) or isinstance(module, (*CONTAINERS, nn.Sequential, *whole))


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _shared_outside(model: nn.Module) -> dict[nn.Module, str]:
    """The modules that share a parameter with a module outside them, and one such parameter's name."""
    holders: dict[Tensor, list[tuple[str, nn.Module]]] = {}
    for place, module in model.named_modules():
        for name, p in module.named_parameters(recurse=False, remove_duplicate=False):
            holders.setdefault(p, []).append((f"{place}.{name}" if place else name, module))
    found: dict[nn.Module, str] = {}
    for held in holders.values():
        if len(held) > 1:
            together = {module for _, module in held}
            for module in model.modules():
                below = set(module.modules())
                if below & together and not together <= below:
                    found[module] = " and ".join(name for name, _ in held)
    return found


def _units_of(model: nn.Module, classes: tuple[type[nn.Module], ...]) -> list[nn.Module]:
    units = [module for module in model.modules() if isinstance(module, classes)]
    _refuse_missing("blocks", model, classes)
    outside = _shared_outside(model)
    for name, module in model.named_modules():
        if isinstance(module, classes):
            if module in outside:
                raise ValueError(
                    f"blocks: '{name}' shares a parameter with a module outside it ({outside[module]}); both have to be"
                    f" gathered together: leave {type(module).__name__} out of blocks"
                )
            if isinstance(module, CONTAINERS):
                kind = type(module).__name__
                raise ValueError(
                    f"blocks: '{name}' is only a list ({kind}), which is never called: name the class of what it holds"
                )
    return units


def classes_of(name: str, classes: Any) -> tuple[type[nn.Module], ...]:
    """Classes of modules, one or several, as a tuple.

    Raises:
        TypeError: there is something else.
    """
    several = (classes,) if isinstance(classes, type) or not isinstance(classes, Iterable) else tuple(classes)
    for one in several:
        if not (isinstance(one, type) and issubclass(one, nn.Module)):
            raise TypeError(f"{name} must be classes of modules, such as nn.TransformerEncoderLayer, got {one!r}")
    return several


def _refuse_missing(argument: str, model: nn.Module, classes: tuple[type[nn.Module], ...]) -> None:
    for kind in classes:
        if not any(isinstance(module, kind) for module in model.modules()):
            has = sorted({type(module).__name__ for module in model.modules()})
            end = did_you_mean(kind.__name__, has)
            raise ValueError(f"{argument}: the model has no {kind.__name__}{end} It has {', '.join(has)}")


def _check(model: Any) -> None:
    """Refuses what cannot be sharded, before anything has been changed."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module, got {describe(model)}")
    for name, module in model.named_modules():
        which = f"its part '{name}'" if name else "the model"
        if is_sharded_model(module):
            raise ValueError(f"{which} is sharded already: shard all of it once, or none of it here")
        if isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            raise ValueError(f"{which} is a {type(module).__name__}: shard the model that is in it, model.module")
    for name, p in model.named_parameters():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise ValueError(f"'{name}' has no shape yet, as its layer is lazy: run a batch through the model first")
        if is_sharded(p):
            raise ValueError(f"'{name}' is sharded already: shard all of the model once, or none of it here")
        if not p.ndim:
            raise ValueError(f"'{name}' is a single number, which cannot be cut: make it a vector of one, shape (1,)")
        if not p.is_contiguous():
            raise ValueError(
                f"'{name}' does not lie in memory in order, and pieces have to:"
                " model.to(memory_format=torch.contiguous_format) makes it so"
            )


def _mesh_for(model: nn.Module) -> Any:
    """All processes in a line, on the GPUs where those can talk to each other, else where the model is."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    kinds = {p.device.type for p in model.parameters()} - {"meta"}
    kind = "cuda" if "nccl" in dist.get_backend_config() else next(iter(sorted(kinds)), "cpu")
    return init_device_mesh(kind, (dist.get_world_size(),))


def same_start(model: nn.Module, mesh: Any) -> None:
    """Gives every process the parameters and buffers of the first; what is on the meta device is passed over."""
    import torch.distributed as dist

    with torch.no_grad():
        for held in dict.fromkeys([*model.parameters(), *model.buffers()]):
            if held.is_meta:
                continue
            sent = held.detach().to(mesh.device_type).contiguous()
            for dim in range(mesh.ndim):
                dist.broadcast(sent, group=mesh.get_group(dim), group_src=0)
            if sent.data_ptr() != held.data_ptr():
                held.copy_(sent)


def _with_running_averages(model: nn.Module) -> list[nn.Module]:
    """Layers whose kernels want weights and averages in one precision, as batch normalisation's do on a CPU."""
    outside = _shared_outside(model)
    found = [module for module in model.modules() if isinstance(module, _NormBase) and module.running_mean is not None]
    return [norm for norm in found if norm.weight is not None and norm not in outside and norm is not model]


def _output_dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


# ---- activations ----


def checkpoint_activations(model: nn.Module, classes: Classes) -> nn.Module:
    """Has modules of some classes forget what they computed, and compute it again in the backward pass.

    Memory for activations falls to what goes into each such module; the time of a step grows by about a third. The
    numbers are the same: dropout draws what it drew, and running averages are not moved twice. Names of parameters and
    buffers stay as they are, and so do the modules' classes. Call it before or after `shard_model`, once.

    Args:
        model: changed in place.
        classes: a class of modules, or several; within such a module none is looked for.
    Returns:
        The model itself.
    Raises:
        ValueError: the model has no module of a class.
        TypeError: `classes` holds something else than classes of modules.
    Source: Chen et al. 2016 (arXiv:1604.06174); `torch.utils.checkpoint`, non-reentrant.
    """
    kinds = classes_of("classes", classes)
    _refuse_missing("classes", model, kinds)
    for module in _outermost(model, kinds):
        if "forward" not in vars(module) or not hasattr(module.forward, "computes_again"):
            module.forward = _Forward(module, module.forward)
    return model


def _outermost(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[nn.Module]:
    if isinstance(module, kinds):
        yield module
    else:
        for child in module.children():
            yield from _outermost(child, kinds)


class _Forward:
    """A module's forward pass that keeps its inputs alone. A class, so that a copy of the model has a copy of it."""

    computes_again = True

    def __init__(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        functools.update_wrapper(self, forward)
        self.module, self.forward = module, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        from torch.utils.checkpoint import checkpoint

        again: Any = _BuffersLeftAlone(self.module) if self.module.training else nullcontext()
        return checkpoint(self.forward, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), again), **kwargs)


class _BuffersLeftAlone:
    """A module's buffers are copies for as long: what moves in every forward pass does not move in the second one."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._own: list[tuple[nn.Module, str, Tensor]] = []

    def __enter__(self) -> None:
        for part in self.module.modules():
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    self._own.append((part, name, buffer))
                    part._buffers[name] = buffer.clone()

    def __exit__(self, *error: object) -> None:
        for part, name, buffer in self._own:
            part._buffers[name] = buffer
        self._own = []
