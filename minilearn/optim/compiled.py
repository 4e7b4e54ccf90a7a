"""`compile=True`: one kernel of all the steppers of an optimizer, made by `torch.compile`.

The steppers are not handed to the compiler as they are: what they compute with plain numbers (a bias correction, a
schedule, a choice between two formulas) is other in each step, and would be compiled anew each time. Instead they are
run in each step on stand-ins, which only write down what is done to tensors. What was written down is a `Program`; it
is compiled when it is first met, and takes the plain numbers as an input.
"""

import operator
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minilearn.errors import warn


class Value(NamedTuple):
    """In an operation's arguments: the result of an operation before it, or an input."""

    number: int


class Scalar(NamedTuple):
    """In an operation's arguments: a plain number, given in each step anew."""

    number: int


class Operation(NamedTuple):
    """A torch function by its name, its arguments, and whether it changed the first of them."""

    name: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    in_place: bool


class Program(NamedTuple):
    """What is done to the tensors of one parameter: operations in order, and which inputs get which of their values."""

    inputs: int
    operations: tuple[Operation, ...]
    changed: tuple[tuple[int, int], ...]


class Recording:
    """Writes down what happens to stand-ins."""

    def __init__(self, inputs: int) -> None:
        self.inputs = [StandIn(self, number) for number in range(inputs)]
        self.operations: list[Operation] = []
        self.scalars: list[float] = []

    def add(self, name: str, args: Iterable[Any], kwargs: dict[str, Any]) -> "StandIn":
        """An operation; one whose name ends with an underscore changes its first argument."""
        args = list(args)
        if name in ("div", "div_") and isinstance(args[1], float) and args[1]:
            name, args[1] = name.replace("div", "mul"), 1 / args[1]  # beside the memory a division is felt
        in_place = name.endswith("_") and not name.endswith("__")
        name = name.removesuffix("_") if in_place else name
        counts = name in ARITHMETIC  # a whole number may be another in each step, as `step` is
        written = tuple(self._write(arg, counts) for arg in args)
        options = tuple((key, self._write(value, counts)) for key, value in sorted(kwargs.items()) if value is not None)
        self.operations.append(Operation(name, written, options, in_place))
        number = len(self.inputs) + len(self.operations) - 1
        if in_place:
            args[0].number = number
            return args[0]  # type: ignore[no-any-return]
        return StandIn(self, number)

    def _write(self, arg: Any, counts: bool) -> Any:
        if isinstance(arg, StandIn):
            return Value(arg.number)
        if isinstance(arg, float) or (counts and type(arg) is int):
            self.scalars.append(float(arg))
            return Scalar(len(self.scalars) - 1)
        hash(arg)  # what cannot be a part of the program's name cannot be compiled
        return arg

    def program(self) -> Program:
        """What has been written down."""
        changed = tuple((i, one.number) for i, one in enumerate(self.inputs) if one.number != i)
        return Program(len(self.inputs), tuple(self.operations), changed)


class StandIn:
    """Looks like a tensor to a stepper."""

    def __init__(self, recording: Recording, number: int) -> None:
        self.recording, self.number = recording, number

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> "StandIn":
        first = next((arg for arg in (*args, *(kwargs or {}).values()) if isinstance(arg, cls)), None)
        if first is None:
            raise TypeError(f"{function.__name__} of a list of tensors")
        return first.recording.add(function.__name__, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        if not callable(getattr(Tensor, name, None)):
            raise AttributeError(f"'{name}' of a tensor")
        return lambda *args, **kwargs: self.recording.add(name, (self, *args), kwargs)

    def __bool__(self) -> bool:
        raise TypeError("a choice by a tensor's value")


def _operator(name: str, swapped: bool) -> Callable[..., StandIn]:
    def method(self: StandIn, *others: Any) -> StandIn:
        return self.recording.add(name, (*others, self) if swapped else (self, *others), {})

    return method


for _name in ("abs", "neg", "eq", "ne", "lt", "le", "gt", "ge"):
    setattr(StandIn, f"__{_name}__", _operator(f"operator.{_name}", swapped=False))
for _name in ("add", "sub", "mul", "truediv", "pow", "and", "or"):
    setattr(StandIn, f"__{_name}__", _operator(f"operator.{_name}", swapped=False))
    setattr(StandIn, f"__r{_name}__", _operator(f"operator.{_name}", swapped=True))
    setattr(StandIn, f"__i{_name}__", _operator(f"operator.{_name}_", swapped=False))  # p -= lr * g changes p

ARITHMETIC = {"add", "sub", "mul", "div", "addcmul", "addcdiv", "lerp"} | {
    f"operator.{_name}" for _name in ("add", "sub", "mul", "truediv")
}
"""Functions of torch that take a whole number as they take any other."""

FORMULAS: dict[str, Callable[..., Tensor]] = {
    "add": lambda a, b, alpha=1: a + b * alpha,
    "sub": lambda a, b, alpha=1: a - b * alpha,
    "addcmul": lambda a, b, c, value=1: a + b * c * value,
    "addcdiv": lambda a, b, c, value=1: a + b / c * value,
    "lerp": lambda a, b, weight: a + (b - a) * weight,
    "linalg_vector_norm": torch.linalg.vector_norm,
    "copy": lambda a, b: b.to(a.dtype).expand_as(a).clone(),
    "zero": torch.zeros_like,
    "operator.and": operator.and_,
    "operator.or": operator.or_,
}
"""Functions of torch whose plain numbers may not be tensors there."""


def _function(name: str) -> Callable[..., Any]:
    found = FORMULAS.get(name)
    if found is None and name.startswith("operator."):
        found = getattr(operator, name.removeprefix("operator."))
    if found is None:
        places = (torch, torch.linalg, Tensor, torch.nn.functional)
        names = [(place, each) for each in (name, f"linalg_{name}") for place in places if hasattr(place, each)]
        if not names:
            raise TypeError(f"{name} is no function of tensors that is known here")
        found = getattr(*names[0])
    return found


def _read(arg: Any, values: Sequence[Any], scalars: Tensor) -> Any:
    if isinstance(arg, Value):
        return values[arg.number]
    return scalars[arg.number] if isinstance(arg, Scalar) else arg


def result_of(op: Operation, values: Sequence[Any], scalars: Tensor) -> Any:
    """An operation carried out: `values` are the inputs and the results before it, `scalars` the plain numbers."""
    args = [_read(arg, values, scalars) for arg in op.args]
    return _function(op.name)(*args, **{key: _read(arg, values, scalars) for key, arg in op.kwargs})


def check(program: Program, dtype: torch.dtype, scalars: Tensor, whole: bool = False) -> None:
    """Carries a program out on a few numbers: it must give one for each, and write to no memory by two names.

    That of a `whole` rule may also give one number for all of them. It is carried out on a matrix too and must give the
    same there, as on a CPU a parameter of any shape comes as a line of numbers.

    Raises:
        TypeError: it does not; a program is run on several parameters that were laid together, and knows no views.
    """
    values = [torch.linspace(i + 1, i + 2, 6).to(scalars.device, dtype) for i in range(program.inputs)]
    matrices = [value.view(2, 3) for value in values]
    shapes = [(6,), (), (1,)] if whole else [(6,)]
    for op in program.operations:
        result = result_of(op, values, scalars)
        if not isinstance(result, Tensor) or tuple(result.shape) not in shapes:
            raise TypeError(f"{op.name} looks at a whole parameter: mark its stepper as `whole`")
        if op.in_place:
            first = values[op.args[0].number]
            if sum(value.data_ptr() == first.data_ptr() for value in values) > 1:
                raise TypeError(f"{op.name}_ changes a tensor that another shares its memory with")
            if result.shape != first.shape:
                raise TypeError(f"{op.name}_ would give a single number the shape of a parameter")
        values.append(result)
        if whole:
            matrices.append(result_of(op, matrices, scalars))
            line, matrix = result.flatten().double(), matrices[-1].flatten().double()
            if line.shape != matrix.shape or not torch.allclose(line, matrix, rtol=0.01, equal_nan=True):
                raise TypeError(f"{op.name} gives something else for a matrix than for its numbers in a line")


def looks_at_whole(rule: Callable[..., None], columns: int) -> bool:
    """Whether a rule computes anything that is not one number for each number of a parameter, such as its length.

    Args:
        rule: as for `Compiler.prepare`; False for one that cannot be written down.
        columns: as there.
    """
    error = _trial(rule, columns)
    return isinstance(error, TypeError) and "looks at a whole parameter" in str(error)


def is_elementwise(rule: Callable[..., None], columns: int) -> bool:
    """Whether a rule is known to compute one number for each number of a parameter; arguments as `looks_at_whole`."""
    return _trial(rule, columns) is None


def _trial(rule: Callable[..., None], columns: int) -> Exception | None:
    """Writes a rule down and carries it out on a few numbers; what stood against it."""
    recording = Recording(columns)
    try:
        rule(*([one] for one in list(recording.inputs)))
        check(recording.program(), torch.float32, torch.tensor(recording.scalars))
    except Exception as error:
        return error
    return None


def _executor(program: Program) -> Callable[..., None]:
    """A program as a function of the plain numbers and, parameter after parameter, its inputs."""
    steps = [(_function(op.name), op.args, dict(op.kwargs)) for op in program.operations]

    def execute(scalars: Tensor, *tensors: Tensor) -> None:
        for begin in range(0, len(tensors), program.inputs):
            inputs = tensors[begin : begin + program.inputs]
            values: list[Any] = list(inputs)
            for function, args, kwargs in steps:
                given = {key: _read(arg, values, scalars) for key, arg in kwargs.items()}
                values.append(function(*[_read(arg, values, scalars) for arg in args], **given))
            for i, number in program.changed:
                inputs[i].copy_(values[number])

    # The compiler counts how often it has compiled a piece of code, and gives up after a few times: each has its own.
    code = execute.__code__.replace()
    return types.FunctionType(code, execute.__globals__, closure=execute.__closure__)


_compiled: dict[tuple[Program, torch.dtype, int, bool], Callable[..., None]] = {}
"""Every program met so far, by the tensors' dtype and number; all optimizers of a rule share them."""

MAX_PROGRAMS = 64
"""A rule that is another program in each step is not worth compiling."""


@contextmanager
def _unwarned() -> Iterator[None]:
    """Without the warnings of torch's compiler about itself (2.13: one on its first import)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


class Prepared(NamedTuple):
    """What the steppers do in a step: a program, and its plain numbers; `whole` where it may measure a parameter."""

    program: Program
    scalars: list[float]
    whole: bool
    tensors: dict[tuple[torch.device, torch.dtype], Tensor]


def _made(prepared: Prepared, dtype: torch.dtype, several: int, scalars: Tensor) -> Callable[..., None]:
    """A program, ready to be compiled when it is called.

    Raises:
        TypeError: it cannot be.
        RuntimeError: there are too many.
    """
    check(prepared.program, dtype, scalars, prepared.whole)
    if len(_compiled) >= MAX_PROGRAMS:
        raise RuntimeError(f"{MAX_PROGRAMS} programs have been compiled already")
    dynamic = several == 1  # one flat tensor after another, of any length
    return torch.compile(_executor(prepared.program), dynamic=dynamic, fullgraph=True)


class Compiler:
    """Carries steppers out as compiled programs; says once where that cannot be done."""

    def __init__(self) -> None:
        self.failed = False
        self._kept: dict[Any, Prepared] = {}

    def prepare(
        self, rule: Callable[..., None], columns: int, whole: bool = False, name: Any = None
    ) -> Prepared | None:
        """Writes down what a rule does; None where that cannot be compiled.

        Args:
            rule: called with a list of one stand-in for each column, does what the steppers do.
            columns: parameters, gradients and pieces of state: how many there are.
            whole: whether the rule may measure a parameter; it must then be run on parameters one by one.
            name: a rule of the same name does the same: it is not written down again. None for one that has none.
        """
        if self.failed:
            return None
        prepared = self._kept.get(name)
        if prepared is not None:
            return prepared
        try:
            recording = Recording(columns)
            rule(*([one] for one in list(recording.inputs)))
            prepared = Prepared(recording.program(), recording.scalars, whole, {})
        except Exception as error:
            self._give_up(error)
            return None
        if name is not None:
            if len(self._kept) >= MAX_PROGRAMS:  # a schedule gives a rule another name in each step
                self._kept.clear()
            self._kept[name] = prepared
        return prepared

    def run(self, prepared: Prepared | None, columns: Sequence[Sequence[Tensor]]) -> bool:
        """Carries out a rule on parameters.

        Args:
            prepared: the rule.
            columns: the parameters, their gradients, and each piece of state, as many tensors each.
        Returns:
            Whether that was done; where not, nothing has been changed.
        """
        if self.failed or prepared is None:
            return False
        try:
            p, several = columns[0][0], len(columns[0])
            dtype = p.dtype if p.dtype == torch.float64 else torch.float32
            scalars = prepared.tensors.get((p.device, dtype))
            if scalars is None:
                scalars = torch.tensor(prepared.scalars, dtype=dtype).to(p.device, non_blocking=True)
                prepared.tensors[p.device, dtype] = scalars
            key = prepared.program, p.dtype, several, prepared.whole
            function = _compiled.get(key)
            with nullcontext() if function is not None else _unwarned():
                if function is None:
                    function = _compiled[key] = _made(prepared, p.dtype, several, scalars)
                function(scalars, *[tensor for row in zip(*columns, strict=True) for tensor in row])
        except Exception as error:
            self._give_up(error)
            return False
        return True

    def _give_up(self, error: Exception) -> None:
        self.failed = True
        said = str(error).strip()
        reason = f"{type(error).__name__}: {said.splitlines()[0] if said else ''}"
        warn(f"compile=True has no effect: the optimizer's rule could not be compiled ({reason})")
