"""What loggers send elsewhere: the figures of training batches, read late, and a picture of some predictions."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from minilearn.errors import whole
from minilearn.losses import activation_of, decodes_of
from minilearn.metrics import AvgSmoothLoss
from minilearn.optim.hypers import named
from minilearn.plots import plot_images, viewable
from minilearn.tensors import LateScalars, on_its_way

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from minilearn.loop import Loop

Sink = Callable[[int, dict[str, float]], object]


class BatchFigures:
    """Gives `sink` the figures of training batches, by name and in order, as they arrive from the device.

    `train_loss` is the loss's moving average, as in the table; `raw_loss` the batch's own; `lr_0`, `mom_0`, … the
    hyperparameters of the first layer that the optimizer knows, `lr_1` of the second, and so on: fastai's names.
    From a GPU they come some hundred batches late, or when `read` is called, so that no batch waits.

    Args:
        sink: called with the number of the training batch, from 1, and its figures.
        stride: every how many batches.
    """

    def __init__(self, sink: Sink, stride: int = 1) -> None:
        self._sink, self.stride = sink, whole("stride", stride, 1)
        self._late = LateScalars(self._arrived)
        self._late.together = 1  # somebody may be watching
        self._average = AvgSmoothLoss()
        self._opt: Optimizer | None = None
        self._spots: list[tuple[str, int, str, int | None]] = []

    def begin(self, beta: float) -> None:
        """A fit begins; `beta` is how much of the moving average stays from batch to batch."""
        self._late.clear()
        self._average, self._opt = AvgSmoothLoss(beta), None

    def take(self, learn: "Loop", step: int) -> None:
        """Takes on the training batch that is number `step`; one cancelled before it had a loss is left out."""
        if hasattr(learn, "loss"):
            shown = (step - 1) % self.stride == 0
            self._late.append(learn.loss, (step, self._hypers(learn.opt, learn.loss)) if shown else None)

    def read(self) -> None:
        """Gives the sink what it has not got yet. Waits for the device."""
        self._late.read()

    def state_dict(self) -> dict[str, float]:
        """The moving average. Waits for the device."""
        self.read()
        return self._average.state_dict()

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Goes on from what `state_dict` gave."""
        self._late.clear()
        self._average.load_state_dict(state)

    def _arrived(self, losses: list[float], tags: list[tuple[int, list[Any]] | None]) -> None:
        names = [name for name, *_ in self._spots]
        for loss, smooth, tag in zip(losses, self._average.update_all(losses), tags, strict=True):
            if tag is not None:
                step, hypers = tag
                shown = dict(zip(names, map(float, hypers), strict=True))
                self._sink(step, {"train_loss": smooth, "raw_loss": loss, **shown})

    def _hypers(self, opt: Optimizer, loss: Tensor) -> list[Any]:
        """Each layer's hyperparameters: numbers, or their copies on the way, queued before the loss's own."""
        groups = opt.param_groups
        if opt is not self._opt:
            self.read()  # what is under way has the names of the optimizer before
            self._opt, self._spots = opt, _spots(groups)
        found = [groups[i][key] if at is None else groups[i][key][at] for _, i, key, at in self._spots]
        return [value if value.__class__ is float else on_its_way(value, loss) for value in found]


def _spots(groups: list[dict[str, Any]]) -> list[tuple[str, int, str, int | None]]:
    """The name of each layer's hyperparameters, its group, and where in it they are.

    Of a layer's groups the one stands for it that has weight decay, where there is one.
    """
    shown: dict[int, int] = {}
    for i, group in enumerate(groups):
        layer = group.get("layer", i)
        if layer not in shown or (groups[shown[layer]].get("no_wd") and not group.get("no_wd")):
            shown[layer] = i
    return [
        (f"{name}_{layer}", i, key, at) for layer, i in shown.items() for name, (key, at) in named(groups[i]).items()
    ]


def is_first_set(learn: "Loop") -> bool:
    """Whether the loader in use is the first validation set: not a further one, nor one that a callback looks at."""
    loaders = learn.dls.loaders
    return len(loaders) > 1 and learn.dl is loaders[1]


class FirstRows:
    """A few rows of a batch with what the model says of them, and a picture of that.

    Args:
        n: how many rows at most.
    """

    def __init__(self, n: int) -> None:
        self.n = whole("n_preds", n, 1)
        self._rows: tuple[Tensor, Tensor, Tensor] | None = None

    def keep(self, learn: "Loop") -> None:
        """Copies the first rows of the batch, where its input is images; nothing is read from the device.

        Images are float or uint8 (batch, channels, height, width) with one or three channels.
        """
        x: Any = learn.x
        if not (isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] in (1, 3)):
            return
        none = torch.empty(0)
        parts: list[Any] = [x, getattr(learn, "pred", None), learn.y]
        kept = [part[: self.n].detach().clone() if _goes_with(part, x) else none for part in parts]
        self._rows = (kept[0], kept[1], kept[2])

    def forget(self) -> None:
        """Lets go of the rows."""
        self._rows = None

    def figure(self, loss_func: Any) -> "Figure | None":
        """The images, each below "prediction / target"; those that are wrong in a frame. Waits for the device.

        Args:
            loss_func: what makes an answer of a prediction, by its `activation` and `decodes` (`losses.decodes_of`);
                where it says nothing, the greatest logit counts if the targets are classes.
        Returns:
            A figure that pyplot has not heard of, so that none is left open; None where there were no images.
        """
        if self._rows is None:
            return None
        from matplotlib.figure import Figure

        x, pred, y = self._rows
        answers = _answers(pred, y, loss_func)
        said, wanted = _texts(answers, len(x)), _texts(y, len(x))
        titles = [" / ".join(text for text in pair if text) for pair in zip(said, wanted, strict=True)]
        comparable = answers.shape == y.shape and not answers.is_floating_point() and not y.is_floating_point()
        columns = math.ceil(math.sqrt(len(x)))
        rows = math.ceil(len(x) / columns)
        width, height = 1.3 * columns + 0.2, 1.5 * rows + 0.3
        figure = Figure(figsize=(width, height))
        ax = figure.add_axes((0.15 / width, 0.1 / height, 1 - 0.15 / width, 1 - 0.25 / height))
        wrong = (answers != y).tolist() if comparable else []
        plot_images(viewable(x), titles, wrong=wrong, columns=columns, ax=ax)
        if any(titles):
            figure.suptitle("prediction / target", fontsize=10, y=1 - 0.1 / height)
        return figure


def _goes_with(part: Any, x: Tensor) -> bool:
    return isinstance(part, Tensor) and part.ndim > 0 and len(part) == len(x)


def _answers(pred: Tensor, y: Tensor, loss_func: Any) -> Tensor:
    if len(pred) and loss_func is not None:
        decoded: Any = decodes_of(loss_func)(activation_of(loss_func)(pred))
        if isinstance(decoded, Tensor) and decoded is not pred:
            return decoded.to(y.dtype) if decoded.dtype is torch.bool and len(y) else decoded
    of_classes = pred.ndim == 2 and pred.shape[1] > 1 and y.ndim == 1 and not y.is_floating_point()
    return pred.argmax(dim=1) if of_classes else pred


def _texts(values: Tensor, n: int) -> list[str]:
    """A number for each row; nothing where a row has several, or none."""
    if values.numel() != n:
        return [""] * n
    return [f"{value:.3g}" if isinstance(value, float) else str(value) for value in values.flatten().tolist()]
