"""Where a trained model is wrong: the rows with the greatest losses, and which class it takes for which."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from minilearn import distributed
from minilearn.batches import split_batch
from minilearn.data.order import check_loader, in_order, row_numbers, rows_at
from minilearn.errors import whole
from minilearn.learner import Learner
from minilearn.plots import plot_confusion, plot_results, plot_top_losses
from minilearn.tensors import shape_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Interpretation:
    """The loss of each row of a loader, and a look at those rows.

    `from_learner` makes one. Only losses are kept; the rows that are shown are fetched by their number and predicted
    again, so that a data set of any size can be looked at. In several processes all must make one; then each can look.

    Args:
        learn: the Learner whose model predicts.
        dl: the loader, taken in its data set's order; random numbers that its sampler draws are drawn once, now.
        losses: each row's loss, float (rows,).
        act: what to make of predictions, as in `get_preds`.
    Raises:
        TypeError: `dl` is no loader.
        ValueError: `losses` are not one a row.

    Source: fastai 2.8's names and figures.
    """

    _keeps_answers = False
    _answers: tuple[Tensor, Tensor] | None = None

    def __init__(self, learn: Learner, dl: Any, losses: Tensor, act: Callable[[Any], Any] | None = None) -> None:
        if not isinstance(losses, Tensor) or losses.ndim != 1:
            raise ValueError(f"losses must be a loss for each row, (rows,), got {shape_text(losses)}")
        self.learn, self.losses, self.act = learn, losses, act
        self.dl = in_order(check_loader(dl))[0]

    @classmethod
    def from_learner(
        cls, learn: Learner, ds_idx: int = 1, dl: Any = None, act: Callable[[Any], Any] | None = None
    ) -> Self:
        """One for the model as it is, by a pass over a loader.

        Args:
            learn: the Learner.
            ds_idx: the number of the loader in `dls`.
            dl: a loader to take instead.
            act: what to make of predictions, as in `get_preds`; by default the loss's activation.
        Raises:
            IndexError: there is no loader `ds_idx`.
            TypeError: `dl` is no loader.
            ValueError: the loader gives no targets, or no losses for its rows.
        """
        loader = in_order(learn.dls[ds_idx] if dl is None else check_loader(dl))[0]
        kept = cls._keeps_answers
        found = learn.get_preds(
            dl=loader, with_loss=True, with_decoded=kept, act=act, with_preds=False, with_targs=kept
        )
        if found[-1] is None:
            raise ValueError("there are no losses to look at: the loader gives no targets")
        made = cls(learn, loader, found[-1], act)
        made._answers = (found[1], found[2]) if kept else None
        return made

    def top_losses(self, k: int | None = None, largest: bool = True, items: bool = False) -> tuple[Any, ...]:
        """The greatest losses, or the smallest, with their rows' numbers.

        Args:
            k: how many, at least 1; all where there are fewer, or by default.
            largest: whether the greatest come first, or the smallest.
            items: with the rows themselves, as the data set has them, in a list.
        Returns:
            (losses, numbers), float (k,) and int64 (k,); with `items` the list after them.
        Raises:
            TypeError: `items`, and the loader's rows have no numbers in a data set.
        """
        n = len(self.losses)
        losses, numbers = self.losses.topk(n if k is None else min(whole("k", k, 1), n), largest=largest)
        if not items:
            return losses, numbers
        with distributed.alone():
            rows = row_numbers(self.dl)
        if rows is None:
            raise TypeError("items=True needs a loader that fetches the rows of a data set by number")
        return losses, numbers, [self.dl.dataset[rows[i]] for i in numbers.tolist()]

    def plot_top_losses(self, k: int | Sequence[int], largest: bool = True, **kwargs: Any) -> "Axes":
        """The rows with the greatest losses, or the smallest: target, prediction, loss, and its probability.

        Args:
            k: how many; or which, by their places in `top_losses`: ``range(9, 18)`` for the second nine.
            largest: whether the greatest come first, or the smallest.
            kwargs: for `plots.plot_top_losses`: `columns`, `ax`, `vocab`.
        """
        if isinstance(k, int):
            losses, numbers = self.top_losses(k, largest)
        else:
            losses, numbers = (part[list(k)] for part in self.top_losses(None, largest))
        inputs, preds, targets, decoded = self._rows(numbers.tolist())
        plain = isinstance(preds, Tensor) and preds.ndim == 2 and isinstance(decoded, Tensor) and decoded.ndim == 1
        options = {"vocab": self._vocab(), **kwargs}
        return plot_top_losses(inputs, targets, preds if plain else decoded, losses, **options)

    def show_results(self, idxs: int | Sequence[int] | Tensor, **kwargs: Any) -> "Axes":
        """Rows by their numbers, with their targets and the model's answers.

        Args:
            idxs: the numbers, as in `top_losses`.
            kwargs: for `plots.plot_results`: `columns`, `ax`, `vocab`.
        Raises:
            IndexError: there is no row of a number.
        """
        numbers = idxs.tolist() if isinstance(idxs, Tensor) else idxs
        numbers = [numbers] if isinstance(numbers, int) else list(numbers)
        inputs, _, targets, decoded = self._rows(numbers)
        return plot_results(inputs, targets, decoded, **{"max_n": len(numbers), "vocab": self._vocab(), **kwargs})

    def _rows(self, numbers: Sequence[int]) -> tuple[Any, Any, Any, Any]:
        """Inputs as the loader gives them, predictions, targets and answers of the rows of these numbers."""
        with distributed.alone():  # each process by itself: not all need to look
            batch = rows_at(self.dl, numbers)
            preds, targets, decoded = self.learn.get_preds(dl=[batch], with_decoded=True, act=self.act)
        return split_batch(batch, self.learn.dls.n_inp)[0], preds, targets, decoded

    def _vocab(self) -> Sequence[Any] | None:
        names: Sequence[Any] | None = getattr(self.learn.dls, "vocab", None)
        return names


class ClassificationInterpretation(Interpretation):
    """Which class is taken for which, beside what an `Interpretation` shows.

    Targets and answers are kept besides the losses: a number a row each. Rows may also be pixels, as in segmentation.
    Classes have the names ``learn.dls.vocab`` where there are such, else their numbers.
    """

    _keeps_answers = True

    @property
    def vocab(self) -> list[Any]:
        """The names of the classes.

        Raises:
            ValueError: targets or answers are no classes.
        """
        names = self._vocab()
        return list(range(self._classes())) if names is None else list(names)

    def confusion_matrix(self) -> "np.ndarray[Any, np.dtype[np.int64]]":
        """How many rows of each class were taken for which: int64 (classes, classes), the actual ones in the rows.

        Raises:
            ValueError: targets or answers are no classes, or one is outside the names of the classes.
        """
        targets, decoded = self._targets_and_answers()
        n = len(self.vocab)
        for name, part in (("target", targets), ("answer", decoded)):
            if len(odd := part[(part < 0) | (part >= n)]):
                raise ValueError(f"a {name} is {int(odd[0])}, and there are {n} classes: set learn.dls.vocab")
        return torch.bincount(targets * n + decoded, minlength=n * n).reshape(n, n).numpy()

    def plot_confusion_matrix(
        self, normalize: bool = False, title: str | None = None, *, ax: "Axes | None" = None
    ) -> "Axes":
        """The confusion matrix as a picture: see `plots.plot_confusion`.

        Args:
            normalize: percentages of each actual class in place of counts.
            title: a text above.
            ax: where to draw.
        """
        ax = plot_confusion(self.confusion_matrix(), self.vocab, normalize=normalize, ax=ax)
        if title is not None:
            ax.set_title(title)
        return ax

    def most_confused(self, min_val: int = 1) -> list[tuple[Any, Any, int]]:
        """(actual, predicted, rows) of the mistakes, the most frequent ones first.

        Args:
            min_val: how many rows there must be of a mistake to be listed.
        """
        matrix, names = self.confusion_matrix(), self.vocab
        np.fill_diagonal(matrix, 0)
        wrong = [(names[i], names[j], int(matrix[i, j])) for i, j in np.argwhere(matrix >= max(min_val, 1))]
        return sorted(wrong, key=lambda mistake: -mistake[2])

    def classification_report(self) -> str:
        """A table of precision, recall and F1 a class, each in [0, 1], and of how many rows there are of it.

        Below them the share of right answers, and the figures' means over the classes, plain and weighted by rows. What
        would be divided by zero is 0.
        """
        matrix = self.confusion_matrix().astype(float)
        right, actual, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
        figures = np.stack(
            [right / predicted.clip(1), right / actual.clip(1), 2 * right / (actual + predicted).clip(1)], axis=1
        )  # (classes, 3)
        names = [str(name) for name in self.vocab]
        wide, n = max(12, *map(len, names)), int(actual.sum())
        lines = [f"{'':{wide}}  precision  recall      f1     rows"]
        lines += [_line(name, wide, row, int(count)) for name, row, count in zip(names, figures, actual, strict=True)]
        lines.append(f"{'accuracy':{wide}}  {'':9}  {'':6}  {right.sum() / max(n, 1):6.4f}  {n:7,}")
        lines.append(_line("mean", wide, figures.mean(0), n))
        lines.append(_line("mean by rows", wide, actual @ figures / max(n, 1), n))
        return "\n".join(lines)

    def print_classification_report(self) -> None:
        """Prints `classification_report`."""
        print(self.classification_report())

    def _targets_and_answers(self) -> tuple[Tensor, Tensor]:
        """Classes, int64 (rows,) each.

        Raises:
            ValueError: they are no classes, or not as many of the ones as of the others.
        """
        if self._answers is None:
            found = self.learn.get_preds(dl=self.dl, with_decoded=True, act=self.act, with_preds=False)
            self._answers = found[1], found[2]
        targets, decoded = self._answers
        for name, part in (("targets", targets), ("answers", decoded)):
            if not isinstance(part, Tensor) or part.is_floating_point():
                raise ValueError(
                    f"{name} must be classes, whole numbers, got {shape_text(part)}. Answers are made by the loss's"
                    " decodes, such as CrossEntropyLossFlat's"
                )
        if targets.numel() != decoded.numel():
            raise ValueError(
                f"there must be an answer for each target, got {tuple(decoded.shape)} for {tuple(targets.shape)}"
            )
        return targets.flatten().long(), decoded.flatten().long()

    def _classes(self) -> int:
        """How many classes there are: by the width of a prediction where it has one for each class."""
        targets, decoded = self._targets_and_answers()
        _, preds, _, answer = self._rows([0])
        wide = isinstance(preds, Tensor) and preds.ndim == answer.ndim + 1
        width = preds.shape[1] if wide else 2
        return max(width, int(targets.max()) + 1, int(decoded.max()) + 1)


class SegmentationInterpretation(Interpretation):
    """The maps of a segmentation with the greatest losses: input, target and prediction side by side."""


def _line(name: str, wide: int, figures: "np.ndarray[Any, Any]", rows: int) -> str:
    precision, recall, f1 = figures
    return f"{name:{wide}}  {precision:9.4f}  {recall:6.4f}  {f1:6.4f}  {rows:7,}"
