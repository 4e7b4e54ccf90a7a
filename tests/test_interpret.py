"""Where a model is wrong: losses by row, confused classes, and rows fetched again by their number."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, SubsetRandomSampler, TensorDataset

from minilearn.data import DataLoaders
from minilearn.data.order import rows_at
from minilearn.interpret import ClassificationInterpretation, Interpretation, SegmentationInterpretation
from minilearn.learner import Learner
from minilearn.losses import mnist_loss

pyplot = pytest.importorskip("matplotlib.pyplot")

# Logits that are the inputs: class 0, 1 or 2 by the largest.
X = torch.tensor([[3.0, 0, 0], [0, 4, 0], [0, 2, 1], [1, 0, 0], [0, 5, 0], [2, 0, 1]])
Y = torch.tensor([0, 1, 2, 1, 2, 0])
LOSSES = F.cross_entropy(X, Y, reduction="none")


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    pyplot.close("all")


def learner(dls: Any = None, model: nn.Module | None = None, loss: Any = F.cross_entropy) -> Learner:
    dls = DataLoaders.from_tensors(X, Y, X, Y, bs=4) if dls is None else dls
    return Learner(dls, model or nn.Identity(), loss)


def table(ax: Any) -> list[list[str]]:
    cells = ax.tables[0].get_celld()
    height, width = (max(place) + 1 for place in zip(*cells, strict=True))
    return [[cells[i, j].get_text().get_text() for j in range(width)] for i in range(1, height)]


def test_losses_are_those_of_the_rows_in_the_data_sets_order() -> None:
    for ds_idx in (0, 1):  # the first one shuffles
        torch.testing.assert_close(Interpretation.from_learner(learner(), ds_idx).losses, LOSSES)


def test_top_losses_come_with_their_rows_numbers() -> None:
    found = Interpretation.from_learner(learner())
    wanted, numbers = LOSSES.sort(descending=True)
    for (losses, places), n in ((found.top_losses(), 6), (found.top_losses(2), 2), (found.top_losses(99), 6)):
        torch.testing.assert_close(losses, wanted[:n])
        assert places.tolist() == numbers[:n].tolist()
    assert found.top_losses(1, largest=False)[1].tolist() == [int(LOSSES.argmin())]


def test_top_losses_may_come_with_the_rows_themselves() -> None:
    _, numbers, items = Interpretation.from_learner(learner()).top_losses(2, items=True)
    assert [(x.tolist(), int(y)) for x, y in items] == [(X[i].tolist(), int(Y[i])) for i in numbers.tolist()]


def test_rows_without_numbers_cannot_come_along() -> None:
    found = Interpretation.from_learner(learner(), dl=[(X, Y)])
    with pytest.raises(TypeError, match="items=True needs a loader that fetches the rows of a data set by number"):
        found.top_losses(2, items=True)


class Counting(Dataset[tuple[Tensor, Tensor]]):
    """Rows that are counted as they are read."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        self.read.append(i)
        return X[i], Y[i]


def test_only_the_rows_that_are_shown_are_read_again() -> None:
    rows = Counting()
    found = Interpretation.from_learner(learner(DataLoaders(DataLoader(rows, 4), DataLoader(rows, 4))))
    rows.read.clear()
    ax = found.show_results([4, 1])
    assert rows.read == [4, 1]
    assert table(ax) == [["0, 5, 0", "2", "1"], ["0, 4, 0", "1", "1"]]


def test_top_losses_are_shown_with_answer_loss_and_probability() -> None:
    found = Interpretation.from_learner(learner())
    (row,) = table(found.plot_top_losses(1))
    assert row == ["0, 5, 0", "2", "1", f"{LOSSES[4]:.3g}", f"{X[4].softmax(0).max():.2f}"]


def test_places_among_the_top_losses_may_be_chosen() -> None:
    found = Interpretation.from_learner(learner())
    order = LOSSES.argsort(descending=True).tolist()
    shown = table(found.plot_top_losses(range(2, 4)))
    assert [row[3] for row in shown] == [f"{LOSSES[i]:.3g}" for i in order[2:]][:2]


def test_confusion_counts_rows_by_actual_and_predicted_class() -> None:
    found = ClassificationInterpretation.from_learner(learner())
    assert found.confusion_matrix().tolist() == [[2, 0, 0], [1, 1, 0], [0, 2, 0]]
    assert found.confusion_matrix().dtype.kind == "i"


def test_most_confused_classes_come_first_by_their_names() -> None:
    learn = learner()
    learn.dls.vocab = ["a", "b", "c"]
    found = ClassificationInterpretation.from_learner(learn)
    assert found.most_confused() == [("c", "b", 2), ("b", "a", 1)]
    assert found.most_confused(min_val=2) == [("c", "b", 2)]
    ax = found.plot_confusion_matrix(title="six rows")
    assert ax.get_title() == "six rows"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]


def test_report_has_precision_recall_and_f1_of_each_class(capsys: pytest.CaptureFixture[str]) -> None:
    ClassificationInterpretation.from_learner(learner()).print_classification_report()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    # By hand of [[2, 0, 0], [1, 1, 0], [0, 2, 0]]: class 0 is said three times, twice rightly; class 2 never.
    assert rows == [
        ["precision", "recall", "f1", "rows"],
        ["0", "0.6667", "1.0000", "0.8000", "2"],
        ["1", "0.3333", "0.5000", "0.4000", "2"],
        ["2", "0.0000", "0.0000", "0.0000", "2"],
        ["accuracy", "0.5000", "6"],
        ["mean", "0.3333", "0.5000", "0.4000", "6"],
        ["mean", "by", "rows", "0.3333", "0.5000", "0.4000", "6"],
    ]


def test_class_that_never_occurs_is_a_class_all_the_same() -> None:
    found = ClassificationInterpretation.from_learner(learner(), dl=[(X[:1], Y[:1])])
    assert found.vocab == [0, 1, 2]
    assert found.confusion_matrix().sum() == 1


def test_answers_of_yes_and_no_are_two_classes() -> None:
    x, y = torch.tensor([[2.0], [-2.0], [2.0]]), torch.tensor([[1], [0], [0]])
    found = ClassificationInterpretation.from_learner(learner(DataLoaders([(x, y)], [(x, y)]), loss=mnist_loss))
    assert found.confusion_matrix().tolist() == [[1, 1], [0, 1]]


def test_pixels_are_counted_and_their_maps_shown() -> None:
    images, maps = torch.rand(2, 1, 8, 8), torch.zeros(2, 8, 8, dtype=torch.int64)
    maps[0, :3] = 1
    model = nn.Conv2d(1, 2, 1)
    learn = learner(DataLoaders([(images, maps)], [(images, maps)]), model)
    assert ClassificationInterpretation.from_learner(learn).confusion_matrix().sum() == 2 * 64
    found = SegmentationInterpretation.from_learner(learn)
    cells = found.plot_top_losses(2).child_axes
    assert len(cells) == 6
    assert cells[2].get_title().endswith(f"loss {float(found.losses.max()):.3g}")


def test_made_by_hand_it_finds_its_answers_itself() -> None:
    learn = learner()
    found = ClassificationInterpretation(learn, learn.dls.valid, LOSSES)
    assert found.confusion_matrix().tolist() == [[2, 0, 0], [1, 1, 0], [0, 2, 0]]


def subset_in_batches() -> DataLoader[Any]:
    sampler = BatchSampler(SubsetRandomSampler([5, 1, 3]), 2, drop_last=False)
    return DataLoader(TensorDataset(X, Y), batch_sampler=sampler)


@pytest.mark.parametrize(
    ("dl", "rows"),
    [
        (DataLoader(TensorDataset(X, Y), 4, shuffle=True, drop_last=True), [0, 1, 2, 3, 4, 5]),
        (DataLoader(TensorDataset(X, Y), 2, sampler=SubsetRandomSampler([5, 1, 3])), [1, 3, 5]),
        (subset_in_batches(), [1, 3, 5]),
        ([(X[:4], Y[:4]), (X[4:], Y[4:])], [0, 1, 2, 3, 4, 5]),
    ],
    ids=["shuffled", "subset", "subset in batches", "list"],
)
def test_rows_at_numbers_are_those_that_predictions_have(dl: Any, rows: list[int]) -> None:
    preds, targets = learner().get_preds(dl=dl, act=lambda pred: pred)
    assert preds.tolist() == X[rows].tolist()
    numbers = [2, 0, 2]
    x, y = rows_at(dl, numbers)
    assert x.tolist() == preds[numbers].tolist()
    assert y.tolist() == targets[numbers].tolist()


def test_loader_without_numbers_is_read_no_further_than_needed() -> None:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield X[:2], Y[:2]
        raise AssertionError("read on")

    assert rows_at(batches(), [1])[1].tolist() == [1]


@pytest.mark.parametrize("dl", [DataLoader(TensorDataset(X, Y), 4), [(X, Y)]], ids=["loader", "list"])
@pytest.mark.parametrize("number", [6, -1])
def test_row_that_is_not_there_is_an_error(dl: Any, number: int) -> None:
    with pytest.raises(IndexError, match=f"there is no row {number}: the loader gives 6, numbered from 0"):
        rows_at(dl, [0, number])


def test_interpretation_needs_targets() -> None:
    with pytest.raises(ValueError, match="there are no losses to look at: the loader gives no targets"):
        Interpretation.from_learner(learner(), dl=[X])


def test_losses_must_be_one_a_row() -> None:
    with pytest.raises(ValueError, match=r"losses must be a loss for each row, \(rows,\), got float32 \(6, 1\)"):
        Interpretation(learner(), [(X, Y)], LOSSES[:, None])


def test_numbers_are_no_classes() -> None:
    found = ClassificationInterpretation.from_learner(learner(DataLoaders([(X, X)], [(X, X)]), loss=F.mse_loss))
    with pytest.raises(ValueError, match=r"targets must be classes, whole numbers, got float32 \(6, 3\)"):
        found.confusion_matrix()


def test_names_that_are_too_few_are_an_error() -> None:
    learn = learner()
    learn.dls.vocab = ["a", "b"]
    with pytest.raises(ValueError, match=r"a target is 2, and there are 2 classes: set learn.dls.vocab"):
        ClassificationInterpretation.from_learner(learn).confusion_matrix()


def test_a_class_below_zero_is_named() -> None:
    learn = Learner([[(torch.eye(2), torch.tensor([0, 1]))]], nn.Identity(), F.cross_entropy)
    found = ClassificationInterpretation(learn, [(torch.eye(2), torch.tensor([0, 1]))], torch.zeros(2))
    found._answers = torch.tensor([-1, 1]), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="a target is -1, and there are 2 classes"):
        found.confusion_matrix()
