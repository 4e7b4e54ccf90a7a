"""fastai's metrics of one class a row, over torchmetrics; the columns are named as in fastai.

A factory is called when the Learner is made: ``metrics=[accuracy, F1Score(average="macro")]``. Where a model gives one
logit a row, these take it as one of two classes: above 0 is class 1.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from minilearn.errors import positive
from minilearn.metrics.accumulated import ActivationType, activated
from minilearn.metrics.factory import OfRows, by_class, functional, one_of, over_classes, refuse
from minilearn.metrics.functions import check_classes
from minilearn.metrics.streaming import Metric
from minilearn.metrics.torch_metric import MadeOnFirstBatch, torchmetrics_for


def Precision(
    axis: int = -1, labels: None = None, pos_label: int = 1, average: str = "binary", sample_weight: None = None
) -> Metric:
    """The share of those taken for a class that are of it: of two classes of `pos_label`, else averaged over classes.

    Args:
        axis: the classes' axis of the predictions.
        labels: not carried over.
        pos_label: the class that counts where `average` is "binary".
        average: "binary" for two classes; "macro" counts each class that occurs the same, "weighted" by its rows,
            "micro" counts each row the same.
        sample_weight: not carried over.
    Raises:
        ValueError: an argument is not what it may be; in the first batch, the model does not give two classes.
        ModuleNotFoundError: torchmetrics is not installed.
    Source: arguments and figures are those of fastai 2.8, which takes them from scikit-learn.
    """
    return by_class("Precision", "precision_score", axis, average, pos_label, labels, sample_weight)


def Recall(
    axis: int = -1, labels: None = None, pos_label: int = 1, average: str = "binary", sample_weight: None = None
) -> Metric:
    """The share of those of a class that are taken for it; arguments and errors as of `Precision`."""
    return by_class("Recall", "recall_score", axis, average, pos_label, labels, sample_weight)


def F1Score(
    axis: int = -1, labels: None = None, pos_label: int = 1, average: str = "binary", sample_weight: None = None
) -> Metric:
    """The harmonic mean of precision and recall; arguments and errors as of `Precision`."""
    return by_class("F1Score", "f1_score", axis, average, pos_label, labels, sample_weight)


def FBeta(
    beta: float,
    axis: int = -1,
    labels: None = None,
    pos_label: int = 1,
    average: str = "binary",
    sample_weight: None = None,
) -> Metric:
    """F1Score in which recall counts `beta` times as much as precision; other arguments as of `Precision`."""
    beta = positive("beta", beta)
    return by_class("FBetaScore", "fbeta_score", axis, average, pos_label, labels, sample_weight, beta=beta)


def Jaccard(
    axis: int = -1, labels: None = None, pos_label: int = 1, average: str = "binary", sample_weight: None = None
) -> Metric:
    """The share of the rows of a class or taken for it that are both; arguments and errors as of `Precision`."""
    return by_class("JaccardIndex", "jaccard_score", axis, average, pos_label, labels, sample_weight)


def HammingLoss(axis: int = -1, sample_weight: None = None) -> Metric:
    """The share of rows of another class than they are taken for: the error rate."""
    return over_classes("HammingDistance", "hamming_loss", axis, sample_weight, average="micro")


def CohenKappa(axis: int = -1, labels: None = None, weights: str | None = None, sample_weight: None = None) -> Metric:
    """Cohen's kappa: agreement beyond what chance would give; `weights` None, "linear" or "quadratic" by distance."""
    refuse("cohen_kappa_score", labels=labels)
    return over_classes("CohenKappa", "cohen_kappa_score", axis, sample_weight, weights=weights)


def MatthewsCorrCoef(sample_weight: None = None, axis: int = -1) -> Metric:
    """Matthews' correlation coefficient of predicted and right classes, in [-1, 1]."""
    return over_classes("MatthewsCorrCoef", "matthews_corrcoef", axis, sample_weight)


def BalancedAccuracy(axis: int = -1, sample_weight: None = None, adjusted: bool = False) -> Metric:
    """The mean over the classes that occur of their recall; `adjusted` so that chance gives 0 and all right 1."""

    def finish(confusion: Tensor) -> Tensor:
        rows = confusion.sum(1)
        score = (confusion.diag() / rows)[rows > 0].mean()
        chance = 1 / (rows > 0).sum()
        return (score - chance) / (1 - chance) if adjusted else score

    return over_classes("ConfusionMatrix", "balanced_accuracy_score", axis, sample_weight, finish=finish)


def BrierScore(axis: int = -1, sample_weight: None = None, pos_label: int | None = None) -> Metric:
    """The mean squared distance between the classes' probabilities (softmax) and what was right.

    Of two classes it is that of the class `pos_label` (by default 1), in [0, 1]; of more the sum over all, in [0, 2].
    fastai takes the largest class for the probability, which gives the error rate.
    """
    name, torchmetrics = "brier_score_loss", torchmetrics_for("BrierScore")
    refuse(name, sample_weight=sample_weight)

    def prepare(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor, int]:
        if (pred.ndim < 2 or pred.shape[axis] == 1) and pred.numel() == target.numel():
            pred, target = torch.stack((-pred.reshape(-1), pred.reshape(-1)), -1) / 2, target.reshape(-1)
        else:
            check_classes(name, pred, target, axis)
            pred, target = pred.movedim(axis, -1).flatten(0, -2), target.reshape(-1)
        share, right = activated(pred, "softmax"), F.one_hot(target.long(), pred.shape[-1])
        if pred.shape[-1] > 2:
            return share, right, pred.shape[-1]
        label = 1 if pos_label is None else pos_label
        return share[:, label], right[:, label], 1

    return MadeOnFirstBatch(name, lambda n: torchmetrics.MeanSquaredError(num_outputs=n), prepare, Tensor.sum)


def RocAuc(
    axis: int = -1,
    average: str = "macro",
    sample_weight: None = None,
    max_fpr: None = None,
    multi_class: str = "ovr",
    *,
    max_rows: int | None = None,
) -> Metric:
    """The area under the ROC curve of each class against the others, averaged.

    The probabilities of all rows are kept in the CPU's memory; `max_rows` bounds that (`AccumMetric`).

    Args:
        axis: the classes' axis of the predictions.
        average: "macro" counts each class the same, "weighted" by its rows.
        sample_weight: not carried over.
        max_fpr: not carried over.
        multi_class: "ovr", one against the rest; "ovo" is not carried over.
        max_rows: how many rows are kept at most; None keeps all.
    """
    name = "roc_auc_score"
    refuse(name, sample_weight=sample_weight, max_fpr=max_fpr, multi_class=None if multi_class == "ovr" else "ovo")
    area = functional("RocAuc", "multiclass_auroc", average=one_of("average", average, "macro", "weighted"))
    return OfRows(name, area, axis, ActivationType.Softmax, max_rows)


def RocAucBinary(
    axis: int = -1,
    average: str = "macro",
    sample_weight: None = None,
    max_fpr: float | None = None,
    multi_class: str = "raise",
    *,
    max_rows: int | None = None,
) -> Metric:
    """The area under the ROC curve of the last of two classes; up to a share `max_fpr` of false alarms, if given.

    `average` and `multi_class` change nothing for two classes. All rows are kept, as by `RocAuc`.
    """
    refuse("roc_auc_score", sample_weight=sample_weight)
    area = functional("RocAucBinary", "binary_auroc", max_fpr=max_fpr)
    return OfRows("roc_auc_score", area, axis, ActivationType.BinarySoftmax, max_rows)


def APScoreBinary(
    axis: int = -1,
    average: str = "macro",
    pos_label: int = 1,
    sample_weight: None = None,
    *,
    max_rows: int | None = None,
) -> Metric:
    """The average precision over the thresholds of the last of two classes; all rows are kept, as by `RocAuc`."""
    name = "average_precision_score"
    refuse(name, sample_weight=sample_weight, pos_label=None if pos_label == 1 else pos_label)
    area = functional("APScoreBinary", "binary_average_precision")
    return OfRows(name, area, axis, ActivationType.BinarySoftmax, max_rows)


def Dice(axis: int = 1) -> Metric:
    """The Dice coefficient of the foreground, ``2·both / (predicted + right)``, over all pixels of two classes.

    Args:
        axis: the classes' axis of the predictions, float (batch, classes, height, width); one logit will do.
    Raises:
        ValueError: in the first batch, the model gives more than two classes: that is `DiceMulti`.
        ModuleNotFoundError: torchmetrics is not installed.
    """
    return over_classes("ConfusionMatrix", "dice", axis, None, lambda c: _foreground(2 * _overlap(c)), "DiceMulti is")


def JaccardCoeff(axis: int = 1) -> Metric:
    """The Jaccard coefficient of the foreground, ``both / either``, over all pixels of two classes; as `Dice`."""
    return over_classes(
        "ConfusionMatrix", "jaccard_coeff", axis, None, lambda c: _foreground(_union(c)), "JaccardCoeffMulti is"
    )


def DiceMulti(axis: int = 1) -> Metric:
    """The mean over the classes that occur, in predictions or targets, of their Dice coefficients over all pixels."""
    return over_classes("ConfusionMatrix", "dice_multi", axis, None, lambda c: (2 * _overlap(c)).nanmean())


def JaccardCoeffMulti(axis: int = 1) -> Metric:
    """The mean over the classes that occur, in predictions or targets, of their Jaccard coefficients (mean IoU)."""
    return over_classes("ConfusionMatrix", "jaccard_coeff_multi", axis, None, lambda c: _union(c).nanmean())


def _overlap(confusion: Tensor) -> Tensor:
    """For each class the pixels that are both of it and taken for it, as a share of the two sums; nan for none."""
    return confusion.diag() / (confusion.sum(0) + confusion.sum(1))


def _union(confusion: Tensor) -> Tensor:
    """For each class the pixels that are both of it and taken for it, as a share of those that are either."""
    return confusion.diag() / (confusion.sum(0) + confusion.sum(1) - confusion.diag())


def _foreground(figures: Tensor) -> float | None:
    """That of class 1; None where no pixel is of it, nor taken for it."""
    figure = float(figures[1])
    return None if math.isnan(figure) else figure
