"""What a batch shows to be wrong: named on the first one, explained after a failure."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import line_dls
from torch import Tensor, nn

from minilearn.callback import Callback
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.losses import mnist_loss
from minilearn.metrics import accuracy, batch_accuracy
from minilearn.optim import SGD

X = torch.randn(8, 3)


def fit(x: Tensor, y: Tensor, model: nn.Module, loss: Any = F.mse_loss, **kwargs: Any) -> Learner:
    dls = DataLoaders.from_tensors(x, y, x, y, bs=4, shuffle=False, device="cpu")
    learn = Learner(dls, model, loss, SGD, **kwargs)
    with learn.no_logging():
        learn.fit(1)
    return learn


def notes(error: pytest.ExceptionInfo[BaseException]) -> str:
    return "\n".join(error.value.__notes__)


def lesson_mse(pred: Tensor, target: Tensor) -> Tensor:
    return ((pred - target) ** 2).mean()


def where_loss(pred: Tensor, target: Tensor) -> Tensor:
    return torch.where(target == 1, 1 - pred.sigmoid(), pred.sigmoid()).mean()


@pytest.mark.parametrize("loss", [lesson_mse, where_loss, F.poisson_nll_loss, nn.MSELoss()])
def test_loss_of_any_kind_that_broadcasts_is_refused(loss: Callable[..., Tensor]) -> None:
    with pytest.raises(
        ValueError, match=r"predictions are \(4, 1\) but targets are \(4,\): they would broadcast"
    ) as caught:
        fit(X, torch.ones(8), nn.Linear(3, 1), loss)
    assert "Use targets.unsqueeze(1)" in str(caught.value)


@pytest.mark.parametrize(
    "loss",
    [
        lambda pred, target: F.mse_loss(pred.squeeze(1), target),
        lambda pred, target: F.mse_loss(pred, target.unsqueeze(1)),
        lambda pred, target: (pred.flatten() - target.flatten()).square().mean(),
        lambda pred, target: (pred.sum() - target.sum()) ** 2,
    ],
)
def test_loss_that_makes_the_shapes_fit_is_no_false_alarm(loss: Callable[..., Tensor]) -> None:
    assert fit(X, torch.ones(8), nn.Linear(3, 1), loss).recorder.values[0][0] is not None


@pytest.mark.parametrize("labels", [[3, 7], [0, 255]])
def test_mnist_loss_says_when_targets_are_not_zero_or_one(labels: list[int]) -> None:
    with pytest.raises(
        ValueError, match=f"mnist_loss: targets must be 0 or 1, got numbers from {labels[0]} to {labels[1]}"
    ):
        fit(X, torch.tensor(labels * 4).unsqueeze(1), nn.Linear(3, 1), mnist_loss)


@pytest.mark.parametrize(
    "loss", [lambda p, t: F.mse_loss(p.detach(), t), lambda p, t: ((p > 0) == (t > 0)).float().mean()]
)
def test_loss_that_does_not_depend_on_the_parameters_is_refused(loss: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match="the loss does not depend on the model's parameters"):
        fit(X, torch.ones(8, 1), nn.Linear(3, 1), loss)


@pytest.mark.parametrize("value", [lambda loss: loss.item(), lambda loss: None, lambda loss: {"loss": loss}])
def test_loss_that_is_no_tensor_is_refused(value: Callable[[Tensor], Any]) -> None:
    with pytest.raises(ValueError, match="the loss must be a tensor that holds one number, got"):
        fit(X, torch.ones(8, 1), nn.Linear(3, 1), lambda p, t: value(F.mse_loss(p, t)))


@pytest.mark.parametrize(
    ("dtype", "fix"),
    [(torch.uint8, "x.float() / 255"), (torch.int64, "x.to(torch.float32)"), (torch.float64, "x.to(torch.float32)")],
)
def test_input_of_another_type_is_explained(dtype: torch.dtype, fix: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        fit((100 * X).to(dtype), torch.ones(8, 1), nn.Linear(3, 1))
    name = str(dtype).removeprefix("torch.")
    assert f"the model was given ({name} (4, 3))" in notes(caught)
    assert f"its parameters are float32, the input is {name}: give it {fix}" in notes(caught)


def test_several_targets_are_explained() -> None:
    with pytest.raises(TypeError) as caught:
        Learner(DataLoaders([(X, X, X)]), nn.Linear(3, 1), F.mse_loss).fit(1)
    assert "2 of the batch's 3 parts are inputs: DataLoaders(..., n_inp=...)" in notes(caught)


def test_unknown_key_of_a_dict_batch_is_explained() -> None:
    with pytest.raises(TypeError) as caught:
        Learner(DataLoaders([{"input": X, "Target": X}]), nn.Linear(3, 1), F.mse_loss).fit(1)
    assert "of a dict batch the entries y, target and label" in notes(caught)


def test_input_that_is_no_tuple_is_explained() -> None:
    class Bare(Callback):
        def before_batch(self) -> None:
            self.learn.xb = self.x

    with pytest.raises(TypeError) as caught:
        fit(X, torch.ones(8, 1), nn.Linear(3, 1), cbs=Bare)
    assert "self.learn.xb must be a tuple: self.learn.xb = (x,)" in notes(caught)


def test_batch_norm_on_one_row_is_explained() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel") as caught:
        fit(X[:5], torch.ones(5, 1), model, default_cbs=False)  # without Preflight, which says so before
    assert "leave the last, smaller batch out, drop_last=True" in notes(caught)


def test_error_of_the_loss_says_what_it_was_given() -> None:
    with pytest.raises(ValueError, match=r"Use targets.long\(\)") as caught:
        fit(X, torch.ones(8, 1, dtype=torch.int32), nn.Linear(3, 3), lambda p, t: F.cross_entropy(p, t.squeeze(1)))
    assert "the loss was given predictions float32 (4, 3) and targets (int32 (4, 1))" in notes(caught)


@pytest.mark.parametrize(("metric", "pred"), [(batch_accuracy, 1), (accuracy, 3)])
def test_metric_that_does_not_fit_is_named_in_the_first_training_batch(metric: Any, pred: int) -> None:
    steps: list[int] = []

    class Steps(Callback):
        def after_step(self) -> None:
            steps.append(self.iter)

    target = torch.zeros(8, 1).long() if pred == 3 else torch.zeros(8).long()
    loss = (lambda p, t: F.cross_entropy(p, t.squeeze(1))) if pred == 3 else None
    with pytest.raises(ValueError, match=f"{metric.__name__}: predictions are") as caught:
        fit(X, target, nn.Linear(3, pred), loss, metrics=metric, cbs=Steps)
    assert f"raised by the metric '{metric.__name__}'" in notes(caught)
    assert steps == []


def test_nothing_is_looked_at_again_after_the_first_batch_of_each_part() -> None:
    calls: list[int] = []

    class Target(Tensor):
        """Counts how often it is compared, as the check of zeros and ones does."""

        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is Tensor.all:
                calls.append(1)
            return super().__torch_function__(func, types, args, kwargs or {})

    target = torch.ones(4, 1).as_subclass(Target)
    learn = Learner(DataLoaders([(X[:4], target)] * 5, [(X[:4], target)] * 5), nn.Linear(3, 1), mnist_loss)
    with learn.no_logging():
        learn.fit(3)
    assert len(calls) == 2


def test_validation_batch_without_a_target_is_refused() -> None:
    learn = Learner(line_dls(), nn.Linear(3, 1), F.mse_loss)
    with pytest.raises(ValueError, match=r"the validation batch has no target.*float32 \(8, 3\)"):
        learn.validate(dl=[(X,)])


def test_metric_is_no_false_alarm_where_only_training_has_soft_targets() -> None:
    soft = torch.softmax(torch.randn(8, 3), dim=1)
    learn = Learner(
        DataLoaders([(X, soft)], [(X, torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]))]),
        nn.Linear(3, 3),
        F.cross_entropy,
        metrics=accuracy,
    )
    with learn.no_logging():
        learn.fit(1)
    assert learn.recorder.values[0][2] is not None


def test_metric_is_no_false_alarm_where_the_model_gives_more_in_training() -> None:
    class Auxiliary(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            out = super().forward(x)
            return (out, out) if self.training else out

    def loss(pred: Any, target: Tensor) -> Tensor:
        return F.cross_entropy(pred[0] if isinstance(pred, tuple) else pred, target)

    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    assert fit(X, labels, Auxiliary(3, 3), loss, metrics=accuracy).recorder.values[0][2] is not None


def test_data_in_another_precision_is_for_a_callback_to_cast() -> None:
    double = [(torch.rand(4, 3), torch.rand(4, 1))]
    learn = Learner([double], nn.Linear(3, 1).double(), nn.functional.mse_loss)
    with pytest.raises(RuntimeError) as caught:
        learn.fit(1)
    assert any(note.endswith("give it x.to(torch.float64), or cbs=Cast()") for note in caught.value.__notes__)
