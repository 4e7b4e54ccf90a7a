"""The learning-rate finder: its rates, its end, who takes part, and that it leaves no trace whatever ended it."""

import math
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import events_log, line_dls
from torch import Tensor, nn

from minilearn.callback import Callback, CancelBatchException, CancelTrainException
from minilearn.callbacks import LRFinder, Recorder, TerminateOnNaN
from minilearn.data import DataLoader, DataLoaders
from minilearn.learner import Learner
from minilearn.lr_suggest import SuggestionMethod
from minilearn.metrics import mse
from minilearn.optim import SGD, Adam

find = partial(Learner.lr_find, show_plot=False)


def learner(cbs: object = None, dls: object = None, model: nn.Module | None = None, **kwargs: object) -> Learner:
    torch.manual_seed(0)
    options: dict[str, object] = {"loss_func": F.mse_loss, "opt_func": SGD, "cbs": cbs, **kwargs}
    learn = Learner(dls or line_dls(), model or nn.Linear(3, 1), **options)  # type: ignore[arg-type]
    learn.logger = lambda line: None
    return learn


# ---- the search itself ----


def test_rates_rise_by_the_same_factor_in_every_group() -> None:
    seen: list[list[float]] = []

    class Look(Callback):
        def before_step(self) -> None:
            seen.append([group["lr"] for group in self.opt.param_groups])

    learn = learner(Look, splitter=lambda model: [[model.weight], [model.bias]])
    find(learn, 1e-5, 1e-3, num_it=10)
    expected = [1e-5 * 100 ** (i / 10) for i in range(10)]
    assert seen == [[pytest.approx(lr), pytest.approx(lr)] for lr in expected]
    assert learn.lr_search.lrs == pytest.approx(expected)


def test_losses_are_the_moving_average_of_a_loop_written_by_hand() -> None:
    learn = learner()
    weight, bias = learn.model.weight.detach().clone(), learn.model.bias.detach().clone()
    find(learn, 1e-4, 1e-1, num_it=12)
    average, expected = 0.0, []
    for i in range(12):
        x, y = list(learn.dls.train)[i % 2]
        w, b = weight.requires_grad_(), bias.requires_grad_()
        loss = F.mse_loss(x @ w.T + b, y)
        loss.backward()
        lr = 1e-4 * 1000 ** (i / 12)
        weight, bias = (w - lr * w.grad).detach(), (b - lr * b.grad).detach()
        average = 0.98 * average + 0.02 * loss.item()
        expected.append(average / (1 - 0.98 ** (i + 1)))
    assert learn.lr_search.losses == pytest.approx(expected, rel=1e-5)


def test_search_goes_through_the_loader_as_often_as_needed() -> None:
    class NoLength:
        def __iter__(self) -> Iterator[object]:
            return iter(line_dls().train)

    for dls in (line_dls(), DataLoaders(NoLength()), DataLoaders(list(line_dls().train))):
        learn = learner(dls=dls)
        find(learn, end_lr=1e-3)
        assert len(learn.lr_search.lrs) == 100


def test_search_ends_when_the_loss_has_risen_fourfold() -> None:
    learn = learner()
    find(learn, 1e-3, 100.0)
    assert 10 < len(learn.lr_search.losses) < 100
    *before, last = learn.lr_search.losses[10:]  # the first tenth does not count
    assert last > 4 * min(before)
    assert all(loss <= 4 * min(before[: i + 1]) for i, loss in enumerate(before))


def test_chance_in_the_first_batches_does_not_end_the_search() -> None:
    calls: list[float] = []

    def loss(pred: Tensor, target: Tensor) -> Tensor:
        calls.append(0.0)
        return F.mse_loss(pred, target) * (0.01 if len(calls) == 1 else 1.0)

    learn = learner(loss_func=loss)
    find(learn, 1e-5, 1e-2)
    assert learn.lr_search.losses[5] > 4 * learn.lr_search.losses[0]
    assert len(learn.lr_search.losses) == 100


def test_search_goes_on_through_a_rise_without_stop_div() -> None:
    learn = learner()
    find(learn, 1e-3, 10.0, num_it=30, stop_div=False)
    assert len(learn.lr_search.losses) == 30
    assert learn.lr_search.losses[-1] > 4 * min(learn.lr_search.losses)


def test_falling_loss_below_zero_is_no_divergence() -> None:
    learn = learner(loss_func=lambda pred, target: (pred - target).abs().mean() - 100)
    find(learn, 1e-4, 1e-1, num_it=20)
    assert len(learn.lr_search.losses) == 20


def nan_after(n: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Mean squared error that is nan from call number `n` on, counted from 0."""
    calls = [0]

    def loss(pred: Tensor, target: Tensor) -> Tensor:
        calls[0] += 1
        return F.mse_loss(pred, target) * (math.nan if calls[0] > n else 1.0)

    return loss


@pytest.mark.parametrize("stop_div", [True, False])
def test_search_ends_at_once_where_the_loss_is_nan(stop_div: bool) -> None:
    steps = []

    class Count(Callback):
        def before_step(self) -> None:
            steps.append(self.train_iter)

    learn = learner(Count, loss_func=nan_after(20))
    find(learn, 1e-5, 1e-2, stop_div=stop_div)
    assert len(learn.lr_search.losses) == len(steps) == 20  # and no warning
    assert all(map(math.isfinite, learn.lr_search.losses))


def test_loss_that_is_nan_from_the_start_is_an_error_that_says_so() -> None:
    learn = learner(loss_func=nan_after(0))
    with pytest.raises(ValueError, match="no finite number from the first batch on, at a learning rate of 1e-07"):
        find(learn)


def test_curve_on_a_gpu_ends_where_it_does_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    there, here = learner(), learner()
    find(here, 1e-3, 100.0)
    monkeypatch.setattr("minilearn.tensors.LateScalars.reads_from_cpu", False)
    find(there, 1e-3, 100.0)
    assert there.lr_search == here.lr_search


def test_batches_of_an_accumulated_step_count_one_by_one() -> None:
    class Accumulate(Callback):
        def before_fit(self) -> None:
            self.count, self.steps = 0, 0

        def before_step(self) -> None:
            self.count += 1
            if self.count % 4:
                raise CancelBatchException
            self.steps += 1
            steps.append(self.steps)

    steps: list[int] = []
    learn = learner(Accumulate)
    find(learn, 1e-5, 1e-3, num_it=20)
    assert len(set(learn.lr_search.lrs)) == len(learn.lr_search.losses) == 20
    assert steps == [1, 2, 3, 4, 5]


def test_callback_that_ends_the_training_part_ends_the_search() -> None:
    class Stop(Callback):
        def after_loss(self) -> None:
            if self.iter == 14:
                raise CancelTrainException

    learn = learner(Stop)
    find(learn, 1e-4, 1.0)
    assert len(learn.lr_search.lrs) == 14


def test_callback_alone_ends_its_fit_and_validates_nothing() -> None:
    finder = LRFinder(1e-5, 1e-3, num_it=10)
    log, events = events_log()
    learn = learner([finder, log])
    learn.fit(100, cbs=None)
    assert len(finder.lrs) == 10
    assert events.count("after_cancel_validate") == 4
    assert events[-3:] == ["after_cancel_fit", "after_fit", "cleanup_fit"]


# ---- who takes part ----


def test_of_the_events_only_those_up_to_the_batches_are_fired() -> None:
    log, events = events_log()
    learn = learner(log, metrics=mse)
    find(learn, 1e-5, 1e-3, num_it=10)
    batch = ["before_batch", "after_pred", "after_loss", "before_backward", "after_backward", "before_step"]
    whole = [*batch, "after_step", "after_batch"]
    assert events == ["before_fit", "before_epoch", "before_train", *(whole * 10), "cleanup_fit"]


@pytest.mark.parametrize(
    ("method", "run_search", "takes_part"),
    [
        ("before_batch", None, True),
        ("before_step", None, True),
        ("after_loss", False, False),
        ("after_batch", None, False),
        ("after_batch", True, True),
    ],
)
def test_callbacks_that_act_on_the_step_take_part(method: str, run_search: bool | None, takes_part: bool) -> None:
    calls: list[str] = []
    body = {"run_search": run_search, "before_fit": lambda self: calls.append("before_fit")}
    body[method] = lambda self: calls.append(method)
    learn = learner(type("Mine", (Callback,), body))
    find(learn, 1e-5, 1e-3, num_it=10)
    assert calls == (["before_fit", *[method] * 10] if takes_part else [])


def test_callbacks_written_for_fastai_find_that_a_search_is_on() -> None:
    seen: list[bool] = []

    class Ported(Callback):
        def before_batch(self) -> None:
            seen.append(hasattr(self.learn, "lr_finder"))

    learn = learner(Ported)
    find(learn, 1e-5, 1e-3, num_it=10)
    learn.fit(1)
    assert seen == [*[True] * 10, *[False] * 3]


def test_schedule_of_the_users_does_not_set_the_rate() -> None:
    class Constant(Callback):
        order = 100

        def before_batch(self) -> None:
            self.opt.param_groups[0]["lr"] = 1e6

    learn = learner(Constant)
    find(learn, 1e-5, 1e-3, num_it=20)
    assert max(learn.lr_search.losses) < 1e3


def test_terminate_on_nan_says_nothing_in_a_search() -> None:
    lines: list[str] = []
    learn = learner(TerminateOnNaN, loss_func=nan_after(20))
    learn.logger = lines.append
    find(learn)
    assert lines == []


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    learn = learner(loss_func=None)  # the line that says which loss was taken belongs to the fit
    learn.logger = print
    find(learn, 1e-5, 1e-3)
    assert capsys.readouterr().out == ""


# ---- it leaves no trace ----


class Interrupt(Callback):
    """Raises in the middle of a search, and only there."""

    order = 10

    def __init__(self, error: type[BaseException], event: str) -> None:
        self.error, self.event, self.batches = error, event, 0

    def before_batch(self) -> None:
        self.batches += 1
        self._at("before_batch")

    def before_step(self) -> None:
        self._at("before_step")

    def _at(self, event: str) -> None:
        if event == self.event and hasattr(self.learn, "lr_finder") and self.iter == 7:
            raise self.error("stop")


class Noisy(nn.Module):
    """Batch normalisation, dropout, random numbers of all kinds, and counters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.own = torch.Generator().manual_seed(3)
        self.calls, self.seen = 0, [0.0]

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            self.seen.append(float(self.calls))
            x = x + 0.1 * torch.randn(x.shape, generator=self.own) + 0.1 * random.random() + 0.1 * np.random.rand()
        return self.layers(x) * (1 + 0.001 * self.calls + 0.001 * self.seen[-1])


def noisy_frozen() -> nn.Module:
    model = Noisy()
    model.layers[0].requires_grad_(False)
    return model


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Dropout(0.2), nn.LazyLinear(1))


class Shuffles:
    """A loader that shuffles by random numbers of its own, in a list of its own."""

    def __init__(self) -> None:
        self.batches, self.random, self.passes = list(line_dls(32).train), random.Random(5), 0

    def __iter__(self) -> Iterator[object]:
        self.passes += 1
        self.random.shuffle(self.batches)
        return iter(self.batches[: 4 + self.passes])


def rows() -> list[tuple[Tensor, Tensor]]:
    x, y = line_dls(40).train_ds.tensors
    return list(zip(x, y, strict=True))


def loaders(kind: str) -> DataLoaders:
    own = torch.Generator().manual_seed(9)
    weights = [1.0, 2.0] * 20
    train = {
        "shuffled": lambda: DataLoader(rows(), 4, shuffle=True),
        "own generator": lambda: DataLoader(rows(), 4, shuffle=True, generator=own),
        "torch's": lambda: torch.utils.data.DataLoader(rows(), 4, shuffle=True),
        "torch's, own generator": lambda: torch.utils.data.DataLoader(rows(), 4, shuffle=True, generator=own),
        "sampler": lambda: DataLoader(
            rows(), 4, sampler=torch.utils.data.WeightedRandomSampler(weights, 40, generator=own)
        ),
        "no length": Shuffles,
    }[kind]()
    return DataLoaders(train, line_dls().valid, device="cpu")


def seeded(make_model: Callable[[], nn.Module], kind: str, opt_func: object, **kwargs: object) -> Learner:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    options: dict[str, object] = {"loss_func": F.mse_loss, "opt_func": opt_func, "metrics": mse, **kwargs}
    learn = Learner(loaders(kind), make_model(), **options)  # type: ignore[arg-type]
    learn.logger = lambda line: None
    return learn


def trace(learn: Learner) -> dict[str, object]:
    """What a fit left: every number in it, to compare bit for bit."""
    state = {f"model {name}": value.tolist() for name, value in learn.model.state_dict().items()}
    for i, p in enumerate(p for group in learn.opt.param_groups for p in group["params"]):
        for name, value in learn.opt.state[p].items():
            state[f"opt {i} {name}"] = value.tolist() if isinstance(value, Tensor) else value
    history = learn.recorder
    return {
        **state,
        "hypers": [{name: v for name, v in group.items() if name != "params"} for group in learn.opt.param_groups],
        "requires_grad": [p.requires_grad for p in learn.model.parameters()],
        "values": history.values,
        "losses": history.losses,
        "lrs": history.lrs,
        "iters": history.iters,
        "train_iter": learn.train_iter,
        "random": (random.random(), np.random.rand(), torch.rand(()).item()),
    }


def search(learn: Learner, end: str) -> None:
    """A search that comes to its end, diverges, fails or is interrupted."""
    if end == "number of batches":
        find(learn, 1e-6, 1e-2, num_it=33, suggest_funcs=None, stop_div=False)
        assert len(learn.lr_search.lrs) == 33
    elif end == "divergence":
        find(learn, 1e-3, 1e4, suggest_funcs=None)
        assert len(learn.lr_search.lrs) < 100
    else:
        error: type[BaseException] = KeyboardInterrupt if end.startswith("Ctrl-C") else ZeroDivisionError
        with pytest.raises(error), learn.added_cbs(Interrupt(error, end.rsplit(maxsplit=1)[-1])):
            find(learn)


ENDS = ["number of batches", "divergence", "error before_step", "Ctrl-C before_batch", "Ctrl-C before_step"]
MODELS = {"noisy": Noisy, "frozen": noisy_frozen, "lazy": lazy}
LOADERS = ["shuffled", "own generator", "torch's", "torch's, own generator", "sampler", "no length"]
OPTIMIZERS = {"SGD": partial(SGD, mom=0.9), "Adam": Adam, "torch's": torch.optim.RAdam}


@pytest.mark.parametrize("fitted", [False, True], ids=["new", "fitted before"])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("model", MODELS)
def test_fit_after_a_search_is_bit_for_bit_the_fit_without_one(model: str, end: str, fitted: bool) -> None:
    with_search, without = (seeded(MODELS[model], "shuffled", OPTIMIZERS["Adam"]) for _ in range(2))
    for learn in (without, with_search):
        random.seed(1), np.random.seed(2), torch.manual_seed(3)
        if fitted:
            learn.fit(1, 0.03)
        if learn is with_search:
            search(learn, end)
        learn.fit(2, 0.01)
        learn.found = trace(learn)  # type: ignore[attr-defined]
    assert with_search.found == without.found  # type: ignore[attr-defined]


@pytest.mark.parametrize("opt_func", OPTIMIZERS)
@pytest.mark.parametrize("kind", LOADERS)
def test_any_loader_and_any_optimizer_is_put_back(kind: str, opt_func: str) -> None:
    with_search, without = (seeded(Noisy, kind, OPTIMIZERS[opt_func]) for _ in range(2))
    for learn in (without, with_search):
        random.seed(1), np.random.seed(2), torch.manual_seed(3)
        learn.fit(1, 0.03)
        if learn is with_search:
            search(learn, "divergence")
        learn.fit(2, 0.01)
        learn.found = trace(learn)  # type: ignore[attr-defined]
    assert with_search.found == without.found  # type: ignore[attr-defined]


@pytest.mark.parametrize("end", ENDS)
def test_everything_is_as_it_was_right_after_the_search(end: str) -> None:
    learn = seeded(noisy_frozen, "shuffled", Adam)
    learn.fit(1, 0.03)
    for p in learn.model.layers[3].parameters():
        p.grad = torch.full_like(p, 2.0)
    grads = {p: p.grad for p in learn.model.parameters()}
    learn.model.train()
    learn.model.layers[1].eval()
    modes = [module.training for module in learn.model.modules()]
    opt, recorder, before = learn.opt, learn.recorder, trace(learn)
    history, cbs, rest = vars(recorder).copy(), list(learn.cbs), {**vars(learn)}
    generators = random.getstate(), torch.get_rng_state().tolist()
    search(learn, end)
    assert (random.getstate(), torch.get_rng_state().tolist()) == generators
    assert learn.opt is opt
    assert learn.recorder is recorder
    assert learn.cbs == cbs
    assert {k: v for k, v in vars(learn).items() if k not in ("lr_search", "_handlers", "_handlers_of", "cbs")} == {
        k: v for k, v in rest.items() if k not in ("_handlers", "_handlers_of", "cbs")
    }
    assert vars(recorder) == history
    assert {p: p.grad for p in learn.model.parameters()} == grads
    assert all(grad is None or bool((grad == 2).all()) for grad in grads.values())
    assert [module.training for module in learn.model.modules()] == modes
    after = trace(learn)
    before.pop("random"), after.pop("random")
    assert after == before


def test_without_an_optimizer_before_there_is_none_after() -> None:
    learn = learner(loss_func=None)
    find(learn)
    assert not hasattr(learn, "opt")
    assert learn.loss_func is None
    assert (learn.train_iter, learn.epoch, learn.pct_train) == (0, 0, 0.0)
    assert all(p.grad is None for p in learn.model.parameters())


def test_optimizer_of_other_parameters_is_there_again() -> None:
    learn = learner()
    learn.fit(1)
    before, learn.model = learn.opt, nn.Linear(3, 1)
    find(learn)
    assert learn.opt is before


def test_rates_of_groups_are_their_own_again() -> None:
    learn = learner(splitter=lambda model: [[model.weight], [model.bias]])
    learn.create_opt()
    learn.opt.param_groups[0]["lr"], learn.opt.param_groups[1]["lr"] = 0.5, torch.tensor(0.25)
    find(learn)
    assert [float(group["lr"]) for group in learn.opt.param_groups] == [0.5, 0.25]


def test_optimizer_that_is_none_of_torchs_is_put_back() -> None:
    class Wrapper:
        def __init__(self, params: object, lr: float) -> None:
            self.inner, self.steps = SGD(params, lr, mom=0.9), 0
            self.param_groups, self.state, self.zero_grad = self.inner.param_groups, {}, self.inner.zero_grad

        def step(self) -> None:
            self.steps += 1
            self.inner.step()

    learn = learner(opt_func=Wrapper)
    learn.fit(1, 0.05)
    (weight, _) = learn.model.parameters()
    before = learn.opt.steps, learn.opt.inner.state[weight]["grad_avg"].tolist(), learn.opt.param_groups[0]["lr"]
    find(learn)
    assert (
        learn.opt.steps,
        learn.opt.inner.state[weight]["grad_avg"].tolist(),
        learn.opt.param_groups[0]["lr"],
    ) == before


def test_error_in_the_search_says_that_it_was_one() -> None:
    learn = learner(Interrupt(ZeroDivisionError, "before_step"))
    with pytest.raises(ZeroDivisionError) as caught:
        find(learn)
    assert caught.value.__notes__ == [
        "raised in Interrupt.before_step",
        "in epoch 0 of 1, training batch 7 of 100 (counted from 0)",
        "raised in lr_find's search: the Learner is as it was before",
    ]


def test_frozen_layer_does_not_move_in_the_search() -> None:
    seen: list[bool] = []

    class Look(Callback):
        def before_step(self) -> None:
            seen.append(bool((frozen.weight == before).all()) and not frozen.weight.requires_grad)

    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    frozen = model[0].requires_grad_(False)
    before = frozen.weight.clone()
    learn = learner(Look, model=model)
    find(learn, num_it=20)
    assert seen == [True] * 20
    assert not frozen.weight.requires_grad
    assert model[1].weight.requires_grad


def test_callbacks_keep_what_they_held() -> None:
    class Holds(Callback):
        def __init__(self) -> None:
            self.count, self.list, self.tensor = 0, [1], torch.ones(2)
            self.average = nn.Linear(2, 2)
            self.inner = torch.optim.SGD(self.average.parameters(), lr=0.1, momentum=0.9)

        def before_batch(self) -> None:
            self.count += 1
            self.list.append(self.count)
            self.tensor += 1
            self.new = True
            self.average.weight.grad = torch.ones(2, 2)
            self.inner.step()

    learn = learner(Holds)
    (held,) = [cb for cb in learn.cbs if isinstance(cb, Holds)]
    tensor, weight = held.tensor, held.average.weight.clone()
    find(learn)
    assert (held.count, held.list) == (0, [1])
    assert held.tensor is tensor
    assert held.tensor.tolist() == [1.0, 1.0]
    assert torch.equal(held.average.weight, weight)
    assert not held.inner.state
    assert not hasattr(held, "new")
    assert held.learn is learn


def test_parameters_and_buffers_of_the_loss_are_put_back() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, pred: Tensor, target: Tensor) -> Tensor:
            self.seen += len(pred)
            return F.mse_loss(pred * self.scale, target)

    loss = Scaled()
    learn = learner(loss_func=loss, splitter=lambda model: [*model.parameters(), loss.scale])
    find(learn)
    assert (loss.scale.item(), loss.seen.item()) == (1.0, 0.0)


def test_model_that_was_moved_in_the_search_is_where_it_was() -> None:
    class Move(Callback):
        def before_batch(self) -> None:
            self.model.double()
            self.learn.xb, self.learn.yb = (self.x.double(),), (self.y.double(),)

    learn = learner(Move)
    pointers = [p.data_ptr() for p in learn.model.parameters()]
    find(learn)
    assert [p.dtype for p in learn.model.parameters()] == [torch.float32] * 2
    assert [p.data_ptr() for p in learn.model.parameters()] == pointers


def test_buffer_whose_elements_lie_at_one_place_does_no_harm() -> None:
    model = nn.Linear(3, 1)
    model.register_buffer("mask", torch.ones(1).expand(5))
    learn = learner(model=model)
    find(learn)
    assert model.mask.tolist() == [1.0] * 5


def test_no_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    find(learner(path=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_search_in_a_fit_is_refused_and_the_fit_can_go_on() -> None:
    class Search(Callback):
        def before_epoch(self) -> None:
            with pytest.raises(RuntimeError, match="in a fit already"):
                find(self.learn)

    with_it, without = learner(Search), learner()
    for learn in (with_it, without):
        learn.fit(2, 0.05)
    assert with_it.recorder.values == without.recorder.values


def test_learner_without_default_callbacks_can_search() -> None:
    learn = learner(default_cbs=False)
    find(learn, 1e-5, 1e-3, num_it=10)
    assert len(learn.lr_search.lrs) == 10
    assert learn.cbs == []


# ---- what comes back ----


def test_suggestions_come_by_name_and_are_printed_short() -> None:
    learn = learner()

    def mine(lrs: list[float], losses: list[float]) -> float:
        return 0.125

    found = find(learn, suggest_funcs=["valley", "steep", mine])
    assert found._fields == ("valley", "steep", "mine")
    assert found.mine == 0.125
    assert 1e-7 < found.valley < 10
    assert repr(found) == f"SuggestedLRs(valley={found.valley:.2e}, steep={found.steep:.2e}, mine=1.25e-01)"
    assert learn.lr_search.suggestions == found._asdict()


def test_one_suggestion_may_be_given_alone_and_none_at_all() -> None:
    learn = learner()
    assert find(learn)._fields == ("valley",)
    assert find(learn, suggest_funcs="slide")._fields == ("slide",)
    assert find(learn, suggest_funcs=None) == ()


def test_curve_without_a_fall_warns_and_gives_nan() -> None:
    learn = learner(loss_func=lambda pred, target: pred.sum() * 0 + 1)
    with pytest.warns(RuntimeWarning, match="no suggestion 'valley': the loss never falls"):
        found = find(learn)
    assert math.isnan(found.valley)
    assert len(learn.lr_search.lrs) == 100


def test_suggestions_read_the_curve_without_its_ends() -> None:
    seen: list[int] = []

    def count(lrs: list[float], losses: list[float]) -> float:
        seen.append(len(lrs))
        return lrs[0]

    learn = learner()
    first = find(learn, 1e-6, 1e-3, suggest_funcs=count).count
    assert seen == [85]
    assert first == learn.lr_search.lrs[10]
    find(learn, 1e-6, 1e-3, num_it=10, suggest_funcs=count)
    assert seen == [85, 7]


def test_search_is_drawn_with_its_suggestions() -> None:
    from matplotlib import pyplot

    learn = learner()
    found = learn.lr_find(1e-4, 1e-1, suggest_funcs=("valley", "minimum"))
    ax = pyplot.gca()
    pyplot.close("all")
    assert ax.get_xscale() == "log"
    assert len(ax.lines[0].get_xdata()) == len(learn.lr_search.lrs) - 5
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == [f"valley: {found.valley:.2e}", f"minimum: {found.minimum:.2e}"]


def test_recorder_draws_the_search_too() -> None:
    from matplotlib import pyplot

    learn = learner()
    learn.lr_find(1e-4, 1e-1, show_plot=False)
    ax = learn.recorder.plot_lr_find(skip_end=20)
    pyplot.close("all")
    assert len(ax.lines[0].get_xdata()) == len(learn.lr_search.lrs) - 20


def test_suggestions_have_fastais_names_too() -> None:
    learn = learner()
    methods = (SuggestionMethod.Valley, SuggestionMethod.Slide, SuggestionMethod.Minimum, SuggestionMethod.Steep)
    assert find(learn, suggest_funcs=methods) == find(learn, suggest_funcs=("valley", "slide", "minimum", "steep"))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"num_it": 9}, ValueError, "num_it must be a whole number of at least 10, got 9"),
        ({"num_it": 20.0}, TypeError, "num_it must be a whole number, got 20.0"),
        ({"start_lr": 1.0, "end_lr": 0.1}, ValueError, r"start_lr must be less than end_lr, got 1.0 and 0.1"),
        ({"start_lr": 0.0}, ValueError, "start_lr must be a finite number greater than 0, got 0.0"),
        ({"suggest_funcs": "vally"}, ValueError, "no suggestion 'vally'; did you mean 'valley'?"),
        ({"suggest_funcs": [3]}, TypeError, r"suggest_funcs must be names or functions of \(lrs, losses\), got 3"),
        (
            {"suggest_funcs": lambda lrs, losses, num_it: 0.1},
            TypeError,
            r"suggest_funcs must be functions of \(lrs, losses\), got one of \(lrs, losses, num_it\): missing .* 'num_it'",
        ),
        ({"suggest_funcs": ["steep", "steep"]}, ValueError, "two named 'steep'"),
    ],
)
def test_what_cannot_be_searched_with_is_refused(
    kwargs: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        find(learner(), **kwargs)


def test_loader_that_can_be_run_through_only_once_is_left_whole() -> None:
    batches = iter(list(line_dls().train))
    learn = learner(dls=DataLoaders(batches))
    with pytest.raises(ValueError, match="lr_find would use up the training loader"):
        find(learn)
    assert len(list(batches)) == 2


def test_empty_loader_is_an_error_as_in_a_fit() -> None:
    class Nothing:
        def __iter__(self) -> Iterator[object]:
            return iter(())

    with pytest.raises(ValueError, match="the training loader gave no batch"):
        find(learner(dls=DataLoaders(Nothing())))


def test_fit_before_the_search_keeps_its_history() -> None:
    learn = learner(metrics=mse)
    learn.fit(2)
    values, losses = list(learn.recorder.values), list(learn.recorder.losses)
    find(learn)
    assert isinstance(learn.recorder, Recorder)
    assert learn.recorder.values == values
    assert learn.recorder.losses == losses


def test_search_is_printed_by_its_suggestions() -> None:
    learn = learner(opt_func=Adam)
    find(learn, 1e-3, 1.0)
    assert repr(learn.lr_search) == f"LRSearch(suggestions={learn.lr_search.suggestions})"
