"""Behaviours of a fit, one a file. The first four are in every Learner unless it is made with `default_cbs=False`."""

from minilearn.callbacks.csv_log import CSVLogger
from minilearn.callbacks.device import DevicePlacement
from minilearn.callbacks.lr_find import LRFinder, LRSearch, find_lr
from minilearn.callbacks.nan import TerminateOnNaN
from minilearn.callbacks.profile import Profile, Share, profile_fit
from minilearn.callbacks.profiler import Profiler
from minilearn.callbacks.progress import ProgressCallback
from minilearn.callbacks.recorder import Recorder
from minilearn.callbacks.schedule import ParamScheduler, TorchScheduler
from minilearn.callbacks.show_graph import ShowGraph, ShowGraphCallback
from minilearn.callbacks.tensorboard import TensorBoard, TensorBoardCallback
from minilearn.callbacks.train_eval import TrainEval
from minilearn.callbacks.wandb import Wandb, WandbCallback

__all__ = [
    "CSVLogger",
    "DevicePlacement",
    "LRFinder",
    "LRSearch",
    "ParamScheduler",
    "Profile",
    "Profiler",
    "ProgressCallback",
    "Recorder",
    "Share",
    "ShowGraph",
    "ShowGraphCallback",
    "TensorBoard",
    "TensorBoardCallback",
    "TerminateOnNaN",
    "TorchScheduler",
    "TrainEval",
    "Wandb",
    "WandbCallback",
    "find_lr",
    "profile_fit",
]
