"""learn.profile: the time is charged to whoever spent it, and no trace is left."""

import gc
import time
import weakref
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from conftest import events_log, line_dls
from torch import Tensor, nn

from minilearn.callback import Callback, CancelTrainException
from minilearn.learner import Learner
from minilearn.optim import SGD, Adam

NAP_S = 0.01
"""Far above what anything else takes in a batch of four rows."""


def learner(**options: object) -> Learner:
    torch.manual_seed(0)
    options = {"dls": line_dls(), "model": nn.Linear(3, 1), "loss_func": F.mse_loss, "opt_func": SGD, **options}
    learn = Learner(**options)  # type: ignore[arg-type]
    learn.logger = lambda line: None
    return learn


def longest(learn: Learner) -> str:
    """The part that took more than half of the time."""
    (name,) = [row.name for row in learn.profile(5).rows if row.share > 0.5]
    return name


class SlowModel(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        time.sleep(NAP_S)
        return super().forward(x)


class SlowBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        time.sleep(NAP_S)
        return grad


class SlowSGD(torch.optim.SGD):
    def step(self, closure: object = None) -> None:
        time.sleep(NAP_S)
        super().step()


class SlowZeroGrad(torch.optim.SGD):
    def zero_grad(self, set_to_none: bool = True) -> None:
        time.sleep(NAP_S)
        super().zero_grad(set_to_none)


class Nap(Callback):
    def after_pred(self) -> None:
        time.sleep(NAP_S)


class SlowLoader:
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in line_dls().train:
            time.sleep(NAP_S)
            yield batch


def slow_loss(pred: Tensor, target: Tensor) -> Tensor:
    time.sleep(NAP_S)
    return F.mse_loss(pred, target)


@pytest.mark.parametrize(
    ("part", "options"),
    [
        ("loading", {"dls": [SlowLoader()]}),
        ("forward", {"model": SlowModel(3, 1)}),
        ("loss", {"loss_func": slow_loss}),
        ("backward", {"loss_func": lambda pred, y: SlowBackward.apply(F.mse_loss(pred, y))}),
        ("step", {"opt_func": SlowSGD}),
        ("zero_grad", {"opt_func": SlowZeroGrad}),
        ("Nap", {"cbs": Nap}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_time_is_charged_to_who_spends_it(part: str, options: dict[str, object]) -> None:
    assert longest(learner(**options)) == part


def test_parts_come_in_the_order_of_a_batch() -> None:
    batches = list(line_dls().train)
    assert [row.name for row in learner(dls=[batches], cbs=Nap).profile(3).rows] == [
        "loading",
        "moving to the device",
        "forward",
        "loss",
        "backward",
        "step",
        "zero_grad",
        "Nap",
        "Recorder",
        "TrainEval",
        "the loop itself",
    ]


def test_what_rests_in_a_fit_rests_here() -> None:
    assert "moving to the device" not in [row.name for row in learner().profile(3).rows]


def test_batch_may_take_the_memory_of_the_one_before() -> None:
    batches: list[weakref.ref[Tensor]] = []

    class OneByOne:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            for _ in range(4):
                assert [ref for ref in batches if ref() is not None] == []
                x = torch.rand(4, 3)
                batches.append(weakref.ref(x))
                yield x, torch.rand(4, 1)
                del x

    learner(dls=[OneByOne()]).profile(3)
    assert len(batches) == 6


def test_parts_are_the_whole() -> None:
    found = learner().profile(20)
    assert sum(row.seconds for row in found.rows) == pytest.approx(found.batch_s)
    assert sum(row.share for row in found.rows) == pytest.approx(1)


def test_batch_is_a_mean_over_the_batches_asked_for() -> None:
    found = learner(cbs=Nap).profile(5)
    assert found.n_batches == 5
    assert NAP_S <= found.batch_s < 5 * NAP_S


def test_as_many_batches_are_seen_as_asked_for_and_a_few_before() -> None:
    seen: list[int] = []

    class Count(Callback):
        def after_batch(self) -> None:
            seen.append(self.iter)

    learner(cbs=Count).profile(40)
    assert len(seen) == 44


class Litter:
    """Garbage that takes long to be collected."""

    collected = 0

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        time.sleep(20 * NAP_S)
        Litter.collected += 1


def test_garbage_from_before_is_charged_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Litter, "collected", 0)
    learn = learner()
    gc.collect()
    gc.disable()  # so that it is collected by none but the profile
    try:
        Litter()
        found = learn.profile(1)
    finally:
        gc.enable()
    assert Litter.collected == 1
    assert found.batch_s < 20 * NAP_S  # of a single batch, which a busy machine may hold up by a nap


def test_table_goes_to_the_logger() -> None:
    learn, lines = learner(), []
    learn.logger = lines.append
    found = learn.profile(3)
    assert lines == [str(found)]
    assert lines[0].splitlines()[-1].startswith("all ")


@pytest.mark.parametrize("opt_func", [SGD, Adam, torch.optim.AdamW])
def test_fit_afterwards_is_the_one_it_would_have_been(opt_func: object) -> None:
    weights = []
    for look in (False, True):
        torch.manual_seed(0)
        learn = learner(opt_func=opt_func, model=nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)))
        learn.dls = line_dls(train_rows=16)
        learn.fit(1, 0.1)
        if look:
            learn.profile(7)
        learn.fit(2)
        weights.append([*(p.detach().clone() for p in learn.model.parameters()), torch.rand(1)])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_history_of_the_last_fit_stays() -> None:
    learn = learner()
    learn.fit(2)
    before = [list(row) for row in learn.recorder.values]
    learn.profile(3)
    assert learn.recorder.values == before


def test_clock_is_gone_afterwards() -> None:
    learn = learner()
    looked_up = {"_handlers", "_handlers_of"}
    before = set(vars(learn)) - looked_up
    learn.profile(3)
    assert set(vars(learn)) - looked_up == before
    assert all(handler.__self__ in learn.cbs for handlers in learn._handlers.values() for handler in handlers)  # type: ignore[attr-defined]


def test_no_epoch_ends() -> None:
    log_cb, log = events_log()
    learner(cbs=log_cb).profile(1)
    assert log[:3] == ["before_fit", "before_epoch", "before_train"]
    assert log[-1] == "cleanup_fit"
    assert not {"after_train", "before_validate", "after_epoch", "after_fit"} & set(log)


def test_callback_that_takes_no_part_in_a_search_takes_none_here() -> None:
    class Saver(Callback):
        run_search = False

        def after_batch(self) -> None:
            raise AssertionError("it was called")

    learn = learner(cbs=Saver)
    learn.profile(3)
    assert any(isinstance(cb, Saver) for cb in learn.cbs)


def test_error_passes_through_and_the_learner_is_as_before() -> None:
    class Broken(Callback):
        def after_step(self) -> None:
            raise RuntimeError("broken")

    learn = learner(cbs=Broken)
    before = learn.model.weight.detach().clone()
    with pytest.raises(RuntimeError, match="broken") as caught:
        learn.profile(3)
    assert "raised in Broken.after_step" in caught.value.__notes__
    assert "raised in learn.profile: the Learner is as it was before" in caught.value.__notes__
    assert torch.equal(learn.model.weight, before)


def test_training_that_a_callback_ends_is_an_error() -> None:
    class End(Callback):
        def after_batch(self) -> None:
            raise CancelTrainException

    with pytest.raises(ValueError, match="profile saw too few batches: a callback ended the training"):
        learner(cbs=End).profile(3)


def test_generator_is_not_used_up() -> None:
    batches = iter(list(line_dls().train))
    with pytest.raises(ValueError, match="profile would use up the training loader"):
        learner(dls=[batches]).profile(1)
    assert len(list(batches)) == 2


def test_no_batch_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="n_batches must be"):
        learner().profile(0)
