"""fastai's traps around a training that blows up, and around what fails beside it: each is gone here."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minilearn.callback import Callback
from minilearn.callbacks import Checkpoint, DivergenceError
from minilearn.learner import Learner
from minilearn.optim import SGD
from tests.conftest import line_dls


def learner(*cbs: Any, path: Path | None = None) -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    learn = Learner(line_dls(40), model, F.mse_loss, SGD, cbs=list(cbs), path=path)
    learn.logger = lambda text: None
    return learn


def test_a_script_does_not_go_on_to_save_weights_of_nan() -> None:
    learn = learner()
    with pytest.raises(DivergenceError):
        learn.fit(5, 20.0)


def test_the_newest_checkpoint_is_one_of_finite_weights(tmp_path: Path) -> None:
    class Taken(Callback):
        "Looks at what a fit goes on with."

        def before_batch(self) -> None:
            found.append(all(bool(p.isfinite().all()) for p in self.model.parameters()))
            raise KeyboardInterrupt

    found: list[bool] = []
    with pytest.raises(DivergenceError):
        learner(path=tmp_path).fit(5, 20.0, checkpoint=Checkpoint("run", every_batches=1))
    with pytest.raises(KeyboardInterrupt):
        learner(path=tmp_path).fit(5, 20.0, checkpoint=Checkpoint("run", every_batches=1), cbs=Taken)
    assert found == [True]


def test_a_logger_on_a_closed_pipe_does_not_end_the_fit() -> None:
    def closed(text: str) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    learn = learner()
    learn.logger = closed
    with pytest.warns(RuntimeWarning, match="cannot be written by learn.logger"):
        learn.fit(2, 0.01)
    assert len(learn.recorder.values) == 2


def test_deterministic_kernels_are_for_a_fit_and_not_for_the_rest_of_the_process() -> None:
    learn = learner()
    learn.deterministic = True
    learn.fit(1, 0.01)
    assert not torch.are_deterministic_algorithms_enabled()
