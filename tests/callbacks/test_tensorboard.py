"""What TensorBoard reads of a fit, by its own reader: figures, pictures, histograms, the graph; one run a callback."""

import copy
import io
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import line_dls
from PIL import Image
from torch import Tensor, nn

pytest.importorskip("tensorboard", reason="needs the package tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from minilearn.callback import Callback, CancelBatchException
from minilearn.callbacks import Recorder, TensorBoard, TensorBoardCallback
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.metrics import accuracy, mse
from minilearn.optim import SGD
from minilearn.states import flatten_state, unflatten_state

EVERYTHING = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0}


def read(folder: Path | None) -> EventAccumulator:
    """A run as TensorBoard sees it."""
    assert folder is not None
    reader = EventAccumulator(str(folder), size_guidance=EVERYTHING)
    reader.Reload()
    return reader


def points(reader: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in reader.Scalars(tag)]


def near(points: list[tuple[int, float]]) -> list[tuple[int, Any]]:
    """Points to compare with: the files hold figures in float32."""
    return [(step, pytest.approx(value, rel=1e-6)) for step, value in points]


def learner(path: Path, *cbs: Any, **options: Any) -> Learner:
    torch.manual_seed(0)
    options.setdefault("metrics", mse)
    dls = options.pop("dls", None) or line_dls()
    model = options.pop("model", None) or nn.Linear(3, 1)
    loss_func = options.pop("loss_func", nn.functional.mse_loss)
    learn = Learner(dls, model, loss_func, SGD, 0.01, path=path, cbs=list(cbs), **options)
    learn.logger = lambda text: None
    return learn


def images(channels: int = 1) -> DataLoaders:
    """Small images of three classes, sixteen of them for validation."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(48, channels, 8, 8, generator=generator), torch.arange(48) % 3
    return DataLoaders.from_tensors(x[:32], y[:32], x[32:], y[32:], bs=8, shuffle=False)


def classifier(channels: int = 1) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(channels, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(72, 3))


def image_learner(path: Path, *cbs: Any, channels: int = 1, **options: Any) -> Learner:
    options.setdefault("model", classifier(channels))
    return learner(path, *cbs, dls=images(channels), loss_func=nn.functional.cross_entropy, metrics=accuracy, **options)


def test_losses_are_the_recorders_and_stand_at_the_number_of_batches_done(tmp_path: Path) -> None:
    board = TensorBoard("run")
    learn = learner(tmp_path, board)
    learn.fit(2)
    reader = read(tmp_path / "run")
    assert points(reader, "train_loss") == near(list(enumerate(learn.recorder.losses, start=1)))
    assert points(reader, "mse") == near([(2, learn.recorder.values[0][2]), (4, learn.recorder.values[1][2])])
    assert points(reader, "valid_loss") == near([(2, learn.recorder.values[0][1]), (4, learn.recorder.values[1][1])])


def test_raw_loss_is_the_batches_own(tmp_path: Path) -> None:
    losses = []

    class Note(Callback):
        run_valid = False

        def after_loss(self) -> None:
            losses.append(self.loss.item())

    learner(tmp_path, TensorBoard("run"), Note()).fit(2)
    assert points(read(tmp_path / "run"), "raw_loss") == near(list(enumerate(losses, start=1)))


def test_hyperparameters_are_those_of_each_layer(tmp_path: Path) -> None:
    def layers(model: nn.Module) -> list[list[nn.Parameter]]:
        return [[*part.parameters()] for part in model.children()]

    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    learn = learner(tmp_path, TensorBoard("run"), model=model, splitter=layers, wd=0.1)
    learn.fit_one_cycle(2, slice(0.01, 0.1))
    reader = read(tmp_path / "run")
    assert points(reader, "lr_1") == near(list(enumerate(learn.recorder.lrs, start=1)))
    assert points(reader, "lr_0") == near([(i, lr / 10) for i, lr in enumerate(learn.recorder.lrs, start=1)])
    assert points(reader, "wd_0") == near([(i, 0.1) for i in range(1, 5)])  # not that of the biases, which is 0


def test_every_strideth_batch_is_written_and_the_average_is_of_all(tmp_path: Path) -> None:
    learn = learner(tmp_path, TensorBoard("run", stride=3))
    learn.fit(4)
    every = list(enumerate(learn.recorder.losses, start=1))
    assert points(read(tmp_path / "run"), "train_loss") == near(every[::3])


def test_all_fits_of_one_object_are_one_run_and_go_on_counting(tmp_path: Path) -> None:
    board = TensorBoard()
    learn = learner(tmp_path, board)
    learn.fit(2)
    first = board.folder
    learn.fit(1)
    assert board.folder == first
    assert [step for step, _ in points(read(first), "raw_loss")] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in points(read(first), "valid_loss")] == [2, 4, 6]


def test_two_objects_have_a_run_each(tmp_path: Path) -> None:
    boards = [TensorBoard(), TensorBoard()]
    for board in boards:
        learner(tmp_path, board).fit(1)
    assert sorted((tmp_path / "runs").iterdir()) == sorted(board.folder for board in boards if board.folder)
    assert len({board.folder for board in boards}) == 2


def test_a_run_takes_the_place_of_another_in_the_same_folder(tmp_path: Path) -> None:
    learner(tmp_path, TensorBoard("run")).fit(3)
    learn = learner(tmp_path, TensorBoard("run"))
    learn.fit(1)
    assert points(read(tmp_path / "run"), "train_loss") == near(list(enumerate(learn.recorder.losses, start=1)))


def test_images_stand_there_once_an_epoch(tmp_path: Path) -> None:
    image_learner(tmp_path, TensorBoard("run", n_preds=4)).fit(2)
    shown = read(tmp_path / "run").Images("predictions")
    assert [event.step for event in shown] == [4, 8]
    assert Image.open(io.BytesIO(shown[0].encoded_image_string)).size == (shown[0].width, shown[0].height)


def test_coloured_images_are_shown_and_other_inputs_have_no_picture(tmp_path: Path) -> None:
    image_learner(tmp_path, TensorBoard("colour"), channels=3).fit(1)
    learner(tmp_path, TensorBoard("plain")).fit(1)
    assert read(tmp_path / "colour").Tags()["images"] == ["predictions"]
    assert read(tmp_path / "plain").Tags()["images"] == []


def test_no_figure_is_left_open(tmp_path: Path) -> None:
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    image_learner(tmp_path, TensorBoard("run")).fit(1)
    assert pyplot.get_fignums() == before


def test_histograms_are_of_the_weights_once_an_epoch(tmp_path: Path) -> None:
    learn = learner(tmp_path, TensorBoard("run", hists=True))
    learn.fit(2)
    reader = read(tmp_path / "run")
    assert reader.Tags()["histograms"] == ["weight", "bias"]
    last = reader.Histograms("weight")[-1]
    assert last.step == 4
    assert last.histogram_value.num == 3
    assert last.histogram_value.sum == pytest.approx(learn.model.weight.sum().item(), rel=1e-6)


def test_weights_that_are_no_numbers_are_left_out_of_a_histogram(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    with torch.no_grad():
        model.weight[0, 0] = float("inf")
    model.weight.requires_grad_(False)
    learner(tmp_path, TensorBoard("run", hists=True), model=model, loss_func=lambda pred, y: model.bias.sum()).fit(1)
    assert read(tmp_path / "run").Histograms("weight")[0].histogram_value.num == 2


def test_graph_is_of_the_models_modules(tmp_path: Path) -> None:
    image_learner(tmp_path, TensorBoard("run")).fit(1)
    nodes = {node.name.split("/")[1] for node in read(tmp_path / "run").Graph().node if "/" in node.name}
    assert {"Conv2d[0]", "BatchNorm2d[1]", "Linear[4]"} <= nodes


def test_a_fit_is_bit_for_bit_the_one_without_it(tmp_path: Path) -> None:
    plain, watched = image_learner(tmp_path), image_learner(tmp_path, TensorBoard("run", hists=True))
    for learn in (plain, watched):
        torch.manual_seed(3)  # of the dropout
        learn.fit(2)
    assert watched.recorder.values == plain.recorder.values
    for name, value in plain.model.state_dict().items():
        assert torch.equal(watched.model.state_dict()[name], value), name


class Moody(nn.Module):
    """A model that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            raise RuntimeError("not in this mood\nand so on")
        return self.linear(x)


def test_a_model_that_cannot_be_drawn_is_trained_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learn = learner(tmp_path, TensorBoard("run"), model=Moody())
    with pytest.warns(RuntimeWarning, match=r"cannot draw the model's graph \(not in this mood\): trace_model=False"):
        learn.fit(2)
    assert len(points(read(tmp_path / "run"), "train_loss")) == 4
    assert capsys.readouterr().out == ""
    assert not learn.model.training


def test_a_batch_that_was_cancelled_before_its_loss_has_no_point(tmp_path: Path) -> None:
    class Skip(Callback):
        def before_batch(self) -> None:
            if self.training and self.iter == 0:
                raise CancelBatchException

    learner(tmp_path, TensorBoard("run", trace_model=False), Skip()).fit(2)
    assert [step for step, _ in points(read(tmp_path / "run"), "raw_loss")] == [2, 4]


def test_an_epochs_figures_are_on_the_disk_when_it_has_ended(tmp_path: Path) -> None:
    seen = []

    class Look(Callback):
        order = TensorBoard.order + 1

        def after_epoch(self) -> None:
            seen.append([step for step, _ in points(read(tmp_path / "run"), "valid_loss")])

    learner(tmp_path, TensorBoard("run"), Look()).fit(2)
    assert seen == [[2], [2, 4]]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_closes_the_files_and_keeps_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    class Fail(Callback):
        order = 100

        def after_batch(self) -> None:
            if self.epoch == 1 and self.training:
                raise error

    learn, threads = learner(tmp_path, TensorBoard("run")), threading.active_count()
    with pytest.raises(error):
        learn.fit(2, cbs=Fail())
    assert threading.active_count() == threads
    assert [step for step, _ in points(read(tmp_path / "run"), "raw_loss")] == [1, 2, 3]
    learn.fit(1)
    assert [step for step, _ in points(read(tmp_path / "run"), "raw_loss")] == [1, 2, 3, 4, 5]


def test_validation_and_searches_leave_no_files(tmp_path: Path) -> None:
    learn = learner(tmp_path, TensorBoard(), dls=line_dls(80))
    learn.validate()
    learn.lr_find(num_it=10, show_plot=False, suggest_funcs=())
    assert list(tmp_path.iterdir()) == []


class Checkpoint(Callback):
    """Keeps what a checkpoint holds at the end of the second epoch, and fails in the fourth."""

    order = 200

    def before_batch(self) -> None:
        if self.epoch == 3 and self.training:
            raise KeyboardInterrupt

    def after_epoch(self) -> None:
        if self.epoch == 1:
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


def test_a_run_that_goes_on_shows_what_the_run_that_was_never_interrupted_shows(tmp_path: Path) -> None:
    learner(tmp_path, TensorBoard("whole")).fit(5)
    checkpoint = Checkpoint()
    killed = TensorBoard()
    with pytest.raises(KeyboardInterrupt):
        learner(tmp_path, killed, checkpoint).fit(5)
    going_on = TensorBoard()
    learner(tmp_path, going_on, GoOn(checkpoint)).fit(5, start_epoch=2)
    assert going_on.folder == killed.folder
    wanted, found = read(tmp_path / "whole"), read(going_on.folder)
    assert found.Tags()["scalars"] == wanted.Tags()["scalars"]
    for tag in wanted.Tags()["scalars"]:
        assert points(found, tag) == points(wanted, tag), tag


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r'pip install "minilearn\[tensorboard\]"'):
        TensorBoard()


@pytest.mark.parametrize(("name", "value"), [("n_preds", 0), ("stride", 0), ("stride", 1.5)])
def test_arguments_out_of_range_are_named(name: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=f"{name} must be a whole number"):
        TensorBoard(**{name: value})


def test_minilearn_imports_tensorboard_only_for_a_fit() -> None:
    code = "import sys; from minilearn.all import *; TensorBoard(); print('tensorboard' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_fastais_name_is_the_same_class() -> None:
    assert TensorBoardCallback is TensorBoard


def test_a_table_without_times_is_written_whole(tmp_path: Path) -> None:
    board = TensorBoard("run")
    learn = learner(tmp_path, board, Recorder(add_time=False))
    learn.fit(1)
    assert near([(2, learn.recorder.values[0][2] or 0.0)]) == points(read(board.folder), "mse")
