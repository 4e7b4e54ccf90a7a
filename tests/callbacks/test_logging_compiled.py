"""What only looks on leaves a compiled step whole, and writes what it writes of an eager one."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.utils import counters

pytest.importorskip("tensorboard", reason="needs the package tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from minilearn.callbacks import CSVLogger, Profiler, ShowGraph, TensorBoard
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.metrics import accuracy
from minilearn.optim import SGD

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, about itself


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


def figures(path: Path, compile: bool) -> tuple[list[list[float]], dict[str, list[float]], int]:
    """The lines of the CSV file without the time, TensorBoard's figures, and how many graphs were made."""
    torch.manual_seed(0)
    x, y = torch.randn(150, 6, dtype=torch.float64), torch.randint(0, 3, (150,))
    dls = DataLoaders.from_tensors(x, y, x[:50], y[:50], bs=32)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()
    cbs = [CSVLogger(), TensorBoard("run", hists=True), ShowGraph(), Profiler()]
    loss = nn.functional.cross_entropy
    learn = Learner(dls, model, loss, SGD, 0.1, cbs=cbs, metrics=accuracy, path=path, compile=compile)
    learn.logger = lambda text: None
    learn.fit(2)
    lines = (path / "history.csv").read_text().splitlines()[1:]
    reader = EventAccumulator(str(path / "run"), size_guidance={"scalars": 0})
    reader.Reload()
    shown = {tag: [event.value for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}
    assert json.loads((path / "trace.json").read_text())["traceEvents"]
    return [list(map(float, line.split(",")[:-1])) for line in lines], shown, int(counters["stats"]["unique_graphs"])


def test_loggers_leave_a_compiled_step_one_graph_and_write_the_eager_steps_figures(tmp_path: Path) -> None:
    eager, compiled = figures(tmp_path / "eager", False), figures(tmp_path / "compiled", True)
    assert compiled[2] == 2  # a training step and a validation
    assert len(eager[0]) == 2
    for wanted, found in zip(eager[0], compiled[0], strict=True):
        assert found == pytest.approx(wanted, rel=1e-9)
    assert compiled[1] == {tag: pytest.approx(values, rel=1e-6) for tag, values in eager[1].items()}
