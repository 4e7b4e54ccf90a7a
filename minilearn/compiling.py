"""`torch.compile` for a function that a Learner calls over and over: compiled once, or a reason in one line."""

import re
import types
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from minilearn.errors import did_you_mean
from minilearn.tensors import cloned

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""What torch.compile calls its modes (2.6 to 2.13)."""

CUDA_GRAPHS = ("reduce-overhead", "max-autotune")

COMPILERS = ("torch._dynamo", "torch._inductor", "torch._functorch", "torch.fx", "torch._subclasses")
"""The modules of torch's compiler, by which its errors are told from those of the model."""


class CannotCompile(Exception):  # noqa: N818 -- it says what happened
    """A function cannot be compiled; the message says why and, where torch knows it, in which line.

    Args:
        error: what torch's compiler raised.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(reason(error))
        self.in_function = _is_of(error, "torch._dynamo")
        """Whether it is for what the function does, so that a part of it may do; not for want of a compiler, say."""


def check_mode(compile: bool | str) -> bool | str:
    """`compile` as it was given.

    Raises:
        ValueError: it is no mode of torch.compile.
        TypeError: it is neither True nor False nor a mode.
    """
    if isinstance(compile, bool):
        return compile
    if not isinstance(compile, str):
        raise TypeError(f"compile must be True, False or one of torch.compile's modes, got {compile!r}")
    if compile not in MODES:
        raise ValueError(
            f"compile must be True, False or one of {', '.join(MODES)}, got {compile!r}{did_you_mean(compile, MODES)}"
        )
    return compile


class Compiled:
    """A function, compiled as a single graph at its first call; a graph break is an error.

    Random numbers are drawn as without a compiler, from torch's own generators: a seed gives the same run.

    Args:
        function: works on tensors, and changes nothing but tensors.
        mode: one of `MODES`.
    """

    def __init__(self, function: Callable[..., Any], mode: str) -> None:
        # The compiler counts for each piece of code how often it has compiled it, and gives up after a few times.
        own: Any = types.FunctionType(
            function.__code__.replace(),
            function.__globals__,
            closure=function.__closure__,
        )
        options = {**torch._inductor.list_mode_options(mode), "fallback_random": True}
        if can_hold_backward():  # so new a torch knows this option too
            options["guard_filter_fn"] = _guards
        self._function: Callable[..., Any] = torch.compile(own, fullgraph=True, options=options)
        self._own = own
        self._graphs = mode in CUDA_GRAPHS
        self._called = False
        self._short_cut: _ShortCut | None = None

    def __call__(self, *args: Any) -> Any:
        """What the function returns.

        Raises:
            CannotCompile: and nothing has been changed.
        """
        if not self._graphs:
            return self._call(args)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return cloned(self._call(args))  # a CUDA graph writes its next results to the same place

    def _call(self, args: tuple[Any, ...]) -> Any:
        try:
            if self._short_cut is not None and self._short_cut.holds(args):
                return self._short_cut.run(*args)
            if self._called:
                return self._function(*args)
        except Exception as error:
            if not of_compiler(error):
                raise
        try:
            # Off by default in 2.13, where this came: a graph may hold its own backward pass.
            settings = torch._dynamo.config.patch(trace_autograd_ops=True) if can_hold_backward() else nullcontext()
            with settings, warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of the compiler, about itself
                result = self._function(*args)
        except Exception as error:
            if self._called and not of_compiler(error):
                raise
            raise CannotCompile(error) from error
        self._called = True
        self._short_cut = _ShortCut.to(self._own)
        return result


class _ShortCut:
    """The graph of a compiled function, called without the compiler's frame around it: half of a small model's step.

    The guards are asked all the same: where one does not hold, the compiler is called.
    """

    def __init__(self, function: Any, entry: Any) -> None:
        self.run: Callable[..., Any] = types.FunctionType(
            entry.code, function.__globals__, closure=function.__closure__
        )
        self._guards = entry.guard_manager
        code = function.__code__
        self._names = code.co_varnames[: code.co_argcount]
        self._around = dict(
            zip(code.co_freevars, [cell.cell_contents for cell in function.__closure__ or ()], strict=True)
        )

    @classmethod
    def to(cls, function: Any) -> "_ShortCut | None":
        """The way to what was compiled last; None where this torch has none."""
        try:
            entries = torch._dynamo.eval_frame._debug_get_cache_entry_list(function.__code__)
            return cls(function, entries[0])
        except (AttributeError, IndexError, RuntimeError, TypeError):
            return None

    def holds(self, args: tuple[Any, ...]) -> bool:
        """Whether the graph is for these arguments and the state of the world."""
        return bool(self._guards.check({**dict(zip(self._names, args, strict=True)), **self._around}))


def can_hold_backward() -> bool:
    """Whether this torch can compile a function with its backward pass in it (2.13 can)."""
    import torch._dynamo

    return hasattr(torch._dynamo.config, "trace_autograd_ops")


def of_compiler(error: BaseException) -> bool:
    """Whether an error is the compiler's, not the function's."""
    return _is_of(error, *COMPILERS)


def _is_of(error: BaseException, *modules: str) -> bool:
    return any(kind.__module__.startswith(modules) for kind in type(error).__mro__)


OURS = ("programs", "G['__import_minilearn_", "G['__builtins_")
"""What a graph need not look at before each call to see whether it still holds: what minilearn itself never changes."""


def _guards(entries: Sequence[Any]) -> list[bool]:
    """Which of the compiler's guards are kept; those left out are half of the time of a small model's step."""
    return [not (one.name.startswith(OURS) or re.match(r"G\['(?!__import_)", one.name)) for one in entries]


def check_compiler(device: torch.device) -> None:
    """Compiles next to nothing, to find out whether that can be done.

    Raises:
        CannotCompile: it cannot.
    """
    Compiled(lambda x: 2 * x + 1, "default")(torch.ones(8, device=device))


def reason(error: BaseException) -> str:
    """What an error of the compiler says, and the user's line that it is about."""
    text = str(error)
    head, _, below = text.partition("from user code:")
    first = next((line.strip() for line in head.splitlines() if line.strip()), "")
    places = re.findall(r'File "(.+)", line (\d+), in .+\n\s*(.+)', below)
    where = f" in {places[-1][0]}, line {places[-1][1]}: {places[-1][2].strip()}" if places else ""
    return f"{type(error).__name__}: {first}{where}"
