"""Callbacks that follow a figure: fastai's epochs and rates on written-out figures, and what they leave behind."""

import copy
import json
import math
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import line_dls
from torch import nn
from torch.nn import functional as F

from minilearn.callback import Callback, CancelEpochException, CancelFitException, CancelValidException
from minilearn.callbacks import EarlyStopping, Recorder, ReduceLROnPlateau, SaveModel, TorchScheduler, TrackerCallback
from minilearn.files import FileError
from minilearn.learner import Learner
from minilearn.metrics import Metric
from minilearn.optim import SGD
from minilearn.states import flatten_state, unflatten_state

REFERENCE = json.loads((Path(__file__).parents[1] / "fastai_reference" / "trackers.json").read_text())


class Scripted(Metric):
    """Gives the next of the figures after each validation."""

    def __init__(self, figures: Sequence[float], name: str = "figure") -> None:
        self.figures, self.name, self.epoch, self.measured = figures, name, 0, False

    def reset(self) -> None:
        self.epoch += self.measured
        self.measured = False

    def accumulate(self, learn: Any) -> None:
        self.measured = True

    @property
    def value(self) -> float:
        return self.figures[min(self.epoch, len(self.figures) - 1)]


class Weights(Callback):
    """Notes the weights, the rate, and the epochs at the end of each epoch."""

    order = 100

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []
        self.rates: list[float] = []

    def after_epoch(self) -> None:
        self.weights.append(next(self.model.parameters()).detach().clone())
        self.rates.append(float(self.opt.param_groups[-1]["lr"]))


def learner(path: Path, figures: Sequence[float] = (0.0,), name: str = "figure", **options: Any) -> Learner:
    torch.manual_seed(0)
    options.setdefault("opt_func", SGD)
    learn = Learner(line_dls(), nn.Linear(3, 1), F.mse_loss, metrics=Scripted(figures, name), path=path, **options)
    learn.logger = lambda text: None
    return learn


def said_by(learn: Learner) -> list[str]:
    said: list[str] = []
    learn.logger = said.append
    return said


# ---- fastai's numbers ----

KINDS = {
    "EarlyStoppingCallback": EarlyStopping,
    "ReduceLROnPlateau": ReduceLROnPlateau,
    "SaveModelCallback": SaveModel,
}


@pytest.mark.parametrize("case", REFERENCE["cases"], ids=lambda c: f"{c['callback']}-{c['sequence']}-{c['comp']}")
def test_epochs_rates_and_files_are_fastais(case: dict[str, Any], tmp_path: Path) -> None:
    figures = REFERENCE["sequences"][case["sequence"]]
    tracker = KINDS[case["callback"]]("figure", comp=getattr(np, case["comp"]), **case["options"])
    learn, notes, saved = learner(tmp_path, figures), Weights(), []
    save = learn.save
    learn.save = lambda *args, **kwargs: saved.append(learn.epoch) or save(*args, **kwargs)  # type: ignore[method-assign]
    learn.fit(len(figures), 0.1, cbs=[tracker, notes])
    assert len(learn.recorder.values) == case["epochs"]
    assert notes.rates == pytest.approx(case["lrs"], rel=1e-12)
    assert saved == case["saved"]
    assert tracker.best == case["best"]


# ---- which is better ----


@pytest.mark.parametrize(
    "comp",
    [np.less, torch.lt, operator.lt, operator.le, "min", lambda a, b: a < b, torch.less, np.less_equal],
)
def test_a_function_that_prefers_the_smaller_is_known_by_what_it_does(comp: Any, tmp_path: Path) -> None:
    tracker = TrackerCallback("figure", comp, min_delta=0.05)
    learner(tmp_path, [0.5, 0.4, 0.38, 0.6]).fit(4, cbs=tracker)
    assert tracker.smaller
    assert tracker.best == 0.4


@pytest.mark.parametrize("comp", [np.greater, torch.gt, operator.gt, "max", lambda a, b: a > b])
def test_a_function_that_prefers_the_greater_is_known_by_what_it_does(comp: Any, tmp_path: Path) -> None:
    tracker = TrackerCallback("figure", comp, min_delta=0.05)
    learner(tmp_path, [0.5, 0.6, 0.62, 0.1]).fit(4, cbs=tracker)
    assert not tracker.smaller
    assert tracker.best == 0.6


@pytest.mark.parametrize(
    ("monitor", "smaller"),
    [
        ("valid_loss", True),
        ("error_rate", True),
        ("rmse", True),
        ("_rmse", True),
        ("train_mae", True),
        ("exp_rmspe", True),
        ("perplexity", True),
        ("accuracy", False),
        ("pearson", False),
        ("f1", False),
        ("dog_valid_loss", True),
    ],
)
def test_without_a_function_the_name_says_which_is_better(monitor: str, smaller: bool) -> None:
    assert TrackerCallback(monitor).smaller is smaller


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"monitor": 3}, TypeError, "monitor must be the name of a column of the table, got 3"),
        ({"comp": "less"}, ValueError, "comp must be 'min', 'max' or a function of two numbers, got 'less'"),
        ({"comp": 3}, TypeError, "comp must be 'min', 'max' or a function of two numbers, such as np.less, got 3"),
        ({"comp": operator.eq}, ValueError, "it prefers neither of 0 and 1"),
        ({"comp": operator.ne}, ValueError, "it prefers both"),
        ({"min_delta": -0.1}, ValueError, "min_delta must be"),
    ],
)
def test_what_is_no_tracker_is_refused(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        TrackerCallback(**options)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: EarlyStopping(patience=0), "patience must be a whole number of at least 1, got 0"),
        (lambda: ReduceLROnPlateau(patience=0), "patience must be a whole number of at least 1, got 0"),
        (lambda: ReduceLROnPlateau(factor=1), "factor must be a finite number greater than 1, got 1"),
        (lambda: ReduceLROnPlateau(min_lr=-1), "min_lr must be a finite number of at least 0, got -1"),
        (lambda: SaveModel(every_epoch=True, at_end=True), "every_epoch and at_end cannot both"),
    ],
)
def test_arguments_out_of_range_are_refused(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("kind", [TrackerCallback, EarlyStopping, SaveModel, ReduceLROnPlateau])
def test_a_column_that_is_not_there_is_an_error_before_the_first_batch(kind: Any, tmp_path: Path) -> None:
    learn = learner(tmp_path)
    with pytest.raises(
        ValueError, match=r"no figure 'figur' to monitor; did you mean 'figure'\? The table has train_l"
    ):
        learn.fit(1, cbs=kind("figur"))
    assert learn.train_iter == 0
    assert learn.recorder.values == []


@pytest.mark.parametrize("column", ["epoch", "time"])
def test_epoch_and_time_are_no_figures(column: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"no figure '{column}'"):
        learner(tmp_path).fit(1, cbs=TrackerCallback(column))


# ---- epochs without a figure ----


class CancelValidationIn(Callback):
    "Cancels the validation of some epochs."

    def __init__(self, *epochs: int, cancel: type[Exception] = CancelValidException) -> None:
        self.epochs, self.cancel = epochs, cancel

    def before_validate(self) -> None:
        if self.epoch in self.epochs:
            raise self.cancel


@pytest.mark.parametrize("cancel", [CancelValidException, CancelEpochException])
@pytest.mark.parametrize("kind", [TrackerCallback, EarlyStopping, SaveModel, ReduceLROnPlateau])
def test_an_epoch_without_its_figure_is_passed_over(kind: Any, cancel: type[Exception], tmp_path: Path) -> None:
    learn, tracker, notes = learner(tmp_path), kind("valid_loss"), Weights()
    learn.fit(4, 0.05, cbs=[tracker, CancelValidationIn(1, 2, cancel=cancel), notes])
    figures = [row[1] for row in learn.recorder.values]
    if cancel is CancelEpochException:
        assert figures[1] is figures[2] is None
    assert len(figures) == 4
    assert notes.rates == [0.05] * 4
    assert tracker.best == figures[3]


def test_nan_is_never_better_and_counts_as_no_improvement(tmp_path: Path) -> None:
    learn, tracker = learner(tmp_path, [math.nan] * 9), EarlyStopping("figure", patience=2)
    learn.fit(9, cbs=tracker)
    assert len(learn.recorder.values) == 2
    assert tracker.best == -math.inf


def test_what_is_looked_at_in_between_changes_no_best_figure(tmp_path: Path) -> None:
    class Look(Callback):
        "Validates in the middle of training."

        def after_train(self) -> None:
            self.learn.validate()

    learn, tracker = learner(tmp_path), EarlyStopping("valid_loss", patience=9)
    learn.add_cb(tracker)
    learn.fit(2, 0.05, cbs=Look())
    before = tracker.state_dict()
    assert tracker.best == min(row[1] for row in learn.recorder.values)
    learn.validate()
    learn.validate(0)
    assert tracker.state_dict() == before


def test_the_best_figure_goes_on_over_fits_where_it_is_asked_for(tmp_path: Path) -> None:
    for reset, best in ((True, 0.3), (False, 0.9)):
        learn, tracker = learner(tmp_path, [0.9, 0.2, 0.1, 0.3]), TrackerCallback("figure", reset_on_fit=reset)
        learn.fit(2, cbs=tracker)
        learn.fit(2, cbs=tracker)
        assert tracker.best == best


# ---- stopping ----


def test_stopping_keeps_the_epochs_row_and_says_when(tmp_path: Path) -> None:
    learn = learner(tmp_path, [0.1, 0.2, 0.2, 0.2, 0.9])
    said = said_by(learn)
    learn.fit(5, cbs=EarlyStopping("figure", patience=2))
    assert [row[-1] for row in learn.recorder.values] == [0.1, 0.2, 0.2, 0.2]
    assert learn.recorder.epochs == [0, 1, 2, 3]
    assert sum(line.split()[:1] == ["3"] for line in said) == 1
    assert "early stopping after epoch 3: no better figure for 2 epochs" in said


# ---- slowing down ----


def test_every_layer_slows_down_and_has_its_rate_again_after_the_fit(tmp_path: Path) -> None:
    learn = learner(tmp_path, [0.5, 0.4, 0.3], splitter=lambda m: [[m.weight], [m.bias]])
    seen: list[list[float]] = []

    class Rates(Callback):
        order = 100

        def after_epoch(self) -> None:
            seen.append([g["lr"] for g in self.opt.param_groups])

    learn.fit(3, [0.01, 0.1], cbs=[ReduceLROnPlateau("figure", factor=2), Rates()])
    assert seen == [[0.01, 0.1], [0.005, 0.05], [0.0025, 0.025]]
    assert [g["lr"] for g in learn.opt.param_groups] == [0.01, 0.1]


def test_a_rate_below_the_least_stays(tmp_path: Path) -> None:
    learn = learner(tmp_path, [0.5, 0.4], splitter=lambda m: [[m.weight], [m.bias]])
    notes: list[list[float]] = []

    class Rates(Callback):
        order = 100

        def after_epoch(self) -> None:
            notes.append([g["lr"] for g in self.opt.param_groups])

    learn.fit(2, [0.001, 0.1], cbs=[ReduceLROnPlateau("figure", min_lr=0.02), Rates()])
    assert notes[-1] == [0.001, 0.02]


def test_a_rate_that_is_a_tensor_stays_that_tensor(tmp_path: Path) -> None:
    rate = torch.tensor(0.1)
    learn = learner(tmp_path, [0.5, 0.4], opt_func=lambda params, lr: torch.optim.Adam(params, lr=rate))
    notes = Weights()
    learn.fit(2, 0.1, cbs=[ReduceLROnPlateau("figure"), notes])
    assert notes.rates == pytest.approx([0.1, 0.01])
    assert float(learn.opt.param_groups[0]["lr"]) == pytest.approx(0.1)


def test_it_is_refused_beside_a_schedule_of_the_rate(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lr has a schedule in this fit, of ParamScheduler"):
        learner(tmp_path).fit_one_cycle(1, cbs=ReduceLROnPlateau())
    step = TorchScheduler(lambda opt: torch.optim.lr_scheduler.StepLR(opt, 1))
    with pytest.raises(ValueError, match="of TorchScheduler"):
        learner(tmp_path).fit(1, cbs=[ReduceLROnPlateau(), step])


class FailIn(Callback):
    "Raises in an epoch."

    def __init__(self, epoch: int, error: BaseException) -> None:
        self.at, self.error = epoch, error

    def before_train(self) -> None:
        if self.epoch == self.at:
            raise self.error


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_after_an_error_the_rates_are_back(error: BaseException, tmp_path: Path) -> None:
    learn = learner(tmp_path, [0.5, 0.4, 0.3])
    plateau = ReduceLROnPlateau("figure")
    with pytest.raises(type(error)):
        learn.fit(3, 0.1, cbs=[plateau, FailIn(2, error)])
    assert learn.opt.param_groups[-1]["lr"] == 0.1
    learn.fit(1, cbs=plateau)


# ---- saving ----


def test_the_best_weights_are_loaded_at_the_end_in_place(tmp_path: Path) -> None:
    learn, notes = learner(tmp_path, [0.1, 0.5, 0.3, 0.4]), Weights()
    weight = learn.model.weight
    said = said_by(learn)
    learn.fit(4, 0.05, cbs=[SaveModel("figure", fname="best"), notes])
    assert learn.model.weight is weight
    assert torch.equal(weight, notes.weights[1])
    assert not torch.equal(weight, notes.weights[3])
    assert "epoch 1: figure is 0.5, the best so far: saved" in said
    assert (tmp_path / "models" / "best.safetensors").is_file()


def test_stopping_early_loads_the_best_weights_too(tmp_path: Path) -> None:
    learn, notes = learner(tmp_path, [0.1, 0.5, 0.3, 0.4]), Weights()
    learn.fit(4, 0.05, cbs=[EarlyStopping("figure"), SaveModel("figure"), notes])
    assert len(learn.recorder.values) == 3
    assert torch.equal(learn.model.weight, notes.weights[1])


def test_at_the_end_the_last_weights_can_be_saved_instead(tmp_path: Path) -> None:
    learn, notes = learner(tmp_path, [0.1, 0.5, 0.3]), Weights()
    learn.fit(3, 0.05, cbs=[SaveModel("figure", at_end=True), notes])
    assert torch.equal(learn.model.weight, notes.weights[2])
    assert torch.equal(learner(tmp_path).load("model").model.weight, notes.weights[2])


@pytest.mark.parametrize(("every", "epochs"), [(True, [0, 1, 2, 3]), (2, [0, 2])])
def test_every_epoch_has_its_file_whatever_the_figure(every: Any, epochs: list[int], tmp_path: Path) -> None:
    learn, notes = learner(tmp_path), Weights()
    learn.fit(4, 0.05, cbs=[SaveModel("no such figure", every_epoch=every, fname="each.safetensors"), notes])
    assert sorted(p.name for p in (tmp_path / "models").iterdir()) == [f"each_{i}.safetensors" for i in epochs]
    assert torch.equal(learn.model.weight, notes.weights[3])
    for i in epochs:
        assert torch.equal(learner(tmp_path).load(f"each_{i}").model.weight, notes.weights[i])


def test_the_optimizer_is_saved_and_loaded_where_it_is_asked_for(tmp_path: Path) -> None:
    learn = learner(tmp_path, [0.1, 0.5, 0.3], opt_func=torch.optim.Adam)
    learn.fit(3, 0.05, cbs=SaveModel("figure", with_opt=True))
    steps = {int(state["step"]) for state in learn.opt.state.values()}
    assert steps == {4}  # of two epochs with two batches each


def test_two_that_write_the_same_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two SaveModel would write the same file 'model'"):
        learner(tmp_path).fit(1, cbs=[SaveModel("figure"), SaveModel("valid_loss")])
    learner(tmp_path).fit(1, cbs=[SaveModel("figure"), SaveModel("valid_loss", fname="other")])


def test_a_folder_that_cannot_be_written_is_an_error_before_the_first_batch(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    learn = learner(tmp_path)
    with pytest.raises(FileError, match="SaveModel cannot make the folder"):
        learn.fit(1, cbs=SaveModel("figure"))
    assert learn.train_iter == 0


def test_a_file_of_a_fit_before_is_not_taken_for_the_best_of_this_one(tmp_path: Path) -> None:
    learn = learner(tmp_path, [0.5, math.nan, math.nan])
    save, notes = SaveModel("figure"), Weights()
    learn.fit(1, 0.05, cbs=save)
    learn.fit(2, 0.05, cbs=[save, notes])
    assert save.last_saved_path is None
    assert torch.equal(learn.model.weight, notes.weights[-1])


def test_over_several_fits_the_best_of_all_can_be_kept(tmp_path: Path) -> None:
    learn, notes = learner(tmp_path, [0.5, 0.1, 0.2]), Weights()
    save = SaveModel("figure", reset_on_fit=False)
    learn.fit(1, 0.05, cbs=[save, notes])
    learn.fit(2, 0.05, cbs=[save])
    assert torch.equal(learn.model.weight, notes.weights[0])


# ---- state ----


@pytest.mark.parametrize("kind", [TrackerCallback, EarlyStopping, SaveModel, ReduceLROnPlateau])
def test_state_comes_back_through_a_file_and_the_fit_goes_on_as_it_would_have(kind: Any, tmp_path: Path) -> None:
    figures = [0.5, 0.4, 0.6, 0.3, 0.3, 0.3, 0.3]
    options = {} if kind in (TrackerCallback, SaveModel) else {"patience": 3}
    whole, tracker = Weights(), kind("figure", **options)
    learn = learner(tmp_path, figures)
    learn.fit(7, 0.05, cbs=[tracker, whole])

    class Keep(Callback):
        "Takes the state after an epoch, and ends the fit without a clean end."

        order = 99

        def after_epoch(self) -> None:
            if self.epoch == 3:
                kept.extend((flatten_state(first.state_dict()), copy.deepcopy(self.opt.state_dict())))
                raise KeyboardInterrupt

    class GoOn(Callback):
        "Puts the state where it was."

        order = 99

        def before_fit(self) -> None:
            second.load_state_dict(unflatten_state(json.loads(json.dumps(kept[0][0])), {}))
            self.opt.load_state_dict(kept[1])

    kept: list[Any] = []
    first, second = kind("figure", **options), kind("figure", **options)
    begun = learner(tmp_path, figures)
    with pytest.raises(KeyboardInterrupt):
        begun.fit(7, 0.05, cbs=[first, Keep()])
    part = Weights()
    begun.fit(7, 0.05, cbs=[second, GoOn(), part], start_epoch=4)
    assert second.state_dict() == tracker.state_dict()
    assert part.rates == whole.rates[4:]
    assert all(torch.equal(a, b) for a, b in zip(part.weights, whole.weights[4:], strict=True))
    assert torch.equal(begun.model.weight, learn.model.weight)


def test_they_act_in_their_order_after_the_row_is_there() -> None:
    orders = [Recorder.order, TrackerCallback.order, SaveModel.order, ReduceLROnPlateau.order, EarlyStopping.order]
    assert orders == sorted(set(orders))


def test_a_search_for_a_rate_goes_without_them(tmp_path: Path) -> None:
    learn = learner(tmp_path, cbs=[SaveModel("figure"), EarlyStopping("figure"), ReduceLROnPlateau("figure")])
    learn.lr_find(num_it=10, show_plot=False, suggest_funcs=None)
    assert not (tmp_path / "models").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, about itself
def test_a_compiled_fit_gives_the_same_numbers_and_goes_on_after_the_best_was_loaded(tmp_path: Path) -> None:
    runs = []
    for compile in (False, True):
        learn = learner(tmp_path, [0.1, 0.5, 0.3, 0.2, 0.6, 0.5], compile=compile)
        notes = Weights()
        cbs = [SaveModel("figure"), ReduceLROnPlateau("figure"), EarlyStopping("figure", patience=2), notes]
        learn.fit(4, 0.05, cbs=cbs)
        learn.fit(2, 0.05, cbs=cbs)
        runs.append([*notes.weights, learn.model.weight.detach()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*runs, strict=True))


def test_a_fit_that_a_callback_ends_in_its_first_epoch_has_no_best(tmp_path: Path) -> None:
    class End(Callback):
        def before_validate(self) -> None:
            raise CancelFitException

    learn = learner(tmp_path)
    said = said_by(learn)
    learn.fit(2, cbs=[SaveModel("figure"), End()])
    assert "SaveModel: no epoch had a figure to save the model for; the last weights stay" in said


def test_a_table_without_times_has_all_its_figures_to_monitor() -> None:
    tracker = TrackerCallback("figure")
    learn = Learner(
        line_dls(), nn.Linear(3, 1), F.mse_loss, metrics=Scripted([0.5]), cbs=[Recorder(add_time=False), tracker]
    )
    with learn.no_logging():
        learn.fit(1)
    assert tracker.best == 0.5


def test_a_file_of_another_format_is_refused_before_the_fit() -> None:
    with pytest.raises(ValueError, match=r"fname is 'best\.pth', but minilearn's files are safetensors: 'best' is"):
        SaveModel(fname="best.pth")
