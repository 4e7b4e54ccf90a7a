"""A function called with what the layers of the model take and give, batch by batch of a fit."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from minilearn.callback import Callback
from minilearn.callbacks.device import DevicePlacement
from minilearn.errors import describe, warn, whole
from minilearn.hooks import HookFunc, Hooks, as_modules, layers_of


class HookCallback(Callback):
    """Hooks layers of the model during a fit: `hook` is called with what each takes and gives.

    Without `every` the layers are hooked from `before_fit` to `cleanup_fit`, in training and in validation. With it,
    from `before_batch` to `after_batch` of each `every`-th training batch, counted from the fit's first, and of no
    other. ``self.hooks.stored`` has what `hook` returned last, a value a layer. Whatever ends the fit, the hooks go.

    On a CPU a batch costs about 10 µs a layer, beside what `hook` does; with `every`, a hooked batch costs 4 µs a layer
    more, and any other 1 µs in all. Copies to the CPU's memory wait for a GPU: ``cpu=False`` leaves them out.

    With ``compile=True`` the batches in which layers are hooked are carried out uncompiled, as a compiled model may
    call no hook. Without `every` these are all batches, and a warning says so.

    Args:
        modules: the modules to hook; by default the model's layers: all modules that have parameters of their own.
        every: hook each so many-th training batch only, at least 1; None hooks all, those of validation too.
        remove_end: whether the hooks go at the end of the fit too. False leaves them on the model, until `remove` or
            the next fit, where the fit came to its end; not where an error or Ctrl-C ended it.
        is_forward: whether to look at the forward pass, or at the backward pass (see `minilearn.hooks.Hook`).
        detach: whether tensors are cut off from their graph first.
        cpu: whether they are copied to the CPU's memory first, where `detach` is True.
        include_paramless: whether `modules` by default has those without parameters too, such as `nn.ReLU`.
        hook: the function, where no subclass has a method `hook` of its own.
    Raises:
        ValueError: `every` is less than 1.
        TypeError: `hook` is no function, or `every` no whole number.

    >>> class Shapes(HookCallback):
    ...     "Keeps the shapes of the layers' outputs."
    ...
    ...     def hook(self, module, inputs, output):
    ...         return output.shape
    """

    order = DevicePlacement.order + 1  # the model is where it stays

    hooks: Hooks | None = None
    """The hooks; after the fit they are off the model, but what they have stored is there."""

    def __init__(
        self,
        modules: nn.Module | Iterable[nn.Module] | None = None,
        every: int | None = None,
        remove_end: bool = True,
        is_forward: bool = True,
        detach: bool = True,
        cpu: bool = True,
        include_paramless: bool = False,
        *,
        hook: HookFunc | None = None,
    ) -> None:
        if hook is not None and not callable(hook):
            raise TypeError(f"hook must be a function of (module, inputs, output), got {describe(hook)}")
        self._asked = None if modules is None else as_modules(modules)
        self.modules: list[nn.Module] = list(self._asked or ())
        self.every = None if every is None else whole("every", every, 1)
        self.remove_end, self.is_forward, self.detach, self.cpu = remove_end, is_forward, detach, cpu
        self.include_paramless = include_paramless
        self._given = hook
        self._hooked, self._ended = False, False
        self._compiled: tuple[Any, Any] | None = None

    def hook(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """What is done with a layer's inputs and output, and stored; for subclasses to say. By default, nothing."""

    def remove(self) -> None:
        """Takes the hooks off the model. What they have stored stays in `hooks`."""
        self._hooked = False
        if self.hooks is not None:
            self.hooks.remove()
        if self._compiled is not None:
            learn, learn.compiled = self._compiled[0], self._compiled[1]
            self._compiled = None

    def before_fit(self) -> None:
        self.remove()
        self._ended = False
        self.modules = layers_of(self.model, self.include_paramless) if self._asked is None else list(self._asked)
        if self.learn.compiled is not None and self.every in (None, 1):
            warn(
                f"compile={self.learn.compiled.mode!r}: {type(self).__name__} hooks every batch, and a compiled model"
                " may call no hook, so the hooked batches are carried out uncompiled. With every=100, say, it is each"
                " hundredth training batch."
            )
        if self.every is None:
            self._register()

    def before_batch(self) -> None:
        if self.every is None:
            return
        if self._hooked:  # after_batch did not come: the training or the epoch was cancelled
            self.remove()
        if self.training and self._is_due():
            self._register()

    def after_batch(self) -> None:
        if self._hooked and self.every is not None:
            self.remove()

    def after_fit(self) -> None:
        self._ended = True

    def cleanup_fit(self) -> None:
        if self.remove_end or not self._ended:
            self.remove()

    def _is_due(self) -> bool:
        """Whether this training batch is one to be hooked."""
        assert self.every is not None
        return self.train_iter % self.every == 0

    def _register(self) -> None:
        self.hooks = Hooks(self.modules, self._given or self.hook, self.is_forward, self.detach, self.cpu)
        self._hooked = True
        if self.learn.compiled is not None:  # else another such callback has set it aside for this batch
            self._compiled, self.learn.compiled = (self.learn, self.learn.compiled), None
