"""Which callbacks act at which event: looked up once, so that an event which nobody handles costs nothing."""

from collections.abc import Callable, Iterable
from typing import Any

from minilearn.callback import EVENTS, IN_BATCH, Callback

Handlers = dict[str, list[Callable[[], None]]]
"""For an event's name, what is called at it, in its order."""


def handlers_of(cbs: Iterable[Callback]) -> dict[bool, Handlers]:
    """In training (True) and in validation (False): the methods of just those callbacks that define the event.

    Args:
        cbs: in their order. Those whose `run` is False hear of `cleanup_fit` alone.
    """
    everywhere: dict[str, list[Any]] = {}
    for cb in cbs:
        for event in EVENTS if cb.run else ("cleanup_fit",):
            if hasattr(type(cb), event):
                everywhere.setdefault(event, []).append(getattr(cb, event))
    return {
        training: {
            event: [h for h in handlers if _runs(h.__self__, training)] if event in IN_BATCH else handlers
            for event, handlers in everywhere.items()
        }
        for training in (True, False)
    }


IN_STEP = ("after_pred", "after_loss", "before_backward", "after_backward", "before_step", "after_step")
"""The events between a batch's arrival and its end: where a callback can act on the step."""


def all_look_on(handlers: Handlers) -> bool:
    """Whether no callback acts between a batch's arrival and its end, so that the step may be one graph."""
    return not any(h.__self__.acts_in_step for event in IN_STEP for h in handlers.get(event, ()))  # type: ignore[attr-defined]


def _runs(cb: Callback, training: bool) -> bool:
    return cb.run_train if training else cb.run_valid
