"""What goes wrong with fastai's files and trackers, and does not here."""

import operator
from pathlib import Path

import pytest
import torch
from conftest import line_dls
from torch import Tensor, nn
from torch.nn import functional as F

from minilearn.callback import Callback
from minilearn.callbacks import EarlyStoppingCallback, SaveModelCallback, TrackerCallback
from minilearn.files import FileError
from minilearn.learner import Learner
from minilearn.optim import Adam, Optimizer


def learner(path: Path) -> Learner:
    torch.manual_seed(0)
    learn = Learner(line_dls(), nn.Linear(3, 1), F.mse_loss, path=path)
    learn.logger = lambda text: None
    return learn


@pytest.mark.parametrize("comp", [torch.lt, operator.lt, lambda a, b: a < b, "min"])
def test_any_function_that_prefers_the_smaller_begins_from_infinity(comp: object, tmp_path: Path) -> None:
    learn, tracker = learner(tmp_path), TrackerCallback("valid_loss", comp)  # type: ignore[arg-type]
    learn.fit(2, 0.05, cbs=tracker)
    assert tracker.best == min(row[1] for row in learn.recorder.values)  # type: ignore[type-var]


def test_saving_does_not_fail_where_nothing_was_ever_better(tmp_path: Path) -> None:
    class NaN(Callback):
        "Spoils the validation loss."

        run_train = False

        def after_loss(self) -> None:
            self.learn.loss = self.loss * float("nan")

    learn = learner(tmp_path)
    said: list[str] = []
    learn.logger = said.append
    learn.fit(2, 0.05, cbs=[SaveModelCallback(), NaN()])
    assert said[-1] == "SaveModel: no epoch had a valid_loss to save the model for; the last weights stay"
    assert list((tmp_path / "models").iterdir()) == []


def test_validating_with_a_tracker_neither_fails_nor_wipes_its_best_figure(tmp_path: Path) -> None:
    learn, tracker = learner(tmp_path), EarlyStoppingCallback(patience=9)
    learn.add_cb(tracker)
    learn.validate()
    learn.fit(2, 0.05)
    best, rows = tracker.best, list(learn.recorder.values)
    learn.validate()
    assert (tracker.best, learn.recorder.values) == (best, rows)


@pytest.mark.parametrize("kind", [Adam, torch.optim.Adam])
def test_a_loaded_optimizer_shares_no_tensor_with_the_one_that_was_saved(kind: type[Optimizer], tmp_path: Path) -> None:
    learn = learner(tmp_path)
    learn.opt_func = kind
    learn.fit(1, 0.05)
    learn.save("x")
    other = learner(tmp_path)
    other.opt_func = kind
    other.load("x")
    before = [value.clone() for state in learn.opt.state.values() for value in state.values() if _is_tensor(value)]
    other.fit(1, 0.05)
    after = [value for state in learn.opt.state.values() for value in state.values() if _is_tensor(value)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_file_is_never_code(tmp_path: Path) -> None:
    learn, ran = learner(tmp_path), tmp_path / "ran"
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "x.safetensors").write_bytes(f"cposix\nsystem\n(S'touch {ran}'\ntR.".encode())
    with pytest.raises(FileError, match="no safetensors file"):
        learn.load("x")
    assert not ran.exists()


def test_an_optimizer_that_does_not_fit_is_an_error_not_a_warning(tmp_path: Path) -> None:
    learn = learner(tmp_path)
    learn.fit(1, 0.05)
    learn.save("x")
    other = learner(tmp_path)
    other.opt_func = torch.optim.SGD
    with pytest.raises(ValueError, match="it is of Adam, and the Learner's is SGD"):
        other.load("x")


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)
