"""`SWA`: the mean of the epochs' ends, its rate, and the statistics of batch normalisation that go with it."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn, update_bn

from minilearn.callback import Callback
from minilearn.callbacks import SWA, BnFreeze, ProgressCallback
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.optim import SGD


def data() -> DataLoaders:
    torch.manual_seed(0)
    x, y = torch.randn(70, 6, dtype=torch.float64), torch.randint(0, 3, (70,))
    return DataLoaders.from_tensors(x, y, x[:20], y[:20], bs=16, shuffle=False)


def learner(norm: bool = True, **options: Any) -> Learner:
    torch.manual_seed(1)
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8)] if norm else [nn.Linear(6, 8)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Linear(8, 3)).double()
    learn = Learner(options.pop("dls", None) or data(), model, F.cross_entropy, SGD, lr=0.1, **options)
    learn.remove_cb(ProgressCallback)
    learn.logger = lambda text: None
    return learn


def weights(learn: Learner) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in learn.model.state_dict().items()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


class Steps(Callback):
    acts_in_step = False

    def before_fit(self) -> None:
        self.after: list[dict[str, Tensor]] = []
        self.rates: list[float] = []

    def after_step(self) -> None:
        self.after.append(weights(self.learn))
        self.rates.append(self.opt.param_groups[0]["lr"])


class Beside(Callback):
    """Torch's own way."""

    acts_in_step = False

    def before_fit(self) -> None:
        self.averaged = AveragedModel(self.model, multi_avg_fn=get_swa_multi_avg_fn())

    def after_step(self) -> None:
        if self.epoch >= 2 and self.iter == 4:
            self.averaged.update_parameters(self.model)


def test_the_model_after_the_fit_is_torchs_averaged_model_with_its_statistics() -> None:
    learn, beside = learner(), Beside()
    learn.fit(4, cbs=[SWA(0.75), beside])
    update_bn([(x,) for x, _ in learn.dls.train], beside.averaged.module)
    assert_equal(weights(learn), dict(beside.averaged.module.state_dict()))


def test_validation_figures_are_of_the_averages_with_its_statistics() -> None:
    learn = learner()
    learn.fit(4, cbs=SWA(0.5))
    assert learn.recorder.values[-1][1] == learn.validate()[0]


def test_before_the_start_validation_is_of_the_weights() -> None:
    plain, learn = learner(), learner()
    plain.fit(4)
    learn.fit(4, cbs=SWA(0.75))
    assert learn.recorder.values[:2] == plain.recorder.values[:2]
    assert learn.recorder.values[3] != plain.recorder.values[3]


def test_training_is_the_one_without_an_average() -> None:
    plain, learn = learner(), learner()
    one, other = Steps(), Steps()
    plain.fit(4, cbs=one)
    learn.fit(4, cbs=[SWA(0.25), other])
    for a, b in zip(one.after, other.after, strict=True):
        assert_equal(a, b)


def test_the_weights_and_their_statistics_can_be_left_in_the_model() -> None:
    learn, steps = learner(), Steps()
    learn.fit(4, cbs=[SWA(0.25, leaves_average=False), steps])
    assert_equal(weights(learn), steps.after[-1])


def test_the_rate_has_the_last_word_from_the_start_on_and_is_put_back() -> None:
    learn, steps = learner(), Steps()
    learn.fit_one_cycle(4, 0.1, cbs=[SWA(0.5, swa_lr=0.03), steps])
    assert steps.rates[10:] == [0.03] * 10
    assert 0.03 not in steps.rates[:10]
    assert learn.opt.param_groups[0]["lr"] == 0.1


def test_without_a_schedule_the_rate_is_put_back_too() -> None:
    learn = learner()
    learn.fit(4, 0.2, cbs=SWA(0.5, swa_lr=0.03))
    assert learn.opt.param_groups[0]["lr"] == 0.2


def test_frozen_statistics_are_not_measured_anew() -> None:
    learn = learner()
    for p in learn.model[1].parameters():
        p.requires_grad_(False)
    before = weights(learn)
    learn.fit(2, cbs=[SWA(0), BnFreeze()])
    assert torch.equal(learn.model[1].running_mean, before["1.running_mean"])


def test_a_few_batches_will_do_for_the_statistics() -> None:
    learn = learner()
    learn.fit(1, cbs=SWA(0, bn_batches=2))
    assert int(learn.model[1].num_batches_tracked) == 2


def test_modes_and_momenta_are_put_back_where_the_statistics_fail() -> None:
    class Fails:
        def __init__(self) -> None:
            self.rounds = 0

        def __iter__(self) -> Iterator[Any]:
            self.rounds += 1
            for i, batch in enumerate(data().train):
                if self.rounds == 2 and i == 2:
                    raise ZeroDivisionError
                yield batch

        def __len__(self) -> int:
            return 5

    learn, steps = learner(dls=(Fails(), data().valid)), Steps()
    with pytest.raises(ZeroDivisionError):
        learn.fit(1, cbs=[SWA(0), steps])
    assert learn.model[1].momentum == 0.1
    assert_equal(weights(learn), steps.after[-1])


def test_a_fit_that_is_gone_on_with_is_bit_for_bit_the_whole_one() -> None:
    class Stop(Callback):
        order = 300

        def after_epoch(self) -> None:
            if self.epoch == 1:
                self.model_state = weights(self.learn)
                state = swa.state_dict()
                self.state = {
                    key: {name: t.clone() for name, t in value.items()} if isinstance(value, dict) else value
                    for key, value in state.items()
                }
                raise KeyboardInterrupt

    whole = learner()
    whole.fit(4, cbs=SWA(0.5, swa_lr=0.05))
    swa, stop = SWA(0.5, swa_lr=0.05), Stop()
    with pytest.raises(KeyboardInterrupt):
        learner().fit(4, cbs=[swa, stop])
    again, other = learner(), SWA(0.5, swa_lr=0.05)
    other.load_state_dict(stop.state)
    again.model.load_state_dict(stop.model_state)
    again.fit(4, start_epoch=2, cbs=other)
    assert_equal(weights(again), weights(whole))
    assert again.opt.param_groups[0]["lr"] == 0.1


def test_several_inputs_reach_the_model() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 3)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.head(self.norm(a + b))

    torch.manual_seed(0)
    x, y = torch.randn(64, 6), torch.randint(0, 3, (64,))
    learn = Learner(DataLoaders.from_dsets((x, x, y), bs=16, shuffle=False), Two(), F.cross_entropy, SGD)
    with learn.no_logging():
        learn.fit(1, cbs=SWA(0))
    means = torch.stack([2 * part.mean(0) for part in x.split(16)])
    torch.testing.assert_close(learn.model.norm.running_mean, means.mean(0))


def test_a_loader_that_can_be_run_through_once_is_refused() -> None:
    learn = learner(dls=(iter(data().train), data().valid))
    with pytest.raises(ValueError, match="SWA goes through the training loader once more"):
        learn.fit(1, cbs=SWA())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"swa_start": 1.5}, r"swa_start must be in \[0, 1\], got 1.5"),
        ({"swa_lr": -1}, "swa_lr must be a finite number of at least 0, got -1"),
        ({"bn_batches": 0}, "bn_batches must be a whole number of at least 1, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SWA(**options)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_step_is_one_graph_and_gives_the_same_average() -> None:
    def go(compile: bool) -> Learner:
        learn = learner(compile=compile)
        learn.fit(4, cbs=SWA(0.5, swa_lr=0.05))
        return learn

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    wanted, got = go(False), go(True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    torch.testing.assert_close(weights(got), weights(wanted))
