"""The way of predictions past the events: who goes it, and that it gives what the loop gives."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilearn.callback import Callback, CancelBatchException
from minilearn.data import DataLoader, DataLoaders
from minilearn.learner import Learner
from minilearn.loop import Loop

N, BS = 200, 8
GENERATOR = torch.Generator().manual_seed(2)
X, Y = torch.randn(N, 3, generator=GENERATOR), torch.randn(N, 1, generator=GENERATOR)


def learner(model: nn.Module | None = None, valid: Any = None, loss: Any = F.mse_loss, **kwargs: Any) -> Learner:
    torch.manual_seed(0)
    loader = DataLoader((X, Y), BS) if valid is None else valid
    learn = Learner(DataLoaders(loader, loader, device="cpu"), model or nn.Linear(3, 1), loss, **kwargs)
    learn.logger = lambda line: None
    return learn


@pytest.fixture
def the_loops(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the batches that went the loop's own way."""
    gone: list[int] = []
    own = Loop.one_batch

    def one_batch(self: Loop, i: int, batch: Any) -> None:
        gone.append(i)
        own(self, i, batch)

    monkeypatch.setattr(Loop, "one_batch", one_batch)
    return gone


class Listens(Callback):
    """Hears of each batch of a validation."""

    run_train = False

    def __init__(self) -> None:
        self.heard: list[int] = []

    def after_pred(self) -> None:
        self.heard.append(self.iter)


def test_nobody_else_listens_so_batches_go_straight_to_the_model(the_loops: list[int]) -> None:
    learn = learner()
    preds, targets = learn.get_preds()
    assert torch.equal(preds, torch.cat([learn.model(x) for x in X.split(BS)]).detach())
    assert torch.equal(targets, Y)
    assert the_loops == []
    assert not learn.model.training


def test_callback_that_listens_hears_of_every_batch(the_loops: list[int]) -> None:
    learn, listens = learner(), Listens()
    learn.get_preds(cbs=listens)
    assert listens.heard == the_loops == list(range(N // BS))


def test_learner_that_predicts_in_its_own_way_does_so_for_every_batch() -> None:
    class Doubles(Learner):
        def _predict(self, batch: Any) -> Any:
            return 2 * super()._predict(batch)

    torch.manual_seed(0)
    loader = DataLoader((X, Y), BS)
    learn = Doubles(DataLoaders(loader, loader, device="cpu"), nn.Linear(3, 1), F.mse_loss)
    assert torch.equal(learn.get_preds()[0], torch.cat([2 * learn.model(x) for x in X.split(BS)]).detach())


@pytest.mark.parametrize("kwargs", [{"with_input": True}, {"with_loss": True}, {"with_decoded": True}])
def test_what_else_is_asked_for_is_gathered_as_ever(kwargs: dict[str, bool]) -> None:
    learn = learner()
    straight, all_the_way = learn.get_preds(**kwargs), learn.get_preds(**kwargs, cbs=Listens())  # type: ignore[arg-type]
    assert len(straight) == len(all_the_way) == 3
    assert all(map(torch.equal, straight, all_the_way))


def test_activation_is_the_losss() -> None:
    learn = learner(nn.Linear(3, 4), DataLoader((X, torch.randint(4, (N,), generator=GENERATOR)), BS), F.cross_entropy)
    preds, _ = learn.get_preds()
    assert torch.equal(preds, torch.cat([learn.model(x) for x in X.split(BS)]).softmax(-1).detach())


def lists() -> list[list[Tensor]]:
    return [[x, y] for x, y in zip(X.split(BS), Y.split(BS), strict=True)]


def now_and_then_without_targets() -> list[Any]:
    return [(x, y) if i % 3 else x for i, (x, y) in enumerate(zip(X.split(BS), Y.split(BS), strict=True), 1)]


@pytest.mark.parametrize("made", [lists, now_and_then_without_targets])
def test_batches_of_other_loaders_are_taken_as_the_loop_takes_them(made: Callable[[], list[Any]]) -> None:
    learn = learner(valid=made())
    straight, all_the_way = learn.get_preds(), learn.get_preds(cbs=Listens())
    assert all(map(torch.equal, straight, all_the_way))
    assert torch.allclose(straight[0], learn.model(X).detach())


def test_batch_that_fails_is_named_as_ever() -> None:
    batches = [*lists()[:10], [torch.randn(BS, 5), Y[:BS]]]
    learn = learner(valid=batches)
    with pytest.raises(RuntimeError, match="shapes") as caught:
        learn.get_preds()
    assert any("validation batch 10 of 11" in note for note in caught.value.__notes__)


class Fails(nn.Module):
    """Refuses the last batch."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.equal(x, X[-BS:]):
            raise RuntimeError("a batch that I do not like")
        return x.sum(1, keepdim=True)


def test_batch_of_tensors_that_fails_is_named_as_ever(the_loops: list[int]) -> None:
    learn = learner(Fails())
    with pytest.raises(RuntimeError, match="do not like") as caught:
        learn.get_preds()
    assert any(f"validation batch {N // BS - 1} of {N // BS}" in note for note in caught.value.__notes__)
    assert the_loops == list(range(N // BS))


def test_model_that_writes_to_its_input_is_given_copies() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2).sum(1, keepdim=True)

    before = X.clone()
    assert torch.equal(learner(InPlace()).get_preds()[0], 2 * X.sum(1, keepdim=True))
    assert torch.equal(X, before)


def test_model_that_writes_to_a_later_input_is_an_error() -> None:
    class Later(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return (x.mul_(1) if self.calls > 3 else x).sum(1, keepdim=True)

    with pytest.raises(ValueError, match="changed in place"):
        learner(Later()).get_preds()


def test_hooks_of_the_model_of_its_layers_and_of_all_modules_are_called() -> None:
    called: list[str] = []
    for hooked in ("model", "layer", "all"):
        learn = learner(nn.Sequential(nn.Linear(3, 1)))
        hook = lambda module, args, output: called.append(hooked)  # noqa: B023, E731
        if hooked == "all":
            handle = nn.modules.module.register_module_forward_hook(hook)
        else:
            handle = (learn.model if hooked == "model" else learn.model[0]).register_forward_hook(hook)  # type: ignore[index]
        learn.get_preds()
        handle.remove()
    assert called == ["model"] * (N // BS) + ["layer"] * (N // BS) + ["all"] * 2 * (N // BS)


def test_layer_in_place_is_given_copies() -> None:
    before = X.clone()
    preds, _ = learner(nn.Sequential(nn.ReLU(inplace=True))).get_preds()
    assert torch.equal(X, before)
    assert torch.equal(preds, X.relu())


class Begins(Callback):
    """Hears that a validation begins."""

    begun = 0

    def before_validate(self) -> None:
        self.begun += 1


class Trains(Callback):
    """Hears of training alone."""

    run_valid = False

    def after_loss(self) -> None:
        raise AssertionError("never in a prediction")


def test_who_hears_of_a_validation_has_it_the_loops_way(the_loops: list[int]) -> None:
    begins = Begins()
    learner(cbs=[begins]).get_preds()
    assert begins.begun == 1
    assert len(the_loops) == N // BS
    the_loops.clear()
    learner(cbs=[Trains()]).get_preds()
    assert the_loops == []


@pytest.mark.parametrize(
    "options", [{"batch_tfms": [lambda x: 2 * x]}, {"n_inp": 2}, {"device": "meta"}], ids=["tfms", "n_inp", "device"]
)
def test_what_is_done_to_a_batch_is_done(options: Any, the_loops: list[int]) -> None:
    loader = DataLoader((X, Y), BS)
    learn = Learner(DataLoaders(loader, loader, **{"device": "cpu", **options}), nn.Linear(3, 1), F.mse_loss)
    with contextlib.suppress(Exception):  # a linear layer takes no second input; meta tensors cannot be had
        learn.get_preds()
    assert the_loops


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("reorder", [False, True])
def test_rows_are_those_of_the_loops_way(drop_last: bool, reorder: bool) -> None:
    loader = DataLoader((X[:-3], Y[:-3]), BS, drop_last=drop_last)
    learn = learner(valid=loader)
    straight, all_the_way = learn.get_preds(reorder=reorder), learn.get_preds(reorder=reorder, cbs=Listens())
    assert all(map(torch.equal, straight, all_the_way))
    assert len(straight[0]) == N - 3 - (BS - 3) * (drop_last and not reorder)


def test_targets_are_a_copy() -> None:
    learner().get_preds()[1].zero_()
    assert Y.all()


class Cancels(nn.Module):
    """Ends a batch of negative numbers early."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() < 0:
            raise CancelBatchException
        return x.sum(1, keepdim=True)


def test_batch_that_is_cancelled_within_the_model_is_left_out() -> None:
    learn = learner(Cancels())
    preds, targets = learn.get_preds()
    kept = [(x, y) for x, y in zip(X.split(BS), Y.split(BS), strict=True) if x.sum() >= 0]
    assert 0 < len(kept) < N // BS
    assert torch.equal(preds, torch.cat([x.sum(1, keepdim=True) for x, _ in kept]))
    assert torch.equal(targets, torch.cat([y for _, y in kept]))


class WritesOver(nn.Module):
    """Gives each answer in the same memory, or in turns in several pieces of it."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.rooms = [torch.empty(BS, 1) for _ in range(pieces)]
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.sum(x, 1, keepdim=True, out=self.rooms[self.calls % len(self.rooms)][: len(x)])


@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_answers_that_are_written_over_are_copied_in_time(pieces: int) -> None:
    preds, _ = learner(WritesOver(pieces)).get_preds()
    assert torch.equal(preds, X.sum(1, keepdim=True))


class Reuses:
    """A loader that writes each batch into the same memory."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = torch.empty(BS, 3), torch.empty(BS, 1)
        for rows in range(0, N, BS):
            yield x.copy_(X[rows : rows + BS]), y.copy_(Y[rows : rows + BS])


def test_batches_that_are_written_over_are_copied_in_time() -> None:
    preds, targets = learner(nn.Identity(), Reuses()).get_preds()
    assert torch.equal(preds, X)
    assert torch.equal(targets, Y)


class Grows(nn.Module):
    """Answers of another length for each batch, and of another precision for some."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        answer = x.sum(1, keepdim=True).expand(-1, 1 + self.calls // 9)
        return answer.double() if self.calls > 20 else answer


def test_rows_of_differing_shapes_are_a_list() -> None:
    straight, all_the_way = learner(Grows()).get_preds(), learner(Grows()).get_preds(cbs=Listens())
    assert isinstance(straight[0], list)
    assert len(straight[0]) == len(all_the_way[0]) == N
    assert all(map(torch.equal, straight[0], all_the_way[0]))
    assert {row.dtype for row in straight[0]} == {torch.float32, torch.float64}


class Gives(nn.Module):
    """The same answer in another form: an object with `logits`."""

    class Answer:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    def forward(self, x: Tensor) -> Any:
        return Gives.Answer(x.sum(1, keepdim=True))


def test_answers_in_objects_are_their_logits() -> None:
    assert torch.equal(learner(Gives()).get_preds()[0], X.sum(1, keepdim=True))


def test_predictions_within_predictions_each_go_their_own_way() -> None:
    learn = learner()
    inner: list[Tensor] = []

    class Asks(Callback):
        run_train = False

        def after_batch(self) -> None:
            if self.iter == 1 and not inner:
                inner.append(learn.get_preds(dl=[(X, Y)])[0])

    preds, _ = learn.get_preds(cbs=Asks())
    assert torch.allclose(preds, inner[0])
    assert len(preds) == N


def test_number_of_the_batch_is_told_where_the_loader_fails() -> None:
    def breaks() -> Iterator[tuple[Tensor, Tensor]]:
        yield from ((X[:BS], Y[:BS]) for _ in range(7))
        raise OSError("the disk is gone")

    class Loader:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return breaks()

    with pytest.raises(OSError, match="gone") as caught:
        learner(valid=Loader()).get_preds()
    assert any("while fetching validation batch 7" in note for note in caught.value.__notes__)
