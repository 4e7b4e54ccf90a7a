"""`Learner(compile=True)`: the numbers, events and files of a Learner without it, few graphs, and no wrong answer."""

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional as F

from minilearn.callback import EVENTS, Callback, CancelStepException
from minilearn.callbacks import Checkpoint, ProgressCallback
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.losses import mnist_loss
from minilearn.metrics import accuracy
from minilearn.optim import SGD, Adam, Lamb, Lion, Muon, OptimWrapper, RMSProp

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, about itself


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


def data(rows: int = 150, bs: int = 32) -> DataLoaders:
    """Rows for a ragged last batch, in training and in validation."""
    torch.manual_seed(0)
    x, y = torch.randn(rows, 6, dtype=torch.float64), torch.randint(0, 3, (rows,))
    return DataLoaders.from_tensors(x, y, x[:50], y[:50], bs=bs)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def learner(compile: Any, opt_func: Any = SGD, model: type[nn.Module] = Net, **options: Any) -> Learner:
    torch.manual_seed(1)
    net = model().double()
    dls = options.pop("dls", None) or data()
    options.setdefault("loss_func", F.cross_entropy)
    learn = Learner(dls, net, opt_func=opt_func, metrics=accuracy, compile=compile, **options)
    learn.remove_cb(ProgressCallback)
    learn.logger = lambda text: None
    return learn


def fitted(compile: Any, *args: Any, **options: Any) -> Learner:
    learn = learner(compile, *args, **options)
    torch.manual_seed(2)
    learn.fit(2, 0.01)
    learn.fit_one_cycle(2, 0.01)
    return learn


def assert_same(a: Learner, b: Learner) -> None:
    """Weights, buffers, averages and history are the same; so are the names under which they are saved."""
    assert list(a.model.state_dict()) == list(b.model.state_dict())
    for name, value in a.model.state_dict().items():
        torch.testing.assert_close(b.model.state_dict()[name], value, rtol=1e-9, atol=1e-9)
    one, other = a.opt.state_dict(), b.opt.state_dict()
    assert one["param_groups"] == other["param_groups"]
    for i, state in one["state"].items():
        assert state.keys() == other["state"][i].keys()
        for key, value in state.items():
            torch.testing.assert_close(torch.as_tensor(other["state"][i][key]), torch.as_tensor(value))
    for row, same in zip(a.recorder.values, b.recorder.values, strict=True):
        assert row == pytest.approx(same, rel=1e-9)
    assert a.recorder.losses == pytest.approx(b.recorder.losses, rel=1e-9)
    assert a.recorder.hps == b.recorder.hps


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


RULES = [SGD, partial(SGD, mom=0.9, nesterov=True), Adam, RMSProp, Lion]


@pytest.mark.parametrize("opt_func", RULES, ids=["SGD", "momentum", "Adam", "RMSProp", "Lion"])
def test_a_whole_step_gives_the_numbers_of_the_loop_in_two_graphs(opt_func: Any) -> None:
    wanted = fitted(False, opt_func)
    assert graphs() == 0
    assert_same(wanted, fitted(True, opt_func))
    assert graphs() == 2  # a training step and a validation, over two fits, a schedule and ragged batches


@pytest.mark.parametrize("opt_func", [Muon, Lamb, partial(OptimWrapper, opt=torch.optim.AdamW), torch.optim.SGD])
def test_a_step_that_cannot_be_in_the_graph_is_taken_beside_it(opt_func: Any) -> None:
    wanted = fitted(False, opt_func)
    assert_same(wanted, fitted(True, opt_func))
    assert 2 <= graphs() <= 3


@pytest.mark.parametrize("most", [10, 1000])
def test_a_large_model_with_batch_normalisation_is_compiled_in_parts_on_a_cpu(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minilearn.graphs.LARGE", most)
    learn = fitted(True, Adam)
    assert learn.compiled is not None
    assert learn.compiled._in_pieces[True] is (most == 10)
    assert_same(fitted(False, Adam), learn)
    assert 2 <= graphs() <= 3


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_torchs_modes_give_the_same_numbers(mode: str) -> None:
    assert_same(fitted(False, Adam), fitted(mode, Adam))


class Log(Callback):
    """Writes down each event, and what is there."""

    acts_in_step = False

    def __init__(self) -> None:
        self.seen: list[tuple[str, float | None, tuple[int, ...] | None]] = []

    def write(self, event: str) -> None:
        learn = self.learn.__dict__
        loss, pred = learn.get("loss"), learn.get("pred")
        self.seen.append(
            (
                event,
                None if loss is None else round(float(loss.detach()), 9),
                None if pred is None else tuple(pred.shape),
            )
        )


for _event in EVENTS:
    if _event != "after_create":
        setattr(Log, _event, lambda self, event=_event: self.write(event))


def test_events_come_in_their_order_with_prediction_and_loss() -> None:
    logs = []
    for compile in (False, True):
        logs.append(Log())
        fitted(compile, cbs=logs[-1])
    assert graphs() == 2
    assert logs[0].seen == logs[1].seen


class Clip(Callback):
    """Acts between backward and step."""

    def before_step(self) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.05)


class Accumulate(Callback):
    """Steps in every second batch, with the gradients of both."""

    def before_step(self) -> None:
        self.kept = [p.grad for p in self.model.parameters()] if self.iter % 2 == 0 else None
        if self.kept:
            raise CancelStepException

    def before_batch(self) -> None:
        if self.training and getattr(self, "kept", None):
            for p, grad in zip(self.model.parameters(), self.kept, strict=True):
                p.grad = grad


class Swap(Callback):
    """Starts the backward pass from another loss than the one recorded."""

    def after_loss(self) -> None:
        if self.training:
            self.learn.loss_grad = 3 * self.learn.loss_grad


class Noise(Callback):
    """Changes the prediction that the loss sees."""

    def after_pred(self) -> None:
        self.learn.pred = 2 * self.pred


@pytest.mark.parametrize("callback", [Clip, Accumulate, Swap, Noise])
def test_a_callback_that_acts_in_the_step_gets_its_way(callback: type[Callback]) -> None:
    wanted = fitted(False, cbs=callback)
    assert graphs() == 0
    assert_same(wanted, fitted(True, cbs=callback))
    assert 2 <= graphs() <= 3


def test_a_gradient_that_is_there_already_is_added_to() -> None:
    def go(compile: bool) -> Learner:
        learn = learner(compile)

        class Gift(Callback):
            def before_batch(self) -> None:
                if self.training and self.iter == 2:
                    self.model.head.weight.grad = torch.ones_like(self.model.head.weight)

        learn.fit(2, 0.01, cbs=Gift())
        return learn

    assert_same(go(False), go(True))


def hook_a_parameter(model: nn.Module) -> None:
    model.head.weight.register_hook(lambda grad: 2 * grad)


def hook_after_accumulation(model: nn.Module) -> None:
    def double(p: Tensor) -> None:
        p.grad *= 2

    model.head.weight.register_post_accumulate_grad_hook(double)


def hook_a_module(model: nn.Module) -> None:
    model.head.register_full_backward_hook(lambda module, grads, _: tuple(2 * grad for grad in grads))


@pytest.mark.parametrize("hook", [hook_a_parameter, hook_after_accumulation, hook_a_module])
@pytest.mark.filterwarnings("ignore:compile=True")  # of a module's hook, which torch does not compile
def test_hooks_on_gradients_are_heeded(hook: Any) -> None:
    def go(compile: bool, hooked: bool = True) -> Learner:
        learn = learner(compile)
        if hooked:
            hook(learn.model)
        torch.manual_seed(2)
        learn.fit(2, 0.01)
        return learn

    wanted = go(False)
    assert not torch.equal(wanted.model.head.weight, go(False, hooked=False).model.head.weight)
    assert_same(wanted, go(True))


def test_layers_are_frozen_and_unfrozen_between_fits() -> None:
    def go(compile: bool) -> Learner:
        learn = learner(compile, Adam, splitter=lambda m: [list(m.body.parameters()), list(m.head.parameters())])
        learn.freeze()
        learn.fit(1, 0.01)
        learn.unfreeze()
        learn.fit(1, slice(0.001, 0.01))
        return learn

    assert_same(go(False), go(True))


def test_a_parameter_without_a_gradient_is_left_alone() -> None:
    class Spare(Net):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Parameter(torch.ones(3))

    assert_same(fitted(False, Adam, Spare), fitted(True, Adam, Spare))
    wanted = fitted(False, SGD, Spare)
    with pytest.warns(RuntimeWarning, match="the model is compiled, but not the whole step"):
        got = fitted(True, SGD, Spare)
    assert_same(wanted, got)


class Varied:
    """Batches of ever other sizes."""

    def __init__(self, sizes: list[int]) -> None:
        torch.manual_seed(0)
        self.batches = [(torch.randn(n, 6, dtype=torch.float64), torch.randint(0, 3, (n,))) for n in sizes]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def test_batches_of_ever_other_sizes_take_three_graphs_at_most() -> None:
    def go(compile: bool) -> Learner:
        learn = learner(compile, dls=(Varied([8, 8, 9, 12, 8, 17, 5, 23, 6]), Varied([7, 9, 4, 3])))
        learn.fit(2, 0.01)
        return learn

    wanted = go(False)
    assert_same(wanted, go(True))
    assert graphs() <= 3


class Breaks(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > -1e9 else -x)


def test_another_models_sizes_are_none_of_a_graphs() -> None:
    def sizes_of_graphs(bs: int) -> list[str]:
        x, y = torch.randn(96, 6), torch.randint(0, 3, (96,))
        dls = DataLoaders.from_tensors(x, y, x, y, bs=bs)
        learn = Learner(dls, nn.Linear(6, 3), opt_func=SGD, loss_func=F.cross_entropy, compile=True)
        with learn.no_logging():
            learn.fit(2, 0.01)
        assert learn.compiled is not None
        guards = [str(graph._short_cut._guards) for graph in learn.compiled._graphs.values() if graph._short_cut]
        return re.findall(r"check_tensor\(L\['xb'\]\[0\].* size=(\[.*?\])", "\n".join(guards))

    for bs in (32, 48, 16):
        assert sizes_of_graphs(bs) == 2 * [f"[{bs}, 6]"]


def test_a_graph_break_is_named_once_and_the_fit_goes_on_as_it_is() -> None:
    wanted = fitted(False, model=Breaks)
    with pytest.warns(RuntimeWarning, match="compile") as warned:
        got = fitted(True, model=Breaks)
    assert_same(wanted, got)
    (only,) = warned
    assert "batches are carried out as they are" in str(only.message)
    assert "test_compile.py, line" in str(only.message)
    assert "x.sum() > -1e9" in str(only.message)


def test_without_a_compiler_the_fit_goes_on_as_it_is(tmp_path: Path) -> None:
    code = """
import warnings, torch
from torch import nn
from minilearn.all import *
x = torch.rand(64, 3)
learn = Learner(DataLoaders.from_tensors(x, x, bs=16), nn.Linear(3, 3), nn.functional.mse_loss, opt_func=SGD, compile=True)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always", RuntimeWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    with learn.no_logging():
        learn.fit(3, 0.1)
print(len(told), str(told[0].message))
print(learn.recorder.values[-1][0] < learn.recorder.values[0][0])
"""
    env = {**os.environ, "CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    first, second = run.stdout.splitlines()
    assert first.startswith("1 compile=True: the batches are carried out as they are:")
    assert second == "True"


def test_a_model_with_several_inputs_and_answers_is_one_graph() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(6, 3)

        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return self.lin(a + b), {"twice": self.lin(2 * a)}

    def loss(pred: Any, y: Tensor) -> Tensor:
        return F.cross_entropy(pred[0], y) + F.cross_entropy(pred[1]["twice"], y)

    def go(compile: bool) -> Learner:
        torch.manual_seed(0)
        x, y = torch.randn(64, 6, dtype=torch.float64), torch.randint(0, 3, (64,))
        dls = DataLoaders.from_dsets((x, x, y), bs=16)
        torch.manual_seed(1)
        learn = Learner(dls, Two().double(), loss, opt_func=Adam, compile=compile)
        with learn.no_logging():
            learn.fit(2, 0.01)
        return learn

    assert_same(go(False), go(True))
    assert graphs() == 1


def test_what_is_no_mode_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"compile must be True, False or one of default, .*got 'max-autotun'; did you"
    ):
        learner("max-autotun")
    with pytest.raises(TypeError, match="compile must be True, False"):
        learner(1)


def test_a_wrong_target_is_told_as_without_a_compiler() -> None:
    learn = learner(
        True, loss_func=mnist_loss, dls=DataLoaders.from_tensors(torch.rand(64, 6).double(), torch.ones(64), bs=8)
    )
    with pytest.raises(ValueError, match="mnist_loss: predictions are"):
        learn.fit(1)


def test_the_rate_finder_leaves_no_trace() -> None:
    def go(compile: bool, search: bool) -> Learner:
        learn = learner(compile)
        torch.manual_seed(2)
        learn.fit(1, 0.01)
        if search:
            learn.lr_find(num_it=12, show_plot=False)
        learn.fit(1, 0.01)
        return learn

    wanted = go(False, search=False)
    assert_same(wanted, go(True, search=True))


def test_a_step_that_was_not_to_be_whole_is_not_tried_again() -> None:
    class Spare(Net):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Parameter(torch.ones(3))

    learn = learner(True, model=Spare)
    with pytest.warns(RuntimeWarning, match="not the whole step"):
        learn.fit(1, 0.01)
    made = graphs()
    learn.fit(1, 0.01)  # a warning would be an error here
    assert graphs() == made


def test_hooks_on_what_is_saved_for_backward_are_called() -> None:
    saved = []

    def pack(x: Tensor) -> Tensor:
        saved.append(x.shape)
        return 2 * x if x.is_floating_point() else x

    def go(compile: bool) -> Learner:
        learn = learner(compile)
        learn.fit(1, 0.01)
        torch.manual_seed(2)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            learn.fit(1, 0.01)
        learn.fit(1, 0.01)
        return learn

    torch.manual_seed(2)
    wanted, times = go(False), len(saved)
    torch.manual_seed(2)
    assert_same(wanted, go(True))
    assert times
    assert len(saved) == 2 * times


class Scaled(Net):
    scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * answer(super().forward(x))


def answer(pred: Tensor) -> Tensor:
    return act(pred)


act = torch.tanh


def sum_of_squares(pred: Tensor, target: Tensor) -> Tensor:
    return (pred - F.one_hot(target, 3)).pow(2).mean()


def swap_loss(learn: Learner) -> None:
    learn.loss_func = sum_of_squares


def swap_global(learn: Learner) -> None:
    globals()["act"] = torch.sigmoid


def add_hook(learn: Learner) -> None:
    learn.model.head.register_forward_hook(lambda module, inputs, output: 2 * output)


MID_FIT = {
    "an attribute": lambda learn: setattr(learn.model, "scale", 3.0),
    "a loss": swap_loss,
    "a global": swap_global,
    "a hook": add_hook,
    "a frozen layer": lambda learn: learn.model.head.requires_grad_(False),
    "a rate of dropout": lambda learn: setattr(learn.model.body[3], "p", 0.6),
    "decay": lambda learn: learn.opt.param_groups[0].update(wd=0.3),
    "an evaluation mode": lambda learn: learn.model.body.eval(),
}


@pytest.mark.parametrize("change", MID_FIT.values(), ids=MID_FIT.keys())
def test_what_changes_in_the_middle_of_a_fit_is_heeded(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Change(Callback):
        def before_batch(self) -> None:
            if (self.training, self.epoch, self.iter) == (True, 1, 2):
                change(self.learn)

    def go(compile: bool) -> Learner:
        monkeypatch.setitem(globals(), "act", torch.tanh)
        learn = learner(compile, model=Scaled, cbs=Change())
        torch.manual_seed(2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of what cannot be one graph, as with a frozen layer
            learn.fit(3, 0.01)
        return learn

    wanted = go(False)
    assert_same(wanted, go(True))
    unchanged = learner(False, model=Scaled)
    monkeypatch.setitem(globals(), "act", torch.tanh)
    torch.manual_seed(2)
    unchanged.fit(3, 0.01)
    assert not torch.equal(unchanged.model.head.weight, wanted.model.head.weight)


def test_parts_of_batches_that_are_no_tensors_are_carried_out_as_they_are() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(6, 3)

        def forward(self, x: Tensor, name: str | None) -> Tensor:
            return self.lin(x) if name is None else 2 * self.lin(x)

    def go(compile: bool) -> Learner:
        torch.manual_seed(0)
        sizes = [8, 8, 5, 7, 9, 8]
        batches = [
            (torch.randn(n, 6, dtype=torch.float64), "name" if n == 8 else torch.ones(1), torch.randint(0, 3, (n,)))
            for n in sizes
        ]
        return fitted(compile, SGD, Named, dls=(batches, batches))

    assert_same(go(False), go(True))


def test_fit_that_is_interrupted_and_taken_up_ends_with_the_same_numbers(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    class StopOnce(Callback):
        def before_batch(self) -> None:
            if self.epoch == 1 and self.iter == 2 and self.training:
                raise Stopped

    def fit(learn: Learner) -> None:
        torch.manual_seed(2)
        learn.fit_one_cycle(2, 0.01, checkpoint=Checkpoint("run", every_batches=1))

    whole, stopped, taken_up = (learner(True, path=tmp_path / name) for name in ("whole", "parts", "parts"))
    fit(whole)
    with pytest.raises(Stopped), stopped.added_cbs(StopOnce()):
        fit(stopped)
    fit(taken_up)
    assert_same(whole, taken_up)
