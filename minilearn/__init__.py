"""minilearn: a training framework for PyTorch that reads like a lesson and runs like a loop written by hand.

The map, from the ground up; a file imports only from earlier ones:

- `errors`, `tensors`: how a mistake is worded; tensors in nested batches.
- `files`, `archives`, `exported`, `plots`, `data`, `losses`, `checks`, `metrics`, `schedule`, `optim`: parts that have
  not heard of a Learner.
- `callback`, `loop`: the events, and the training loop written out once.
- `callbacks`: behaviours of a fit, one a file.
- `learner`: `Learner`, the loop plus the methods that a person types.
- `interpret`: where a trained model is wrong.
- `load_exported`: what `Learner.export` wrote, run.
- `vision`: what images need; torchvision beside any build of torch.
- `all`: what a notebook needs, ``from minilearn.all import *``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minilearn.exported import load_exported as load_exported

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`load_exported`, when it is first asked for: ``import minilearn`` alone loads nothing."""
    if name == "load_exported":
        from minilearn.exported import load_exported

        return load_exported
    raise AttributeError(f"module 'minilearn' has no attribute '{name}'")
