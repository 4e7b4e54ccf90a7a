"""What a batch and a model's answer are made of: named tuples, dicts, outputs with logits and a loss of their own."""

import copy
import weakref
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilearn.batches import own_loss, prediction_of, split_batch, targets_taken
from minilearn.callback import Callback
from minilearn.data import DataLoaders, columns
from minilearn.learner import Learner
from minilearn.metrics import accuracy
from minilearn.optim import SGD
from minilearn.vision import torchvision  # noqa: F401 -- transformers imports it, which fails beside a CPU build

X = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 0).long()
Pair = namedtuple("Pair", "values target")


@dataclass
class Output:
    logits: Tensor
    loss: Tensor | None = None


def dict_batches() -> list[dict[str, Tensor]]:
    return [{"values": X[i : i + 8], "labels": Y[i : i + 8]} for i in (0, 8, 16)]


class OwnLoss(nn.Module):
    """Answers in the manner of Hugging Face: an object with `logits`, and with `loss` where labels were given."""

    def __init__(self, kind: type = Output) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.kind = nn.Linear(4, 2), kind

    def forward(self, values: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.linear(values)
        loss = None if labels is None else 2 * F.cross_entropy(logits, labels)
        return self.kind(logits=logits, loss=loss)


def learner(model: nn.Module, batches: Any = None, **kwargs: Any) -> Learner:
    batches = batches or dict_batches()
    learn = Learner(DataLoaders(batches, batches), model, opt_func=SGD, **kwargs)
    learn.logger = lambda line: None
    return learn


def test_named_tuple_is_split_like_a_tuple() -> None:
    assert split_batch(Pair(1, 2), None) == ((1,), (2,))


def test_several_inputs_are_those_that_n_inp_says() -> None:
    assert split_batch([1, 2, 3], 1) == ((1,), (2, 3))


def test_dict_keeps_a_target_for_a_model_that_takes_it() -> None:
    assert split_batch({"x": 1, "labels": 2}, None, ("labels",)) == ({"x": 1, "labels": 2}, (2,))


def test_targets_that_a_model_takes_are_read_off_its_forward() -> None:
    assert targets_taken(OwnLoss()) == ("labels",)
    assert targets_taken(nn.Linear(1, 1)) == ()


def test_logits_are_the_prediction() -> None:
    assert prediction_of(Output(X)) is X
    assert prediction_of((1, 2)) == (1, 2)


def test_own_loss_is_an_attribute_or_an_entry() -> None:
    assert own_loss(Output(X, Y)) is Y
    assert own_loss({"loss": 3}) == 3
    assert own_loss((1, 2)) is None


def test_models_own_loss_trains_as_that_loss_does_by_hand() -> None:
    model = OwnLoss()
    learn = learner(model, metrics=accuracy)
    learn.fit(2, lr=0.1)

    by_hand = OwnLoss()
    for _ in range(2):
        for batch in dict_batches():
            by_hand(**batch).loss.backward()
            with torch.no_grad():
                for p in by_hand.parameters():
                    p.sub_(0.1 * p.grad)
                    p.grad = None
    torch.testing.assert_close(model.linear.weight, by_hand.linear.weight)
    final = by_hand(X).logits
    assert learn.recorder.values[-1][1] == pytest.approx(2 * F.cross_entropy(final, Y).item(), rel=1e-6)
    assert learn.recorder.values[-1][2] == pytest.approx((final.argmax(1) == Y).float().mean().item())


def test_loss_func_that_was_given_takes_the_place_of_the_models_own() -> None:
    model = OwnLoss()
    learn = learner(model, loss_func=F.cross_entropy)
    learn.fit(1, lr=0.0)
    assert learn.recorder.values[-1][1] == pytest.approx(F.cross_entropy(model(X).logits, Y).item(), rel=1e-6)


def test_callbacks_see_the_whole_output_of_a_model_with_its_own_loss() -> None:
    class Look(Callback):
        def after_pred(self) -> None:
            seen.append((self.learn.output.logits is self.pred, self.learn.output.loss.item()))

        def after_loss(self) -> None:
            assert self.loss.item() == seen[-1][1]

    seen: list[tuple[bool, float]] = []
    learner(OwnLoss(), cbs=Look).fit(1)
    assert [same for same, _ in seen] == [True] * 6


def test_output_is_missing_with_a_reason_where_the_model_gives_only_predictions() -> None:
    class Look(Callback):
        def after_pred(self) -> None:
            print(self.learn.output)

    batches = [(X, Y)]
    with pytest.raises(AttributeError, match=r"output does not exist yet: .* where the model gives its loss too"):
        learner(nn.Linear(4, 2), batches, cbs=Look).fit(1)


def test_dict_with_an_entry_loss_trains() -> None:
    learn = learner(OwnLoss(dict))
    learn.fit(2, lr=0.1)
    assert learn.recorder.values[1][1] < learn.recorder.values[0][1]  # type: ignore[operator]


def test_model_that_computes_its_loss_without_a_target_trains() -> None:
    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, values: Tensor) -> Any:
            return {"decoded": self.linear(values), "loss": F.mse_loss(self.linear(values), values)}

    learn = learner(Autoencoder(), [{"values": X}])
    learn.fit(3, lr=0.1)
    assert learn.recorder.values[2][1] < learn.recorder.values[0][1]  # type: ignore[operator]


def test_own_loss_that_is_no_single_number_is_refused() -> None:
    class Rows(OwnLoss):
        def forward(self, values: Tensor, labels: Tensor | None = None) -> Any:
            logits = self.linear(values)
            return Output(logits, F.cross_entropy(logits, labels, reduction="none"))  # type: ignore[arg-type]

    with pytest.raises(ValueError, match=r"the loss must be a tensor that holds one number, got float32 \(8,\)"):
        learner(Rows()).fit(1)


def test_tuples_and_dicts_of_predictions_go_to_the_loss_whole() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, values: Tensor) -> Any:
            return {"main": self.linear(values), "other": values}

    def loss(pred: dict[str, Tensor], target: Tensor) -> Tensor:
        return F.cross_entropy(pred["main"], target)

    learn = learner(Two(), loss_func=loss)
    learn.fit(2, lr=0.5)
    assert learn.recorder.values[1][1] < learn.recorder.values[0][1]  # type: ignore[operator]


@pytest.mark.parametrize("loss_func", [None, F.cross_entropy])
def test_compiled_model_with_logits_learns_the_same(loss_func: Any) -> None:
    weights = []
    for compile in (False, True):
        model = OwnLoss()
        learner(model, loss_func=loss_func, compile=compile).fit(2, lr=0.1)
        weights.append(model.linear.weight)
    torch.testing.assert_close(*weights)


def test_transformers_model_trains_as_it_is() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    set_up = transformers.BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=2
    )
    torch.manual_seed(0)
    tokens = torch.randint(0, 32, (64, 6))
    labels = (tokens[:, 0] > 15).long()
    batches = [
        {"input_ids": tokens[i : i + 16], "attention_mask": torch.ones(16, 6), "labels": labels[i : i + 16]}
        for i in range(0, 64, 16)
    ]
    model = transformers.BertForSequenceClassification(set_up)
    by_hand = copy.deepcopy(model).train()
    torch.manual_seed(1)
    learn = learner(model, batches, metrics=accuracy)
    learn.fit(2, lr=0.1)

    torch.manual_seed(1)
    opt = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    for _ in range(2):
        for batch in batches:
            by_hand(**batch).loss.backward()
            opt.step()
            opt.zero_grad()
    answer = by_hand.eval()(tokens, torch.ones(64, 6)).logits
    assert learn.recorder.values[-1][1] == pytest.approx(F.cross_entropy(answer, labels).item(), rel=1e-4)
    assert learn.recorder.values[-1][2] == pytest.approx((answer.argmax(1) == labels).float().mean().item())


class Watches:
    """A loader that sees whether the batch before is still held when it makes the next one."""

    def __init__(self) -> None:
        self.held: list[bool] = []

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        before: weakref.ref[Tensor] | None = None
        for _ in range(len(self)):
            if before is not None:
                self.held.append(before() is not None)
            made = [torch.randn(4, 3)]
            before = weakref.ref(made[0])
            yield made.pop(), torch.randn(4, 1)


class Looks(Callback):
    """What is there of the batch when an epoch's training ends."""

    shapes: tuple[int, ...] = ()

    def after_train(self) -> None:
        self.shapes = tuple(self.learn.x.shape)


def test_a_batch_is_let_go_of_before_the_next_one_is_made_but_for_the_last() -> None:
    watches, looks = Watches(), Looks()
    learn = Learner(DataLoaders(watches, device="cpu"), nn.Linear(3, 1), F.mse_loss, cbs=looks)
    learn.logger = lambda line: None
    learn.fit(2, 0.1)
    assert watches.held[:4] == [False] * 4
    assert looks.shapes == (4, 3)


def test_rows_in_memory_are_let_go_of_before_the_next_ones_are_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[weakref.ref[Tensor]] = []
    held: list[bool] = []
    copier_of = columns._copier

    def copier(column: Tensor, **kwargs: bool) -> Callable[[Tensor], Tensor]:
        copy = copier_of(column, **kwargs)

        def watched(rows: Tensor) -> Tensor:
            held.extend(ref() is not None for ref in seen)
            made = copy(rows)
            seen[:] = [weakref.ref(made)]
            return made

        return watched if column.shape[1] > 1 else copy

    monkeypatch.setattr(columns, "_copier", copier)
    dls = DataLoaders.from_tensors(torch.randn(400, 20_000), torch.randn(400, 1), bs=100, device="cpu")
    learn = Learner(dls, nn.Linear(20_000, 1), F.mse_loss)
    learn.logger = lambda line: None
    learn.fit(1, 1e-6)
    assert held == [False] * 3
