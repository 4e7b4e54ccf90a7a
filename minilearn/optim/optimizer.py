"""The engine: an optimizer is a list of steppers, run over the parameters of each group."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from operator import is_, itemgetter
from typing import Any, NamedTuple, TypedDict, cast

import torch
from torch import Tensor

from minilearn.optim.apart import apart
from minilearn.optim.blocks import FEW, MANY, SMALL, Block, Blocks, Gather, states_of
from minilearn.optim.calls import Call, Rule, as_function, columns_of, hypers_of, name_of, read_signature, rules_of, run
from minilearn.optim.compiled import Compiler, Prepared, looks_at_whole
from minilearn.optim.groups import GroupMethods
from minilearn.optim.hypers import HYPERS, Group
from minilearn.optim.kernels import Kernel, Run
from minilearn.optim.lists import fits_fused, in_order, is_heard, plain_grads, set_grad_enabled, untraced
from minilearn.optim.packs import Pack
from minilearn.optim.pieces import is_sharded
from minilearn.optim.shards import Shards, run_gathered
from minilearn.optim.sparse import step_rows
from minilearn.optim.steppers import Stepper, l1_reg


class _Kind(NamedTuple):
    """What the parameters of one call have in common."""

    device: torch.device
    dtype: torch.dtype
    step: int
    in_order: bool
    sparse: bool


class _Joined(NamedTuple):
    """Groups of the same hyperparameters as one; `run` is the kernel made for these, where it does not count steps."""

    group: dict[str, Any]
    params: list[Tensor]
    kernel: Call | None
    run: Run | None
    direct: tuple[str, ...] | None
    """The pieces of state that `run` takes, where it does all of the work, whatever the device."""


class Options(TypedDict, total=False):
    """What every optimizer takes beside its own hyperparameters."""

    l1: float
    compile: bool


class Optimizer(GroupMethods):
    """A list of steppers over parameter groups; a `torch.optim.Optimizer` in every respect.

    Of sharded parameters (`DTensor`) each process moves its own pieces, and their state is sharded like them. For a
    stepper marked `whole`, minilearn's own add up lengths over the processes; any other is given whole parameters, one
    after another. Such steppers are not compiled then.

    Args:
        params: parameters, or groups of them as dicts, as for any of torch's optimizers.
        steppers: the rules of `minilearn.optim.steppers` (or your own), in the order in which they are applied. On a
            CPU a large parameter comes in pieces, unless a stepper is marked `whole`, as one that takes a norm must be.
        kernels: the same rule in one pass (`minilearn.optim.kernels`), the first that may be used is. None may where a
            parameter's dtype or device has no such kernel.
        sparse: whether the rule leaves a parameter alone where its gradient is 0, so that it takes sparse gradients.
        compile: make one kernel of the steppers with `torch.compile`, where none of `kernels` does the work in a single
            pass. Of steppers marked `whole` a CPU compiles only what they do to large parameters.
        l1: L1 regularisation, in [0, ∞): l1·sign(p) is added to the gradients.
        hypers: a default for each hyperparameter that the steppers take; a group may have its own.

    Raises:
        TypeError: a stepper takes a hyperparameter that is not given.
        ValueError: there is no parameter, a hyperparameter is out of its range, or a gradient is sparse.
    """

    def __init__(
        self,
        params: Any,
        steppers: Sequence[Stepper],
        *,
        kernels: Sequence[Kernel] = (),
        sparse: bool = False,
        compile: bool = False,
        l1: float = 0.0,
        **hypers: Any,
    ) -> None:
        hypers["l1"] = l1
        self._hypers = tuple(hypers)
        self._calls = [read_signature(stepper, hypers) for stepper in (l1_reg, *steppers)]
        self._kernels = [read_signature(kernel, hypers) for kernel in kernels]
        marks = [call.only_with for call in self._calls if call.only_with is not None]  # as Muon's for its groups
        told_apart_by = dict.fromkeys([*self._hypers, *marks])
        self._values_of = itemgetter(*told_apart_by, "l1")  # of one name alone it would give no tuple
        self._takes_sparse = sparse
        self._counts_steps = any("step" in call.hypers for call in self._calls)
        self._wants_whole = self._says_whole = any(getattr(call.marks, "whole", False) for call in self._calls)
        self._compiles = compile
        self._ours = all(str(getattr(call.marks, "__module__", None)).startswith("minilearn.") for call in self._calls)
        self._looked_at = self._ours or self._wants_whole
        self._blocks, self._compiler = Blocks(), Compiler()
        self._held: tuple[list[Any], list[Tensor], list[_Joined]] | None = None
        super().__init__(_some(params), Group(hypers))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters, with hyperparameters of its own where it gives them.

        Raises:
            ValueError: a hyperparameter is out of its range, or given as one of torch's pairs.
            TypeError: a parameter is complex.
        """
        param_group = Group(param_group)
        if "betas" in param_group:
            name = type(self).__name__
            raise ValueError(f"{name}: a group's betas are given by the names of its numbers, mom and sqr_mom")
        for name, value in {**self.defaults, **param_group}.items():
            if name in HYPERS:
                param_group[name] = HYPERS[name](f"{type(self).__name__}: {name}", value)
        params = param_group["params"]
        if not isinstance(params, (Tensor, set)):  # torch says why not a set
            param_group["params"] = params = list(params)  # a generator can be walked but once
        for p in [params] if isinstance(params, Tensor) else params:
            if isinstance(p, Tensor) and p.is_complex():
                raise TypeError(f"{type(self).__name__} does not take complex parameters, got one of {tuple(p.shape)}")
        # torch wraps this method so that its compiler leaves it alone; the wrapper imports that compiler at the first
        # call (torch 2.13: 0.9 s and 75 MB), also where nothing is ever compiled.
        inspect.unwrap(torch.optim.Optimizer.add_param_group)(self, param_group)
        self._look_for_shards()

    def _look_for_shards(self) -> None:
        self._shards = Shards() if any(is_sharded(p) for g in self.param_groups for p in g["params"]) else None

    @property
    def _states(self) -> Any:
        """The state of what a rule is run on: of parameters, or of this process's pieces of them."""
        return self.state if self._shards is None else self._shards.states

    def uses_hyper(self, name: str) -> bool:
        """Whether a stepper takes the hyperparameter: one made without momentum, say, may have none that does."""
        return any(name in call.hypers for call in self._calls)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes on another optimizer's state; its tensors are copied.

        Raises:
            ValueError: it is of an optimizer with other groups, parameters or hyperparameters.
        """
        for group in state_dict["param_groups"]:
            missing = [name for call in self._calls for name in call.hypers if name != "step" and name not in group]
            if missing:
                has = ", ".join(name for name in group if name != "params")
                raise ValueError(f"this state is not of {type(self).__name__}: it has no {missing[0]}, but {has}")
        super().load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        own = {name: value for name, value in self.__dict__.items() if name in OWN}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # load_state_dict hands the state's tensors over; they are copied, so that two optimizers never share one.
        for values in cast(dict[Any, Any], state.get("state", {})).values():
            values.update({name: value.clone() for name, value in values.items() if isinstance(value, Tensor)})
        super().__setstate__(state)
        self.defaults, self.param_groups = Group(self.defaults), [Group(group) for group in self.param_groups]
        self._blocks, self._compiler, self._held = Blocks(), self.__dict__.get("_compiler", Compiler()), None
        self._look_for_shards()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Moves every parameter that has a gradient.

        Args:
            closure: computes the loss and the gradients anew, as for any of torch's optimizers.
        Returns:
            What `closure` returned.
        """
        if torch.compiler.is_dynamo_compiling():  # a compiled training step: this part of it runs as it is
            return _step_untraced(self, closure)
        return _step_heard(self, closure) if is_heard(self) else self._step(closure)

    step.hooked = True  # type: ignore[attr-defined]  # else torch wraps it, to no purpose where nobody listens

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        before = torch.is_grad_enabled()
        set_grad_enabled(False)
        try:
            if self._shards is None:
                self._move(self._joined())
            else:
                with self._shards.of_step(self.state):
                    self._move([part._replace(params=self._shards.pieces(part.params)) for part in self._joined()])
        finally:
            set_grad_enabled(before)
        return loss

    def _move(self, joined: list[_Joined]) -> None:
        for part in joined:
            grads = plain_grads(part.params)
            if part.run and part.direct is not None and grads and fits_fused(grads[0]):
                states = states_of(part.params, part.direct, self._states) if part.direct else {}
                part.run(part.params, grads, *states.values())
            else:
                for alike in self._alike(part.params, grads, part.kernel is not None):
                    self._apply(part, *alike)

    def _joined(self) -> list[_Joined]:
        """The groups and their parameters; those of the same hyperparameters as one, which takes half the calls.

        They are kept from step to step, and made anew where a group has changed.
        """
        groups = self.param_groups
        hypers = [(len(group["params"]), self._values_of(group)) for group in groups]
        params = [p for group in groups for p in group["params"]]
        if self._held is not None:
            held_hypers, held_params, joined = self._held
            if hypers == held_hypers and len(params) == len(held_params) and all(map(is_, params, held_params)):
                return joined
        joined, before, plain = [], None, True
        for group, (_, values) in zip(groups, hypers, strict=True):
            fixed = not any(isinstance(value, Tensor) for value in values)
            if fixed and values == before:
                joined[-1] = joined[-1]._replace(params=joined[-1].params + group["params"])
            else:
                kernel = self._kernel_for(group)
                run, direct = None, None
                if kernel is not None and "step" not in kernel.hypers:
                    run = kernel.stepper(**hypers_of(kernel, group, 0))
                    if not (self._counts_steps or self._shards or kernel.marks.cpu_only or kernel.marks.in_blocks):
                        direct = kernel.states
                joined.append(_Joined(group, list(group["params"]), kernel, run, direct))
            before, plain = values if fixed else None, plain and fixed
        self._held = (hypers, params, joined) if plain else None  # a tensor may get another number
        return joined

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Lets go of every parameter's gradient; with `set_to_none=False` fills it with zeros."""
        if not set_to_none or torch.compiler.is_dynamo_compiling():
            super().zero_grad(set_to_none)
            return
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def _kernel_for(self, group: dict[str, Any]) -> Call | None:
        """The kernel that does the work of all steppers for a group's hyperparameters."""
        if not group["l1"]:
            for kernel in self._kernels:
                if kernel.marks.when(group):
                    return kernel
        return None

    def _alike(
        self, params: list[Tensor], plain: list[Tensor] | None, wants_order: bool
    ) -> Iterable[tuple[list[Tensor], list[Tensor], _Kind]]:
        """The parameters that have a gradient, and the gradients, in lists that one call can be made for.

        Almost always they are `plain`, and all of one kind.
        """
        params = params if plain else [p for p in params if p.grad is not None]
        if not params:
            return ()
        steps, first = self._count_steps(params), params[0]
        if plain is not None and len(set(steps)) == 1:
            return ((params, plain, _Kind(first.device, first.dtype, steps[0], True, False)),)
        alike: dict[_Kind, tuple[list[Tensor], list[Tensor]]] = {}
        for p, step in zip(params, steps if self._counts_steps else [0] * len(params), strict=True):
            grad: Any = p.grad
            sparse = grad.is_sparse
            kind = _Kind(p.device, p.dtype, step, wants_order and not sparse and in_order(p, grad), sparse)
            same = alike.setdefault(kind, ([], []))
            same[0].append(p)
            same[1].append(grad)
        return ((*same, kind) for kind, same in alike.items())

    def _count_steps(self, params: list[Tensor]) -> list[int]:
        """The number of each parameter's step; a single 0 where no rule asks for it."""
        if not self._counts_steps:
            return [0]
        steps, states = [], self._states
        for p in params:
            state = states[p]
            state["step"] = step = state.get("step", 0) + 1
            steps.append(step)
        return steps

    def _apply(self, part: _Joined, params: list[Tensor], grads: list[Tensor], kind: _Kind) -> None:
        """Moves parameters that one call can be made for."""
        group, kernel = part.group, part.kernel
        if self._shards is not None and self._step_whole(group, params, grads, kind):
            return
        on_cpu = kind.device.type == "cpu"
        if kernel is not None:
            usable = kind.in_order and fits_fused(params[0]) and (on_cpu or not kernel.marks.cpu_only)
            kernel = kernel if usable else None
        if kernel is not None and not (on_cpu and kernel.marks.in_blocks):
            run_all = part.run or kernel.stepper(**hypers_of(kernel, group, kind.step))
            states = states_of(params, list(kernel.states), self._states) if kernel.states else {}
            run_all(params, grads, *states.values())
            return
        rules, names = rules_of(self._calls, group, kind.step)
        if not rules:
            return
        if kind.sparse:
            for p in params:
                step_rows(type(self).__name__, group, p, self.state, rules, takes_sparse=self._takes_sparse)
        elif on_cpu:
            fast = None if kernel is None else part.run or kernel.stepper(**hypers_of(kernel, group, kind.step))
            self._step_blocks(params, names, rules, fast)
        else:
            block = Block(params, grads, states_of(params, names, self._states))
            prepared = self._prepared(names, rules)
            if not (prepared and self._compiler.run(prepared, columns_of(block))):
                run(rules, block)

    def _step_whole(self, group: dict[str, Any], pieces: list[Tensor], grads: list[Tensor], kind: _Kind) -> bool:
        """Moves sharded parameters by a rule that looks at each as a whole; False for one that works number by number.

        minilearn's own rules measure pieces, and add up over the processes. Any other is given whole parameters.
        """
        assert self._shards is not None
        if self._ours and not self._wants_whole:
            return False
        rules, names = rules_of(self._calls, group, kind.step)
        if self._ours and not any(getattr(call.marks, "whole", False) for call, _ in rules):
            return False
        if not self._ours and not self._says_whole and self._shards.works_by_number(rules, names):
            return False
        params, states = self._shards.whole(pieces), states_of(pieces, names, self._states)
        (run if self._ours else run_gathered)(rules, Block(params, grads, states))
        return True

    def _step_blocks(self, params: list[Tensor], names: list[str], rules: list[Rule], fast: Run | None) -> None:
        """Moves parameters on a CPU block by block, by a kernel where there is one, the large ones compiled if so."""
        if not self._looked_at:
            self._looked_at = True
            # A rule of the user's own that measures a parameter, and does not say so, would measure pieces of it.
            self._wants_whole = looks_at_whole(as_function(names, rules), 2 + len(names))
        # Of a `whole` rule a program is given no small parameters: of what lies together it would measure one length.
        together = self._compiles and not (fast or self._says_whole)
        all_small = max(map(numel, params)) <= SMALL  # else the program for the large ones does for the small ones too
        prepared = self._prepared(names, rules) if together or not all_small else None
        parted = apart(prepared) if prepared and together and all_small and fits_fused(params[0]) else None
        gather: Gather = "nothing" if fast else "all" if together and not parted else "grads"
        cut = not (self._wants_whole or self._compiles)
        several = MANY if together or (fast and self._says_whole) else FEW  # a length is a call or two more
        for block in self._blocks.over(params, names, self._states, cut=cut, gather=gather, several=several):
            if isinstance(block.params, Pack):
                if prepared and self._compiler.run(prepared, columns_of(block)):
                    continue
            elif parted and isinstance(block.grads, Pack) and parted.move(self._compiler, block):
                continue
            if fast:
                fast(block.params, block.grads, *block.states.values())
            else:
                run(rules, block)

    def _prepared(self, names: list[str], rules: list[Rule]) -> Prepared | None:
        """The steppers as one program, if that was asked for."""
        if not self._compiles:
            return None
        name = name_of(rules) if self._ours else None  # a stepper of the user's own may look at other things too
        return self._compiler.prepare(as_function(names, rules), 2 + len(names), self._says_whole, name)


_step_untraced = untraced(Optimizer._step)
_step_heard = Optimizer.profile_hook_step(Optimizer._step)
numel = Tensor.numel

OWN = (
    "_hypers",
    "_values_of",
    "_calls",
    "_kernels",
    "_takes_sparse",
    "_counts_steps",
    "_wants_whole",
    "_says_whole",
    "_compiles",
    "_looked_at",
    "_ours",
)


def _some(params: Any) -> Any:
    """`params` as it came, a generator made a list.

    Raises:
        ValueError: there is no parameter in it.
    """
    if isinstance(params, Iterable) and not isinstance(params, Tensor):
        params = list(params)
        if not params:
            raise ValueError("there are no parameters to train: the model has none, or all of them are frozen")
    return params
