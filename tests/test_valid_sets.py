"""Several validation sets, with columns of their own; the metrics of training beside those of validation."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minilearn.callback import Callback, CancelFitException, CancelValidException
from minilearn.callbacks import Recorder, TorchScheduler
from minilearn.data import DataLoader, DataLoaders
from minilearn.learner import Learner
from minilearn.metrics import mae
from minilearn.optim import SGD

X = torch.linspace(-1, 1, 20)[:, None]


def rows(slope: float, n: int = 10) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(X[i : i + 4], slope * X[i : i + 4]) for i in range(0, n, 4)]


def learner(valid: Any, cbs: Any = None, **kwargs: Any) -> Learner:
    torch.manual_seed(0)
    loaders = [rows(1.0, 20)] if valid is None else [rows(1.0, 20), valid]
    learn = Learner(DataLoaders(*loaders), nn.Linear(1, 1), F.mse_loss, SGD, cbs=cbs, **kwargs)
    learn.logger = lambda line: None
    return learn


def loss_on(learn: Learner, slope: float) -> float:
    x = torch.cat([x for x, _ in rows(slope)])
    return F.mse_loss(learn.model(x), slope * x).item()


def test_each_set_has_columns_of_its_own() -> None:
    learn = learner({"valid": rows(1.0), "steep": rows(2.0)}, metrics=mae)
    learn.fit(2, 0.1)
    assert learn.recorder.metric_names == [
        "epoch",
        "train_loss",
        "valid_loss",
        "mae",
        "steep_loss",
        "steep_mae",
        "time",
    ]
    row = learn.recorder.values[-1]
    assert row[1] == pytest.approx(loss_on(learn, 1.0), rel=1e-5)
    assert row[3] == pytest.approx(loss_on(learn, 2.0), rel=1e-5)


def test_first_set_has_the_usual_headings_whatever_its_name() -> None:
    learn = learner({"plain": rows(1.0), "steep": rows(2.0)})
    learn.fit(1)
    assert learn.recorder.column_names == ["train_loss", "valid_loss", "steep_loss"]


def test_rows_are_printed_under_their_headings() -> None:
    lines: list[str] = []
    learn = learner({"valid": rows(1.0), "steep": rows(2.0)}, metrics=mae)
    learn.logger = lines.append
    learn.fit(1)
    assert [len(line.split()) for line in lines] == [7, 7]


def test_set_that_was_cancelled_leaves_the_next_in_its_own_columns() -> None:
    class CancelFirst(Callback):
        order = Recorder.order - 1

        def before_validate(self) -> None:
            if self.dl is self.dls.valid:
                raise CancelValidException

    learn = learner({"valid": rows(1.0), "steep": rows(2.0)}, cbs=CancelFirst)
    learn.fit(1, 0.1)
    assert learn.recorder.values[0][1] is None
    assert learn.recorder.values[0][2] == pytest.approx(loss_on(learn, 2.0), rel=1e-5)


def test_fit_ended_after_the_last_set_keeps_its_row_and_one_after_the_first_does_not() -> None:
    class EndAfter(Callback):
        order = Recorder.order + 1

        def __init__(self, which: int) -> None:
            self.which = which

        def after_validate(self) -> None:
            if self.dl is self.dls[self.which]:
                raise CancelFitException

    assert [
        len(_after(learner({"valid": rows(1.0), "steep": rows(2.0)}, cbs=EndAfter(which)))) for which in (1, 2)
    ] == [0, 1]


def _after(learn: Learner) -> list[Any]:
    learn.fit(3)
    return learn.recorder.values


def test_events_of_validation_come_once_a_set() -> None:
    class Log(Callback):
        def before_validate(self) -> None:
            seen.append("before")

        def after_validate(self) -> None:
            seen.append("after")

    seen: list[str] = []
    learner({"valid": rows(1.0), "steep": rows(2.0)}, cbs=Log).fit(1)
    assert seen == ["before", "after", "before", "after"]


def test_look_in_between_leaves_every_sets_figures_alone() -> None:
    class Look(Callback):
        def after_validate(self) -> None:
            if self.dl is self.dls.valid and not seen:
                seen.append(None)
                self.learn.validate(dl=rows(5.0))

    seen: list[None] = []
    sets = {"valid": rows(1.0), "steep": rows(2.0)}
    plain, looking = learner(sets), learner(sets, cbs=Look)
    for learn in (plain, looking):
        learn.fit(2, 0.1)
    assert plain.recorder.values == looking.recorder.values


def test_scheduler_may_follow_any_sets_loss() -> None:
    class Plateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
        def step(self, metrics: float, epoch: Any = None) -> None:  # type: ignore[override]
            seen.append(metrics)

    seen: list[float] = []
    learn = learner({"valid": rows(1.0), "steep": rows(2.0)})
    learn.fit(2, 0.1, cbs=TorchScheduler(Plateau, monitor="steep_loss"))
    assert seen == [row[2] for row in learn.recorder.values]


def test_sets_are_loaders_by_number_too() -> None:
    learn = learner({"valid": rows(1.0), "steep": rows(2.0)})
    assert learn.validate(2)[0] == pytest.approx(loss_on(learn, 2.0), rel=1e-5)


def test_from_dsets_makes_a_loader_for_each_set() -> None:
    dset = (X, X)
    dls = DataLoaders.from_dsets(dset, {"valid": dset, "other": dset}, bs=8)
    assert list(dls.valid_sets) == ["valid", "other"]
    assert all(isinstance(dl, DataLoader) for dl in dls.loaders)


def test_further_loader_is_not_validated() -> None:
    dls = DataLoaders(rows(1.0), rows(1.0), rows(2.0))
    assert list(dls.valid_sets) == ["valid"]


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({}, r"validation sets in a dict need a name each, got \[\]"),
        ({1: []}, r"validation sets in a dict need a name each, got \[1\]"),
        ({"a": [], "valid": []}, "only the first one 'valid'"),
        ({"train": []}, "no validation set can be called 'train'"),
    ],
)
def test_names_that_would_mislead_are_refused(sets: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataLoaders([], sets)


def test_empty_set_is_named_before_the_fit() -> None:
    with pytest.raises(ValueError, match="the validation loader 'steep' is empty"):
        learner({"valid": rows(1.0), "steep": []}).fit(1)


def test_training_metrics_are_of_the_weights_as_they_were() -> None:
    learn = learner(rows(1.0), cbs=Recorder(train_metrics=True), metrics=mae)
    learn.fit(1, 0.0)
    assert learn.recorder.metric_names == ["epoch", "train_loss", "train_mae", "valid_loss", "valid_mae", "time"]
    x = X[:20]
    expected = (learn.model(x) - x).abs().mean().item()
    assert learn.recorder.values[0][1] == pytest.approx(expected, rel=1e-5)
    assert learn.recorder.values[0][3] != pytest.approx(expected, rel=1e-2)


def test_metrics_can_be_of_training_alone() -> None:
    learn = learner(rows(1.0), cbs=Recorder(train_metrics=True, valid_metrics=False), metrics=mae)
    learn.fit(1, 0.0)
    assert learn.recorder.column_names == ["train_loss", "train_mae", "valid_loss"]
    assert len(learn.recorder.values[0]) == 3
    assert len(learn.validate()) == 2, "asked for, they are computed all the same"


def test_table_can_do_without_times() -> None:
    lines: list[str] = []
    learn = learner(rows(1.0), cbs=Recorder(add_time=False), metrics=mae)
    learn.logger = lines.append
    learn.fit(1)
    assert lines[0].split() == ["epoch", "train_loss", "valid_loss", "mae"]
    assert len(lines[1].split()) == 4


def test_metrics_over_training_batches_hold_no_graph() -> None:
    class Keeps:
        name = "keeps"

        def __call__(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            out = (pred - target).mean()
            assert not out.requires_grad
            return out

    learner(rows(1.0), cbs=Recorder(train_metrics=True), metrics=Keeps()).fit(1)
