"""Behaviours of a fit, one a file. `minilearn.learner.DEFAULT_CALLBACKS` are in every Learner."""

from minilearn.callbacks.accumulation import GradientAccumulation
from minilearn.callbacks.activation_stats import ActivationStats
from minilearn.callbacks.average import EMA, WeightAverage
from minilearn.callbacks.cast import Cast
from minilearn.callbacks.checkpoint import Checkpoint
from minilearn.callbacks.collect import CollectData, CollectDataCallback
from minilearn.callbacks.csv_log import CSVLogger
from minilearn.callbacks.device import DevicePlacement
from minilearn.callbacks.distributed import Distributed
from minilearn.callbacks.divergence import Divergence, DivergenceError
from minilearn.callbacks.epochs import ShortEpoch, ShortEpochCallback, SkipToEpoch
from minilearn.callbacks.gather_preds import FetchPreds, FetchPredsCallback, GatherPreds, GatherPredsCallback
from minilearn.callbacks.gradient_clip import GradientClip
from minilearn.callbacks.hook import HookCallback
from minilearn.callbacks.lr_find import LRFinder, LRSearch, find_lr
from minilearn.callbacks.memory_format import ChannelsLast, ChannelsLastCallback
from minilearn.callbacks.mixup import CutMix, Mixing, MixUp
from minilearn.callbacks.modes import BnFreeze, MCDropout, MCDropoutCallback, ModelReset, ModelResetter, set_bn_eval
from minilearn.callbacks.nan import TerminateOnNaN, TerminateOnNaNCallback
from minilearn.callbacks.plateau import ReduceLROnPlateau
from minilearn.callbacks.precision import AMPMode, MixedPrecision
from minilearn.callbacks.preflight import Preflight
from minilearn.callbacks.profile import Profile, Share, profile_fit
from minilearn.callbacks.profiler import Profiler
from minilearn.callbacks.progress import ProgressCallback
from minilearn.callbacks.recorder import Recorder
from minilearn.callbacks.save_model import SaveModel, SaveModelCallback
from minilearn.callbacks.schedule import ParamScheduler, TorchScheduler
from minilearn.callbacks.show_graph import ShowGraph, ShowGraphCallback
from minilearn.callbacks.swa import SWA
from minilearn.callbacks.tensorboard import TensorBoard, TensorBoardCallback
from minilearn.callbacks.tracker import EarlyStopping, EarlyStoppingCallback, TrackerCallback
from minilearn.callbacks.train_eval import TrainEval, TrainEvalCallback
from minilearn.callbacks.wandb import Wandb, WandbCallback

__all__ = [
    "EMA",
    "SWA",
    "AMPMode",
    "ActivationStats",
    "BnFreeze",
    "CSVLogger",
    "Cast",
    "ChannelsLast",
    "ChannelsLastCallback",
    "Checkpoint",
    "CollectData",
    "CollectDataCallback",
    "CutMix",
    "DevicePlacement",
    "Distributed",
    "Divergence",
    "DivergenceError",
    "EarlyStopping",
    "EarlyStoppingCallback",
    "FetchPreds",
    "FetchPredsCallback",
    "GatherPreds",
    "GatherPredsCallback",
    "GradientAccumulation",
    "GradientClip",
    "HookCallback",
    "LRFinder",
    "LRSearch",
    "MCDropout",
    "MCDropoutCallback",
    "MixUp",
    "MixedPrecision",
    "Mixing",
    "ModelReset",
    "ModelResetter",
    "ParamScheduler",
    "Preflight",
    "Profile",
    "Profiler",
    "ProgressCallback",
    "Recorder",
    "ReduceLROnPlateau",
    "SaveModel",
    "SaveModelCallback",
    "Share",
    "ShortEpoch",
    "ShortEpochCallback",
    "ShowGraph",
    "ShowGraphCallback",
    "SkipToEpoch",
    "TensorBoard",
    "TensorBoardCallback",
    "TerminateOnNaN",
    "TerminateOnNaNCallback",
    "TorchScheduler",
    "TrackerCallback",
    "TrainEval",
    "TrainEvalCallback",
    "Wandb",
    "WandbCallback",
    "WeightAverage",
    "find_lr",
    "profile_fit",
    "set_bn_eval",
]
