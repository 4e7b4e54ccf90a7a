"""fastai's names over torchmetrics: one line each, a readable column, an error for what cannot be carried over."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import minilearn.metrics as m
from minilearn.data import DataLoaders, digits
from minilearn.learner import Learner
from minilearn.metrics.accumulated import InChunks


def batch(pred: Tensor, target: Tensor) -> Any:
    return SimpleNamespace(pred=pred, yb=(target,), xb=(pred,))


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() + done.stderr


def test_factory_works_by_itself_and_torchmetrics_is_imported_no_sooner() -> None:
    code = (
        "import sys\nfrom minilearn.all import *\n"
        "print('torchmetrics' in sys.modules)\n"
        "F1Score()\n"
        "print('torchmetrics' in sys.modules)\n"
    )
    assert python(code).split() == ["False", "True"]


def test_without_torchmetrics_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ModuleNotFoundError, match=r"f1_score stands on torchmetrics: pip install 'minilearn\[metrics\]'"
    ):
        m.F1Score()


def test_in_a_learner_figures_are_those_of_each_epoch() -> None:
    torch.manual_seed(0)
    dls = DataLoaders.from_tensors(*digits())
    metrics = [m.accuracy, m.HammingLoss(), m.Recall(average="micro"), m.RocAuc(), m.top_k_accuracy]
    learn = Learner(dls, nn.Linear(784, 10), lr=0.01, metrics=metrics)
    with learn.no_logging():
        learn.fit(2)
    assert learn.recorder.metric_names[3:-1] == [
        "accuracy", "hamming_loss", "recall_score", "roc_auc_score", "top_k_accuracy",
    ]  # fmt: skip
    for row in learn.recorder.values:
        assert row[3] == pytest.approx(1 - row[2], rel=1e-6)  # type: ignore[operator]
        assert row[4] == pytest.approx(row[2], rel=1e-6)


def test_figures_do_not_depend_on_how_rows_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minilearn.metrics.accumulated.CHUNK_BATCHES", 2)
    pred, target = torch.randn(50, 4), torch.randint(0, 4, (50,))
    values = []
    for size in (50, 7, 1):
        metric = m.F1Score(average="macro")
        for p, t in zip(pred.split(size), target.split(size), strict=True):
            metric.accumulate(batch(p, t))
        assert isinstance(metric, InChunks)
        assert len(metric._waiting) < 2
        values.append(metric.value)
    assert values[0] == pytest.approx(values[1]) == pytest.approx(values[2])


@pytest.mark.parametrize("make", [m.Precision, m.F1Score, m.RocAucBinary, m.APScoreBinary, m.BrierScore, m.Dice])
@pytest.mark.parametrize("shape", [(20, 1), (20,)])
def test_one_logit_a_row_is_one_of_two_classes(make: Any, shape: tuple[int, ...]) -> None:
    logit, target = torch.randn(20), torch.randint(0, 2, (20,))
    one, two = make(), make()
    one.accumulate(batch(logit.reshape(shape), target.reshape(shape)))
    two.accumulate(batch(torch.stack([-logit / 2, logit / 2], 1), target))
    assert one.value == pytest.approx(two.value, rel=1e-6)


@pytest.mark.parametrize("make", [m.Dice, m.JaccardCoeff])
def test_overlap_without_any_foreground_is_none(make: Any) -> None:
    metric = make()
    metric.accumulate(batch(torch.tensor([[1.0, 0.0]]), torch.tensor([0])))
    assert metric.value is None


def test_rank_correlation_of_ties_in_great_number_does_not_overflow() -> None:
    pred = (torch.arange(200_000) % 2).float()
    metric = m.SpearmanCorrCoef()
    metric.accumulate(batch(pred, pred))
    assert metric.value == pytest.approx(1)


def test_regression_figures_far_from_zero_do_not_cancel() -> None:
    pred, target = 1e5 + torch.randn(1000).double(), 1e5 + torch.randn(1000).double()
    metric = m.R2Score()
    metric.accumulate(batch(pred, target))
    expected = 1 - ((pred - target).square().sum() / (target - target.mean()).square().sum()).item()
    assert metric.value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: m.F1Score(sample_weight=[1]),
            r"f1_score: sample_weight=\[1\] cannot be carried over .* skm_to_fastai",
        ),
        (lambda: m.RecallMulti(labels=[0]), r"recall_score: labels=\[0\] cannot be carried over"),
        (lambda: m.PrecisionMulti(pos_label=0), "pos_label=0 cannot be carried over"),
        (lambda: m.F1Score(average="macro", pos_label=0), "pos_label=0 cannot be carried over"),
        (lambda: m.RocAuc(multi_class="ovo"), "multi_class='ovo' cannot be carried over"),
        (lambda: m.BrierScoreMulti(thresh=0.5), "thresh=0.5 cannot be carried over"),
        (lambda: m.PearsonCorrCoef(to_np=True), "to_np=True cannot be carried over"),
        (lambda: m.SpearmanCorrCoef(axis=1), "axis=1 cannot be carried over"),
        (lambda: m.F1Score(average="marco"), r"average must be one of .*, got 'marco'; did you mean 'macro'\?"),
        (lambda: m.F1Score(average=None), "average must be one of .*, got None: a column is one number"),
        (lambda: m.FBeta(beta=0), "beta must be a finite number greater than 0, got 0"),
    ],
)
def test_what_cannot_be_carried_over_is_refused_when_the_metric_is_made(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("metric", "pred", "target", "message"),
    [
        (
            m.F1Score,
            (6, 3),
            (6,),
            r"f1_score is of two classes, but predictions are \(6, 3\), with classes on axis -1: average='macro'",
        ),
        (m.Dice, (6, 3, 2), (6, 2), r"dice is of two classes, .*: DiceMulti is for more"),
        (m.RocAucBinary, (6, 3), (6,), r"roc_auc_score is of two classes, but predictions are \(6, 3\)"),
        (m.RocAuc, (6, 1), (6,), r"roc_auc_score: predictions are \(6, 1\): one score a row"),
        (
            m.HammingLoss,
            (6, 3),
            (6, 1),
            r"hamming_loss: predictions are \(6, 3\) but targets are \(6, 1\).*squeeze\(1\)",
        ),
        (m.F1ScoreMulti, (6, 3), (6,), r"f1_score: predictions are \(6, 3\) but targets are \(6,\)"),
        (m.RocAucMulti, (6,), (6,), r"roc_auc_score: predictions must be \(batch, labels\), got \(6,\)"),
        (m.R2Score, (6, 1), (6,), r"r2_score: predictions are \(6, 1\) but targets are \(6,\): they would broadcast"),
    ],
)
def test_shapes_that_do_not_fit_are_named_in_their_batch(metric: Any, pred: Any, target: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metric().accumulate(batch(torch.randn(pred), torch.zeros(target)))


def test_another_number_of_classes_is_refused_within_an_epoch_and_taken_in_the_next() -> None:
    metric = m.HammingLoss()
    metric.accumulate(batch(torch.eye(3), torch.arange(3)))
    with pytest.raises(ValueError, match="hamming_loss: this batch has 4 classes, those before had 3"):
        metric.accumulate(batch(torch.eye(4), torch.arange(4)))
    metric.reset()
    metric.accumulate(batch(torch.eye(4), torch.arange(4)))
    assert metric.value == 0


def test_target_outside_the_classes_is_refused_in_the_first_batch() -> None:
    with pytest.raises(RuntimeError, match="Detected more unique values in `target` than expected"):
        m.HammingLoss().accumulate(batch(torch.randn(4, 2), torch.tensor([0, 1, 2, 3])))


def test_factory_that_was_not_called_is_refused() -> None:
    with pytest.raises(TypeError, match=r"a metric must be made before it is given: F1Score\(\), got the function"):
        m.as_metrics([m.F1Score])


class InPlace(m.Metric):
    """Counts rows in a tensor that it changes in place."""

    def reset(self) -> None:
        self.rows = torch.zeros(())

    def accumulate(self, learn: Any) -> None:
        self.rows += len(learn.pred)

    @property
    def value(self) -> float:
        return float(self.rows)


@pytest.mark.parametrize(
    "make",
    [InPlace, lambda: m.AccumMetric(lambda pred, target: float(len(pred)), 1), lambda: m.Recall(average="macro")],
)
def test_a_state_is_not_changed_by_what_comes_after_it(make: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [
        batch(torch.randn(9, 3, generator=generator), torch.randint(0, 3, (9,), generator=generator)) for _ in range(4)
    ]
    metric, found = make(), []
    metric.reset()
    for part in batches[:2]:
        metric.accumulate(part)
    state = metric.state_dict()
    for _ in range(2):  # from the very same state
        for part in batches[2:]:
            metric.accumulate(part)
        found.append(metric.value)
        metric.load_state_dict(state)
    assert found[0] == found[1]
