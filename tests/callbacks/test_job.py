"""Another fit under the same name is refused, and what differs is listed; the same one is done once."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from minilearn.callback import Callback
from minilearn.callbacks import EMA, Checkpoint, CSVLogger, GradientClip, MixUp, TorchScheduler
from minilearn.callbacks.job import differences, job_of
from minilearn.data import DataLoader, DataLoaders
from minilearn.data.transforms import Normalize
from minilearn.learner import Learner
from minilearn.metrics import mae, mse
from minilearn.optim import SGD, Adam

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(12, 3, generator=GENERATOR), torch.randn(12, 1, generator=GENERATOR)


def mlp(width: int = 4, act: type[nn.Module] = nn.ReLU, p: float = 0.1) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), act(), nn.Dropout(p), nn.Linear(width, 1))


def data(x: Any = X, y: Any = Y, bs: int = 3, **options: Any) -> DataLoaders:
    return DataLoaders.from_tensors(x[:8], y[:8], x[8:], y[8:], bs=bs, device="cpu", **options)


def fitted(
    path: Path,
    *,
    model: Callable[[], nn.Module] = mlp,
    dls: Callable[[], DataLoaders] = data,
    loss: Any = F.mse_loss,
    opt: Any = SGD,
    n: int = 2,
    lr: float = 0.1,
    wd: float | None = None,
    cycle: dict[str, Any] | None = None,
    cbs: Any = (),
    metrics: Any = (mse,),
    frozen: bool = False,
) -> Learner:
    torch.manual_seed(0)
    learn = Learner(dls(), model(), loss, opt, lr, cbs=list(cbs), metrics=list(metrics), path=path)
    learn.logger = lambda text: None
    if frozen:
        for p in learn.model[0].parameters():
            p.requires_grad_(False)
    if cycle is None:
        learn.fit(n, wd=wd, checkpoint="run")
    else:
        learn.fit_one_cycle(n, wd=wd, checkpoint="run", **cycle)
    return learn


OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "shape": ({}, {"model": lambda: mlp(5)}, r"model's 0.weight: float32 \(4, 3\) in the checkpoint, float32 \(5, 3\) here"),
    "layer of the same shape": ({}, {"model": lambda: mlp(act=nn.Tanh)}, r"model's 1: ReLU\(\) in the checkpoint, Tanh\(\) here"),
    "dropout": ({}, {"model": lambda: mlp(p=0.5)}, r"p=0.1.* in the checkpoint, Dropout\(p=0.5"),
    "another model": ({}, {"model": lambda: nn.Linear(3, 1)}, "model: Sequential in the checkpoint, Linear here"),
    "frozen": ({}, {"frozen": True}, r"float32 \(4, 3\) in the checkpoint, float32 \(4, 3\), frozen here"),
    "optimizer": ({}, {"opt": Adam}, "optimizer: SGD in the checkpoint, Adam here"),
    "momentum": ({}, {"opt": partial(SGD, mom=0.9)}, "mom: 0.0 in the checkpoint, 0.9 here"),
    "switch": ({"opt": torch.optim.Adam}, {"opt": partial(torch.optim.Adam, amsgrad=True)}, "amsgrad: False in the checkpoint, True"),
    "lr": ({}, {"lr": 0.2}, "lr: 0.1 in the checkpoint, 0.2 here"),
    "wd": ({"wd": 0.0}, {"wd": 0.1}, r"wd: 0.0 in the checkpoint, \[0.1, 0.0\] here"),
    "schedule": ({"cycle": {}}, {"cycle": {"pct_start": 0.5}}, "schedule of lr: "),
    "highest rate": ({"cycle": {}}, {"cycle": {"lr_max": 0.3}}, "schedule of lr: "),
    "no schedule": ({"cycle": {}}, {}, "schedule of lr: .* in the checkpoint, none here"),
    "torch's scheduler": (
        {"cbs": [TorchScheduler(partial(lr_scheduler.StepLR, step_size=1))]},
        {"cbs": [TorchScheduler(partial(lr_scheduler.StepLR, step_size=2))]},
        r"scheduler: StepLR\(step_size=1",
    ),
    "epochs": ({}, {"n": 3}, "epochs: 2 in the checkpoint, 3 here"),
    "batch size": ({}, {"dls": lambda: data(bs=4)}, "batch size of the training set: 3 in the checkpoint, 4 here"),
    "rows": ({}, {"dls": lambda: data(X[:-1], Y[:-1])}, "rows of the valid set: 4 in the checkpoint, 3 here"),
    "contents": ({}, {"dls": lambda: data(X + 1)}, "contents of the training set"),
    "dtype": ({}, {"dls": lambda: data(y=Y.double())}, "data of the training set"),
    "order": ({}, {"dls": lambda: data(shuffle=False)}, "order of the training set: RandomSampler in the checkpoint, Sequential"),
    "transforms": ({}, {"dls": lambda: data(batch_tfms=Normalize(0.0, 2.0))}, "batch_tfms: .* in the checkpoint, .*Normalize"),
    "loss": ({}, {"loss": F.l1_loss}, "loss: mse_loss in the checkpoint, l1_loss here"),
    "loss's argument": ({"loss": nn.HuberLoss()}, {"loss": nn.HuberLoss(delta=2.0)}, r"delta=1.0\) in the checkpoint, .*delta=2.0\) here"),
    "metrics": ({}, {"metrics": (mse, mae)}, r"metrics: \['mse'\] in the checkpoint, \['mse', 'mae'\] here"),
    "a callback more": ({}, {"cbs": [EMA(0.9)]}, r"callback EMA: none in the checkpoint, EMA\(.*decay=0.9"),
    "a callback less": ({"cbs": [CSVLogger()]}, {}, "callback CSVLogger: there in the checkpoint, none here"),
    "a callback without a state": ({}, {"cbs": [MixUp(0.4)]}, r"callback MixUp: none in the checkpoint, MixUp\(alpha=0.4\) here"),
    "a callback otherwise": ({"cbs": [GradientClip(1.0)]}, {"cbs": [GradientClip(2.0)]}, r"GradientClip\(max_norm=2.0"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_another_fit_under_the_same_name_is_refused_and_the_difference_named(name: str, tmp_path: Path) -> None:
    first, second, says = OTHERS[name]
    fitted(tmp_path, **first)
    with pytest.raises(ValueError, match=f"is of another run: .*{says}") as refused:
        fitted(tmp_path, **second)
    assert "folder of its own" in str(refused.value)


def test_what_was_refused_has_changed_nothing(tmp_path: Path) -> None:
    fitted(tmp_path)
    held = {file: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    torch.manual_seed(0)
    before = mlp().state_dict()
    learn = Learner(data(), mlp(), F.mse_loss, SGD, 0.7, metrics=[mse], path=tmp_path)
    learn.model.load_state_dict(before)
    with pytest.raises(ValueError, match=r"lr: 0.1 in the checkpoint, 0.7 here"):
        learn.fit(2, checkpoint="run")
    assert all(torch.equal(learn.model.state_dict()[name], before[name]) for name in before)
    assert {file: file.read_bytes() for file in (tmp_path / "run").iterdir()} == held


def test_long_list_of_differences_is_cut_and_says_so(tmp_path: Path) -> None:
    fitted(tmp_path)
    with pytest.raises(ValueError, match=r"; and [0-9]+ more\. Give this run"):
        fitted(tmp_path, model=lambda: nn.Sequential(mlp(5), mlp(6)), lr=0.3, n=7)


def test_where_and_how_it_is_written_may_change(tmp_path: Path) -> None:
    class Prints(Callback):
        def before_batch(self) -> None:
            pass

    fitted(tmp_path)
    assert fitted(tmp_path, cbs=[Prints()]).recorder.epochs == [0, 1]


def test_number_of_workers_may_change_but_not_between_some_and_none() -> None:
    def job(workers: int) -> dict[str, Any]:
        dls = DataLoaders(DataLoader(list(zip(X, Y, strict=True)), 3, num_workers=workers))
        learn = Learner(dls, mlp(), F.mse_loss, SGD)
        learn._ready_opt(False)
        return job_of(learn)

    assert list(differences(job(1), job(2))) == []
    assert any("random numbers" in line for line in differences(job(0), job(2)))


def test_finished_fit_is_not_done_again_and_leaves_the_same(tmp_path: Path) -> None:
    class Sees(Callback):
        def before_batch(self) -> None:
            raise AssertionError("a batch was begun")

    first = fitted(tmp_path)
    again = fitted(tmp_path, cbs=[Sees()])
    assert again.recorder.values == first.recorder.values
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))
    assert not again.model.training


def test_finished_fit_prints_its_table_and_says_where_it_comes_from(tmp_path: Path) -> None:
    lines: list[str] = []
    fitted(tmp_path)
    torch.manual_seed(0)
    learn = Learner(data(), mlp(), F.mse_loss, SGD, 0.1, metrics=[mse], path=tmp_path)
    learn.logger = lines.append
    learn.fit(2, checkpoint="run")
    assert "this fit is done: its end is in" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["epoch", "0", "1"]


def test_inferred_loss_goes_with_itself_in_the_same_process(tmp_path: Path) -> None:
    learn = fitted(tmp_path, loss=None)
    learn.fit(2, checkpoint="run")
    assert learn.recorder.epochs == [0, 1]


def test_fine_tune_keeps_each_part_in_a_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    learn = Learner(data(), mlp(), F.mse_loss, Adam, path=tmp_path)
    learn.logger = lambda text: None
    learn.fine_tune(1, checkpoint="run")
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["frozen", "unfrozen"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep": 0}, "keep must be a whole number of at least 1, got 0"),
        ({"every_batches": 0}, "every_batches must be a whole number of at least 1"),
        ({"every_s": 0}, "every_s must be a finite number greater than 0, got 0"),
    ],
)
def test_arguments_out_of_their_range_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Checkpoint("run", **options)


def test_path_that_is_none_is_named() -> None:
    with pytest.raises(TypeError, match="path must be the name of a folder, got"):
        Checkpoint("")


@pytest.mark.parametrize(
    ("options", "written"),
    [
        ({}, ["000002", "000003"]),
        ({"every_epoch": False}, ["000001"]),
        ({"every_batches": 2, "every_epoch": False, "keep": 9}, ["000001", "000002", "000003", "000004", "000005"]),
        ({"every_s": 1e-9, "keep": 1, "every_epoch": False}, ["000010"]),
        ({"keep": 9}, ["000001", "000002", "000003"]),
    ],
)
def test_checkpoints_are_written_when_they_were_asked_for(options: Any, written: list[str], tmp_path: Path) -> None:
    learn = Learner(data(), mlp(), F.mse_loss, SGD, path=tmp_path)
    learn.logger = lambda text: None
    learn.fit(3, checkpoint=Checkpoint("run", **options))
    assert sorted(file.stem for file in (tmp_path / "run").iterdir()) == written


def test_state_that_cannot_be_saved_is_an_error_after_the_first_batch(tmp_path: Path) -> None:
    class Odd(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"seen": {1, 2}}

    learn = Learner(data(), mlp(), F.mse_loss, SGD, path=tmp_path, cbs=Odd())
    with pytest.raises(TypeError, match=r"callbacks.Odd.seen is of type set, which cannot be saved"):
        learn.fit(3, checkpoint="run")
    assert learn.train_iter == 1
