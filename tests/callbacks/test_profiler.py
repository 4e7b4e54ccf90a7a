"""A trace of a few batches: valid JSON with the model's operations, whatever ended the fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import line_dls
from torch import nn

from minilearn.callback import Callback
from minilearn.callbacks import Profiler
from minilearn.learner import Learner
from minilearn.optim import SGD


def learner(path: Path, *cbs: Any) -> Learner:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    learn = Learner(line_dls(64), model, nn.functional.mse_loss, SGD, path=path, cbs=list(cbs))
    learn.logger = lambda text: None
    return learn


def names(path: Path) -> set[str]:
    """What happened in a trace."""
    return {event["name"] for event in json.loads(path.read_text())["traceEvents"] if "name" in event}


def batches(path: Path) -> set[int]:
    """The numbers of the batches in a trace."""
    return {int(name.removeprefix("ProfilerStep#")) for name in names(path) if name.startswith("ProfilerStep#")}


def profiling() -> bool:
    return torch.autograd._profiler_enabled()


def test_trace_has_the_models_operations_forward_and_backward(tmp_path: Path) -> None:
    learner(tmp_path, Profiler()).fit(1)
    assert {"aten::linear", "aten::tanh", "aten::mse_loss", "TanhBackward0"} <= names(tmp_path / "trace.json")


def test_batches_are_those_after_the_skipped_and_one_more(tmp_path: Path) -> None:
    learner(tmp_path, Profiler("deep/a.json", skip=5, active=4)).fit(1)
    found = batches(tmp_path / "deep" / "a.json")
    assert min(found) == 6
    assert found <= {6, 7, 8, 9}


def test_profiler_is_off_before_and_after_its_batches(tmp_path: Path) -> None:
    seen = []

    class Look(Callback):
        run_valid = False

        def after_loss(self) -> None:
            seen.append(profiling())

    learner(tmp_path, Profiler(skip=2, active=2), Look()).fit(1)
    assert seen == [False] * 3 + [True] * 2 + [False] * 11  # one more than `skip`, in which it begins
    assert not profiling()


def test_it_says_where_the_trace_is_when_the_epoch_is_over(tmp_path: Path) -> None:
    said: list[str] = []
    learn = learner(tmp_path, Profiler())
    learn.logger = said.append
    learn.fit(2)
    assert [line.split()[0] for line in said] == ["epoch", "0", "the", "1"]
    assert said[2] == f"the trace is in {tmp_path / 'trace.json'}"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_ends_the_profiler_and_leaves_the_batches_that_there_were(
    tmp_path: Path, error: type[BaseException]
) -> None:
    class Fail(Callback):
        def before_step(self) -> None:
            if self.iter == 5:
                raise error

    learn = learner(tmp_path, Profiler(active=10))
    with pytest.raises(error):
        learn.fit(1, cbs=Fail())
    assert not profiling()
    assert min(batches(tmp_path / "trace.json")) == 4
    learn.fit(1)
    assert not profiling()


def test_an_error_before_its_batches_leaves_no_file(tmp_path: Path) -> None:
    class Fail(Callback):
        def before_step(self) -> None:
            raise ValueError("too early")

    with pytest.raises(ValueError, match="too early"):
        learner(tmp_path, Profiler()).fit(1, cbs=Fail())
    assert not profiling()
    assert list(tmp_path.iterdir()) == []


def test_validation_and_searches_leave_no_file(tmp_path: Path) -> None:
    learn = learner(tmp_path, Profiler())
    learn.validate()
    learn.lr_find(num_it=12, show_plot=False, suggest_funcs=())
    learn.profile(5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "value"), [("skip", -1), ("active", 0), ("active", 2.5)])
def test_arguments_out_of_range_are_named(name: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=f"{name} must be a whole number"):
        Profiler(**{name: value})
