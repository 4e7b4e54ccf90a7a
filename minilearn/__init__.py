"""minilearn: a training framework for PyTorch that reads like a lesson and runs like a loop written by hand.

The map, from the ground up; a file imports only from earlier ones:

- `errors`, `tensors`: how a mistake is worded; tensors in nested batches.
- `files`, `data`, `losses`, `checks`, `metrics`, `schedule`, `optim`, `plots`: parts that have not heard of a Learner.
- `callback`, `loop`: the events, and the training loop written out once.
- `callbacks`: behaviours of a fit, one a file.
- `learner`: `Learner`, the loop plus the methods that a person types.
- `vision`: what images need; torchvision beside any build of torch.
- `all`: what a notebook needs, ``from minilearn.all import *``.
"""

__version__ = "0.1.0"
