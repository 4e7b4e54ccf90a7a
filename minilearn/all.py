"""What a notebook needs: ``from minilearn.all import *``.

`__all__` is written out: nothing gets into a notebook by accident. ``plt`` is matplotlib's pyplot, imported when it
is first used.
"""

# ruff: noqa: E402 -- what comes first is for the imports after it
import gc

_collects = gc.isenabled()
gc.disable()  # a collection in the middle of the imports looks at all of torch's objects: 80 ms, for nothing

import importlib
import string
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import fastcore.xtras  # noqa: F401 -- gives every Path its ls()
import numpy as np
import torch
import torch.nn.functional as F
from fastcore.basics import first
from fastcore.foundation import L
from numpy import array
from PIL import Image
from torch import Tensor, nn, optim

from minilearn.callback import (
    Callback,
    CancelBackwardException,
    CancelBatchException,
    CancelEpochException,
    CancelException,
    CancelFitException,
    CancelStepException,
    CancelTrainException,
    CancelValidException,
)
from minilearn.callbacks import (
    EMA,
    SWA,
    ActivationStats,
    AMPMode,
    BnFreeze,
    Cast,
    ChannelsLast,
    ChannelsLastCallback,
    Checkpoint,
    CollectData,
    CollectDataCallback,
    CSVLogger,
    CutMix,
    DevicePlacement,
    Distributed,
    Divergence,
    DivergenceError,
    EarlyStopping,
    EarlyStoppingCallback,
    FetchPreds,
    FetchPredsCallback,
    GatherPreds,
    GatherPredsCallback,
    GradientAccumulation,
    GradientClip,
    HookCallback,
    LRFinder,
    MCDropout,
    MCDropoutCallback,
    MixedPrecision,
    Mixing,
    MixUp,
    ModelReset,
    ModelResetter,
    ParamScheduler,
    Preflight,
    Profiler,
    ProgressCallback,
    Recorder,
    ReduceLROnPlateau,
    SaveModel,
    SaveModelCallback,
    ShortEpoch,
    ShortEpochCallback,
    ShowGraph,
    ShowGraphCallback,
    SkipToEpoch,
    TensorBoard,
    TensorBoardCallback,
    TerminateOnNaN,
    TerminateOnNaNCallback,
    TorchScheduler,
    TrackerCallback,
    TrainEval,
    TrainEvalCallback,
    Wandb,
    WandbCallback,
    WeightAverage,
    set_bn_eval,
)
from minilearn.data import (
    DataError,
    DataLoader,
    DataLoaders,
    IntToFloat,
    Normalize,
    RandomFlip,
    RandomShift,
    Split,
    URLs,
    digits,
    digits_sample,
    mnist,
    mnist_sample,
    untar_data,
)
from minilearn.exchange import import_weights
from minilearn.exported import load_exported
from minilearn.files import FileError
from minilearn.hooks import (
    Hook,
    Hooks,
    dummy_eval,
    has_params,
    hook_output,
    hook_outputs,
    model_sizes,
    num_features_model,
    total_params,
)
from minilearn.interpret import ClassificationInterpretation, Interpretation, SegmentationInterpretation
from minilearn.layered import params, trainable_params
from minilearn.learner import Learner
from minilearn.losses import (
    BaseLoss,
    BCELossFlat,
    BCEWithLogitsLossFlat,
    CrossEntropyLossFlat,
    DiceLoss,
    FocalLoss,
    FocalLossFlat,
    L1LossFlat,
    LabelSmoothingCrossEntropy,
    LabelSmoothingCrossEntropyFlat,
    MSELossFlat,
    mnist_loss,
)
from minilearn.lr_suggest import SuggestionMethod, minimum, slide, steep, valley
from minilearn.materialize import materialize
from minilearn.metrics import (
    AccumMetric,
    ActivationType,
    APScoreBinary,
    APScoreMulti,
    AvgLoss,
    AvgMetric,
    AvgSmoothLoss,
    BalancedAccuracy,
    BrierScore,
    BrierScoreMulti,
    CohenKappa,
    Dice,
    DiceMulti,
    ExplainedVariance,
    F1Score,
    F1ScoreMulti,
    FBeta,
    FBetaMulti,
    HammingLoss,
    HammingLossMulti,
    Jaccard,
    JaccardCoeff,
    JaccardCoeffMulti,
    JaccardMulti,
    LossMetric,
    LossMetrics,
    MatthewsCorrCoef,
    MatthewsCorrCoefMulti,
    Metric,
    PearsonCorrCoef,
    Perplexity,
    Precision,
    PrecisionMulti,
    R2Score,
    Recall,
    RecallMulti,
    RocAuc,
    RocAucBinary,
    RocAucMulti,
    SpearmanCorrCoef,
    ValueMetric,
    accuracy,
    accuracy_multi,
    batch_accuracy,
    error_rate,
    exp_rmspe,
    mae,
    mse,
    msle,
    perplexity,
    rmse,
    skm_to_fastai,
    top_k_accuracy,
)
from minilearn.optim import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Lamb,
    Larc,
    Lion,
    Lookahead,
    Muon,
    NAdam,
    Optimizer,
    OptimWrapper,
    QHAdam,
    RAdam,
    RMSProp,
    ranger,
)
from minilearn.plots import (
    plot_confusion,
    plot_descent,
    plot_histogram,
    plot_images,
    plot_loss,
    plot_lr_find,
    plot_metrics,
    plot_optimizers,
    plot_sched,
    plot_top_losses,
    save_picture,
    show_batch,
    show_image,
)
from minilearn.saved import load_model, save_model
from minilearn.scale import scaling
from minilearn.schedule import SchedCos, SchedExp, SchedLin, SchedNo, SchedPoly, combine_scheds, combined_cos
from minilearn.sharded_conversions import merge_checkpoint, shard_checkpoint
from minilearn.sharding import checkpoint_activations, shard_model
from minilearn.summary import layer_info
from minilearn.tensors import default_device, set_seed, tensor, to_device, to_np
from minilearn.votes import votes


class _Later(ModuleType):
    """A module that is imported when something of it is first asked for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)

    def __dir__(self) -> list[str]:
        return dir(importlib.import_module(self.__name__))


plt: Any = _Later("matplotlib.pyplot")
if _collects:
    gc.enable()

__all__ = [
    "AMPMode", "APScoreBinary", "APScoreMulti", "AccumMetric", "ActivationStats", "ActivationType", "Adadelta",
    "Adagrad", "Adam", "AvgLoss", "AvgMetric", "AvgSmoothLoss", "BCELossFlat", "BCEWithLogitsLossFlat",
    "BalancedAccuracy", "BaseLoss", "BnFreeze", "BrierScore", "BrierScoreMulti", "CSVLogger", "Callback",
    "CancelBackwardException", "CancelBatchException", "CancelEpochException", "CancelException", "CancelFitException",
    "CancelStepException", "CancelTrainException", "CancelValidException", "Cast", "ChannelsLast",
    "ChannelsLastCallback", "Checkpoint", "ClassificationInterpretation", "CohenKappa", "CollectData",
    "CollectDataCallback", "CrossEntropyLossFlat", "CutMix", "DataError", "DataLoader", "DataLoaders",
    "DevicePlacement", "Dice", "DiceLoss", "DiceMulti", "Distributed", "Divergence", "DivergenceError", "EMA",
    "EarlyStopping", "EarlyStoppingCallback", "ExplainedVariance", "F", "F1Score", "F1ScoreMulti", "FBeta",
    "FBetaMulti", "FetchPreds", "FetchPredsCallback", "FileError", "FocalLoss", "FocalLossFlat", "GatherPreds",
    "GatherPredsCallback", "GradientAccumulation", "GradientClip", "HammingLoss", "HammingLossMulti", "Hook",
    "HookCallback", "Hooks", "Image", "IntToFloat", "Interpretation", "Jaccard", "JaccardCoeff", "JaccardCoeffMulti",
    "JaccardMulti", "L", "L1LossFlat", "LRFinder", "LabelSmoothingCrossEntropy", "LabelSmoothingCrossEntropyFlat",
    "Lamb", "Larc", "Learner", "Lion", "Lookahead", "LossMetric", "LossMetrics", "MCDropout", "MCDropoutCallback",
    "MSELossFlat", "MatthewsCorrCoef", "MatthewsCorrCoefMulti", "Metric", "MixUp", "MixedPrecision", "Mixing",
    "ModelReset", "ModelResetter", "Muon", "NAdam", "Normalize", "OptimWrapper", "Optimizer", "ParamScheduler", "Path",
    "PearsonCorrCoef", "Perplexity", "Precision", "PrecisionMulti", "Preflight", "Profiler", "ProgressCallback",
    "QHAdam", "R2Score", "RAdam", "RMSProp", "RandomFlip", "RandomShift", "Recall", "RecallMulti", "Recorder",
    "ReduceLROnPlateau", "RocAuc", "RocAucBinary", "RocAucMulti", "SGD", "SWA", "SaveModel", "SaveModelCallback",
    "SchedCos", "SchedExp", "SchedLin", "SchedNo", "SchedPoly", "SegmentationInterpretation", "ShortEpoch",
    "ShortEpochCallback", "ShowGraph", "ShowGraphCallback", "SkipToEpoch", "SpearmanCorrCoef", "Split",
    "SuggestionMethod", "Tensor", "TensorBoard", "TensorBoardCallback", "TerminateOnNaN", "TerminateOnNaNCallback",
    "TorchScheduler", "TrackerCallback", "TrainEval", "TrainEvalCallback", "URLs", "ValueMetric", "Wandb",
    "WandbCallback", "WeightAverage", "accuracy", "accuracy_multi", "array", "batch_accuracy", "checkpoint_activations",
    "combine_scheds", "combined_cos", "default_device", "digits", "digits_sample", "dummy_eval", "error_rate",
    "exp_rmspe", "first", "has_params", "hook_output", "hook_outputs", "import_weights", "layer_info", "load_exported",
    "load_model", "mae", "materialize", "merge_checkpoint", "minimum", "mnist", "mnist_loss", "mnist_sample",
    "model_sizes", "mse", "msle", "nn", "np", "num_features_model", "optim", "params", "partial", "perplexity",
    "plot_confusion", "plot_descent", "plot_histogram", "plot_images", "plot_loss", "plot_lr_find", "plot_metrics",
    "plot_optimizers", "plot_sched", "plot_top_losses", "plt", "ranger", "rmse", "save_model", "save_picture",
    "scaling", "set_bn_eval", "set_seed", "shard_checkpoint", "shard_model", "show_batch", "show_image",
    "skm_to_fastai", "slide", "steep", "string", "tensor", "to_device", "to_np", "top_k_accuracy", "torch",
    "total_params", "trainable_params", "untar_data", "valley", "votes",
]  # fmt: skip
