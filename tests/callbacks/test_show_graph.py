"""The loss as a picture that grows: in a notebook one output, elsewhere nothing, and no figure left open."""

import base64
import io
import re
from pathlib import Path

import pytest
import torch
from conftest import line_dls
from matplotlib import pyplot
from PIL import Image
from test_progress import on_a_terminal, run_notebook
from torch import nn

from minilearn.callback import Callback, CancelValidException
from minilearn.callbacks import ShowGraph, ShowGraphCallback
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.plots import BLUE, ORANGE

SCRIPT = """
import time, torch
from torch import nn
from minilearn.callback import Callback
from minilearn.callbacks import ShowGraph
from minilearn.learner import Learner

class Slow(Callback):
    def after_batch(self):
        time.sleep({seconds})
        if self.epoch == {interrupt_in}: raise KeyboardInterrupt

batches = [(torch.randn(8, 3), torch.randn(8, 1))] * 8
learn = Learner((batches, batches), nn.Linear(3, 1), nn.functional.mse_loss, cbs=[Slow, ShowGraph])
try: learn.fit(2)
except KeyboardInterrupt: print("interrupted")
from matplotlib import pyplot
print("open figures:", pyplot.get_fignums())
"""


def learner(graph: ShowGraph, dls: DataLoaders | None = None) -> Learner:
    torch.manual_seed(0)
    learn = Learner(dls or line_dls(), nn.Linear(3, 1), nn.functional.mse_loss, lr=0.01, cbs=graph)
    learn.logger = lambda text: None
    return learn


def test_picture_has_both_losses_in_colours_that_everybody_can_tell_apart() -> None:
    graph = ShowGraph()
    learn = learner(graph)
    learn.fit(3)
    (ax,) = graph.figure().axes
    train, valid = ax.lines
    assert (train.get_color(), valid.get_color()) == (BLUE, ORANGE)
    assert list(train.get_ydata()) == learn.recorder.losses
    assert list(valid.get_xdata()) == learn.recorder.iters
    assert list(valid.get_ydata()) == [row[1] for row in learn.recorder.values]


def test_picture_says_what_its_axes_and_curves_are() -> None:
    graph = ShowGraph()
    learner(graph).fit(1)
    (ax,) = graph.figure().axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("training batch", "loss")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["training (moving average)", "validation"]


def test_axis_reaches_to_the_end_of_the_fit_from_the_first_epoch_on() -> None:
    seen = []

    class Look(Callback):
        order = 100

        def after_epoch(self) -> None:
            (ax,) = graph.figure().axes
            seen.append((ax.get_xlim(), len(ax.lines[1].get_xdata())))

    graph = ShowGraph()
    learner(graph).fit(3, cbs=Look())
    assert seen == [((0, 6), 1), ((0, 6), 2), ((0, 6), 3)]


def test_a_validation_that_was_cancelled_has_no_point() -> None:
    class Skip(Callback):
        def before_validate(self) -> None:
            if self.epoch == 1:
                raise CancelValidException

    graph = ShowGraph()
    learner(graph).fit(3, cbs=Skip())
    assert list(graph.figure().axes[0].lines[1].get_xdata()) == [2, 6]


def test_without_a_validation_set_there_is_one_curve() -> None:
    graph = ShowGraph()
    learner(graph, DataLoaders.from_tensors(torch.rand(8, 3), torch.rand(8, 1), bs=4)).fit(1)
    assert len(graph.figure().axes[0].lines) == 1


def test_picture_can_be_had_without_any_training_and_leaves_nothing_open() -> None:
    graph = ShowGraph()
    learner(graph)
    before = pyplot.get_fignums()
    picture = io.BytesIO()
    graph.figure().savefig(picture, format="png")
    assert picture.tell() > 1000
    assert pyplot.get_fignums() == before


def test_outside_a_notebook_nothing_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    learn = learner(ShowGraph())
    learn.fit(1)
    assert capsys.readouterr().out == ""


def test_on_a_terminal_it_is_silent() -> None:
    raw = on_a_terminal(SCRIPT.format(seconds=0, interrupt_in=9))
    assert "Figure" not in raw
    assert "open figures: []" in raw


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("interrupt_in", [9, 1])
def test_notebook_has_one_picture_in_the_end_and_no_open_figure(tmp_path: Path, interrupt_in: int) -> None:
    outputs = run_notebook(SCRIPT.format(seconds=0.2, interrupt_in=interrupt_in), tmp_path)
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert len(pictures) == 1
    assert Image.open(io.BytesIO(base64.b64decode(pictures[0]))).size == (600, 400)
    assert re.findall(r"open figures: \[\]", printed) == ["open figures: []"]


def test_fastais_name_is_the_same_class() -> None:
    assert ShowGraphCallback is ShowGraph
