"""What a run of Weights & Biases gets of a fit, from the file of a run without a network."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import line_dls
from torch import nn

from minilearn.callback import Callback
from minilearn.callbacks import Recorder, Wandb, WandbCallback
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.metrics import mse
from minilearn.optim import SGD

wandb: Any = pytest.importorskip("wandb", reason="needs the package wandb")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Any]:
    """A run that writes into a folder of its own and nowhere else."""
    settings = wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True)
    run = wandb.init(mode="offline", dir=tmp_path, project="test", settings=settings)
    yield run
    run.finish()


def records(file: Path) -> Iterator[bytes]:
    """The records of a run's file, which is a log in LevelDB's format: blocks of 32 KiB with pieces of records."""
    text, at, record = file.read_bytes(), len(":W&B") + 3, b""
    while at + 7 <= len(text):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(text[at + 4 : at + 6], "little"), text[at + 6]
        record += text[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or a last piece
            yield record
            record = b""


def history(run: Any) -> list[dict[str, Any]]:
    """All that was logged, in order, without wandb's own figures."""
    from wandb.proto.wandb_internal_pb2 import Record

    run.finish()
    (file,) = Path(run.dir).parent.glob("*.wandb")
    end = time.monotonic() + 60
    while True:  # what `finish` does not wait for: another process writes the file
        found = [Record.FromString(text) for text in records(file)]
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            break
        assert time.monotonic() < end, "the run's file has no end"
        time.sleep(0.05)
    rows = []
    for record in found:
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            rows.append({name: json.loads(text) for name, text in items.items() if not name.startswith("_")})
    return rows


def learner(*cbs: Any, **options: Any) -> Learner:
    torch.manual_seed(0)
    dls = options.pop("dls", None) or line_dls()
    model, loss_func = options.pop("model", None) or nn.Linear(3, 1), options.pop("loss_func", nn.functional.mse_loss)
    learn = Learner(dls, model, loss_func, SGD, 0.01, cbs=list(cbs), **{"metrics": mse, **options})
    learn.logger = lambda text: None
    return learn


def column(rows: list[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(row["train_iter"], row[name]) for row in rows if name in row]


def test_losses_and_metrics_are_the_recorders_beside_the_number_of_batches_done(run: Any) -> None:
    learn = learner(Wandb(run))
    learn.fit(2)
    rows, recorder = history(run), learn.recorder
    assert column(rows, "train_loss") == list(enumerate(recorder.losses, start=1))
    assert column(rows, "valid_loss") == [(2, recorder.values[0][1]), (4, recorder.values[1][1])]
    assert column(rows, "mse") == [(2, recorder.values[0][2]), (4, recorder.values[1][2])]
    assert column(rows, "epoch") == [(2, 1), (4, 2)]
    assert column(rows, "lr_0") == [(i, 0.01) for i in range(1, 5)]


def test_the_current_run_is_taken_and_left_open(run: Any) -> None:
    learner(Wandb()).fit(1)
    run.log({"mine": 1})
    assert "mine" in history(run)[-1]


def test_what_others_log_in_between_is_in_nobodys_way(run: Any) -> None:
    class Mine(Callback):
        def after_batch(self) -> None:
            run.log({"mine": 1})

    learner(Wandb(run), Mine()).fit(1)
    rows = history(run)
    assert [step for step, _ in column(rows, "raw_loss")] == [1, 2]
    assert sum("mine" in row for row in rows) == 3


def test_batches_are_counted_on_from_fit_to_fit_and_thinned(run: Any) -> None:
    learn = learner(Wandb(run, stride=2))
    learn.fit(1)
    learn.fit(2)
    assert [step for step, _ in column(history(run), "raw_loss")] == [1, 3, 5]


def test_config_says_what_the_fit_is_made_of(run: Any) -> None:
    learner(Wandb(run)).fit(2)
    wanted = {"model": "Linear", "parameters": 4, "opt": "SGD", "loss_func": "mse_loss", "n_epoch": 2, "lr": 0.01}
    assert {name: run.config[name] for name in wanted} == wanted


def test_images_with_predictions_are_logged_once_an_epoch(run: Any) -> None:
    x, y = torch.rand(12, 1, 8, 8), torch.arange(12) % 3
    dls = DataLoaders.from_tensors(x, y, x, y, bs=4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    learner(Wandb(run), dls=dls, model=model, loss_func=nn.functional.cross_entropy, metrics=None).fit(2)
    logged = [row for row in history(run) if any(name.startswith("predictions") for name in row)]
    assert [row["train_iter"] for row in logged] == [3, 6]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_keeps_what_was_there_and_the_next_fit_goes_on(run: Any, error: type[BaseException]) -> None:
    class Fail(Callback):
        order = 100

        def after_batch(self) -> None:
            if self.epoch == 1 and self.training:
                raise error

    learn = learner(Wandb(run))
    with pytest.raises(error):
        learn.fit(2, cbs=Fail())
    learn.fit(1)
    assert [step for step, _ in column(history(run), "raw_loss")] == [1, 2, 3, 4, 5]


def test_its_state_takes_the_count_and_the_average_along(run: Any) -> None:
    first = Wandb(run)
    learner(first).fit(2)
    state = json.loads(json.dumps(first.state_dict()))
    second = Wandb(run)
    second.load_state_dict(state)
    assert second.state_dict() == state
    learner(second).fit(1)
    assert [step for step, _ in column(history(run), "raw_loss")] == [1, 2, 3, 4, 5, 6]


def test_without_a_run_it_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"call wandb.init\(\) before the fit, or give Wandb\(run\)"):
        learner(Wandb()).fit(1)


def test_what_is_no_run_is_refused() -> None:
    with pytest.raises(TypeError, match=r"run must be what wandb.init\(\) gave, got 'my-run'"):
        Wandb("my-run")


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="pip install wandb"):
        Wandb()


def test_fastais_name_is_the_same_class() -> None:
    assert WandbCallback is Wandb


def test_a_table_without_times_is_logged_whole(run: Any) -> None:
    learn = learner(Wandb(run), Recorder(add_time=False))
    learn.fit(1)
    assert column(history(run), "mse") == [(2, learn.recorder.values[0][2])]
