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
    DevicePlacement,
    LRFinder,
    ParamScheduler,
    ProgressCallback,
    Recorder,
    TerminateOnNaN,
    TorchScheduler,
    TrainEval,
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
from minilearn.files import FileError
from minilearn.layered import trainable_params
from minilearn.learner import Learner
from minilearn.losses import mnist_loss
from minilearn.lr_suggest import minimum, slide, steep, valley
from minilearn.metrics import (
    AvgLoss,
    AvgMetric,
    AvgSmoothLoss,
    Metric,
    accuracy,
    batch_accuracy,
    error_rate,
    mae,
    mse,
    rmse,
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
from minilearn.plots import plot_images, plot_loss, plot_lr_find, plot_metrics, plot_optimizers, plot_sched, show_image
from minilearn.saved import load_model, save_model
from minilearn.schedule import SchedCos, SchedExp, SchedLin, SchedNo, SchedPoly, combine_scheds, combined_cos
from minilearn.tensors import default_device, set_seed, tensor, to_device, to_np


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
    "Adadelta",
    "Adagrad",
    "Adam",
    "AvgLoss",
    "AvgMetric",
    "AvgSmoothLoss",
    "Callback",
    "CancelBackwardException",
    "CancelBatchException",
    "CancelEpochException",
    "CancelException",
    "CancelFitException",
    "CancelStepException",
    "CancelTrainException",
    "CancelValidException",
    "DataError",
    "DataLoader",
    "DataLoaders",
    "DevicePlacement",
    "F",
    "FileError",
    "Image",
    "IntToFloat",
    "L",
    "LRFinder",
    "Lamb",
    "Larc",
    "Learner",
    "Lion",
    "Lookahead",
    "Metric",
    "Muon",
    "NAdam",
    "Normalize",
    "OptimWrapper",
    "Optimizer",
    "ParamScheduler",
    "Path",
    "ProgressCallback",
    "QHAdam",
    "RAdam",
    "RMSProp",
    "RandomFlip",
    "RandomShift",
    "Recorder",
    "SGD",
    "SchedCos",
    "SchedExp",
    "SchedLin",
    "SchedNo",
    "SchedPoly",
    "Split",
    "Tensor",
    "TerminateOnNaN",
    "TorchScheduler",
    "TrainEval",
    "URLs",
    "accuracy",
    "array",
    "batch_accuracy",
    "combine_scheds",
    "combined_cos",
    "default_device",
    "digits",
    "digits_sample",
    "error_rate",
    "first",
    "load_model",
    "mae",
    "minimum",
    "mnist",
    "mnist_loss",
    "mnist_sample",
    "mse",
    "nn",
    "np",
    "optim",
    "partial",
    "plot_images",
    "plot_loss",
    "plot_lr_find",
    "plot_metrics",
    "plot_optimizers",
    "plot_sched",
    "plt",
    "ranger",
    "rmse",
    "save_model",
    "set_seed",
    "show_image",
    "slide",
    "steep",
    "string",
    "tensor",
    "to_device",
    "to_np",
    "torch",
    "trainable_params",
    "untar_data",
    "valley",
]
