"""Rows with what they are, and what was answered: as pictures where the input is images, else as a table."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minilearn.plots.ground import ORANGE, new_axes
from minilearn.plots.images import plot_images, viewable
from minilearn.tensors import leaves, shape_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LETTER_INCHES = 0.08
"""How wide a letter of a table is, about; a table is as wide as its texts."""
LEAST_SIDE = 8
"""Images have at least so many pixels a side; what is smaller is numbers, to be read."""


def plot_results(
    inputs: Any,
    targets: Any,
    answers: Any,
    *,
    max_n: int = 9,
    vocab: Sequence[str] | None = None,
    columns: int = 3,
    ax: "Axes | None" = None,
) -> "Axes":
    """Rows with their targets and answers: pictures where the input is images, else a table of text.

    Images are (batch, height, width), (batch, channels, height, width) with 1 or 3 channels, or (batch, height ·
    width) of square ones, at least 8 pixels a side. A wrong answer is marked where target and answer are whole numbers
    or truth values. Targets and answers that are maps of the images' size, as in segmentation, or images themselves,
    are pictures too: a row has input, target and answer.

    Args:
        inputs: a batch's input, a tensor or anything nested.
        targets: the targets, or None.
        answers: the answers in the form of the targets, on the CPU.
        max_n: how many rows at most.
        vocab: names of the classes.
        columns: images a row of the picture; with maps it is 3.
        ax: where to draw; by default a new figure.
    Returns:
        The axes.
    """
    answer_texts = _texts(answers, max_n, vocab)
    n = len(answer_texts)
    target_texts = _texts(targets, n, vocab) if targets is not None else []
    wrong = _wrong(targets, answers, n)
    images = as_images(inputs)
    if images is None:
        named = {"input": _texts(inputs, n), "target": target_texts or [""] * n, "prediction": answer_texts}
        return _table(named, wrong, ax)
    titles = [
        f"{target} → {answer}" for target, answer in zip(target_texts, answer_texts, strict=False)
    ] or answer_texts
    images, columns = images[:n], min(columns, n)
    if (maps := _as_maps(images, targets, answers, n)) is not None:
        (images, titles), wrong, columns = maps, [], 3
    return _grid(images, titles, wrong, columns, ax)


def show_batch(
    xb: Any,
    yb: Any = None,
    *,
    max_n: int = 9,
    vocab: Sequence[str] | None = None,
    columns: int = 3,
    ax: "Axes | None" = None,
) -> "Axes":
    """The first rows of a batch with their targets: pictures where the input is images, else a table of text.

    What images are is told by `plot_results`; they may be of any scale. Targets that are maps or images of the inputs'
    size stand beside them.

    Args:
        xb: a batch's input, a tensor or anything nested.
        yb: the targets, or None.
        max_n: how many rows at most.
        vocab: names of the classes.
        columns: images a row of the picture; with maps it is 2.
        ax: where to draw; by default a new figure.
    """
    images = as_images(xb)
    titles = _texts(yb, max_n, vocab) if yb is not None else []
    if images is None:
        texts = _texts(xb, max_n)
        return _table({"input": texts, **({"target": titles[: len(texts)]} if titles else {})}, [], ax)
    images = images[:max_n]
    n, columns = len(images), min(columns, len(images))
    yb = _alone(yb)
    maps = as_images(yb)
    if maps is not None and isinstance(yb, Tensor) and yb.ndim > 2 and maps.shape[1:3] == images.shape[1:3]:
        most = max(float(yb[:n].max()), 1.0)
        beside = _coloured(maps[:n]) if yb.is_floating_point() else _of_classes(maps[:n] / most)
        images, columns = torch.stack([_coloured(images), beside], 1).flatten(0, 1), 2
        titles = ["input", "target"] + [""] * 2 * (n - 1)
    return _grid(images, titles, [], columns, ax)


def plot_top_losses(
    images: Any,
    targets: Any,
    preds: Any,
    losses: Tensor,
    *,
    vocab: Sequence[str] | None = None,
    columns: int = 4,
    ax: "Axes | None" = None,
) -> "Axes":
    """Rows with target, prediction and loss above each: pictures, or a table where the input is no images.

    Args:
        images: the inputs; what images are is told by `plot_results`. Of maps each row has three pictures.
        targets: the targets.
        preds: the answers in the form of the targets; or probabilities, float (rows, classes), for targets that are
            classes, (rows,): then the class with the highest is the answer, and its probability is said too.
        losses: (rows,).
        vocab: names of the classes.
        columns: images a row of the picture.
        ax: where to draw; by default a new figure.
    """
    n = len(losses)
    targets, preds, said = _alone(targets), _alone(preds), [""] * n
    if _are_probabilities(preds, targets):
        best = preds.detach().cpu().float().max(dim=1)
        preds, said = best.indices, [f", p {share:.2f}" for share in best.values.tolist()]
    numbers = [f"{loss:.3g}" for loss in losses.detach().cpu().float().tolist()]
    answers, wanted = (_texts(part, n, vocab) for part in (preds, targets))
    wrong, shown = _wrong(targets, preds, n), as_images(images)
    if shown is None:
        named = {"input": _texts(images, n), "target": wanted, "prediction": answers, "loss": numbers}
        if any(said):
            named["probability"] = [text.removeprefix(", p ") for text in said]
        return _table(named, wrong, ax)
    if (maps := _as_maps(shown[:n], targets, preds, n)) is not None:
        shown, titles = maps
        titles[2::3] = [f"{text}, loss {loss}" for loss, text in zip(numbers, titles[2::3], strict=True)]
        return _grid(shown, titles, [], 3, ax)
    rows = zip(wanted, answers, numbers, said, strict=True)
    titles = [f"{target} → {answer}\nloss {loss}{share}" for target, answer, loss, share in rows]
    ax = _grid(shown[:n], titles, wrong, min(columns, n), ax)
    ax.set_title(f"target → prediction, loss{', probability' if any(said) else ''}", pad=12)
    return ax


def _are_probabilities(preds: Any, targets: Any) -> bool:
    if not isinstance(preds, Tensor) or not isinstance(targets, Tensor):
        return False
    if targets.is_floating_point() or not preds.is_floating_point():
        return False
    return preds.ndim == 2 and preds.shape[1] > 1 and targets.numel() == len(preds)


def _grid(images: Tensor, titles: Sequence[str], wrong: Sequence[bool], columns: int, ax: "Axes | None") -> "Axes":
    """Images in a grid, in a figure as large as they need."""
    lines = 1 + max((title.count("\n") for title in titles), default=0)
    size = 2.0 * columns, (2.0 + 0.2 * lines) * math.ceil(len(images) / columns)
    return plot_images(images, titles, wrong=wrong, columns=columns, ax=new_axes(ax, size))


def as_images(inputs: Any) -> Tensor | None:
    """A batch's input as images, (batch, height, width) or (batch, height, width, 3) in [0, 1]; None for no images."""
    inputs = _alone(inputs)
    if not isinstance(inputs, Tensor) or inputs.ndim not in (2, 3, 4) or inputs.is_complex():
        return None
    images = inputs.detach().cpu().float()
    if images.ndim == 2:
        side = math.isqrt(images.shape[1])
        images = images.reshape(-1, side, side) if side * side == images.shape[1] else images[:, None]
    if images.ndim == 4:
        if images.shape[1] not in (1, 3):
            return None
        images = images[:, 0] if images.shape[1] == 1 else viewable(images)
    sides = images.shape[1:3]
    return images if min(sides) >= LEAST_SIDE else None


def _alone(value: Any) -> Any:
    """What is alone in a tuple or a list, else the value."""
    while isinstance(value, (tuple, list)) and len(value) == 1:
        value = value[0]
    return value


def _as_maps(images: Tensor, targets: Any, answers: Any, n: int) -> tuple[Tensor, list[str]] | None:
    """Inputs, targets and answers in turn, (3 · n, height, width, 3) in [0, 1], and titles; None if these are no maps.

    Of classes each has a colour of its own, the same in target and answer, and the share of pixels that are right is
    said.
    """
    targets, answers = _alone(targets), _alone(answers)
    wanted, said = as_images(targets), as_images(answers)
    sides = images.shape[1:3]
    if wanted is None or said is None or wanted.shape != said.shape or wanted.shape[1:3] != sides:
        return None
    wanted, said = wanted[:n], said[:n]
    titles = ["input", "target", "prediction"] + [""] * 3 * (n - 1)
    if targets.is_floating_point() or answers.is_floating_point():
        columns = [_coloured(part) for part in (images[:n], wanted, said)]
    else:
        most = max(float(wanted.max()), float(said.max()), 1.0)
        columns = [_coloured(images[:n]), *(_of_classes(part / most) for part in (wanted, said))]
        right = (wanted == said).flatten(1).float().mean(1).tolist()
        titles[2::3] = [f"{'prediction, ' if i == 0 else ''}{share:.0%} right" for i, share in enumerate(right)]
    return torch.stack(columns, 1).flatten(0, 1), titles


def _coloured(images: Tensor) -> Tensor:
    """Images (batch, height, width) of any scale, or (batch, height, width, 3) as they are, with three channels."""
    return images if images.ndim == 4 else viewable(images[:, None])[..., None].expand(-1, -1, -1, 3)


def _of_classes(shares: Tensor) -> Tensor:
    """Numbers in [0, 1], (batch, height, width), as colours, (batch, height, width, 3)."""
    from matplotlib import colormaps

    return torch.from_numpy(colormaps["viridis"](shares.numpy())[..., :3]).float()


def _texts(values: Any, n: int, vocab: Sequence[str] | None = None) -> list[str]:
    """A text for each of the first `n` rows."""
    if isinstance(values, Mapping):
        named = {key: _texts(part, n, vocab) for key, part in values.items()}
        return [
            ", ".join(f"{key}: {text}" for key, text in zip(named, row, strict=True))
            for row in zip(*named.values(), strict=False)
        ]
    if isinstance(values, tuple):
        return [", ".join(row) for row in zip(*(_texts(part, n, vocab) for part in values), strict=False)]
    if isinstance(values, list):
        if any(isinstance(part, Tensor) and len(values) < n and part.ndim for part in values):
            return _texts(tuple(values), n, vocab)
        return [_short(value) for value in values[:n]]
    if not isinstance(values, Tensor) or not values.ndim:
        return [_short(values)] * n
    rows = values.detach()[:n].cpu()
    return [_row_text(row, vocab) for row in rows]


def _row_text(row: Tensor, vocab: Sequence[str] | None) -> str:
    if row.numel() == 1:
        value = row.item()
        return str(vocab[int(value)]) if vocab is not None and isinstance(value, int) else _short(value)
    if row.ndim == 1:
        shown = ", ".join(_short(value) for value in row[:6].tolist())
        return f"{shown}, …" if len(row) > 6 else shown
    return shape_text(row)


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _wrong(targets: Any, answers: Any, n: int) -> list[bool]:
    """Whether each answer is another than the target, where that can be said."""
    pair = [leaves(part) for part in (targets, answers)]
    if [len(part) for part in pair] != [1, 1] or not all(isinstance(part[0], Tensor) for part in pair):
        return []
    target, answer = pair[0][0][:n].cpu(), pair[1][0][:n].cpu()
    if answer.is_floating_point() or answer.numel() != target.numel():
        return []
    differs: list[bool] = (answer.reshape(target.shape) != target).reshape(len(target), -1).any(1).tolist()
    return differs


def _table(named: Mapping[str, list[str]], wrong: Sequence[bool], ax: "Axes | None") -> "Axes":
    """Columns of text by their headings; the prediction of a row that is `wrong` in a colour of its own."""
    columns = [[heading, *texts] for heading, texts in named.items()]
    letters = sum(max(map(len, column)) + 4 for column in columns)
    ax = new_axes(ax, (max(4.0, LETTER_INCHES * letters), 0.2 + 0.3 * len(columns[0])))
    ax.set_axis_off()
    headings, *rows = zip(*columns, strict=True)
    table = ax.table(rows, colLabels=headings, loc="center", cellLoc="left")
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    table.auto_set_column_width(list(range(len(columns))))
    for i, marked in enumerate(wrong):
        if marked:
            table[i + 1, headings.index("prediction")].get_text().set_color(ORANGE)
    for cell in table.get_celld().values():
        cell.set_edgecolor("#DDDDDD")
    return ax
