"""Looking into a model: functions called with what its modules take and give, and what they tell about it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from minilearn.errors import describe

HookFunc = Callable[[nn.Module, Any, Any], Any]
"""Called with a module, its inputs (a tuple) and its output; what it returns is stored."""

LARGEST = 2048
"""The side, in pixels, of the largest picture that `num_features_model` tries."""


class Hook:
    """Calls a function each time a module is called, and keeps in `stored` what it returned last.

    The module's output stays what it is. As a context manager it removes itself, whatever ends the ``with`` block.

    Args:
        module: the module to look at.
        hook_func: called with the module, its inputs and its output; with ``is_forward=False`` with the gradients of
            the loss by its inputs and by its outputs, each a tuple.
        is_forward: whether to look at the forward pass, or at the backward pass. For the latter, torch refuses a module
            whose input or output is then changed in place, as by ``nn.ReLU(inplace=True)``, and warns of one whose
            input needs no gradient, as a first layer's.
        detach: whether tensors are cut off from their graph first. They are no copies: what changes them in place
            later changes them here too.
        cpu: whether tensors are copied to the CPU's memory, which waits for a GPU.
        gather: whether tensors are gathered from all processes, one below the other; nothing where there is just one.
    Raises:
        TypeError: `module` is no module, or `hook_func` no function.

    >>> model = nn.Sequential(nn.Linear(3, 5), nn.ReLU())
    >>> with Hook(model[0], lambda module, inputs, output: output.shape) as hook:
    ...     answer = model(torch.rand(2, 3))
    >>> hook.stored
    torch.Size([2, 5])
    """

    stored: Any = None

    def __init__(
        self,
        module: nn.Module,
        hook_func: HookFunc,
        is_forward: bool = True,
        detach: bool = True,
        cpu: bool = False,
        gather: bool = False,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be an nn.Module, got {describe(module)}")
        if not callable(hook_func):
            raise TypeError(f"hook_func must be a function of (module, inputs, output), got {describe(hook_func)}")
        self.module, self.hook_func = module, hook_func
        self.detach, self.cpu, self.gather = detach, cpu, gather
        self.removed = False
        # torch's older register_backward_hook, which fastai takes, gives wrong gradients for a module of several steps.
        self.hook = (module.register_forward_hook if is_forward else module.register_full_backward_hook)(self._called)

    def _called(self, module: nn.Module, inputs: Any, output: Any) -> None:
        try:
            if self.detach:
                inputs, output = self._let_go(inputs), self._let_go(output)
            self.stored = self.hook_func(module, inputs, output)
        except Exception as error:
            error.add_note(f"raised in a hook on {type(module).__name__}")
            raise

    def _let_go(self, value: Any) -> Any:
        """`value` with its tensors detached and where they are wanted; what is no tensor stays."""
        if isinstance(value, Tensor):
            value = value.detach()
            if self.gather and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
                parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
                dist.all_gather(parts, value.contiguous())
                value = torch.cat([part.reshape(-1, *part.shape[1:]) for part in parts])
            return value.cpu() if self.cpu else value
        if isinstance(value, (tuple, list)):
            parts = [self._let_go(part) for part in value]
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        if isinstance(value, Mapping):
            return {key: self._let_go(part) for key, part in value.items()}
        return value

    def remove(self) -> None:
        """Takes the hook off its module; `stored` stays. A second time it does nothing."""
        if not self.removed:
            self.hook.remove()
            self.removed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


class Hooks:
    """A `Hook` with one function on each of several modules; a list of them, and a context manager.

    Args:
        modules: the modules; of one that is no list, such as a model, its children.
        hook_func: as in `Hook`, as is the rest.
    Raises:
        TypeError: one of them is no module; then none is hooked.
    """

    def __init__(
        self,
        modules: nn.Module | Iterable[nn.Module],
        hook_func: HookFunc,
        is_forward: bool = True,
        detach: bool = True,
        cpu: bool = False,
        gather: bool = False,
    ) -> None:
        self.hooks: list[Hook] = []
        try:
            for module in as_modules(modules):
                self.hooks.append(Hook(module, hook_func, is_forward, detach, cpu, gather))
        except BaseException:
            self.remove()
            raise

    def __getitem__(self, i: int) -> Hook:
        return self.hooks[i]

    def __len__(self) -> int:
        return len(self.hooks)

    def __iter__(self) -> Iterator[Hook]:
        return iter(self.hooks)

    @property
    def stored(self) -> list[Any]:
        """What each hook has stored."""
        return [hook.stored for hook in self.hooks]

    def remove(self) -> None:
        """Takes all of them off their modules."""
        for hook in self.hooks:
            hook.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def as_modules(modules: nn.Module | Iterable[nn.Module]) -> list[nn.Module]:
    """Several modules as a list; those of a container, the children of any other module.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(modules, (nn.Sequential, nn.ModuleList)):
        return list(modules)  # with those that are in it twice
    if isinstance(modules, nn.Module):
        return list(modules.children())
    if not isinstance(modules, Iterable):
        raise TypeError(f"modules must be modules or a model, got {describe(modules)}")
    return list(modules)


def hook_output(module: nn.Module, detach: bool = True, cpu: bool = False, grad: bool = False) -> Hook:
    """A `Hook` that stores a module's output; with ``grad=True`` the gradients by its outputs, a tuple.

    >>> layer = nn.Linear(3, 5)
    >>> with hook_output(layer) as hook:
    ...     answer = layer(torch.rand(2, 3))
    >>> torch.equal(hook.stored, answer)
    True
    """
    return Hook(module, _output, is_forward=not grad, detach=detach, cpu=cpu)


def hook_outputs(
    modules: nn.Module | Iterable[nn.Module], detach: bool = True, cpu: bool = False, grad: bool = False
) -> Hooks:
    """`Hooks` that store the outputs of modules; with ``grad=True`` the gradients by them."""
    return Hooks(modules, _output, is_forward=not grad, detach=detach, cpu=cpu)


def _output(module: nn.Module, inputs: Any, output: Any) -> Any:
    return output


def layers_of(model: nn.Module, include_paramless: bool = False) -> list[nn.Module]:
    """The modules of a model that have parameters of their own, each once, in the order in which they were added.

    Args:
        model: the model.
        include_paramless: whether modules without children and without parameters, such as `nn.ReLU`, are among them.
    """
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()  # what reparametrises a weight: it is a part of its layer
    for module in model.modules():
        if module in inside:
            continue
        reparametrised = parametrize.is_parametrized(module)
        if reparametrised:
            inside.update(module.parametrizations.modules())  # type: ignore[union-attr]
        own = next(iter(module.parameters(recurse=False)), None) is not None or reparametrised
        if own or (include_paramless and next(module.children(), None) is None):
            found.append(module)
    return found


def has_params(m: nn.Module) -> bool:
    """Whether a module has a parameter, its own or a child's."""
    return next(m.parameters(), None) is not None


def total_params(m: nn.Module) -> tuple[int, bool]:
    """How many numbers are in a module's parameters, and whether any of them is trained.

    A parameter that is shared counts once, one that is not initialised yet (of a lazy module) as nothing.
    """
    params = list(m.parameters())
    return sum(0 if is_lazy(p) else p.numel() for p in params), any(p.requires_grad for p in params)


def in_channels(m: nn.Module) -> int:
    """The channels of the pictures that a model takes: those of its first convolution over height and width.

    Raises:
        ValueError: it has none.
    """
    for module in m.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and not is_lazy(weight) and weight.ndim == 4:
            return weight.shape[1]
    raise ValueError(f"{type(m).__name__} has no convolution over height and width, so its input is not known")


def dummy_eval(m: nn.Module, size: tuple[int, int] = (64, 64)) -> Any:
    """A model's answer, in evaluation mode, to one picture of noise in [-1, 1).

    The noise is the same each time. The model's modes and torch's random numbers stay as they are.

    Args:
        m: the model; it begins with a convolution.
        size: height and width of the picture.
    Raises:
        ValueError: it has no convolution.
    """
    channels, like = in_channels(m), next(m.parameters())
    noise = 2 * torch.rand(1, channels, *size, generator=torch.Generator().manual_seed(0)) - 1
    modes = [(module, module.training) for module in m.modules()]
    try:
        with torch.no_grad():
            return m.eval()(noise.to(like.device, like.dtype))
    finally:
        for module, training in modes:
            module.training = training


def model_sizes(m: nn.Module, size: tuple[int, int] = (64, 64)) -> list[Any]:
    """The shapes of what a model's children give for one picture (`dummy_eval`).

    Returns:
        A `torch.Size` a child; a tuple or a dict of them where it gives several tensors, None where it was not called.

    >>> model_sizes(nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Flatten()), (8, 8))
    [torch.Size([1, 8, 4, 4]), torch.Size([1, 128])]
    """
    with Hooks(m, lambda module, inputs, output: shapes_of(output)) as hooks:
        dummy_eval(m, size)
    return hooks.stored


def shapes_of(value: Any) -> Any:
    """The shape of a tensor; of tuples, lists and dicts the same with shapes in their tensors' places."""
    if isinstance(value, Tensor):
        return value.shape
    if isinstance(value, (tuple, list)):
        return tuple(shapes_of(part) for part in value)
    if isinstance(value, Mapping):
        return {key: shapes_of(part) for key, part in value.items()}
    return None


def num_features_model(m: nn.Module) -> int:
    """The channels, or features, of what a model's last child gives; axis 1 of its output.

    Pictures of 32 x 32 pixels are tried first, then larger ones, as some models need.

    Raises:
        ValueError: the model has no convolution, or its last child gives no tensor with two axes.
    """
    side = 32
    while True:
        try:
            sizes = model_sizes(m, (side, side))
            break
        except RuntimeError:  # what torch raises where a picture is too small for a kernel
            side *= 2
            if side > LARGEST:
                raise
    last = sizes[-1] if sizes else None
    if not isinstance(last, torch.Size) or len(last) < 2:
        raise ValueError(f"the last child of {type(m).__name__} gives no features: its output's shape is {last}")
    return last[1]
