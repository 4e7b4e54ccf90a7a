"""What a look at a set-up finds, in one shape; and what is looked at."""

from dataclasses import dataclass

ITEMS = {
    "loader": "batches come, workers start",
    "device": "model and data on one device",
    "shapes": "predictions and targets of one shape, nothing broadcast",
    "classes": "class indices within the classes",
    "dtypes": "targets of the kind that the loss takes",
    "one-hot": "indices and one-hot targets not mixed up",
    "activation": "no sigmoid or softmax twice, or none",
    "inputs": "inputs normalised, not constant, all numbers",
    "labels": "labels of several classes, shuffled",
    "shared rows": "no row both in training and in validation",
    "mode": "model in training mode",
    "frozen": "parameters to train",
    "gradients": "a gradient for each parameter",
    "optimizer": "each parameter in the optimizer",
    "loss": "one number, of the model's parameters",
    "first loss": "first loss near that of chance",
    "learning rate": "first steps that do not explode",
    "batch norm": "more than one row for batch norm",
}
"""What is looked at, by the name that a `Finding` has; each with what is right."""


@dataclass(frozen=True)
class Finding:
    """Something in a set-up that is wrong, or may be."""

    kind: str
    """Which of `ITEMS` it is about."""
    seen: str
    """What is wrong, with the value that was seen; a sentence."""
    fix: str
    """What to do about it; a sentence, or several."""
    sure: bool
    """Whether it is an error; else it may be meant, and is a warning."""

    def __str__(self) -> str:
        return f"{self.seen} {self.fix}".strip()
