"""Predictions: the rows, their order, what comes with them, over any loader; and that nothing else is touched."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import line_dls
from torch import Tensor, nn
from torch.utils.data import BatchSampler, IterableDataset, RandomSampler, SubsetRandomSampler, TensorDataset

from minilearn.callback import Callback, CancelBatchException, CancelFitException, CancelValidException
from minilearn.callbacks import FetchPreds, GatherPreds, ProgressCallback, Recorder
from minilearn.data import DataLoader, DataLoaders, RandomFlip
from minilearn.learner import Learner
from minilearn.losses import activation_of, decodes_of, mnist_loss, not_reduced, row_losses
from minilearn.metrics import mse
from minilearn.plots import plot_results

TORCHS = torch.utils.data.DataLoader


def learner(dls: object = None, model: nn.Module | None = None, loss: Any = F.mse_loss, **kwargs: Any) -> Learner:
    learn = Learner(dls or line_dls(), model or nn.Linear(3, 1), loss, **kwargs)  # type: ignore[arg-type]
    learn.logger = lambda line: None
    return learn


def rows(n: int = 10) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, generator=generator), torch.randn(n, 1, generator=generator)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


X, Y = rows()


def same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


# ---- the rows and their order ----


def test_predictions_and_targets_of_the_validation_set() -> None:
    learn = learner()
    x, y = learn.dls.valid_ds.tensors
    preds, targets = learn.get_preds()
    same(preds, learn.model(x).detach())
    same(targets, y)


class Rows(IterableDataset[Any]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(X, Y, strict=True)


class NoLength:
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for i in range(0, 10, 3):
            yield X[i : i + 3], Y[i : i + 3]


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


def batches(form: Callable[[Tensor, Tensor], Any], bs: int = 4) -> list[Any]:
    return [form(X[i : i + bs], Y[i : i + bs]) for i in range(0, 10, bs)]


DS = TensorDataset(X, Y)
LOADERS: dict[str, Callable[[], Any]] = {
    "ours": lambda: DataLoader(DS, 4),
    "ours, shuffled": lambda: DataLoader(DS, 4, shuffle=True),
    "ours, shuffled, dropping": lambda: DataLoader(DS, 4, shuffle=True, drop_last=True),
    "ours, row by row": lambda: DataLoader(list(zip(X.tolist(), Y, strict=True)), 4, collate_fn=as_floats),
    "torch's": lambda: TORCHS(DS, batch_size=4),
    "torch's, shuffled": lambda: TORCHS(DS, batch_size=4, shuffle=True),
    "torch's, shuffled, dropping": lambda: TORCHS(DS, batch_size=4, shuffle=True, drop_last=True),
    "torch's, in order, dropping": lambda: TORCHS(DS, batch_size=4, drop_last=True),
    "a subset's sampler": lambda: TORCHS(DS, batch_size=4, sampler=SubsetRandomSampler(range(10))),
    "a batch sampler": lambda: TORCHS(DS, batch_sampler=[[9, 0, 1], [5, 4, 3, 2], [8, 6, 7]]),
    "ours, a batch sampler": lambda: DataLoader(DS, batch_sampler=[[9, 0, 1], [5, 4, 3, 2], [8, 6, 7]]),
    "an iterable data set": lambda: TORCHS(Rows(), batch_size=4),
    "a list of tuples": lambda: batches(lambda x, y: (x, y)),
    "a list of lists": lambda: batches(lambda x, y: [x, y]),
    "named tuples": lambda: batches(Pair),
    "no length": NoLength,
    "a generator": lambda: iter(NoLength()),
    "growing batches": lambda: [(X[:1], Y[:1]), (X[1:3], Y[1:3]), (X[3:], Y[3:])],
}


def as_floats(items: list[Any]) -> tuple[Tensor, Tensor]:
    return torch.stack([torch.tensor(x) for x, _ in items]), torch.stack([y for _, y in items])


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_any_loader_gives_every_row_in_the_data_sets_order(make: Callable[[], Any]) -> None:
    learn = learner()
    preds, targets = learn.get_preds(dl=make())
    same(preds, learn.model(X).detach())
    same(targets, Y)


def test_training_set_comes_whole_and_in_order() -> None:
    learn = learner(DataLoaders(DataLoader(DS, 4, shuffle=True, drop_last=True)))
    same(learn.get_preds(ds_idx=0)[1], Y)


def test_rows_as_the_loader_gives_them_without_reorder() -> None:
    learn, dl = learner(), DataLoader(DS, 4, shuffle=True, drop_last=True)
    torch.manual_seed(3)
    expected = torch.cat([y for _, y in dl])
    torch.manual_seed(3)
    same(learn.get_preds(dl=dl, reorder=False)[1], expected)


def test_a_random_choice_of_rows_comes_in_order() -> None:
    dl = TORCHS(DS, batch_size=4, sampler=RandomSampler(DS, num_samples=5))
    (found, *_), *_ = [learner().get_preds(dl=dl)[1:]]
    places = [int((y == Y).nonzero()[0, 0]) for y in found]
    assert len(places) == 5
    assert places == sorted(places)


@pytest.mark.parametrize(
    "make",
    [
        lambda generator: {"sampler": RandomSampler(DS, generator=generator)},
        lambda generator: {"sampler": SubsetRandomSampler(range(10), generator=generator)},
        lambda generator: {"batch_sampler": Pairs(RandomSampler(DS, generator=generator), 4, False)},
    ],
)
@pytest.mark.parametrize("seed", [None, 5])
def test_order_of_later_epochs_is_not_moved_on(make: Callable[[Any], Any], seed: int | None) -> None:
    def orders(look: bool) -> list[Tensor]:
        torch.manual_seed(0)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        dl = DataLoader(DS, **make(generator))
        learn = learner(DataLoaders(dl, dl))
        if look:
            learn.get_preds()
        return [torch.cat([y for _, y in dl]) for _ in range(2)]

    same(orders(look=True), orders(look=False))


class Pairs(BatchSampler):
    "A batch sampler of one's own."


# ---- what a batch and a model may be ----


def test_dict_batches() -> None:
    class Named(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
            return {"sum": a + b, "difference": a - b}

    dl = [{"a": X[:4], "b": 2 * X[:4], "label": Y[:4]}, {"a": X[4:], "b": 2 * X[4:], "label": Y[4:]}]
    inputs, preds, targets = learner(model=Named()).get_preds(dl=dl, with_input=True)
    same(preds, {"sum": 3 * X, "difference": -X})
    same(targets, Y)
    same(inputs, {"a": X, "b": 2 * X})


def test_several_inputs_targets_and_outputs() -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, list[Tensor]]:
            return a + b, [a, b]

    def loss(pred: Any, one: Tensor, other: Tensor) -> Tensor:
        return (pred[0] - one).mean() + other.mean()

    dl = [(X[:7], X[:7], Y[:7], -Y[:7]), (X[7:], X[7:], Y[7:], -Y[7:])]
    learn = learner(DataLoaders(dl, dl, n_inp=2), Two(), loss)
    inputs, preds, targets = learn.get_preds(with_input=True)
    same(inputs, (X, X))
    same(preds, (2 * X, [X, X]))
    same(targets, (Y, -Y))


def test_no_targets() -> None:
    preds, targets = learner(model=nn.Identity()).get_preds(dl=[X[:6], X[6:]])
    same(preds, X)
    assert targets is None


def test_model_without_parameters() -> None:
    same(learner(model=nn.Identity()).get_preds(dl=[(X, Y)])[0], X)


def test_rows_of_differing_shapes_make_a_list() -> None:
    dl = [(torch.ones(2, 3), torch.zeros(2)), (torch.ones(1, 5), torch.zeros(1))]
    preds, targets = learner(model=nn.Identity()).get_preds(dl=dl)
    assert [tuple(row.shape) for row in preds] == [(3,), (3,), (5,)]
    same(targets, torch.zeros(3))


def test_answers_that_are_no_tensors_make_a_list() -> None:
    class Detector(nn.Module):
        def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
            return [{"boxes": row[: int(row[0])]} for row in x]

    x = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [2.0, 0.0, 0.0]])
    preds, _ = learner(model=Detector()).get_preds(dl=[(x[:2],), (x[2:],)])
    assert [len(row["boxes"]) for row in preds] == [1, 3, 2]


def test_answer_written_into_the_same_memory_each_time_is_copied() -> None:
    class Reusing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.room = torch.zeros(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.room[:] = x
            return self.room

    same(learner(model=Reusing()).get_preds(dl=DataLoader(DS, 5))[0], X)


def test_results_are_copies_of_the_data() -> None:
    x, y = X.clone(), Y.clone()
    inputs, preds, targets = learner(model=nn.Identity()).get_preds(dl=DataLoader((x, y), 4), with_input=True)
    for result in (inputs, preds, targets):
        result.zero_()
    same((x, y), (X, Y))


def test_input_that_the_model_changes_is_kept_as_it_was() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(0)

    inputs, preds, _ = learner(model=InPlace()).get_preds(dl=DataLoader(DS, 4), with_input=True)
    same(inputs, X)
    same(preds, torch.zeros_like(X))


def test_concat_dim_joins_along_another_axis() -> None:
    dl = [(X[:4].T, torch.zeros(1, 4)), (X[4:].T, torch.zeros(1, 6))]
    same(learner(model=nn.Identity()).get_preds(dl=dl, concat_dim=1)[0], X.T)


# ---- what comes with them ----


CLASSES = torch.tensor([0, 2, 1, 1, 0, 2, 2, 1, 0, 0])


def test_cross_entropy_gives_probabilities_and_classes() -> None:
    learn = learner(model=nn.Linear(3, 3), loss=F.cross_entropy)
    preds, targets, decoded = learn.get_preds(dl=DataLoader((X, CLASSES), 4), with_decoded=True)
    logits = learn.model(X).detach()
    same(preds, logits.softmax(1))
    assert torch.equal(decoded, logits.argmax(1))
    assert torch.equal(targets, CLASSES)


def test_logits_of_yes_and_no_become_probabilities() -> None:
    learn = learner(loss=nn.BCEWithLogitsLoss())
    preds, _, decoded = learn.get_preds(dl=[(X, (Y > 0).float())], with_decoded=True)
    same(preds, learn.model(X).detach().sigmoid())
    assert torch.equal(decoded, preds > 0.5)


def test_act_takes_the_place_of_the_losss_activation() -> None:
    learn = learner(model=nn.Linear(3, 3), loss=F.cross_entropy)
    same(learn.get_preds(dl=[(X, CLASSES)], act=lambda pred: pred)[0], learn.model(X).detach())


def test_loss_with_an_activation_of_its_own() -> None:
    class Loss(nn.MSELoss):
        def activation(self, pred: Tensor) -> Tensor:
            return 2 * pred

        def decodes(self, pred: Tensor) -> Tensor:
            return pred.round()

    learn = learner(loss=Loss())
    preds, _, decoded = learn.get_preds(dl=[(X, Y)], with_decoded=True)
    same(preds, 2 * learn.model(X).detach())
    same(decoded, preds.round())


def test_loss_that_follows_from_the_batch_gives_the_activation_too() -> None:
    learn = learner(model=nn.Linear(3, 3), loss=None)
    same(learn.get_preds(dl=[(X, CLASSES)])[0], learn.model(X).detach().softmax(1))
    assert learn.loss_func is None


def mean_cross_entropy(pred: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(pred, target)


@pytest.mark.parametrize(
    "loss",
    [
        F.cross_entropy,
        nn.CrossEntropyLoss(),
        partial(F.cross_entropy, reduction="sum"),
        partial(nn.CrossEntropyLoss(reduction="sum")),
        mean_cross_entropy,
    ],
)
def test_loss_of_each_row(loss: Any) -> None:
    learn = learner(model=nn.Linear(3, 3), loss=loss)
    preds, _, decoded, losses = learn.get_preds(dl=DataLoader((X, CLASSES), 4), with_decoded=True, with_loss=True)
    same(losses, F.cross_entropy(learn.model(X), CLASSES, reduction="none").detach())
    assert len(preds) == len(decoded) == len(losses)


def test_loss_of_a_row_is_the_mean_over_its_elements() -> None:
    losses = learner(model=nn.Identity()).get_preds(dl=[(X, -X)], with_loss=True)[2]
    same(losses, (4 * X.square()).mean(1))


def test_loss_is_reduced_again_afterwards() -> None:
    loss = nn.MSELoss()
    learn = learner(loss=loss)
    learn.get_preds(with_loss=True)
    assert loss.reduction == "mean"


def test_loss_not_reduced_for_a_while() -> None:
    learn = learner()
    with learn.loss_not_reduced():
        assert learn.loss_func is not None
        same(learn.loss_func(X, -X), 4 * X.square())
    assert learn.loss_func is F.mse_loss


def test_loss_that_gives_no_value_for_each_row_is_an_error() -> None:
    def loss(pred: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        return torch.zeros(3)

    with pytest.raises(ValueError, match=r"without its mean loss_func gives float32 \(3,\) for 10 rows"):
        row_losses(loss, X, (Y,), 10)


def test_loss_of_nested_predictions_without_reduction_is_an_error() -> None:
    with not_reduced(lambda pred, target: pred[0]) as losses, pytest.raises(ValueError, match="has no `reduction`"):
        losses((X, X), Y)


@pytest.mark.parametrize("loss", [F.mse_loss, nn.L1Loss(), None])
def test_losses_that_take_predictions_as_they_are(loss: Any) -> None:
    assert activation_of(loss)(X) is X
    assert decodes_of(loss)(X) is X


def test_mnist_loss_is_of_logits() -> None:
    same(activation_of(mnist_loss)(Y), Y.sigmoid())


def test_what_is_not_asked_for_is_none() -> None:
    assert learner().get_preds(with_preds=False, with_targs=False) == (None, None)


# ---- in bounded memory ----


def test_saved_predictions_are_numpys_files_and_mapped(tmp_path: Path) -> None:
    learn = learner()
    preds, targets = learn.get_preds(dl=DataLoader(DS, 4), save_preds=tmp_path / "p.npy", save_targs=tmp_path / "t")
    same(torch.from_numpy(np.load(tmp_path / "p.npy")), learn.model(X).detach())
    same(torch.from_numpy(np.load(tmp_path / "t.npy")), Y)
    same((preds, targets), (learn.model(X).detach(), Y))
    assert names(tmp_path) == ["p.npy", "t.npy"]


def test_mapped_predictions_can_be_changed_and_the_file_stays(tmp_path: Path) -> None:
    preds, _ = learner().get_preds(save_preds=tmp_path / "p.npy")
    before = preds.clone()
    preds.zero_()
    same(torch.from_numpy(np.load(tmp_path / "p.npy")), before)


def test_several_saved_tensors_have_a_file_each(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"a": x, "b/c": x.bfloat16()}

    preds, _ = learner(model=Two()).get_preds(dl=[(X[:3], Y[:3]), (X[3:], Y[3:])], save_preds=tmp_path)
    assert names(tmp_path) == ["preds_a.npy", "preds_b_c.npy"]
    same(preds, {"a": X, "b/c": X.bfloat16().float()})


def test_folder_of_saved_predictions_is_made(tmp_path: Path) -> None:
    learner().get_preds(save_preds=tmp_path / "new" / "p.npy")
    assert np.load(tmp_path / "new" / "p.npy").shape == (4, 1)


def test_predictions_that_fail_leave_the_old_file(tmp_path: Path) -> None:
    learn = learner()
    learn.get_preds(save_preds=tmp_path / "p.npy")
    before = (tmp_path / "p.npy").read_bytes()

    def broken() -> Iterator[Any]:
        yield X[:4], Y[:4]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        learn.get_preds(dl=broken(), save_preds=tmp_path / "p.npy")
    assert (tmp_path / "p.npy").read_bytes() == before
    assert names(tmp_path) == ["p.npy"]


def test_saved_rows_of_differing_shapes_are_an_error(tmp_path: Path) -> None:
    dl = [(torch.ones(2, 3),), (torch.ones(1, 5),)]
    with pytest.raises(ValueError, match="a file holds rows of one shape"):
        learner(model=nn.Identity()).get_preds(dl=dl, save_preds=tmp_path / "p.npy")
    assert names(tmp_path) == []


def test_saving_rows_that_a_batch_sampler_mixes_is_an_error(tmp_path: Path) -> None:
    dl = LOADERS["a batch sampler"]()
    with pytest.raises(ValueError, match="reorder=False takes them so"):
        learner().get_preds(dl=dl, save_preds=tmp_path)
    learn = learner()
    preds, _ = learn.get_preds(dl=dl, save_preds=tmp_path, reorder=False)
    same(preds, learn.model(X[[9, 0, 1, 5, 4, 3, 2, 8, 6, 7]]).detach())


# ---- nothing else is touched ----


class Twice(Callback):
    "Predicts in the middle of training."

    acts_in_step = False

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.seen: list[Any] = []

    def after_loss(self) -> None:
        if self.learn.training:
            before = dict(self.learn.__dict__, cbs=list(self.learn.cbs))
            self.seen.append(self.learn.get_preds(**self.options))
            after = dict(self.learn.__dict__)
            assert {k for k in after if k[0] != "_"} == {k for k in before if k[0] != "_"}
            assert all(after[k] is before[k] for k in ("xb", "yb", "pred", "loss", "dl"))
            assert all(after[k] == before[k] for k in ("metrics", "cbs", "training", "iter", "n_iter"))


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.filterwarnings("ignore"))])
def test_fit_goes_on_as_if_nobody_had_predicted(compile: bool) -> None:
    def fitted(*cbs: Callback) -> Learner:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
        learn = learner(model=model, metrics=mse, cbs=list(cbs), compile=compile)
        learn.fit(2, 0.01)
        return learn

    looking = Twice(with_input=True, with_loss=True)
    plain, looked = fitted(), fitted(looking)
    same(looked.model.state_dict(), plain.model.state_dict())
    same(torch.tensor(looked.recorder.values), torch.tensor(plain.recorder.values))
    assert looked.recorder.losses == pytest.approx(plain.recorder.losses)
    assert len(looking.seen) == 4


@pytest.mark.filterwarnings("ignore")
def test_compiled_predictions_are_the_eager_ones() -> None:
    torch.manual_seed(0)
    learn = learner(compile=True)
    learn.fit(1)
    dl = DataLoader(DS, 3)
    preds, _, losses = learn.get_preds(dl=dl, with_loss=True)
    same(preds, learn.model(X).detach())
    same(losses, (learn.model(X) - Y).detach().square().squeeze(1))


def test_history_metrics_and_callbacks_stay() -> None:
    learn = learner(metrics=mse)
    learn.fit(2)
    values, valid, cbs, metrics = (
        copy.deepcopy(learn.recorder.values),
        list(learn.recorder.valid_values),
        list(learn.cbs),
        list(learn.metrics),
    )
    learn.get_preds(ds_idx=0, cbs=Callback())
    assert learn.recorder.values == values
    assert learn.recorder.valid_values == valid
    assert learn.cbs == cbs
    assert learn.metrics == metrics


def test_events_are_those_of_a_validation() -> None:
    seen: list[str] = []
    names = ("before_validate", "before_batch", "after_pred", "after_loss", "after_batch", "after_validate")
    others = ("before_fit", "before_epoch", "before_train", "after_epoch", "after_fit", "cleanup_fit")

    def writer(name: str) -> Callable[[Callback], None]:
        return lambda self: seen.append(name)

    log = type("Log", (Callback,), {name: writer(name) for name in (*names, *others)})
    learner().get_preds(cbs=log())
    assert seen == [*names, "cleanup_fit"]


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    learn = Learner(line_dls(), nn.Linear(3, 1))
    learn.get_preds()
    assert capsys.readouterr().out == ""


def test_error_leaves_no_trace() -> None:
    class Fails(Callback):
        def after_pred(self) -> None:
            raise ZeroDivisionError

    learn = learner()
    before, cbs = set(learn.__dict__), list(learn.cbs)
    with pytest.raises(ZeroDivisionError):
        learn.get_preds(cbs=Fails(), with_input=True)
    looked_up = {"_at_rest", "_handlers", "_handlers_of"}
    assert set(learn.__dict__) - looked_up == before - looked_up
    assert learn.cbs == cbs
    assert learn._at_rest == ()
    learn.fit(1)
    assert len(learn.recorder.values) == 1


def test_error_within_a_fit_lets_it_go_on() -> None:
    class Tries(Callback):
        def after_loss(self) -> None:
            if self.training:
                with pytest.raises(ValueError, match="is empty"):
                    self.learn.get_preds(dl=[])

    learn = learner(cbs=Tries())
    learn.fit(1)
    assert learn.recorder.values[0][1] is not None


def test_model_predicts_in_evaluation_mode() -> None:
    learn = learner(model=nn.Dropout(0.5))
    learn.model.train()
    same(learn.get_preds(dl=[(X, Y)])[0], X)


def test_cancelled_batch_leaves_its_rows_out() -> None:
    class Skip(Callback):
        def before_batch(self) -> None:
            if self.iter == 1:
                raise CancelBatchException

    inputs, preds, targets = learner(model=nn.Identity()).get_preds(dl=DataLoader(DS, 4), with_input=True, cbs=Skip())
    same((inputs, preds, targets), (*[torch.cat([X[:4], X[8:]])] * 2, torch.cat([Y[:4], Y[8:]])))


def test_cancelled_validation_gives_what_came() -> None:
    class Stop(Callback):
        order = GatherPreds.order + 1

        def after_batch(self) -> None:
            raise CancelValidException

    same(learner(model=nn.Identity()).get_preds(dl=DataLoader(DS, 4), cbs=Stop())[0], X[:4])


def test_cancelled_fit_gives_no_half_predictions() -> None:
    class Stop(Callback):
        def after_batch(self) -> None:
            raise CancelFitException

    with pytest.raises(CancelFitException):
        learner().get_preds(cbs=Stop())


def test_learner_without_default_callbacks_predicts() -> None:
    same(learner(model=nn.Identity(), default_cbs=False).get_preds(dl=[(X, Y)])[0], X)


def test_validation_context_is_silent_and_has_its_callbacks() -> None:
    lines: list[str] = []
    learn = learner(loss=None)
    learn.logger = lines.append
    cb = Callback()
    with learn.validation_context(cbs=cb):
        assert cb in learn.cbs
        assert not learn.show_bar
        learn.validate()
    assert lines == []
    assert cb not in learn.cbs


def test_callback_at_rest_hears_nothing_and_stays() -> None:
    learn = learner()
    recorder = learn.recorder
    with learn.resting([Recorder, ProgressCallback]):
        assert learn.recorder is recorder
        assert not any(h.__self__ is recorder for h in learn._handlers.get("after_loss", ()))  # type: ignore[attr-defined]
    assert any(h.__self__ is recorder for h in learn._handlers["after_loss"])  # type: ignore[attr-defined]


# ---- wrong arguments ----


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: learner().get_preds(5), IndexError, "there is no loader 5: these DataLoaders hold 2, from 0 on"),
        (lambda: learner().get_preds(act="softmax"), TypeError, "act must be a function of predictions, .* got 'soft"),
        (lambda: learner().get_preds("valid"), TypeError, "ds_idx must be a loader's number, got 'valid'"),
        (
            lambda: learner().get_preds(dl=DS),
            TypeError,
            "dl must be a loader.*got an object of TensorDataset. DataLoader",
        ),
        (lambda: learner().get_preds(dl=X), TypeError, "dl must be a loader.*got an object of Tensor"),
        (lambda: learner().get_preds(dl=3), TypeError, "dl must be a loader, that is an iterable of batches, got 3"),
        (lambda: learner().validate(dl=3), TypeError, "dl must be a loader, that is an iterable of batches, got 3"),
        (lambda: learner().get_preds(dl=[]), ValueError, "the validation loader is empty"),
        (lambda: learner().get_preds(concat_dim=1, save_preds="x"), ValueError, "concat_dim must be 0 with save_preds"),
        (lambda: learner().get_preds(save_preds="x", save_targs="x"), ValueError, "must be two files"),
        (lambda: learner().tta(), ValueError, "tta needs transforms that are random in training"),
        (lambda: learner().tta(n=0), ValueError, "n must be a whole number of at least 1, got 0"),
        (lambda: learner().tta(beta=2), ValueError, r"beta must be in \[0, 1\], got 2"),
        (lambda: learner(loss=None).loss_not_reduced().__enter__(), ValueError, "there is no loss_func yet"),
    ],
)
def test_wrong_arguments_are_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# ---- one row, several passes, a look ----


def test_predict_gives_answer_and_probabilities_of_a_row() -> None:
    learn = learner(model=nn.Linear(3, 3), loss=F.cross_entropy)
    row, answer, probabilities = learn.predict(X[2])
    expected = learn.model(X[2:3]).detach().softmax(1)[0]
    same(probabilities, expected)
    assert row == int(expected.argmax()) == int(answer)


def test_predict_takes_a_row_with_its_target() -> None:
    learn = learner()
    same(learn.predict(DS[3])[2], learn.model(X[3]).detach())


def test_predict_takes_a_dict_and_arrays() -> None:
    class Named(nn.Module):
        def forward(self, a: Tensor) -> Tensor:
            return 2 * a

    same(learner(model=Named()).predict({"a": X[1].numpy(), "label": 0})[2], 2 * X[1])


def test_predict_carries_out_the_transforms_and_names_the_class() -> None:
    dls = DataLoaders.from_tensors(X, CLASSES, X, CLASSES, batch_tfms=lambda x: 100 * x)
    dls.vocab = ["no", "yes", "perhaps"]  # type: ignore[attr-defined]
    learn = learner(dls, nn.Identity(), F.cross_entropy)
    item, name, answer, _ = learn.predict(torch.tensor([0.1, 0.3, 0.2]), with_input=True)
    assert (name, int(answer)) == ("yes", 1)
    same(item, torch.tensor([0.1, 0.3, 0.2]))


class Noise:
    train_only = True

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls


@pytest.mark.parametrize("use_max", [False, True])
def test_tta_mixes_augmented_passes_with_the_plain_one(use_max: bool) -> None:
    noise = Noise()
    learn = learner(DataLoaders([(X, Y)], [(X, Y)], batch_tfms=noise), nn.Identity())
    preds, targets = learn.tta(n=4, use_max=use_max)
    same(preds, X + 4 if use_max else torch.lerp(X + 2.5, X, 0.25))
    same(targets, Y)
    same(learn.get_preds()[0], X)
    assert noise.calls == 4


def test_tta_gives_both_apart_without_beta() -> None:
    learn = learner(DataLoaders([(X, Y)], [(X, Y)], batch_tfms=Noise()), nn.Identity())
    (mixed, plain), _ = learn.tta(n=2, beta=None)
    same((mixed, plain), (X + 1.5, X))


def test_tta_flips_images() -> None:
    images = torch.arange(8.0).reshape(2, 1, 1, 4).expand(2, 1, 4, 4)
    learn = learner(DataLoaders([(images, Y[:2])], [(images, Y[:2])], batch_tfms=RandomFlip(1.0)), nn.Identity())
    same(learn.tta(n=1, beta=0.5)[0], (images + images.flip(-1)) / 2)


def test_tta_over_a_loader_that_runs_out_is_an_error() -> None:
    learn = learner(DataLoaders([(X, Y)], [(X, Y)], batch_tfms=Noise()), nn.Identity())
    with pytest.raises(ValueError, match="goes through the loader 5 times"):
        learn.tta(dl=iter([(X, Y)]))


def test_results_of_images_are_pictures_with_target_and_answer() -> None:
    images, targets = torch.rand(6, 1, 8, 8), torch.tensor([0, 1, 1, 0, 1, 0])
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    learn = learner(DataLoaders.from_tensors(images, targets, images, targets), model, F.cross_entropy)
    ax = learn.show_results(max_n=4, shuffle=False)
    answers = model(images).argmax(1)
    titles = [cell.get_title() for cell in ax.child_axes]
    assert titles == [f"{t} → {a}" for t, a in zip(targets[:4].tolist(), answers[:4].tolist(), strict=True)]


def test_results_of_numbers_are_a_table() -> None:
    ax = learner(model=nn.Identity()).show_results(dl=[(torch.tensor([[1.0], [2.5]]), torch.tensor([[3.0], [4.0]]))])
    cells = {place: cell.get_text().get_text() for place, cell in ax.tables[0].get_celld().items()}
    assert [cells[0, i] for i in range(3)] == ["input", "target", "prediction"]
    assert [cells[2, i] for i in range(3)] == ["2.5", "4", "2.5"]


def test_a_table_of_results_is_as_wide_as_its_texts() -> None:
    long = torch.arange(600.0, 606.0).reshape(1, 6) / 7
    ax = learner(model=nn.Identity()).show_results(dl=[(long, long)])
    ax.figure.canvas.draw()
    cells = [cell.get_window_extent() for cell in ax.tables[0].get_celld().values()]
    assert min(cell.x0 for cell in cells) >= 0
    assert max(cell.x1 for cell in cells) <= ax.figure.bbox.x1
    cell = ax.tables[0][1, 0]
    text = cell.get_text().get_window_extent()
    assert text.x0 >= cell.get_window_extent().x0
    assert text.x1 <= cell.get_window_extent().x1


def segmented(answer: Tensor) -> Any:
    images, target = torch.rand(2, 1, 8, 8), torch.zeros(2, 8, 8, dtype=torch.long)
    return plot_results(images, target, answer)


def test_results_that_are_maps_are_pictures_beside_their_images() -> None:
    answer = torch.zeros(2, 8, 8, dtype=torch.long)
    answer[1, :4] = 1
    cells = segmented(answer).child_axes
    assert [cell.get_title() for cell in cells] == [
        "input", "target", "prediction, 100% right", "", "", "50% right",
    ]  # fmt: skip


def test_a_class_has_the_same_colour_in_target_and_answer() -> None:
    answer = torch.zeros(2, 8, 8, dtype=torch.long)
    answer[1] = 1
    pictures = [cell.images[0].get_array() for cell in segmented(answer).child_axes]
    assert (pictures[1] == pictures[2]).all()
    assert not (pictures[4] == pictures[5]).all()


def test_results_that_are_images_are_pictures() -> None:
    images = torch.rand(2, 1, 8, 8)
    cells = plot_results(images, images, images).child_axes
    assert [cell.get_title() for cell in cells] == ["input", "target", "prediction", "", "", ""]


def test_results_are_of_rows_drawn_at_random() -> None:
    torch.manual_seed(0)
    x = torch.arange(100.0).unsqueeze(1)
    learn = learner(DataLoaders.from_tensors(x, x, x, x), nn.Identity())
    ax = learn.show_results(max_n=5)
    shown = [float(ax.tables[0][i, 0].get_text().get_text()) for i in range(1, 6)]
    assert len(set(shown)) == 5
    assert shown != sorted(shown)


def test_fetched_and_gathered_predictions_do_not_call_each_other() -> None:
    fetch, gather = FetchPreds(), GatherPreds()
    learn = learner(model=nn.Identity(), loss=lambda pred, y: pred.mean() * 0 + y.mean() * 0, cbs=[fetch, gather])
    learn.validate()
    kept = gather.preds
    learn.get_preds(dl=[(X, Y)])
    assert gather.preds is kept
    assert len(fetch.preds[0]) == 4
