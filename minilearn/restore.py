"""Trying something out on a Learner: whatever happens within `restored`, afterwards it is as it was before."""

import copy
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from minilearn.callback import Callback
from minilearn.loop import Loop
from minilearn.metrics import Metric
from minilearn.random_states import random_states, set_random_states
from minilearn.tensors import LateScalars

Undo = Callable[[], object]

INTO = (nn.Module, Optimizer, Callback, Metric, LateScalars)
"""Objects whose attributes are put back one by one; others are left as they are, or know their `state_dict`."""

OF_A_LOADER = (DataLoader, Sampler, BatchSampler, Dataset)
"""What the order of a loader's batches may depend on."""


@contextmanager
def restored(learn: Loop, params: Iterable[Tensor] = ()) -> Iterator[None]:
    """Puts everything about a Learner back at the end of a ``with`` block, whatever ended it: an error, Ctrl-C.

    That is: the model and the loss (parameters, buffers, gradients, modes, what requires a gradient, plain attributes,
    modules that are initialised lazily), the optimizer (or that there was none), the callbacks and their attributes,
    the Learner's own attributes, the loaders' and their samplers' generators and attributes, and the random
    numbers of Python, NumPy and torch on every device. A fit afterwards is then bit for bit the one that it would have
    been before, where the device's kernels give the same numbers twice.

    The copies are in memory, on the device where the originals are. What is left as it became: objects of other
    classes that a model or a callback holds, unless they have `state_dict` and `load_state_dict`; what worker
    processes that live on from epoch to epoch hold; and whatever a callback did outside the Learner, such as a file.

    Args:
        learn: the Learner.
        params: further tensors to put back, such as parameters that are trained but are not the model's.
    """
    rewind = _Rewind()
    rewind.random()
    for loader in learn.dls.loaders:
        rewind.loader(loader)
    if "opt" in learn.__dict__:
        rewind.thing(learn.opt)  # it need not be a subclass of torch's; first, as callbacks may hold it too
    rewind.value([learn.model, learn.loss_func, list(params), list(learn.cbs)])
    attributes, cbs = dict(learn.__dict__), list(learn.cbs)
    try:
        yield
    finally:
        try:
            rewind.undo()
        finally:
            learn.__dict__.clear()
            learn.__dict__.update(attributes)
            learn.cbs = cbs
            learn.build_handlers()


class _Rewind:
    """Notes how things are, and puts them back: the same objects, with what they held."""

    def __init__(self) -> None:
        self._undos: list[Undo] = []
        self._seen: dict[int, object] = {}  # the objects, too, so that no id is given out a second time

    def undo(self) -> None:
        with torch.no_grad():
            for undo in self._undos:
                undo()

    def random(self) -> None:
        """Notes the random numbers that belong to nobody."""
        states = random_states()
        self._undos.append(lambda: set_random_states(states))

    def loader(self, part: Any) -> None:
        """Notes a loader's attributes and generators, and its sampler's; never the data itself."""
        if self._known(part) or not hasattr(part, "__dict__"):
            return
        self._attributes(part)
        for value in vars(part).values():
            if isinstance(value, OF_A_LOADER):
                self.loader(value)
            elif isinstance(value, (list, dict, set, deque)):
                self._contents(value)
            else:
                self._generator(value)

    def value(self, value: Any) -> None:
        """Notes a value and, in containers and in `INTO`'s objects, all that it holds."""
        if self._known(value):
            return
        if isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, INTO):
            self._object(value)
        elif isinstance(value, (list, dict, set, deque)):
            self._contents(value)
            self._each(value.values() if isinstance(value, dict) else value)
        elif isinstance(value, (tuple, frozenset)):
            self._each(value)
        elif isinstance(value, np.ndarray) and value.flags.writeable:
            array = value.copy()
            self._undos.append(lambda: np.copyto(value, array))
        elif not self._generator(value) and _has_state(value):
            state = copy.deepcopy(value.state_dict())
            self._undos.append(lambda: value.load_state_dict(state))

    def thing(self, thing: Any) -> None:
        """Notes an object's attributes, and all that they hold."""
        if not self._known(thing):
            self._object(thing)

    def _known(self, value: object) -> bool:
        if id(value) in self._seen:
            return True
        self._seen[id(value)] = value
        return False

    def _each(self, values: Iterable[Any]) -> None:
        for value in values:
            self.value(value)

    def _object(self, thing: Any) -> None:
        if isinstance(thing, nn.Module):
            self._each([*thing.parameters(recurse=False), *thing.buffers(recurse=False)])
        if isinstance(thing, torch.jit.ScriptModule):
            training = thing.training
            self._undos.append(lambda: thing.train(training))
            self._each(thing.children())
            return
        if isinstance(thing, Optimizer):
            self._each(thing.state)  # its keys: the parameters, though the model may have let go of them
        self._attributes(thing)
        self._each(value for value in vars(thing).values() if not isinstance(value, Loop))

    def _attributes(self, thing: Any) -> None:
        kind, attributes = type(thing), dict(vars(thing))

        def undo() -> None:
            if type(thing) is not kind:  # a lazy module turns into another when it sees its first batch
                thing.__class__ = kind
            for name in [name for name in vars(thing) if name not in attributes]:
                del vars(thing)[name]
            vars(thing).update(attributes)

        self._undos.append(undo)

    def _contents(self, container: Any) -> None:
        held = dict(container) if isinstance(container, dict) else list(container)

        def undo() -> None:
            container.clear()
            (container.extend if isinstance(container, (list, deque)) else container.update)(held)

        self._undos.append(undo)

    def _tensor(self, tensor: Tensor) -> None:
        """Notes a tensor's numbers, and where they lie: `Module.to` puts others in their place."""
        kind, data, grad, requires_grad = type(tensor), tensor.data, None, tensor.requires_grad
        lazy = is_lazy(tensor)
        writable = not lazy and not tensor.is_inference() and not _overlaps(data)
        numbers = data.clone() if writable else None
        if tensor.is_leaf and tensor.grad is not None:
            grad = tensor.grad
            self.value(grad)

        def undo() -> None:
            tensor.data = data
            if lazy:
                tensor.__class__ = kind
            if numbers is not None:
                data.copy_(numbers)
            if tensor.is_leaf:
                tensor.grad = grad
                if tensor.requires_grad != requires_grad:
                    tensor.requires_grad_(requires_grad)

        self._undos.append(undo)

    def _generator(self, value: Any) -> bool:
        """Notes the state of `value` where it is a source of random numbers; says whether it is."""
        if isinstance(value, torch.Generator):
            state = value.get_state()
            self._undos.append(lambda: value.set_state(state))
        elif isinstance(value, random.Random):
            python = value.getstate()
            self._undos.append(lambda: value.setstate(python))
        elif isinstance(value, np.random.RandomState):
            numpy = value.get_state()
            self._undos.append(lambda: value.set_state(numpy))
        elif isinstance(value, np.random.Generator):
            bits = copy.deepcopy(value.bit_generator.state)
            self._undos.append(lambda: setattr(value.bit_generator, "state", bits))
        else:
            return False
        return True


def _overlaps(tensor: Tensor) -> bool:
    """Whether several elements lie at one place (an expanded tensor): such a tensor cannot be written to."""
    if tensor.layout is not torch.strided:
        return False
    return any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))


def _has_state(value: Any) -> bool:
    kind = type(value)
    return callable(getattr(kind, "state_dict", None)) and callable(getattr(kind, "load_state_dict", None))
