"""A model that was made on the meta device, without memory: given memory, and then its first numbers or loaded ones."""

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from minilearn.optim.pieces import is_sharded, own_piece, piece_of, whole_of
from minilearn.sharding import PIECES_DEVICE

RESETS = ("reset_parameters", "_reset_parameters")
"""The methods by which torch's modules, and those made in their manner, draw their first numbers."""
UNSET = -83
"""What whole numbers are filled with until they are set: no count, and no place in a table."""
MOST = 1 << 28
"""A module of at most so many numbers is made whole for its method; of a larger one its own parameters alone."""


def materialize(
    model: nn.Module, init: Callable[[nn.Module], object] | None = None, device: torch.device | str | None = None
) -> nn.Module:
    """Gives a model that was made on the meta device its memory and its first numbers, sharded or not.

    ``with torch.device("meta"): model = Net()``, then ``shard_model(model)``, then ``materialize(model)``: no process
    ever holds more than its pieces and the module that is being initialised. What is not on the meta device stays.

    Modules are initialised from the inside out: by ``reset_parameters()``, or ``_reset_parameters()``; then, where the
    model or a part of it has a method ``_init_weights(module)``, by that, called with each module in it; and then by
    `init`. All processes draw the same numbers, on the CPU, from where process 0's generator stands, and each keeps its
    pieces: weights do not depend on the number of processes. They equal, bit for bit, those of the same model made in
    one process after the same `set_seed`, where its modules draw in the order in which they stand in it, each once and
    by ``reset_parameters``: so with torch's layers and models made of them, but not where a layer is a copy
    (`nn.TransformerEncoder`) or a constructor draws by hand.

    Args:
        model: changed in place.
        init: called with each module, as by ``model.apply``, after the methods: for parameters that none of them sets.
        device: where memory is taken; by default on the devices of the model's mesh, else on the CPU.
    Returns:
        The model itself.
    Raises:
        ValueError: a parameter or buffer from the meta device has got no value, as no method sets it.
    """
    unset = _allocated(model, device)
    if not unset:
        return model
    fresh = {id(tensor): tensor for tensor in unset.values()}  # held, so that no other one gets its id
    left = set(fresh)
    methods = [*_resets(model), *_init_weights(model)]
    if init is not None:
        methods += [(module, partial(init, module)) for module in _inside_out(model)]
    own, common = torch.get_rng_state(), _common_random_state(model)
    torch.set_rng_state(common)
    for module, method in methods:
        _initialise(module, method, fresh, left)
    if not torch.equal(own, common):  # this process's own numbers, for dropout say, go on where they were
        torch.set_rng_state(own)
    if missed := {name: tensor for name, tensor in unset.items() if id(tensor) in left}:
        raise ValueError(_missed(model, missed))
    return model


def allocate(model: nn.Module, device: torch.device | str | None = None) -> list[str]:
    """Gives a model that was made on the meta device its memory alone, for values that are loaded next.

    Until then each floating-point number is nan, so that what is not loaded does not pass for a weight.

    Args:
        model: changed in place, sharded or not; its sharded parameters are `DTensor`s before and after.
        device: where memory is taken; by default on the devices of the model's mesh, else on the CPU.
    Returns:
        The names of the parameters and buffers that have no value yet, those that no file holds among them.
    """
    return list(_allocated(model, device))


def _allocated(model: nn.Module, device: torch.device | str | None) -> dict[str, Tensor]:
    """Takes the memory; the parameters and buffers that have no value yet, by name, tied ones once."""
    names = {name: None for name, held in _tensors(model).items() if held.is_meta}
    if not names:
        return {}
    ties = _ties(model)
    offloaded = vars(model).get(PIECES_DEVICE)
    mesh_device = next((p.device_mesh.device_type for p in model.parameters() if is_sharded(p)), "cpu")  # type: ignore[attr-defined]

    def with_memory(held: Tensor) -> Tensor:
        if not held.is_meta:
            return held
        place = device or (offloaded if is_sharded(held) and offloaded else mesh_device)
        made = torch.empty_like(held, device=place)
        with torch.no_grad():
            _blank(piece_of(made))
        return made

    model._apply(with_memory)  # type: ignore[no-untyped-call]  # as `to_empty`, which would forget what has its values already
    for (first, name), *others in ties:
        for module, other in others:
            module._parameters[other] = first._parameters[name]
    now = _tensors(model)
    return {name: now[name] for name in names if name in now}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _ties(model: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """The places of each parameter that has several."""
    places: dict[Tensor, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                places.setdefault(p, []).append((module, name))
    return [found for found in places.values() if len(found) > 1]


def _blank(values: Tensor) -> None:
    values.fill_(_mark(values))


def _mark(values: Tensor) -> Any:
    """What numbers are filled with that have no value; truth values have one in any case."""
    if values.is_floating_point() or values.is_complex():
        return torch.nan
    return False if values.dtype == torch.bool else UNSET % 256 if values.dtype == torch.uint8 else UNSET


def _is_blank(values: Tensor) -> bool:
    """Whether numbers have no value."""
    mark = _mark(values)
    if mark is False or not values.numel():
        return False
    return bool(values.isnan().any() if mark is torch.nan else (values == mark).all())


Methods = Iterator[tuple[nn.Module, Callable[[], object]]]


def _inside_out(module: nn.Module) -> Iterator[nn.Module]:
    """A module and all in it, parts first, each once: the order in which constructors come to their end."""
    seen: set[nn.Module] = set()

    def walk(one: nn.Module) -> Iterator[nn.Module]:
        if one not in seen:
            seen.add(one)
            for child in one.children():
                yield from walk(child)
            yield one

    return walk(module)


def _resets(model: nn.Module) -> Methods:
    for module in _inside_out(model):
        for name in RESETS:
            method = getattr(module, name, None)
            if callable(method) and _takes(method, 0):
                yield module, method
                break


def _init_weights(model: nn.Module) -> Methods:
    """Each module with the method of the innermost one around it that has one."""
    owners: dict[nn.Module, Any] = {}
    for owner in model.modules():  # inner ones come later
        method = getattr(owner, "_init_weights", None)
        if callable(method) and _takes(method, 1):
            owners.update(dict.fromkeys(owner.modules(), method))
        elif callable(method) and _takes(method, 0):
            yield owner, method
    for module in _inside_out(model):
        if module in owners:
            yield module, partial(owners[module], module)


def _takes(method: Callable[..., Any], n: int) -> bool:
    needed = [p for p in inspect.signature(method).parameters.values() if p.default is p.empty]
    return len([p for p in needed if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]) == n


def _common_random_state(model: nn.Module) -> Tensor:
    """How process 0's random numbers on the CPU stand."""
    state = torch.get_rng_state()
    sharded: Any = next((p for p in model.parameters() if is_sharded(p)), None)
    if sharded is None:
        return state
    import torch.distributed as dist

    mesh = sharded.device_mesh
    sent = state.to(mesh.device_type)
    for dim in range(mesh.ndim):
        dist.broadcast(sent, group=mesh.get_group(dim), group_src=0)
    return sent.cpu()


def _initialise(module: nn.Module, method: Callable[[], object], fresh: dict[int, Tensor], left: set[int]) -> None:
    """Calls a module's method while its tensors are whole and on the CPU; keeps what it set of the fresh ones.

    Args:
        module: what the method sets.
        method: called without arguments.
        fresh: the tensors that came from the meta device, by their ids.
        left: the ids of those that have no value yet; what the method sets is taken out.
    """
    numbers = sum(p.numel() for p in module.parameters())
    parts = list(module.modules()) if numbers <= MOST else [module]
    registries: list[dict[str, Any]] = [held for part in parts for held in (part._parameters, part._buffers)]
    places = [(held, name, tensor) for held in registries for name, tensor in held.items() if tensor is not None]
    if not any(id(tensor) in fresh for _, _, tensor in places):
        return
    wholes: dict[int, Any] = {}
    for held, name, tensor in places:
        if id(tensor) not in wholes:
            wholes[id(tensor)] = _whole(tensor, blank=id(tensor) in left)
        held[name] = wholes[id(tensor)]
    versions = {key: whole._version for key, whole in wholes.items()}
    found: dict[int, Any] = {}
    try:
        method()
    finally:
        for held, name, tensor in places:
            found[id(tensor)] = held.get(name)
            held[name] = tensor
    with torch.no_grad():
        for _, _, tensor in places:
            value = found.pop(id(tensor), None)
            if id(tensor) not in fresh or value is None or _is_blank(value):
                continue
            if value.dtype != torch.bool or value is not wholes[id(tensor)] or value._version != versions[id(tensor)]:
                piece_of(tensor).copy_(own_piece(value, tensor))
                left.discard(id(tensor))


def _whole(tensor: Tensor, *, blank: bool) -> Tensor:
    """A tensor as one process has it, on the CPU: a copy."""
    with torch.no_grad():
        if blank:
            whole = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            _blank(whole)
        else:
            whole = whole_of(piece_of(tensor), tensor).detach().to("cpu", copy=True)
    return nn.Parameter(whole, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else whole


def _missed(model: nn.Module, missed: dict[str, Tensor]) -> str:
    name = next(iter(missed))
    module = model.get_submodule(name.rpartition(".")[0])
    many = f" and {len(missed) - 1} more" if len(missed) > 1 else ""
    kind = "parameter" if isinstance(missed[name], nn.Parameter) else "buffer"
    return (
        f"the {kind} '{name}'{many} came from the meta device and has no value: {type(module).__name__} has no"
        " reset_parameters() that sets it. Give it one, or materialize(model, init=…), a function that is called with"
        " each module; or make what is small and computed with device='cpu'"
    )
