"""`torch.compile` for a function that a Learner calls over and over: compiled once, or a reason in one line."""

import re
import types
import warnings
from collections.abc import Callable, Sequence
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
        any_size: whether it is to be for tensors of any sizes, where they are marked as dynamic. Else the compiler
            would remember other sizes of other models, whose functions are called the same, and be slower by half.
    """

    def __init__(self, function: Callable[..., Any], mode: str, any_size: bool = False) -> None:
        # The compiler counts for each piece of code how often it has compiled it, and gives up after a few times.
        own: Any = types.FunctionType(
            function.__code__.replace(),
            function.__globals__,
            closure=function.__closure__,
        )
        options = {**torch._inductor.list_mode_options(mode), "fallback_random": True}
        if can_hold_backward():  # so new a torch knows this option too
            options["guard_filter_fn"] = _guards
        self._function: Callable[..., Any] = torch.compile(
            own, fullgraph=True, dynamic=None if any_size else False, options=options
        )
        self._own = own
        self._graphs = mode in CUDA_GRAPHS
        self._called = False
        self._short_cut: _ShortCut | None = None

    def __call__(self, *args: Any) -> Any:
        """What the function returns.

        Raises:
            CannotCompile: and nothing has been changed.
        """
        done = self.again(*args)
        return self._outside(self._call, args) if done is None else done

    def again(self, *args: Any) -> Any:
        """What the function returns, by the graph that was made last; None where that is not for these arguments."""
        way = self._short_cut
        if way is None or not way.holds(args):
            return None
        try:
            return self._outside(way.run, args) if self._graphs else way.run(*args)
        except Exception as error:
            if not of_compiler(error):
                raise
        return None

    def _outside(self, run: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Its results in memory of their own: a CUDA graph writes its next ones to the same place."""
        if not self._graphs:
            return run(*args)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return cloned(run(*args))

    def _call(self, *args: Any) -> Any:
        try:
            if self._called:
                return self._function(*args)
        except Exception as error:
            if not of_compiler(error):
                raise
        try:
            with torch._dynamo.config.patch(_settings()), warnings.catch_warnings():
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
        # The graph is wrapped in what keeps it from being compiled once more, which nobody is about to do here.
        known = function.__globals__
        graphs = {name: known[name] for name in entry.code.co_names if name.startswith("__compiled_fn")}
        graphs = {name: getattr(graph, "_torchdynamo_orig_callable", graph) for name, graph in graphs.items()}
        self.run: Callable[..., Any] = types.FunctionType(entry.code, {**known, **graphs}, closure=function.__closure__)
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
        except (AttributeError, LookupError, RuntimeError, TypeError):
            return None

    def holds(self, args: tuple[Any, ...]) -> bool:
        """Whether the graph is for these arguments and the state of the world."""
        return bool(self._guards.check({**dict(zip(self._names, args, strict=True)), **self._around}))


def _settings() -> dict[str, bool]:
    """The compiler's settings while a graph is made, of those that this torch knows.

    A graph may hold its own backward pass, which 2.13 brought, off by default; hooks that come to a layer later are
    heeded; no call is noted for a profiler of the compiler itself, which takes a tenth of a small model's step.
    """
    settings = {"trace_autograd_ops": True, "record_runtime_overhead": False, "skip_nnmodule_hook_guards": False}
    return {name: value for name, value in settings.items() if hasattr(torch._dynamo.config, name)}


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
    """Which of the compiler's guards are kept; those left out are more than half of the time of a small model's step.

    Left out are minilearn's own names and what lies in torch's modules: that ``torch.where`` is still what it was; and
    what `are_tensors_hooked` tells sooner.
    """
    of_torch = tuple(f"{one.name}." for one in entries if _is_torchs(one.value))
    return [
        not (one.name.startswith((*OURS, *of_torch)) or re.match(r"G\['(?!__import_)", one.name))
        and one.guard_type != "AUTOGRAD_SAVED_TENSORS_HOOKS"
        for one in entries
    ]


def are_tensors_hooked() -> bool:
    """Whether ``torch.autograd.graph.saved_tensors_hooks`` is at work, which a graph would know nothing of."""
    return _top_hooks is not None and _top_hooks(True) is not None


_top_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)


def _is_torchs(value: Any) -> bool:
    return isinstance(value, types.ModuleType) and value.__name__.partition(".")[0] == "torch"


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
