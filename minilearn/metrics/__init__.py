"""Metrics: functions of a batch, and what adds them up over batches without waiting for the device.

- `functions`: accuracy, mse and their like, plain functions.
- `streaming`: `Metric`, and those that are averages over rows.
- `joining`: the same in several processes.
- `accumulated`: `AccumMetric`, which keeps rows to the end.
- `torch_metric`, `factory`: torchmetrics' objects as columns.
- `classes`, `labels`, `regression`: fastai's names over torchmetrics (extra ``minilearn[metrics]``).
- `given`: what a Learner is given, made into `Metric`s.
"""

from minilearn.metrics.accumulated import AccumMetric, ActivationType, skm_to_fastai
from minilearn.metrics.classes import (
    APScoreBinary,
    BalancedAccuracy,
    BrierScore,
    CohenKappa,
    Dice,
    DiceMulti,
    F1Score,
    FBeta,
    HammingLoss,
    Jaccard,
    JaccardCoeff,
    JaccardCoeffMulti,
    MatthewsCorrCoef,
    Precision,
    Recall,
    RocAuc,
    RocAucBinary,
)
from minilearn.metrics.functions import (
    accuracy,
    accuracy_multi,
    batch_accuracy,
    error_rate,
    exp_rmspe,
    mae,
    mse,
    msle,
    rmse,
    top_k_accuracy,
)
from minilearn.metrics.given import as_metrics, check_metrics
from minilearn.metrics.joining import go_along, join_all, take_on
from minilearn.metrics.labels import (
    APScoreMulti,
    BrierScoreMulti,
    F1ScoreMulti,
    FBetaMulti,
    HammingLossMulti,
    JaccardMulti,
    MatthewsCorrCoefMulti,
    PrecisionMulti,
    RecallMulti,
    RocAucMulti,
)
from minilearn.metrics.regression import ExplainedVariance, PearsonCorrCoef, R2Score, SpearmanCorrCoef
from minilearn.metrics.streaming import (
    AvgLoss,
    AvgMetric,
    AvgSmoothLoss,
    Batch,
    LossMetric,
    LossMetrics,
    Metric,
    Perplexity,
    ValueMetric,
    function_name,
    perplexity,
)
from minilearn.metrics.torch_metric import TorchMetric

__all__ = [
    "APScoreBinary",
    "APScoreMulti",
    "AccumMetric",
    "ActivationType",
    "AvgLoss",
    "AvgMetric",
    "AvgSmoothLoss",
    "BalancedAccuracy",
    "Batch",
    "BrierScore",
    "BrierScoreMulti",
    "CohenKappa",
    "Dice",
    "DiceMulti",
    "ExplainedVariance",
    "F1Score",
    "F1ScoreMulti",
    "FBeta",
    "FBetaMulti",
    "HammingLoss",
    "HammingLossMulti",
    "Jaccard",
    "JaccardCoeff",
    "JaccardCoeffMulti",
    "JaccardMulti",
    "LossMetric",
    "LossMetrics",
    "MatthewsCorrCoef",
    "MatthewsCorrCoefMulti",
    "Metric",
    "PearsonCorrCoef",
    "Perplexity",
    "Precision",
    "PrecisionMulti",
    "R2Score",
    "Recall",
    "RecallMulti",
    "RocAuc",
    "RocAucBinary",
    "RocAucMulti",
    "SpearmanCorrCoef",
    "TorchMetric",
    "ValueMetric",
    "accuracy",
    "accuracy_multi",
    "as_metrics",
    "batch_accuracy",
    "check_metrics",
    "error_rate",
    "exp_rmspe",
    "function_name",
    "go_along",
    "join_all",
    "mae",
    "mse",
    "msle",
    "perplexity",
    "rmse",
    "skm_to_fastai",
    "take_on",
    "top_k_accuracy",
]
