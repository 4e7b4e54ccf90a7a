"""The table in a file: whole lines, one heading, every epoch once, whatever ended the fit."""

import copy
import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import line_dls
from torch import Tensor, nn

from minilearn.callback import EVENTS, Callback, CancelEpochException, CancelFitException, CancelValidException
from minilearn.callbacks import CSVLogger, Recorder
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.metrics import mae, mse
from minilearn.optim import SGD
from minilearn.states import flatten_state, unflatten_state

HEADING = "epoch,train_loss,valid_loss,mse,time"


def learner(path: Path, *cbs: Any, **options: Any) -> Learner:
    torch.manual_seed(0)
    dls = options.pop("dls", None) or line_dls()
    options.setdefault("metrics", mse)
    learn = Learner(dls, nn.Linear(3, 1), nn.functional.mse_loss, SGD, 0.01, path=path, cbs=list(cbs), **options)
    learn.logger = lambda text: None
    return learn


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def epochs(path: Path) -> list[str]:
    """The first cell of each line."""
    return [line.split(",")[0] for line in lines(path)]


def figures(path: Path) -> list[str]:
    """The lines without the time, which is never the same twice."""
    return [line.rsplit(",", 1)[0] for line in lines(path)]


def test_file_holds_the_recorders_table_to_the_last_digit(tmp_path: Path) -> None:
    learn = learner(tmp_path, CSVLogger())
    learn.fit(2)
    recorder = learn.recorder
    with (tmp_path / "history.csv").open(newline="") as file:
        heading, *rows = csv.reader(file)
    assert heading == recorder.metric_names
    wanted = zip(recorder.epochs, recorder.values, recorder.seconds, strict=True)
    assert [list(map(float, row)) for row in rows] == [[epoch, *row, seconds] for epoch, row, seconds in wanted]


def test_a_line_is_in_the_file_as_soon_as_its_epoch_has_ended(tmp_path: Path) -> None:
    seen = []

    class Look(Callback):
        order = CSVLogger.order + 1

        def before_epoch(self) -> None:
            seen.append(epochs(tmp_path / "history.csv"))

        def after_epoch(self) -> None:
            seen.append(epochs(tmp_path / "history.csv"))

    learner(tmp_path, CSVLogger(), Look()).fit(2)
    assert seen == [["epoch"], ["epoch", "0"], ["epoch", "0"], ["epoch", "0", "1"]]


def test_a_figure_that_there_is_none_of_is_empty_and_read_as_none(tmp_path: Path) -> None:
    class Skip(Callback):
        def before_validate(self) -> None:
            raise CancelValidException

    log = CSVLogger()
    learner(tmp_path, log, Skip()).fit(1)
    assert [row["valid_loss"] for row in log.read_log()] == [None]
    assert lines(tmp_path / "history.csv")[1].split(",")[2:4] == ["", ""]


def test_read_log_gives_the_numbers_back_after_the_fit_that_had_it(tmp_path: Path) -> None:
    log, learn = CSVLogger("log.csv"), learner(tmp_path)
    learn.fit(2, cbs=log)
    wanted = dict(zip(learn.recorder.metric_names[1:-1], learn.recorder.values[1], strict=True))
    assert log.read_log()[1] == {"epoch": 1, **wanted, "time": learn.recorder.seconds[1]}


def test_a_loss_that_is_no_number_is_read_back_as_such(tmp_path: Path) -> None:
    def blown_up(pred: Tensor, target: Tensor) -> float:
        return float("nan")

    log = CSVLogger()
    learner(tmp_path, log, metrics=blown_up).fit(1)
    assert str(log.read_log()[0]["blown_up"]) == "nan"


def test_a_name_with_a_comma_is_one_column(tmp_path: Path) -> None:
    log = CSVLogger()
    learn = learner(tmp_path, log)
    learn.metrics[0].name = "error, squared"
    learn.fit(1)
    assert list(log.read_log()[0]) == ["epoch", "train_loss", "valid_loss", "error, squared", "time"]


def test_without_append_a_fit_replaces_the_file(tmp_path: Path) -> None:
    learn = learner(tmp_path, CSVLogger())
    learn.fit(3)
    learn.fit(1)
    assert epochs(tmp_path / "history.csv") == ["epoch", "0"]


def test_append_refuses_other_columns_before_anything_is_trained(tmp_path: Path) -> None:
    learner(tmp_path, CSVLogger()).fit(1)
    before = lines(tmp_path / "history.csv")
    learn = learner(tmp_path, CSVLogger(append=True), metrics=[mse, mae])
    with pytest.raises(ValueError, match=r"has the columns epoch, .*, mse, time, but this fit has .* mae, time: give"):
        learn.fit(1)
    assert lines(tmp_path / "history.csv") == before
    assert learn.train_iter == 0


@pytest.mark.parametrize(
    ("end", "wanted"),
    [("1,0.5,0.2", ["epoch", "0", "0"]), ("1,0.5,0.25,0.25,0", ["epoch", "0", "1", "0"])],
    ids=["a piece is left out", "a line without its end is a line"],
)
def test_append_goes_on_after_a_line_that_was_cut_off(tmp_path: Path, end: str, wanted: list[str]) -> None:
    learner(tmp_path, CSVLogger()).fit(1)
    file = tmp_path / "history.csv"
    file.write_text(file.read_text() + end)
    log = CSVLogger(append=True)
    learner(tmp_path, log).fit(1)
    assert epochs(file) == wanted
    assert len(log.read_log()) == len(wanted) - 1


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_whole_lines_and_the_next_fit_goes_its_way(tmp_path: Path, error: type[BaseException]) -> None:
    class Fail(Callback):
        def before_batch(self) -> None:
            if self.epoch == 2:
                raise error

    learn = learner(tmp_path, CSVLogger(append=True))
    with pytest.raises(error):
        learn.fit(4, cbs=Fail())
    assert epochs(tmp_path / "history.csv") == ["epoch", "0", "1"]
    learn.fit(1)
    assert epochs(tmp_path / "history.csv") == ["epoch", "0", "1", "0"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["history.csv"]


def test_a_fit_that_is_cancelled_after_its_figures_has_its_last_line(tmp_path: Path) -> None:
    class End(Callback):
        order = 100

        def after_validate(self) -> None:
            if self.epoch == 1:
                raise CancelFitException

    learner(tmp_path, CSVLogger(), End()).fit(3)
    assert epochs(tmp_path / "history.csv") == ["epoch", "0", "1"]


def test_a_cancelled_epoch_has_its_line(tmp_path: Path) -> None:
    class Skip(Callback):
        def before_epoch(self) -> None:
            if self.epoch == 0:
                raise CancelEpochException

    learner(tmp_path, CSVLogger(), Skip()).fit(2)
    assert epochs(tmp_path / "history.csv") == ["epoch", "0", "1"]


def test_validation_and_searches_leave_no_file(tmp_path: Path) -> None:
    learn = learner(tmp_path, CSVLogger(), dls=line_dls(80))
    learn.validate()
    learn.lr_find(num_it=10, show_plot=False, suggest_funcs=())
    assert list(tmp_path.iterdir()) == []


def test_without_a_validation_set_the_columns_are_the_trainings(tmp_path: Path) -> None:
    x, y = torch.rand(8, 3), torch.rand(8, 1)
    learner(tmp_path, CSVLogger(), dls=DataLoaders.from_tensors(x, y, bs=4)).fit(1)
    assert lines(tmp_path / "history.csv")[0] == "epoch,train_loss,train_mse,time"


def test_a_validation_within_an_epoch_leaves_no_line(tmp_path: Path) -> None:
    class Look(Callback):
        def after_batch(self) -> None:
            if self.training:
                self.learn.validate()

    learner(tmp_path, CSVLogger(), Look()).fit(1)
    assert epochs(tmp_path / "history.csv") == ["epoch", "0"]


class Checkpoint(Callback):
    """Keeps what a checkpoint holds at the end of an epoch, and fails in a later one."""

    order = 200

    def __init__(self, at: int, fail_in: int) -> None:
        self.at, self.fail_in = at, fail_in

    def before_batch(self) -> None:
        if self.epoch == self.fail_in and self.training:
            raise KeyboardInterrupt

    def after_epoch(self) -> None:
        if self.epoch == self.at:
            self.weights = copy.deepcopy(self.model.state_dict())
            states = {type(cb).__name__: cb.state_dict() for cb in self.learn.cbs}
            value, tensors = flatten_state(states)
            self.states = unflatten_state(json.loads(json.dumps(value)), copy.deepcopy(tensors))


class GoOn(Callback):
    """Gives the callbacks what a checkpoint held of them."""

    order = 200

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def before_fit(self) -> None:
        self.model.load_state_dict(self.checkpoint.weights)
        for cb in self.learn.cbs:
            cb.load_state_dict(self.checkpoint.states.get(type(cb).__name__, {}))


def interrupted(path: Path, append: bool, at: int = 1, fail_in: int = 3) -> None:
    """A run of five epochs that was killed and goes on from a checkpoint, with what that left behind."""
    checkpoint = Checkpoint(at, fail_in)
    with pytest.raises(KeyboardInterrupt):
        learner(path, CSVLogger(append=append), checkpoint).fit(5)
    learner(path, CSVLogger(append=append), GoOn(checkpoint)).fit(5, start_epoch=at + 1)


@pytest.mark.parametrize("append", [False, True])
def test_a_run_that_goes_on_has_the_file_of_the_run_that_was_never_interrupted(tmp_path: Path, append: bool) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for path in (whole, broken):
        learner(path, CSVLogger(), metrics=mse).fit(1)
    learner(whole, CSVLogger(append=append)).fit(5)
    interrupted(broken, append)
    assert epochs(broken / "history.csv")[1:] == (["0"] if append else []) + list("01234")
    assert figures(broken / "history.csv") == figures(whole / "history.csv")


def test_a_run_that_goes_on_elsewhere_has_its_lines_there_too(tmp_path: Path) -> None:
    checkpoint = Checkpoint(1, 3)
    learner(tmp_path / "here", CSVLogger()).fit(1)
    with pytest.raises(KeyboardInterrupt):
        learner(tmp_path / "here", CSVLogger(append=True), checkpoint).fit(5)
    learner(tmp_path / "there", CSVLogger(append=True), GoOn(checkpoint)).fit(5, start_epoch=2)
    assert lines(tmp_path / "there" / "history.csv")[0] == HEADING
    assert epochs(tmp_path / "there" / "history.csv")[1:] == list("01234")


def test_its_events_are_those_of_epochs_so_that_a_batch_costs_nothing() -> None:
    assert [event for event in EVENTS if event in vars(CSVLogger)] == [
        "before_fit",
        "before_epoch",
        "after_epoch",
        "after_fit",
        "cleanup_fit",
    ]
    assert CSVLogger.order > Recorder.order


def test_a_table_without_times_is_a_file_without_times(tmp_path: Path) -> None:
    learn = learner(tmp_path, CSVLogger(), Recorder(add_time=False))
    learn.fit(1)
    assert lines(tmp_path / "history.csv")[0] == "epoch,train_loss,valid_loss,mse"
    assert [len(line.split(",")) for line in lines(tmp_path / "history.csv")] == [4, 4]


@pytest.mark.parametrize("fname", [3, ""])
def test_what_is_no_name_of_a_file_is_refused(fname: Any) -> None:
    with pytest.raises(TypeError, match=r"fname must be the name of a file, such as 'history\.csv', got"):
        CSVLogger(fname)
