"""Which callbacks act at which event: looked up once for a class, and again where it has changed."""

import pytest
import torch
from torch import nn

from minilearn.callback import Callback
from minilearn.callbacks import Recorder, TrainEval
from minilearn.graphs import is_of_torch
from minilearn.handlers import events_of, handlers_of, nobody_writes


def test_event_that_a_class_is_given_later_is_found() -> None:
    class Own(Callback):
        def after_loss(self) -> None: ...

    class Further(Own):
        pass

    assert events_of(Further) == ("after_loss",)
    Own.before_batch = lambda self: None  # type: ignore[attr-defined]
    assert events_of(Own) == events_of(Further) == ("before_batch", "after_loss")
    del Own.after_loss
    assert events_of(Further) == ("before_batch",)
    del Own.before_batch  # type: ignore[attr-defined]
    Own.after_step = lambda self: None  # type: ignore[attr-defined]
    assert events_of(Further) == ("after_step",)


def test_event_that_one_of_minilearns_classes_is_given_later_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "after_step" not in events_of(Recorder)
    monkeypatch.setattr(Recorder, "after_step", lambda self: None, raising=False)
    assert "after_step" in events_of(Recorder)


def test_callback_that_does_not_run_hears_of_the_end_alone() -> None:
    class Own(Callback):
        run = False

        def after_loss(self) -> None: ...

        def cleanup_fit(self) -> None: ...

    assert list(handlers_of([Own()], training=True)) == ["cleanup_fit"]


def test_who_writes_may_be_a_callback_that_hears_of_a_batch_or_the_model() -> None:
    class Own(Callback):
        def before_validate(self) -> None: ...

    class Hears(Callback):
        def after_batch(self) -> None: ...

    model = nn.Linear(2, 2)
    assert nobody_writes(model, handlers_of([Recorder(), TrainEval(), Own()], training=False))
    assert not nobody_writes(model, handlers_of([Recorder(), Hears()], training=False))
    assert not nobody_writes(nn.ReLU(inplace=True), {})


def test_model_is_of_torch_where_nothing_of_anybody_else_is_called() -> None:
    class Own(nn.Linear):
        pass

    assert is_of_torch(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    assert not is_of_torch(nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True)))
    assert not is_of_torch(nn.Sequential(Own(2, 2)))
    replaced, hooked, compiled = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    replaced.forward = torch.relu  # type: ignore[method-assign, assignment]
    hooked.register_forward_pre_hook(lambda module, args: None)
    compiled.compile(backend="eager")
    assert not any(is_of_torch(nn.Sequential(model)) for model in (replaced, hooked, compiled))
    assert not is_of_torch(nn.LazyLinear(2))
