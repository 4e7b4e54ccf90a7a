"""Behaviours of a fit, one a file. The first four are in every Learner unless it is made with `default_cbs=False`."""

from minilearn.callbacks.accumulation import GradientAccumulation
from minilearn.callbacks.cast import Cast
from minilearn.callbacks.device import DevicePlacement
from minilearn.callbacks.gradient_clip import GradientClip
from minilearn.callbacks.lr_find import LRFinder, LRSearch, find_lr
from minilearn.callbacks.memory_format import ChannelsLast, ChannelsLastCallback
from minilearn.callbacks.nan import TerminateOnNaN
from minilearn.callbacks.precision import AMPMode, MixedPrecision
from minilearn.callbacks.profile import Profile, Share, profile_fit
from minilearn.callbacks.progress import ProgressCallback
from minilearn.callbacks.recorder import Recorder
from minilearn.callbacks.schedule import ParamScheduler, TorchScheduler
from minilearn.callbacks.train_eval import TrainEval

__all__ = [
    "AMPMode",
    "Cast",
    "ChannelsLast",
    "ChannelsLastCallback",
    "DevicePlacement",
    "GradientAccumulation",
    "GradientClip",
    "LRFinder",
    "LRSearch",
    "MixedPrecision",
    "ParamScheduler",
    "Profile",
    "ProgressCallback",
    "Recorder",
    "Share",
    "TerminateOnNaN",
    "TorchScheduler",
    "TrainEval",
    "find_lr",
    "profile_fit",
]
