"""Behaviours of a fit, one a file. The first four are in every Learner unless it is made with `default_cbs=False`."""

from minilearn.callbacks.checkpoint import Checkpoint
from minilearn.callbacks.device import DevicePlacement
from minilearn.callbacks.lr_find import LRFinder, LRSearch, find_lr
from minilearn.callbacks.nan import TerminateOnNaN
from minilearn.callbacks.profile import Profile, Share, profile_fit
from minilearn.callbacks.progress import ProgressCallback
from minilearn.callbacks.recorder import Recorder
from minilearn.callbacks.schedule import ParamScheduler, TorchScheduler
from minilearn.callbacks.train_eval import TrainEval

__all__ = [
    "Checkpoint",
    "DevicePlacement",
    "LRFinder",
    "LRSearch",
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
