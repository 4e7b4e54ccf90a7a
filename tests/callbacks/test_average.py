"""`EMA`: the average, and when it is in the model."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from minilearn.callback import Callback, CancelBatchException, CancelStepException, CancelTrainException
from minilearn.callbacks import EMA, SWA, ProgressCallback, average
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.optim import SGD, Adam


def data() -> DataLoaders:
    torch.manual_seed(0)
    x, y = torch.randn(70, 6, dtype=torch.float64), torch.randint(0, 3, (70,))
    return DataLoaders.from_tensors(x, y, x[:20], y[:20], bs=16, shuffle=False)


def learner(norm: bool = True, **options: Any) -> Learner:
    torch.manual_seed(1)
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8)] if norm else [nn.Linear(6, 8)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Linear(8, 3)).double()
    options.setdefault("opt_func", SGD)
    learn = Learner(options.pop("dls", None) or data(), model, F.cross_entropy, lr=0.1, **options)
    learn.remove_cb(ProgressCallback)
    learn.logger = lambda text: None
    return learn


def weights(learn: Learner) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in learn.model.state_dict().items()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


class Watch(Callback):
    """Keeps the weights as they are after each step, and as they are at other events."""

    order = 100
    acts_in_step = False

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.seen: list[tuple[str, dict[str, Tensor]]] = []

    def after_step(self) -> None:
        self.steps.append(weights(self.learn))

    def before_batch(self) -> None:
        self.seen.append(("train" if self.training else "valid", weights(self.learn)))

    def after_epoch(self) -> None:
        self.seen.append(("epoch", weights(self.learn)))

    def after_fit(self) -> None:
        self.seen.append(("fit", weights(self.learn)))


def by_hand(steps: list[dict[str, Tensor]], decay: float, warmup: bool, name: str) -> np.ndarray:
    average = steps[0][name].numpy().copy()
    for t, step in enumerate(steps[1:], 1):
        d = min(decay, (1 + t) / (10 + t)) if warmup else decay
        average = d * average + (1 - d) * step[name].numpy()
    return average


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
def test_the_average_is_that_by_hand(warmup: bool, name: str) -> None:
    learn, ema, watch = learner(), EMA(0.6, warmup=warmup), Watch()
    learn.fit(3, cbs=[ema, watch])
    assert len(watch.steps) == 15
    np.testing.assert_allclose(ema.average[name].numpy(), by_hand(watch.steps, 0.6, warmup, name), rtol=1e-12)


def test_without_warmup_it_is_torchs_averaged_model() -> None:
    class Beside(Callback):
        acts_in_step = False

        def before_fit(self) -> None:
            self.averaged = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))

        def after_step(self) -> None:
            self.averaged.update_parameters(self.model)

    learn, ema, beside = learner(), EMA(0.9, warmup=False, norm_stats=False), Beside()
    learn.fit(2, cbs=[ema, beside])
    assert_equal(ema.average, {name: p.detach() for name, p in beside.averaged.module.named_parameters()})


def test_training_is_the_one_without_an_average() -> None:
    plain, watched = learner(), learner()
    one, other = Watch(), Watch()
    plain.fit(3, cbs=one)
    watched.fit(3, cbs=[EMA(0.5), other])
    for a, b in zip(one.steps, other.steps, strict=True):
        assert_equal(a, b)


def test_the_average_is_in_the_model_outside_of_training() -> None:
    learn, ema, watch = learner(), EMA(0.5), Watch()
    learn.fit(2, cbs=[ema, watch])
    kinds = [kind for kind, _ in watch.seen]
    assert kinds == [*["train"] * 5, *["valid"] * 2, "epoch"] * 2 + ["fit"]
    after_first = watch.steps[4]
    assert_equal(watch.seen[8][1], after_first)  # the second epoch's first batch
    average = {name: torch.as_tensor(by_hand(watch.steps[:5], 0.5, True, name)) for name in ema.average}
    for _, seen in watch.seen[5:8]:
        for name, value in average.items():
            torch.testing.assert_close(seen[name], value)
    for name, value in ema.average.items():
        assert torch.equal(learn.model.state_dict()[name], value)


def test_validation_figures_are_the_averages() -> None:
    learn, ema = learner(), EMA(0.5)
    learn.fit(2, cbs=ema)
    assert learn.recorder.values[-1][1] == learn.validate()[0]


def test_the_weights_can_be_left_in_the_model() -> None:
    learn, ema, watch = learner(), EMA(0.5, leaves_average=False), Watch()
    learn.fit(2, cbs=[ema, watch])
    assert_equal(weights(learn), watch.steps[-1])
    assert not torch.equal(ema.average["0.weight"], watch.steps[-1]["0.weight"])


def test_without_a_validation_set_an_epoch_ends_with_the_average() -> None:
    learn, ema, watch = learner(dls=DataLoaders(data().train)), EMA(0.5), Watch()
    learn.fit(1, cbs=[ema, watch])
    (_, seen) = watch.seen[-2]
    assert all(torch.equal(seen[name], value) for name, value in ema.average.items())


def test_a_cancelled_step_is_not_averaged() -> None:
    class EverySecond(Callback):
        def before_step(self) -> None:
            if self.iter % 2 == 0:
                raise CancelStepException

    class EveryThird(Callback):
        def before_step(self) -> None:
            if self.iter % 3:
                raise CancelBatchException

    for cancels, steps in ((EverySecond, 2), (EveryThird, 2)):
        learn, ema = learner(), EMA(0.5)
        learn.fit(1, cbs=[ema, cancels()])
        assert ema.n_averaged == steps


def test_a_validation_in_the_midst_of_training_sees_the_average_and_leaves_the_weights() -> None:
    class Look(Callback):
        figures: list[Any]

        def after_loss(self) -> None:
            if self.training and self.iter == 3:
                before = weights(self.learn)
                self.learn.validate()
                assert_equal(weights(self.learn), before)

    plain, looked = learner(), learner()
    one, other = Watch(), Watch()
    plain.fit(2, cbs=one)
    looked.fit(2, cbs=[EMA(0.5), other, Look()])
    assert_equal(one.steps[-1], other.steps[-1])


def test_training_goes_on_with_the_weights_after_a_validation_that_failed() -> None:
    class Fails(Callback):
        order = 200

        def before_validate(self) -> None:
            if self.train_iter == 3:
                raise ZeroDivisionError

        def after_batch(self) -> None:
            if self.training and self.train_iter == 3:
                with pytest.raises(ZeroDivisionError):
                    self.learn.validate()

    plain, failed = learner(), learner()
    one, other = Watch(), Watch()
    plain.fit(1, cbs=one)
    failed.fit(1, cbs=[EMA(0.5), other, Fails()])
    assert_equal(one.steps[-1], other.steps[-1])


@pytest.mark.parametrize("event", ["after_step", "after_train", "before_validate", "after_epoch"])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_whatever_ends_a_fit_the_average_is_in_the_model(event: str, error: type[BaseException]) -> None:
    def fail(self: Callback) -> None:
        if self.epoch == 1:
            raise error

    breaks = type("Breaks", (Callback,), {event: fail, "order": 100, "__module__": __name__})
    learn, ema = learner(), EMA(0.5)
    with pytest.raises(error):
        learn.fit(3, cbs=[ema, breaks()])
    assert ema.n_averaged >= 6
    for name, value in ema.average.items():
        assert torch.equal(learn.model.state_dict()[name], value)


def test_a_cancelled_part_changes_nothing_of_that() -> None:
    class Cancel(Callback):
        def after_batch(self) -> None:
            if self.training and self.iter == 2:
                raise CancelTrainException

    learn, ema, watch = learner(), EMA(0.5), Watch()
    learn.fit(2, cbs=[ema, watch, Cancel()])
    assert [kind for kind, _ in watch.seen] == [*["train"] * 3, *["valid"] * 2, "epoch"] * 2 + ["fit"]
    assert_equal(watch.seen[6][1], watch.steps[2])


def test_a_second_fit_averages_anew_from_the_average() -> None:
    learn, ema, watch = learner(), EMA(0.5), Watch()
    learn.add_cb(ema)
    learn.fit(1)
    first = weights(learn)
    learn.fit(1, cbs=watch)
    assert_equal(watch.seen[0][1], first)
    assert ema.n_averaged == 5
    np.testing.assert_allclose(ema.average["0.weight"].numpy(), by_hand(watch.steps, 0.5, True, "0.weight"), rtol=1e-12)


def test_frozen_layers_stay_bit_for_bit() -> None:
    learn = learner(norm=False, splitter=lambda m: [list(m[0].parameters()), list(m[2].parameters())])
    before = weights(learn)
    learn.freeze()
    learn.fit(2, cbs=EMA(0.5))
    assert torch.equal(weights(learn)["0.weight"], before["0.weight"])
    assert not torch.equal(weights(learn)["2.weight"], before["2.weight"])


def test_a_search_for_a_rate_leaves_no_trace() -> None:
    ema = EMA(0.5)
    learn = learner(cbs=ema)
    learn.fit(1)
    before, average = weights(learn), {name: t.clone() for name, t in ema.average.items()}
    learn.lr_find(num_it=10, show_plot=False, suggest_funcs=None)
    assert_equal(weights(learn), before)
    assert_equal(ema.average, average)
    assert ema.n_averaged == 5


class StopAfter(Callback):
    """Takes the states down at the end of an epoch, and breaks the fit off."""

    order = 300

    def after_epoch(self) -> None:
        if self.epoch == 1:
            copied = lambda value: (  # noqa: E731
                value.clone() if isinstance(value, Tensor)
                else {k: copied(v) for k, v in value.items()} if isinstance(value, dict) else value
            )  # fmt: skip
            self.model_state = copied(dict(self.model.state_dict()))
            self.states = [copied(cb.state_dict()) for cb in self.learn.cbs if isinstance(cb, (EMA, SWA))]
            raise KeyboardInterrupt


def resumed(make: Any, when: str) -> tuple[Learner, Any]:
    """A fit of four epochs that was broken off after the second and gone on with in another Learner."""
    first, stop = learner(), StopAfter()
    with pytest.raises(KeyboardInterrupt):
        first.fit(4, cbs=[make(), stop])

    class Load(Callback):
        order = 300

        def before_fit(self) -> None:
            if when == "in the fit":
                self.learn.model.load_state_dict(stop.model_state)
                average.load_state_dict(stop.states[0])

    second, average = learner(), make()
    if when == "before":
        average.load_state_dict(stop.states[0])
        second.model.load_state_dict(stop.model_state)
    second.fit(4, start_epoch=2, cbs=[average, Load()])
    return second, average


@pytest.mark.parametrize("when", ["before", "in the fit"])
def test_a_fit_that_is_gone_on_with_is_bit_for_bit_the_whole_one(when: str) -> None:
    whole, ema = learner(), EMA(0.5)
    whole.fit(4, cbs=ema)
    again, other = resumed(lambda: EMA(0.5), when)
    assert other.n_averaged == ema.n_averaged == 20
    assert_equal(weights(again), weights(whole))
    assert_equal(other.average, ema.average)


def test_a_state_of_another_model_is_refused() -> None:
    learn, ema = learner(), EMA()
    learn.fit(1, cbs=ema)
    other = learner(norm=False)
    strange = EMA()
    strange.load_state_dict(ema.state_dict())
    with pytest.raises(ValueError, match=r"EMA: the state is of a model with other parameters: '1\.weight' is in one"):
        other.fit(1, cbs=strange)


def test_a_model_of_half_precision_has_its_average_in_single() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 4).bfloat16()
    learn = Learner(DataLoaders.from_tensors(x, x[:, :1], bs=8), nn.Linear(4, 1).bfloat16(), F.mse_loss, SGD, 0.01)
    learn.add_cb(EMA(0.999, warmup=False))
    with learn.no_logging():
        learn.fit(1)
    (ema,) = (cb for cb in learn.cbs if isinstance(cb, EMA))
    assert ema.average["weight"].dtype is torch.float32
    assert learn.model.weight.dtype is torch.bfloat16
    assert not torch.equal(ema.average["weight"], ema.average["weight"].bfloat16().float())


def test_two_averages_are_refused() -> None:
    with pytest.raises(ValueError, match="EMA and SWA would both be in the model: one only"):
        learner().fit(1, cbs=[EMA(), SWA()])


def test_an_optimizer_that_averages_itself_is_refused() -> None:
    class Free(torch.optim.SGD):
        def train(self) -> None: ...

        def eval(self) -> None: ...

    with pytest.raises(ValueError, match="Free averages the weights itself: leave EMA out"):
        learner(opt_func=Free).fit(1, cbs=EMA())


def test_a_decay_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got 1"):
        EMA(1)


@pytest.fixture
def compiler() -> Iterator[None]:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


@pytest.mark.usefixtures("compiler")
def test_a_compiled_step_is_one_graph_and_gives_the_same_average() -> None:
    def go(compile: bool) -> tuple[Learner, EMA]:
        learn, ema = learner(opt_func=Adam, compile=compile), EMA(0.5)
        learn.fit(3, 0.01, cbs=ema)
        return learn, ema

    torch._dynamo.utils.counters.clear()
    (wanted, one), (got, other) = go(False), go(True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    for name, value in one.average.items():
        torch.testing.assert_close(other.average[name], value)
    torch.testing.assert_close(weights(got), weights(wanted))
    assert got.recorder.values[-1] == pytest.approx(wanted.recorder.values[-1], rel=1e-9)


@pytest.mark.parametrize("leaves_average", [True, False])
@pytest.mark.parametrize("moment", ["put in", "taken out"])
def test_a_fit_ended_while_weights_are_exchanged_leaves_no_mixture(
    monkeypatch: pytest.MonkeyPatch, moment: str, leaves_average: bool
) -> None:
    write, calls = average._write, []

    def cut_short(into: dict[str, Tensor], values: dict[str, Tensor]) -> None:
        calls.append(values)
        if len(calls) == (1 if moment == "put in" else 2):
            write(dict(list(into.items())[:1]), values)
            raise KeyboardInterrupt
        write(into, values)

    ema, watch = EMA(0.9, leaves_average=leaves_average), Watch()
    learn = learner(cbs=[ema, watch])
    monkeypatch.setattr(average, "_write", cut_short)
    with pytest.raises(KeyboardInterrupt):
        learn.fit(2)
    found = dict(learn.model.named_parameters())
    wanted = ema.average if leaves_average else watch.steps[-1]
    assert [name for name in found if not torch.equal(found[name], wanted[name])] == []
