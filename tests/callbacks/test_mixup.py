"""`MixUp` and `CutMix`: fastai's numbers, any loss, and nothing left behind."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minilearn.callback import Callback, CancelBatchException, CancelEpochException, CancelFitException
from minilearn.callbacks import CutMix, MixUp, ProgressCallback, Recorder
from minilearn.callbacks.mixup import Blend, BlendedLoss, unreduced
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.losses import flat_binary_cross_entropy
from minilearn.metrics import accuracy
from minilearn.optim import SGD

REFERENCE = Path(__file__).parent.parent / "fastai_reference"


def images(kind: str = "classes") -> tuple[Tensor, Tensor]:
    """Those of fastai_reference/record_mixup.py."""
    x = torch.arange(8 * 60, dtype=torch.float32).reshape(8, 2, 5, 6).mul(0.37).sin()
    return x, (torch.arange(24).reshape(8, 3) % 2).float() if kind == "bce" else torch.arange(8) % 3


def linear() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(60, 3))
    with torch.no_grad():
        net[1].weight.copy_(torch.arange(180.0).reshape(3, 60).mul(0.11).cos() / 8)
        net[1].bias.zero_()
    return net


class Seed(Callback):
    """Seeds each batch, before it is blended."""

    order = -1

    def before_batch(self) -> None:
        torch.manual_seed(7)


class See(Callback):
    """Keeps what there is after the loss."""

    order = 10
    acts_in_step = False

    def __init__(self) -> None:
        self.seen: list[tuple[bool, Tensor, tuple[Any, ...], float, Any]] = []

    def after_loss(self) -> None:
        self.seen.append((self.training, self.x.clone(), self.yb, float(self.loss.detach()), self.learn.loss_func))


def learner(loss_func: Any, kind: str = "classes", cbs: Any = None, **options: Any) -> Learner:
    x, y = images(kind)
    options.setdefault("bs", 8)
    dls = DataLoaders.from_tensors(x, y, x, y, bs=options.pop("bs"), shuffle=False)
    learn = Learner(dls, linear(), loss_func, SGD, 0.1, cbs=cbs, **options)
    learn.remove_cb(ProgressCallback)
    learn.logger = lambda text: None
    return learn


def smoothed(pred: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    return F.cross_entropy(pred, target, label_smoothing=0.1, reduction=reduction)


CASES = [
    ("mixup, cross-entropy", MixUp(0.4), nn.CrossEntropyLoss(), "classes"),
    ("mixup, cross-entropy", MixUp(0.4), F.cross_entropy, "classes"),
    ("mixup, cross-entropy", MixUp(0.4), None, "classes"),
    ("mixup, label smoothing", MixUp(0.4), nn.CrossEntropyLoss(label_smoothing=0.1), "classes"),
    ("mixup, label smoothing", MixUp(0.4), partial(F.cross_entropy, label_smoothing=0.1), "classes"),
    ("mixup, label smoothing", MixUp(0.4), smoothed, "classes"),
    ("mixup, sum", MixUp(1.5), nn.CrossEntropyLoss(reduction="sum"), "classes"),
    ("mixup, sum", MixUp(1.5), partial(F.cross_entropy, reduction="sum"), "classes"),
    ("mixup, bce", MixUp(0.4), nn.BCEWithLogitsLoss(), "bce"),
    ("mixup, bce", MixUp(0.4), F.binary_cross_entropy_with_logits, "bce"),
    ("cutmix, cross-entropy", CutMix(1.0), nn.CrossEntropyLoss(), "classes"),
    ("cutmix, cross-entropy", CutMix(1.0), F.cross_entropy, "classes"),
    ("cutmix, bce", CutMix(1.0), nn.BCEWithLogitsLoss(), "bce"),
]


@pytest.mark.parametrize(("name", "mix", "loss_func", "kind"), CASES)
def test_the_numbers_are_fastais(name: str, mix: Callback, loss_func: Any, kind: str) -> None:
    figures = json.loads((REFERENCE / "mixup.json").read_text())[name]
    learn, see = learner(loss_func, kind), See()
    if loss_func is None:  # known before the first batch is blended only in a second fit
        learn.fit(1, 0.0)
    learn.fit(1, cbs=[Seed(), mix, see])
    _, x, _, loss, _ = see.seen[0]
    assert loss == pytest.approx(figures["loss"], rel=1e-5)
    weighted = x.double().mul(torch.arange(480.0).reshape(8, 2, 5, 6)).sum().item()
    assert weighted == pytest.approx(figures["inputs"], rel=1e-5)


def test_mixup_is_its_formula_row_by_row() -> None:
    x, y = images()
    learn, see = learner(F.cross_entropy), See()
    learn.fit(1, cbs=[Seed(), MixUp(0.4), see])
    torch.manual_seed(7)
    drawn = torch.distributions.Beta(torch.tensor(0.4), torch.tensor(0.4)).sample((8,))
    others = torch.randperm(8)
    total = 0.0
    net = linear().requires_grad_(False)
    for i in range(8):
        lam = max(float(drawn[i]), 1 - float(drawn[i]))
        row = lam * x[i] + (1 - lam) * x[others[i]]
        torch.testing.assert_close(see.seen[0][1][i], row)
        pred = net(row[None])
        total += lam * float(F.cross_entropy(pred, y[i : i + 1]))
        total += (1 - lam) * float(F.cross_entropy(pred, y[others[i : i + 1]]))
    assert see.seen[0][3] == pytest.approx(total / 8, rel=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_cutmix_shares_the_loss_by_the_area_that_was_pasted(seed: int) -> None:
    class Other(Seed):
        def before_batch(self) -> None:
            torch.manual_seed(seed)

    x, y = images()
    x = torch.arange(8.0)[:, None, None, None].expand(8, 2, 5, 6).contiguous()  # each image has its own number
    dls = DataLoaders.from_tensors(x, y, bs=8, shuffle=False)
    learn, see = Learner(dls, linear(), F.cross_entropy, SGD, 0.1), See()
    with learn.no_logging():
        learn.fit(1, cbs=[Other(), CutMix(1.0), see])
    mixed = see.seen[0][1]
    lam = float((mixed[:, 0] == x[:, 0]).float().mean(dim=(1, 2)).min())  # a row may be its own other
    others = mixed.flatten(1)[torch.arange(8), (mixed != x).flatten(1).int().argmax(1)].long()
    for i in range(8):
        inside = mixed[i, 0] != x[i, 0]
        if inside.any():  # one box: every row of it is as wide as the widest
            rows, columns = inside.any(1), inside.any(0)
            assert bool((inside == (rows[:, None] & columns)).all())
    pred = linear().requires_grad_(False)(mixed)
    wanted = lam * F.cross_entropy(pred, y) + (1 - lam) * F.cross_entropy(pred, y[others])
    assert see.seen[0][3] == pytest.approx(float(wanted), rel=1e-5)


def test_cutmix_does_not_write_to_the_data() -> None:
    learn = learner(F.cross_entropy)
    learn.fit(3, cbs=CutMix())
    assert torch.equal(learn.dls.train.dataset.tensors[0], images()[0])


def by_batch(pred: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(pred, target)


def test_a_loss_that_cannot_leave_its_reduction_has_one_share_a_batch() -> None:
    x, y = images()
    learn, see = learner(by_batch), See()
    learn.fit(1, cbs=[Seed(), MixUp(0.4), see])
    torch.manual_seed(7)
    lam = float(torch.distributions.Beta(torch.tensor(0.4), torch.tensor(0.4)).sample((1,)))
    lam, others = max(lam, 1 - lam), torch.randperm(8)
    mixed = lam * x + (1 - lam) * x[others]
    torch.testing.assert_close(see.seen[0][1], mixed)
    pred = linear().requires_grad_(False)(mixed)
    wanted = lam * F.cross_entropy(pred, y) + (1 - lam) * F.cross_entropy(pred, y[others])
    assert see.seen[0][3] == pytest.approx(float(wanted), rel=1e-5)


def test_whole_numbers_as_answers_are_blended_in_the_loss() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(16, 4), torch.arange(16) % 2
    learn = Learner(DataLoaders.from_tensors(x, y, bs=8), nn.Linear(4, 1), flat_binary_cross_entropy, SGD, 0.1)
    with learn.no_logging():
        learn.fit(1, cbs=MixUp())
    assert len(learn.recorder.losses) == 2


def test_losses_of_pixels_are_blended_by_row() -> None:
    rows = torch.rand(4, 3, 5, 5), torch.randint(0, 3, (4, 5, 5))
    second = rows[1].flip(0)
    lam = torch.tensor([1.0, 0.75, 0.5, 0.9])
    got = BlendedLoss(nn.CrossEntropyLoss())(rows[0], Blend((rows[1],), (second,), lam))
    each = [F.cross_entropy(rows[0], y, reduction="none").mean((1, 2)) for y in (rows[1], second)]
    torch.testing.assert_close(got, (lam * each[0] + (1 - lam) * each[1]).mean())


def test_a_loss_that_holds_its_reduction_within_stays_as_it_is() -> None:
    class Flat:
        """As fastai's losses: `reduction` is that of a part."""

        def __init__(self) -> None:
            self.func = nn.CrossEntropyLoss()

        def __call__(self, pred: Tensor, target: Tensor) -> Tensor:
            return self.func(pred, target)

        reduction = property(lambda self: self.func.reduction, lambda self, v: setattr(self.func, "reduction", v))

    loss = Flat()
    rows, was = unreduced(loss)
    assert (was, loss.reduction) == ("mean", "mean")
    assert rows is not None
    assert rows(torch.rand(4, 3), torch.tensor([0, 1, 2, 0])).shape == (4,)


def test_the_weights_of_a_loss_are_those_that_are_moved_and_changed() -> None:
    loss = nn.CrossEntropyLoss(weight=torch.ones(3))
    rows, _ = unreduced(loss)
    loss.weight.fill_(2)
    assert rows is not None
    pred, y = torch.rand(4, 3), torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(rows(pred, y), 2 * F.cross_entropy(pred, y, reduction="none"))


def test_validation_is_plain_and_metrics_of_training_see_the_targets() -> None:
    learn, see = learner(F.cross_entropy), See()
    learn.fit(1, 0.0, cbs=[MixUp(), see])
    (training, x, yb, _, during), (validating, plain, plain_yb, loss, after) = see.seen
    assert (training, validating) == (True, False)
    assert not torch.equal(x, images()[0])
    assert torch.equal(plain, images()[0])
    assert torch.equal(yb[0], images()[1])
    assert torch.equal(plain_yb[0], images()[1])
    assert during is after is F.cross_entropy
    assert loss == pytest.approx(float(F.cross_entropy(linear().requires_grad_(False)(plain), plain_yb[0])), rel=1e-5)


def test_without_a_validation_set_the_metrics_are_of_the_targets() -> None:
    x, y = images()
    learn = Learner(DataLoaders.from_tensors(x, y, bs=4), linear(), F.cross_entropy, SGD, 0.1, metrics=accuracy)
    with learn.no_logging():
        learn.fit(1, cbs=MixUp())
    assert learn.recorder.metric_names[2] == "train_accuracy"
    assert 0 <= learn.recorder.values[0][1] <= 1


ENDS = (ZeroDivisionError, KeyboardInterrupt, CancelBatchException, CancelEpochException, CancelFitException)
ENDINGS = [
    (event, ends)
    for event in ("before_batch", "after_pred", "after_loss", "before_step", "after_step", "after_batch")
    for ends in ENDS
    if (event, ends) != ("after_batch", CancelBatchException)  # the batch is over
]


@pytest.mark.parametrize(("event", "ends"), ENDINGS)
def test_whatever_ends_the_fit_the_loss_is_the_users(event: str, ends: type[BaseException]) -> None:
    def stop(self: Callback) -> None:
        if self.training:
            raise ends

    for order in (-5, 5):
        breaks = type("Breaks", (Callback,), {event: stop, "order": order, "__module__": __name__})
        learn = learner(F.cross_entropy)
        try:
            learn.fit(2, cbs=[MixUp(), breaks()])
        except (ZeroDivisionError, KeyboardInterrupt) as error:
            assert type(error) is ends  # noqa: PT017
        assert learn.loss_func is F.cross_entropy
        learn.fit(1)


def test_a_loss_that_follows_from_the_batch_is_found_and_stays() -> None:
    learn = learner(None)
    learn.fit(1, cbs=MixUp())
    assert learn.loss_func is F.cross_entropy


def test_a_class_that_the_model_has_not_is_told_as_without_mixup() -> None:
    x, y = images()
    learn = Learner(DataLoaders.from_tensors(x, y + 1, bs=8), linear(), F.cross_entropy, SGD, 0.1)
    with learn.no_logging(), pytest.raises(ValueError, match=r"class indices must be in \[0, 3\)"):
        learn.fit(1, cbs=MixUp())


def test_a_seed_gives_the_same_fit_again() -> None:
    def go() -> list[Any]:
        learn = learner(F.cross_entropy, bs=3)
        torch.manual_seed(3)
        learn.fit(2, cbs=MixUp())
        return [learn.recorder.losses, learn.recorder.values]

    assert go() == go()


def test_an_optimizer_that_evaluates_the_loss_itself_sees_the_blend() -> None:
    seen = []

    class Twice(torch.optim.SGD):
        def step(self, closure: Any) -> Any:  # type: ignore[override]
            seen.extend([float(closure().detach()), float(closure().detach())])

    learn = learner(F.cross_entropy)
    learn.opt_func = Twice
    learn.fit(1, 0.1, cbs=[MixUp(), See()])
    assert seen[0] == pytest.approx(seen[1], rel=1e-6)


def test_the_rate_finder_takes_it_along_and_leaves_no_trace() -> None:
    learn = learner(F.cross_entropy, cbs=MixUp())
    learn.lr_find(num_it=10, show_plot=False, suggest_funcs=None)
    assert learn.loss_func is F.cross_entropy


def test_inputs_that_are_no_floats_are_refused() -> None:
    x = torch.zeros(8, 4, dtype=torch.uint8)
    learn = Learner(DataLoaders.from_tensors(x, torch.zeros(8).long(), bs=4), nn.Linear(4, 2), F.cross_entropy)
    with (
        learn.no_logging(),
        pytest.raises(ValueError, match=r"MixUp blends inputs that are floats, got \(uint8 \(4, 4\)"),
    ):
        learn.fit(1, cbs=MixUp())


def test_cutmix_refuses_what_is_no_image() -> None:
    learn = Learner(
        DataLoaders.from_tensors(torch.rand(8, 4), torch.zeros(8).long(), bs=4), nn.Linear(4, 2), F.cross_entropy
    )
    with learn.no_logging(), pytest.raises(ValueError, match=r"CutMix needs one input \(batch, …, height, width\)"):
        learn.fit(1, cbs=CutMix())


def test_a_batch_without_targets_is_refused() -> None:
    learn = Learner([[(torch.rand(4, 4),)]], nn.Linear(4, 2), F.cross_entropy)
    with learn.no_logging(), pytest.raises(ValueError, match="MixUp needs targets that are tensors, one a row"):
        learn.fit(1, cbs=MixUp())


def test_two_of_them_are_refused() -> None:
    with pytest.raises(ValueError, match="MixUp and CutMix would blend the same batch: one only"):
        learner(F.cross_entropy).fit(1, cbs=[MixUp(), CutMix()])


def test_alpha_must_be_positive() -> None:
    with pytest.raises(ValueError, match="alpha must be a finite number greater than 0, got 0"):
        MixUp(0)


def test_a_dict_of_inputs_is_blended() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 2)

        def forward(self, a: Tensor) -> Tensor:
            return self.lin(a)

    batches = [{"a": torch.rand(4, 4), "y": torch.arange(4) % 2} for _ in range(2)]
    learn = Learner([batches], Net(), F.cross_entropy, SGD, 0.1)
    with learn.no_logging():
        learn.fit(1, cbs=MixUp())
    assert len(learn.recorder.losses) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "loss_func", [F.cross_entropy, nn.CrossEntropyLoss(), by_batch], ids=["function", "module", "own"]
)
def test_a_compiled_step_is_one_graph_and_gives_the_same_numbers(loss_func: Any) -> None:
    def go(compile: bool) -> Learner:
        learn = learner(loss_func, bs=3, compile=compile)
        torch.manual_seed(3)
        learn.fit(2, cbs=MixUp())
        learn.fit(2, cbs=MixUp())
        return learn

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    wanted, got = go(False), go(True)
    assert 0 < torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3  # a step for each MixUp, and a validation
    torch.testing.assert_close(got.model.state_dict(), wanted.model.state_dict())
    assert got.recorder.losses == pytest.approx(wanted.recorder.losses, rel=1e-5)
    assert got.recorder.values[-1] == pytest.approx(wanted.recorder.values[-1], rel=1e-5)


def test_it_stands_before_the_recorder_which_reads_the_targets() -> None:
    assert MixUp.order < Recorder.order
