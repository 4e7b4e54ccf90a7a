"""fastai's metrics where each row may have several labels, over torchmetrics; the columns are named as in fastai."""

from torch import Tensor

from minilearn.errors import positive, same_shape
from minilearn.metrics.accumulated import ActivationType, activated
from minilearn.metrics.factory import AVERAGES, OfRows, by_label, functional, one_of, refuse
from minilearn.metrics.streaming import Metric
from minilearn.metrics.torch_metric import MadeOnFirstBatch, torchmetrics_for


def PrecisionMulti(
    thresh: float = 0.5,
    sigmoid: bool = True,
    labels: None = None,
    pos_label: int = 1,
    average: str = "macro",
    sample_weight: None = None,
) -> Metric:
    """`Precision` where each row may have several labels.

    Args:
        thresh: the probability from which a label is given.
        sigmoid: whether predictions are logits.
        labels: not carried over.
        pos_label: 1; others are not carried over.
        average: "macro" counts each label the same, "weighted" by how often it is right, "micro" each answer the same.
        sample_weight: not carried over.
    """
    return by_label("Precision", "precision_score", thresh, sigmoid, average, pos_label, labels, sample_weight)


def RecallMulti(
    thresh: float = 0.5,
    sigmoid: bool = True,
    labels: None = None,
    pos_label: int = 1,
    average: str = "macro",
    sample_weight: None = None,
) -> Metric:
    """`Recall` where each row may have several labels; arguments as of `PrecisionMulti`."""
    return by_label("Recall", "recall_score", thresh, sigmoid, average, pos_label, labels, sample_weight)


def F1ScoreMulti(
    thresh: float = 0.5,
    sigmoid: bool = True,
    labels: None = None,
    pos_label: int = 1,
    average: str = "macro",
    sample_weight: None = None,
) -> Metric:
    """`F1Score` where each row may have several labels; arguments as of `PrecisionMulti`."""
    return by_label("F1Score", "f1_score", thresh, sigmoid, average, pos_label, labels, sample_weight)


def FBetaMulti(
    beta: float,
    thresh: float = 0.5,
    sigmoid: bool = True,
    labels: None = None,
    pos_label: int = 1,
    average: str = "macro",
    sample_weight: None = None,
) -> Metric:
    """`FBeta` where each row may have several labels; other arguments as of `PrecisionMulti`."""
    beta = positive("beta", beta)
    return by_label("FBetaScore", "fbeta_score", thresh, sigmoid, average, pos_label, labels, sample_weight, beta=beta)


def JaccardMulti(
    thresh: float = 0.5,
    sigmoid: bool = True,
    labels: None = None,
    pos_label: int = 1,
    average: str = "macro",
    sample_weight: None = None,
) -> Metric:
    """`Jaccard` where each row may have several labels; arguments as of `PrecisionMulti`."""
    return by_label("JaccardIndex", "jaccard_score", thresh, sigmoid, average, pos_label, labels, sample_weight)


def HammingLossMulti(
    thresh: float = 0.5, sigmoid: bool = True, labels: None = None, sample_weight: None = None
) -> Metric:
    """The share of wrong answers where each row may have several labels; arguments as of `PrecisionMulti`."""
    return by_label("HammingDistance", "hamming_loss", thresh, sigmoid, "micro", 1, labels, sample_weight)


def MatthewsCorrCoefMulti(thresh: float = 0.5, sigmoid: bool = True, sample_weight: None = None) -> Metric:
    """Matthews' correlation coefficient of all answers together; arguments as of `PrecisionMulti`."""
    return by_label("MatthewsCorrCoef", "matthews_corrcoef", thresh, sigmoid, None, 1, None, sample_weight)


def BrierScoreMulti(
    thresh: None = None, sigmoid: bool = True, sample_weight: None = None, pos_label: None = None
) -> Metric:
    """The mean squared distance between labels' probabilities and what was right, over all answers.

    `thresh` is refused: a probability that was cut at a threshold is none. fastai's fails.
    """
    name, torchmetrics = "brier_score_loss", torchmetrics_for("BrierScoreMulti")
    refuse(name, thresh=thresh, sample_weight=sample_weight, pos_label=pos_label)

    def prepare(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor, int]:
        same_shape(name, pred, target)
        share = activated(pred, _activation(sigmoid))
        return share.reshape(-1), target.to(share.dtype).reshape(-1), 1

    return MadeOnFirstBatch(name, lambda _: torchmetrics.MeanSquaredError(), prepare)


def RocAucMulti(
    sigmoid: bool = True,
    average: str = "macro",
    sample_weight: None = None,
    max_fpr: None = None,
    *,
    max_rows: int | None = None,
) -> Metric:
    """The area under the ROC curve of each label, averaged; all rows are kept, as by `RocAuc`.

    Args:
        sigmoid: whether predictions are logits.
        average: "macro" counts each label the same, "weighted" by how often it is right, "micro" takes all answers as
            those to one question.
        sample_weight: not carried over.
        max_fpr: not carried over.
        max_rows: how many rows are kept at most; None keeps all.
    """
    refuse("roc_auc_score", sample_weight=sample_weight, max_fpr=max_fpr)
    area = functional("RocAucMulti", "multilabel_auroc", average=one_of("average", average, *AVERAGES))
    return OfRows("roc_auc_score", area, None, _activation(sigmoid), max_rows)


def APScoreMulti(
    sigmoid: bool = True,
    average: str = "macro",
    pos_label: int = 1,
    sample_weight: None = None,
    *,
    max_rows: int | None = None,
) -> Metric:
    """The average precision over the thresholds of each label, averaged; arguments as of `RocAucMulti`."""
    name = "average_precision_score"
    refuse(name, sample_weight=sample_weight, pos_label=None if pos_label == 1 else pos_label)
    area = functional("APScoreMulti", "multilabel_average_precision", average=one_of("average", average, *AVERAGES))
    return OfRows(name, area, None, _activation(sigmoid), max_rows)


def _activation(sigmoid: bool) -> ActivationType:
    return ActivationType.Sigmoid if sigmoid else ActivationType.No
