"""A fit tried out beforehand: on one batch alone, in short with all its files, and with the same kernels each time."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilearn.callback import Callback
from minilearn.callbacks import Checkpoint, CSVLogger, DivergenceError, SaveModel
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.optim import SGD
from minilearn.trials import WORKSPACE, deterministic_kernels
from tests.conftest import line_dls


def learner(*cbs: Any, dls: Any = None, **kwargs: Any) -> tuple[Learner, list[str]]:
    torch.manual_seed(0)
    said: list[str] = []
    model = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))
    learn = Learner(dls or line_dls(20), model, F.mse_loss, cbs=list(cbs), metrics=F.l1_loss, **kwargs)
    learn.logger = said.append
    return learn, said


def everything(learn: Learner) -> list[Tensor]:
    opt = learn.__dict__.get("opt")
    kept = [] if opt is None else [t for s in opt.state.values() for t in s.values() if isinstance(t, Tensor)]
    tensors = [*learn.model.state_dict().values(), *kept, torch.get_rng_state()]
    return [tensor.detach().clone() for tensor in tensors]


# ---- one batch ----


def test_a_model_that_can_learn_learns_its_first_batch() -> None:
    learn, said = learner(lr=0.05)
    found = learn.overfit_one_batch()
    assert found.learned
    assert (found.n, found.rows, len(found.losses)) == (100, 4, 100)
    assert said == [str(found)]
    assert said[0].endswith("The model can learn it: model, loss and optimizer belong together.")


def test_losses_are_those_of_a_loop_by_hand() -> None:
    learn, _ = learner(opt_func=torch.optim.SGD, wd=0.0)
    twin, _ = learner()
    x, y = next(iter(learn.dls.train))
    opt, wanted = torch.optim.SGD(twin.model.parameters(), 0.01), []
    twin.model.train()
    for _ in range(5):
        loss = F.mse_loss(twin.model(x), y)
        wanted.append(loss.item())
        loss.backward()
        opt.step()
        opt.zero_grad()
    assert learn.overfit_one_batch(5, 0.01).losses == pytest.approx(wanted)


def test_a_model_that_cannot_learn_is_said() -> None:
    learn, said = learner()
    for p in learn.model.parameters():
        p.requires_grad_(False)
    learn.model[3].bias.requires_grad_(True)
    learn.loss_func = lambda pred, y: F.mse_loss(pred - pred.mean() + 0 * learn.model[3].bias, y)
    assert not learn.overfit_one_batch(20).learned
    assert "It does not learn: try learning rates ten times higher and lower than 0.001" in said[0]


def test_one_that_learns_slowly_is_said() -> None:
    learn, said = learner(opt_func=torch.optim.SGD)
    assert not learn.overfit_one_batch(20, 5e-3).learned
    assert "It learns, but has not learned the batch: try more steps (n=)" in said[0]


@pytest.mark.parametrize("fitted", [False, True])
def test_one_batch_leaves_no_trace(fitted: bool) -> None:
    learn, _ = learner()
    if fitted:
        learn.fit(1)
    before, rows, cbs = everything(learn), len(learn.recorder.values), list(learn.cbs)
    learn.overfit_one_batch(10)
    assert all(map(torch.equal, before, everything(learn)))
    assert ("opt" in learn.__dict__, len(learn.recorder.values), learn.cbs) == (fitted, rows, cbs)


def test_one_batch_whose_loss_is_nan_is_named() -> None:
    learn, _ = learner(opt_func=SGD)
    before = everything(learn)
    with pytest.raises(DivergenceError, match="learning rate of 1e") as caught:
        learn.overfit_one_batch(100, 1e30)
    assert caught.value.__notes__[-1] == "raised in learn.overfit_one_batch: the Learner is as it was before"
    assert all(map(torch.equal, before, everything(learn)))


def test_one_batch_refuses_what_it_cannot_do() -> None:
    learn, _ = learner()
    with pytest.raises(ValueError, match="n must be a whole number of at least 2, got 1"):
        learn.overfit_one_batch(1)
    learn.dls = DataLoaders(iter(list(learn.dls.train)))
    with pytest.raises(ValueError, match="overfit_one_batch would use up a loader"):
        learn.overfit_one_batch()


# ---- dry run ----


class Counts(Callback):
    "Counts batches, and writes a file where an epoch ends."

    order = 100

    def __init__(self) -> None:
        self.log = seen

    def after_batch(self) -> None:
        self.log.append((self.dl_name, self.iter))

    @property
    def dl_name(self) -> str:
        return "training" if self.training else f"{len(self.learn.dls.valid_sets)} sets"

    def after_epoch(self) -> None:
        (self.learn.path / "own.txt").write_text("here")


seen: list[tuple[str, int]] = []


def test_dry_run_goes_through_two_batches_of_each_part_and_leaves_no_file(tmp_path: Path) -> None:
    train, valid = line_dls(20).train, line_dls(20, 12).valid
    dls = DataLoaders(train, {"valid": valid, "noisy": valid})
    absolute = tmp_path / "elsewhere"
    learn, said = learner(
        Counts, CSVLogger("logs/log.csv"), CSVLogger(absolute / "log.csv"), SaveModel("valid_loss"), dls=dls,
        path=tmp_path / "real", model_dir=tmp_path / "models",
    )  # fmt: skip
    before = everything(learn)
    seen.clear()
    found = learn.dry_run(checkpoint=Checkpoint("run"))
    assert list(tmp_path.iterdir()) == []
    assert found.parts == {"training": 2, "valid": 2, "noisy": 2}
    assert seen == []  # what a callback holds is put back too
    names = {str(file.relative_to(tmp_path)) for file in found.files}
    assert {"real/logs/log.csv", "real/own.txt", "elsewhere/log.csv", "models/model.safetensors"} < names
    assert any(name.startswith("real/run/") for name in names)
    assert said == [str(found)]
    assert all(map(torch.equal, before, everything(learn)))
    assert learn.path == tmp_path / "real"


def test_dry_run_leaves_the_files_that_are_there(tmp_path: Path) -> None:
    log = CSVLogger(tmp_path / "log.csv")
    learn, _ = learner(log, path=tmp_path)
    learn.fit(3, checkpoint="run")
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in tmp_path.rglob("*") if file.is_file()}
    learn.dry_run(checkpoint="run")
    after = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in tmp_path.rglob("*") if file.is_file()}
    assert before == after
    assert (log.path, len(log.read_log())) == (tmp_path / "log.csv", 3)


def test_fit_after_a_dry_run_is_the_one_that_it_would_have_been(tmp_path: Path) -> None:
    def fitted(dry: bool) -> list[Tensor]:
        learn, _ = learner(path=tmp_path, dls=_shuffled())
        torch.manual_seed(3)
        if dry:
            learn.dry_run()
        learn.fit(2)
        return everything(learn)

    assert all(map(torch.equal, fitted(False), fitted(True)))


def _shuffled() -> DataLoaders:
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    return DataLoaders.from_tensors(x, x.sum(1, keepdim=True), x[:8], x[:8].sum(1, keepdim=True), bs=4, device="cpu")


def test_dry_run_names_the_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    learn, _ = learner(CSVLogger("logs/log.csv"), path=tmp_path)
    with pytest.raises(NotADirectoryError, match=r"would write .*logs/log\.csv, but .*logs is a file and no folder"):
        learn.dry_run()


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_dry_run_names_a_folder_without_the_right_to_write(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    learn, _ = learner(path=locked)
    with pytest.raises(PermissionError, match=r"the folder .*locked cannot be written to"):
        learn.dry_run(checkpoint="run")


def test_dry_run_ends_with_the_error_of_the_fit_and_no_trace(tmp_path: Path) -> None:
    class Fails(Callback):
        def after_validate(self) -> None:
            raise KeyError("mine")

    learn, said = learner(Fails, CSVLogger(), path=tmp_path)
    before = everything(learn)
    with pytest.raises(KeyError, match="mine") as caught:
        learn.dry_run()
    assert caught.value.__notes__[-1] == "raised in learn.dry_run: the Learner is as it was before"
    assert (list(tmp_path.iterdir()), said) == ([], [])
    assert all(map(torch.equal, before, everything(learn)))


def test_callbacks_of_the_fit_that_is_meant_take_part_and_can_be_given_to_it(tmp_path: Path) -> None:
    log = CSVLogger(tmp_path / "log.csv")
    learn, _ = learner(path=tmp_path)
    assert [file.name for file in learn.dry_run(cbs=log).files] == ["log.csv"]
    learn.fit(1, cbs=log)
    assert (tmp_path / "log.csv").exists()


def test_dry_run_refuses_a_loader_that_it_would_use_up() -> None:
    learn, _ = learner()
    learn.dls = DataLoaders(learn.dls.train, iter(list(learn.dls.valid)))
    with pytest.raises(ValueError, match="dry_run would use up a loader"):
        learn.dry_run()


# ---- the same each time ----


def test_deterministic_is_on_for_the_length_of_a_fit_whatever_ends_it() -> None:
    seen: list[tuple[bool, bool, bool]] = []

    class Watch(Callback):
        def before_fit(self) -> None:
            cudnn = torch.backends.cudnn
            seen.append((torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark))
            if len(seen) == 2:
                raise KeyError

    learn, _ = learner(Watch, deterministic=True)
    learn.fit(1)
    with pytest.raises(KeyError):
        learn.fit(1)
    assert seen == [(True, True, False)] * 2
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic


def test_an_operation_that_has_no_deterministic_form_is_an_error() -> None:
    def loss(pred: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(pred, y) + 0 * torch.zeros(3).put_(torch.tensor([0]), torch.ones(1)).sum()

    learn, _ = learner(deterministic=True)
    learn.loss_func = loss
    with pytest.raises(RuntimeError, match="deterministic"):
        learn.fit(1)


def test_the_variable_that_cublas_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WORKSPACE, raising=False)
    wanted = pytest.raises(ValueError, match=r"needs the environment variable CUBLAS_WORKSPACE_CONFIG=:4096:8")
    with wanted, deterministic_kernels(on_cuda=True):
        pass
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with deterministic_kernels(on_cuda=True):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
