"""Which callbacks act at which event: looked up once, so that an event which nobody handles costs nothing."""

from collections.abc import Callable, Iterable
from weakref import WeakKeyDictionary

from torch import nn

from minilearn.callback import EVENTS, IN_BATCH, Callback
from minilearn.graphs import is_of_torch

Handlers = dict[str, list[Callable[[], None]]]
"""For an event's name, what is called at it, in its order."""


def handlers_of(cbs: Iterable[Callback], training: bool) -> Handlers:
    """In training or in validation: the methods of just those callbacks that define the event.

    Args:
        cbs: in their order. Those whose `run` is False hear of `cleanup_fit` alone.
        training: which of the two.
    """
    found: Handlers = {}
    for cb in cbs:
        runs = cb.run_train if training else cb.run_valid
        for event in events_of(type(cb)):
            if event == "cleanup_fit" or (cb.run and (runs or event not in IN_BATCH)):
                found.setdefault(event, []).append(getattr(cb, event))
    return found


_known: WeakKeyDictionary[type, tuple[int, tuple[str, ...]]] = WeakKeyDictionary()


def events_of(kind: type) -> tuple[str, ...]:
    """The events that a class defines; minilearn's own are looked up again only where they have another size by now."""
    ours = kind.__module__.startswith("minilearn.")
    size = sum([len(vars(one)) for one in kind.__mro__]) if ours else 0
    known = _known.get(kind) if ours else None
    if known is None or known[0] != size:
        known = size, tuple([event for event in EVENTS if hasattr(kind, event)])
        if ours:
            _known[kind] = known
    return known[1]


class Tables(dict[bool, Handlers]):
    """`handlers_of` in training (True) and in validation (False), looked up where it is asked for.

    Args:
        listeners: the callbacks.
    """

    def __init__(self, listeners: Callable[[], Iterable[Callback]]) -> None:
        super().__init__()
        self._listeners = listeners

    def __missing__(self, training: bool) -> Handlers:
        self[training] = handlers_of(self._listeners(), training)
        return self[training]


IN_STEP = ("after_pred", "after_loss", "before_backward", "after_backward", "before_step", "after_step")
"""The events between a batch's arrival and its end: where a callback can act on the step."""


def nobody_writes(model: nn.Module, handlers: Handlers) -> bool:
    """Whether a batch's inputs stay as they are: the model is of torch's own layers, none in place, and none but
    minilearn's own callbacks, which leave them alone, hear of the batch.
    """
    return is_of_torch(model) and all(
        type(h.__self__).__module__.startswith("minilearn.")  # type: ignore[attr-defined]
        for event in IN_BATCH
        for h in handlers.get(event, ())
    )


def all_look_on(handlers: Handlers) -> bool:
    """Whether no callback acts between a batch's arrival and its end, so that the step may be one graph."""
    return not any(h.__self__.acts_in_step for event in IN_STEP for h in handlers.get(event, ()))  # type: ignore[attr-defined]
