"""What loggers share: figures that come late but whole, and what is written over a picture."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

from minilearn.callbacks.figures import BatchFigures, FirstRows
from minilearn.losses import BCEWithLogitsLossFlat
from minilearn.metrics import AvgSmoothLoss
from minilearn.tensors import LateScalars


class Batch:
    """What is read of a loop."""

    def __init__(self, **there: Any) -> None:
        vars(self).update(there)


def as_on_a_gpu(figures: BatchFigures) -> None:
    figures._late.reads_from_cpu = False


def taken(figures: BatchFigures, opt: Any, losses: list[float]) -> None:
    for step, loss in enumerate(losses, start=1):
        figures.take(Batch(loss=torch.tensor(loss), opt=opt), step)  # type: ignore[arg-type]


def test_figures_of_a_device_come_when_they_are_read_with_the_rates_of_their_batch() -> None:
    got: list[tuple[int, float]] = []
    opt = SGD([nn.Parameter(torch.ones(1))], lr=0.5)
    figures = BatchFigures(lambda step, found: got.append((step, found["lr_0"])))
    as_on_a_gpu(figures)
    figures.begin(0.98)
    for step in (1, 2, 3):
        opt.param_groups[0]["lr"] = float(step)
        figures.take(Batch(loss=torch.tensor(1.0), opt=opt), step)  # type: ignore[arg-type]
    assert got == []
    figures.read()
    assert got == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_rate_that_is_a_tensor_is_that_of_its_batch() -> None:
    got = []
    rate = torch.tensor(0.5)
    opt = Adam([nn.Parameter(torch.ones(1))], lr=rate)
    figures = BatchFigures(lambda step, found: got.append(found["lr_0"]))
    as_on_a_gpu(figures)
    taken(figures, opt, [1.0])
    rate.fill_(0.25)
    taken(figures, opt, [1.0])
    figures.read()
    assert got == [0.5, 0.25]


def test_average_is_of_every_batch_where_every_third_is_given() -> None:
    losses, got = [5.0, 4.0, 3.0, 2.0, 1.0], []
    figures = BatchFigures(lambda step, found: got.append((step, found["train_loss"])), stride=3)
    figures.begin(0.9)
    taken(figures, SGD([nn.Parameter(torch.ones(1))], lr=0.1), losses)
    average, wanted = AvgSmoothLoss(0.9), []
    for loss in losses:
        average.update(loss)
        wanted.append(average.value)
    assert got == [(1, wanted[0]), (4, wanted[3])]


def test_average_goes_on_from_its_state() -> None:
    opt = SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    whole: list[dict[str, float]] = []
    parts: list[dict[str, float]] = []
    one = BatchFigures(lambda step, found: whole.append(found))
    taken(one, opt, [3.0, 2.0, 1.0])
    first, second = (BatchFigures(lambda step, found: parts.append(found)) for _ in range(2))
    taken(first, opt, [3.0, 2.0])
    second.load_state_dict(first.state_dict())
    taken(second, opt, [1.0])
    assert parts == whole


def titles(x: Tensor, pred: Any, y: Any, loss_func: Any = None, n: int = 4) -> list[str]:
    """What stands over the images of a batch."""
    rows = FirstRows(n)
    rows.keep(Batch(x=x, y=y, pred=pred))  # type: ignore[arg-type]
    figure = rows.figure(loss_func)
    assert figure is not None
    return [cell.get_title() for cell in figure.axes[0].child_axes]


X = torch.rand(6, 1, 8, 8)


def test_classes_are_shown_beside_their_targets() -> None:
    assert titles(X, torch.eye(6), torch.tensor([0, 1, 5, 3, 4, 5])) == ["0 / 0", "1 / 1", "2 / 5", "3 / 3"]


def test_numbers_are_shown_beside_their_targets() -> None:
    assert titles(X, torch.full((6, 1), 0.12345), torch.full((6, 1), 2.0), n=1) == ["0.123 / 2"]


def test_a_loss_that_knows_its_answers_gives_them() -> None:
    class Loss(nn.Module):
        def decodes(self, pred: Tensor) -> Tensor:
            return (pred > 0).long()

    assert titles(X, torch.full((6,), 3.0), torch.zeros(6, dtype=torch.long), Loss(), n=1) == ["1 / 0"]


@pytest.mark.parametrize("pred", [torch.rand(6, 3, 8, 8), (torch.rand(6), torch.rand(6)), None])
def test_an_answer_that_is_no_number_an_image_is_left_out(pred: Any) -> None:
    assert titles(X, pred, torch.zeros(6, dtype=torch.long), n=2) == ["0", "0"]


def test_rows_are_copies_as_a_batchs_memory_may_be_used_again() -> None:
    x, rows = X.clone(), FirstRows(2)
    rows.keep(Batch(x=x, y=torch.zeros(6), pred=torch.zeros(6)))  # type: ignore[arg-type]
    kept = rows.figure(None)
    x.zero_()
    again = rows.figure(None)
    assert kept is not None
    assert again is not None
    shown = [figure.axes[0].child_axes[0].images[0].get_array().tolist() for figure in (kept, again)]
    assert shown[0] == shown[1]


@pytest.mark.parametrize("x", [torch.rand(6, 3), torch.rand(6, 5, 8, 8), {"x": torch.rand(6, 1, 8, 8)}])
def test_what_is_no_image_has_no_picture(x: Any) -> None:
    rows = FirstRows(4)
    rows.keep(Batch(x=x, y=torch.zeros(6), pred=torch.zeros(6)))  # type: ignore[arg-type]
    assert rows.figure(None) is None


def test_late_figures_are_not_kept_beyond_a_chunk() -> None:
    got: list[int] = []
    figures = BatchFigures(lambda step, found: got.append(step))
    as_on_a_gpu(figures)
    taken(figures, SGD([nn.Parameter(torch.ones(1))], lr=0.1), [1.0] * (2 * LateScalars.chunk))
    assert len(got) >= LateScalars.chunk


def test_answers_of_a_binary_loss_are_of_probabilities_not_of_logits() -> None:
    loss_func, logits = BCEWithLogitsLossFlat(), torch.full((6,), 0.2)  # a probability of 0.55
    assert titles(X, logits, torch.ones(6, dtype=torch.long), loss_func, n=1) == ["1 / 1"]
    assert titles(X, logits, torch.ones(6), nn.BCEWithLogitsLoss(), n=1) == ["1 / 1"]
