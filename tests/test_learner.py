"""The Learner: what it trains, on what, with what, and what it leaves behind."""

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import line_dls
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from minilearn.callback import Callback, CancelEpochException, CancelFitException
from minilearn.callbacks import DevicePlacement, Divergence, Preflight, ProgressCallback, Recorder, TrainEval
from minilearn.data import DataLoader, DataLoaders, digits, digits_sample
from minilearn.learner import Learner
from minilearn.metrics import accuracy, mse
from minilearn.optim import SGD, Adam, OptimWrapper


def learner(dls: object = None, model: nn.Module | None = None, **kwargs: object) -> Learner:
    learn = Learner(dls or line_dls(), model or nn.Linear(3, 1), F.mse_loss, **kwargs)  # type: ignore[arg-type]
    learn.logger = lambda line: None
    return learn


def test_first_line_of_the_lessons_just_runs(capsys: pytest.CaptureFixture[str]) -> None:
    dls = DataLoaders.from_tensors(*digits_sample())
    learn = Learner(dls, nn.Linear(784, 1), opt_func=SGD)
    learn.fit(10)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("loss_func: binary cross-entropy with logits, since predictions are float32 (64, 1)")
    assert lines[0].endswith("choose another with Learner(..., loss_func=...)")
    assert lines[1].split() == ["epoch", "train_loss", "valid_loss", "time"]
    assert len(lines) == 12
    first, last = learn.recorder.values[0], learn.recorder.values[-1]
    assert (last[1] or 0) < (first[1] or 0)


def test_classes_train_without_a_loss_func() -> None:
    torch.manual_seed(0)
    learn = Learner(DataLoaders.from_tensors(*digits()), nn.Linear(784, 10), metrics=accuracy)
    with learn.no_logging():
        learn.fit(5, 1e-2)
    assert learn.loss_func is F.cross_entropy
    assert (learn.recorder.values[-1][2] or 0) > 0.9


def test_default_callbacks_are_there_and_can_be_left_out() -> None:
    assert [type(cb) for cb in learner().cbs] == [
        TrainEval,
        DevicePlacement,
        Preflight,
        Recorder,
        ProgressCallback,
        Divergence,
    ]
    assert learner(default_cbs=False).cbs == []


def test_callback_of_a_default_class_takes_its_place() -> None:
    mine = Recorder(beta=0.5)
    learn = learner(cbs=mine)
    assert learn.recorder is mine
    assert sum(isinstance(cb, Recorder) for cb in learn.cbs) == 1


def test_missing_recorder_says_how_to_get_one() -> None:
    with pytest.raises(ValueError, match=r"has no Recorder: add one, learn\.add_cb\(Recorder\(\)\)"):
        learner(default_cbs=False).recorder  # noqa: B018


def test_fits_without_default_callbacks() -> None:
    learn = learner(default_cbs=False, opt_func=SGD)
    before = learn.model.weight.clone()
    learn.fit(1, 0.1)
    assert not torch.equal(learn.model.weight, before)


def test_model_trains_in_training_mode_and_is_left_in_evaluation_mode() -> None:
    modes: dict[bool, set[bool]] = {True: set(), False: set()}

    class Look(Callback):
        def after_pred(self) -> None:
            modes[self.training].add(self.model.training)

    learn = learner(cbs=Look)
    learn.fit(2)
    assert modes == {True: {True}, False: {False}}
    assert not learn.model.training


def test_gradients_are_off_in_validation() -> None:
    grads: dict[bool, bool] = {}

    class Look(Callback):
        def after_pred(self) -> None:
            grads[self.training] = self.pred.requires_grad

    learner(cbs=Look).fit(1)
    assert grads == {True: True, False: False}


def test_second_fit_goes_on_with_the_same_optimizer_unless_reset() -> None:
    learn = learner()
    learn.fit(1)
    first = learn.opt
    learn.fit(1)
    assert learn.opt is first
    learn.fit(1, reset_opt=True)
    assert learn.opt is not first


def test_lr_and_wd_of_a_fit_are_set_in_every_group() -> None:
    learn = learner()
    learn.fit(1, lr=0.03, wd=0.2)
    assert [group["lr"] for group in learn.opt.param_groups] == [0.03, 0.03]
    assert [group["wd"] for group in learn.opt.param_groups] == [0.2, 0.0]


@pytest.mark.parametrize(("opt_func", "name"), [(Adam, "wd"), (torch.optim.AdamW, "weight_decay")])
def test_norms_and_biases_are_spared_weight_decay(opt_func: type[torch.optim.Optimizer], name: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1, bias=False))
    learn = learner(model=model, opt_func=opt_func, wd=0.3)
    learn.create_opt()
    learn.fit(1)
    decayed = {p for group in learn.opt.param_groups if group[name] for p in group["params"]}
    assert decayed == {model[0].weight, model[2].weight}
    assert all(group[name] == 0.3 for group in learn.opt.param_groups if group[name])


def test_wd_bn_bias_spares_nothing() -> None:
    learn = learner(wd_bn_bias=True, wd=0.3)
    learn.fit(1)
    assert [group["wd"] for group in learn.opt.param_groups] == [0.3]


def test_splitter_makes_groups() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 1, bias=False))
    learn = learner(model=model, splitter=lambda m: [list(m[0].parameters()), list(m[1].parameters())])
    learn.create_opt()
    assert [group["params"] for group in learn.opt.param_groups] == [[model[0].weight], [model[1].weight]]


@pytest.mark.parametrize(
    "opt_func", [torch.optim.SGD, torch.optim.AdamW, partial(torch.optim.SGD, momentum=0.9), torch.optim.RMSprop]
)
def test_torch_optimizers_work_as_they_are(opt_func: type[torch.optim.Optimizer]) -> None:
    learn = learner(opt_func=opt_func)
    learn.fit(20, 0.05)
    assert (learn.recorder.values[-1][1] or 9) < (learn.recorder.values[0][1] or 0)


def test_validate_gives_loss_and_metrics_and_keeps_the_history() -> None:
    learn = learner(metrics=mse)
    learn.fit(2)
    values, losses = [list(row) for row in learn.recorder.values], list(learn.recorder.losses)
    x, y = learn.dls.valid_ds.tensors
    expected = F.mse_loss(learn.model(x), y).item()
    assert learn.validate() == pytest.approx([expected, expected], rel=1e-6)
    assert learn.recorder.values == values
    assert learn.recorder.losses == losses


def test_validate_before_any_fit() -> None:
    learn = learner()
    x, y = learn.dls.valid_ds.tensors
    assert learn.validate() == pytest.approx([F.mse_loss(learn.model(x), y).item()], rel=1e-6)


def test_validate_over_another_loader() -> None:
    learn = learner()
    x, y = learn.dls.train_ds.tensors
    expected = [F.mse_loss(learn.model(x), y).item()]
    assert learn.validate(ds_idx=0) == pytest.approx(expected, rel=1e-6)
    assert learn.validate(dl=[(x, y)]) == pytest.approx(expected, rel=1e-6)


def test_validate_within_a_fit_leaves_the_fit_as_it_was() -> None:
    class Look(Callback):
        def after_loss(self) -> None:
            if self.training:
                before = (self.pred, self.loss, self.iter, self.dl, self.training, self.model.training)
                self.learn.validate()
                assert (self.pred, self.loss, self.iter, self.dl, self.training, self.model.training) == before

    plain, looking = learner(opt_func=SGD), learner(opt_func=SGD, cbs=Look)
    looking.model.load_state_dict(plain.model.state_dict())
    plain.fit(2, 0.1)
    looking.fit(2, 0.1)
    assert torch.equal(plain.model.weight, looking.model.weight)
    assert plain.recorder.values == looking.recorder.values


def test_model_without_parameters_can_be_validated() -> None:
    x = torch.randn(8, 3)
    assert learner(DataLoaders([(x, x)], [(x, x)]), nn.Identity()).validate() == [0.0]


def test_added_and_removed_cbs_are_put_back() -> None:
    learn = learner()
    before = list(learn.cbs)
    with learn.added_cbs(TrainEval()):
        assert len(learn.cbs) == 7
    assert learn.cbs == before
    with learn.removed_cbs(Recorder):
        assert len(learn.cbs) == 5
    assert learn.cbs == before


def test_added_cbs_are_taken_away_after_an_error() -> None:
    learn = learner()

    class Fails(Callback):
        def before_fit(self) -> None:
            raise KeyError

    with pytest.raises(KeyError):
        learn.fit(1, cbs=Fails)
    assert len(learn.cbs) == 6


def test_no_logging_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    learn = Learner(line_dls(), nn.Linear(3, 1))
    with learn.no_logging():
        learn.fit(1)
    assert capsys.readouterr().out == ""


def test_logger_of_ones_own_gets_the_lines() -> None:
    learn, lines = learner(), []
    learn.logger = lines.append
    learn.fit(1)
    assert lines[0].split() == ["epoch", "train_loss", "valid_loss", "time"]
    assert len(lines) == 2


class Pair(NamedTuple):
    """A batch as a named tuple."""

    image: Tensor
    label: Tensor


class Stream:
    """A loader without a length that begins anew each time."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(5):
            x = torch.randn(4, 3, generator=generator)
            yield x, x.sum(1, keepdim=True)


X, Y = torch.randn(8, 3), torch.randn(8, 1)


@pytest.mark.parametrize(
    "loader",
    [
        torch.utils.data.DataLoader(TensorDataset(X, Y), batch_size=4),
        [(X, Y)],
        [[X, Y]],
        [Pair(X, Y)],
        [{"input": X, "target": Y}],
        [{"input": X, "labels": Y}],
        Stream(),
        DataLoader(list(zip(X, Y, strict=True)), 4),
        torch.utils.data.DataLoader(TensorDataset(X, Y), batch_size=4, num_workers=1),
    ],
    ids=["torch", "list", "list batch", "named tuple", "dict", "dict of labels", "no length", "list of rows", "worker"],
)
def test_batches_and_loaders_of_every_kind(loader: object) -> None:
    learn = learner(DataLoaders(loader, loader), metrics=mse)
    learn.fit(2, 0.1)
    rows = learn.recorder.values
    assert len(rows) == 2
    assert all(figure is not None for row in rows for figure in row)
    assert rows[1][1] == pytest.approx(rows[1][2])


def test_dict_batch_goes_to_the_model_by_name() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 1)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.linear(left - right)  # type: ignore[no-any-return]

    learn = learner(DataLoaders([{"right": X, "y": Y, "left": 2 * X}]), Two())
    learn.fit(1)
    assert learn.recorder.values[0][0] is not None


def test_several_inputs_by_n_inp() -> None:
    model = nn.Bilinear(3, 3, 1)
    learn = learner(DataLoaders([(X, X, Y)], n_inp=2), model)
    learn.fit(1)
    assert learner(DataLoaders([(X, X, Y)]), model).dls.n_inp is None
    assert learn.recorder.values[0][0] is not None


def test_loader_without_a_length_trains_by_its_batches() -> None:
    learn = learner(DataLoaders(Stream()))
    learn.fit(2)
    assert learn.recorder.iters == [5, 10]


def test_metrics_without_a_validation_set_are_of_the_training_batches() -> None:
    learn = learner(DataLoaders(line_dls().train), metrics=mse)
    learn.fit(1, 0.0)
    assert learn.recorder.metric_names == ["epoch", "train_loss", "train_mse", "time"]
    x, y = line_dls().train_ds.tensors
    assert learn.recorder.values[0][1] == pytest.approx(F.mse_loss(learn.model(x), y).item(), rel=1e-6)


def test_batch_of_one_and_ragged_last_batch() -> None:
    learn = learner(line_dls(train_rows=9, valid_rows=5), metrics=mse)
    learn.fit(1, 0.0)
    x, y = learn.dls.valid_ds.tensors
    assert learn.recorder.values[0][1:] == pytest.approx([F.mse_loss(learn.model(x), y).item()] * 2, rel=1e-6)


def test_half_precision_model_trains() -> None:
    dls = DataLoaders.from_tensors(X.bfloat16(), Y.bfloat16(), bs=4)
    learn = learner(dls, nn.Linear(3, 1).bfloat16(), opt_func=SGD)
    learn.fit(1, 0.1)
    assert learn.model.weight.dtype is torch.bfloat16


def test_change_of_a_batch_in_place_leaves_the_dataset_alone() -> None:
    class Spoil(Callback):
        def before_batch(self) -> None:
            self.x.zero_()

    dls = line_dls()
    before = [part.clone() for part in (*dls.train_ds.tensors, *dls.valid_ds.tensors)]
    learner(dls, cbs=Spoil).fit(1)
    after = (*dls.train_ds.tensors, *dls.valid_ds.tensors)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_zero_epochs_train_nothing() -> None:
    learn = learner()
    before = learn.model.weight.clone()
    learn.fit(0)
    assert torch.equal(learn.model.weight, before)
    assert learn.recorder.values == []


def moved(learn: Learner, part: nn.Module, lr: float = 0.1) -> bool:
    """Whether another fit changes the weights of a part of the model."""
    before = [p.detach().clone() for p in part.parameters()]
    learn.fit(1, lr)
    return any(not torch.equal(a, b) for a, b in zip(before, part.parameters(), strict=True))


def test_model_that_was_replaced_is_trained() -> None:
    learn, lines = learner(opt_func=SGD), []
    learn.fit(1)
    learn.model, learn.logger = nn.Linear(3, 1), lines.append
    assert moved(learn, learn.model)
    assert lines[0] == "a new optimizer is made, as the model's parameters, or opt_func, are others than before"


def test_layer_that_was_frozen_is_trained_when_it_no_longer_is() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    learn = learner(model=model, opt_func=SGD)
    assert not moved(learn, model[0])
    model[0].requires_grad_(True)
    assert moved(learn, model[0])


def test_head_that_was_replaced_is_trained() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    learn = learner(model=model, opt_func=SGD)
    learn.fit(1)
    model[1] = nn.Linear(4, 1)
    assert moved(learn, model[1])


def test_other_opt_func_makes_another_optimizer() -> None:
    learn = learner()
    learn.fit(1)
    learn.opt_func = SGD
    learn.fit(1)
    assert isinstance(learn.opt, SGD)


def test_optimizer_set_by_hand_is_kept() -> None:
    learn = learner()
    learn.create_opt()
    learn.opt = mine = torch.optim.SGD([learn.model.weight], lr=0.1)
    learn.fit(1, 0.1)
    assert learn.opt is mine


def test_model_of_another_precision_goes_on_with_its_optimizer() -> None:
    learn = learner()
    learn.fit(1)
    opt = learn.opt
    learn.model.double()
    learn.dls = DataLoaders.from_tensors(X.double(), Y.double(), bs=4)
    learn.fit(1)
    assert learn.opt is opt
    assert opt.state[learn.model.weight]["grad_avg"].dtype is torch.float64


def test_validate_within_a_fit_leaves_the_epochs_figures_alone() -> None:
    class Test(Callback):
        def after_epoch(self) -> None:
            figures.append(self.learn.validate(dl=[(X, 1000 + Y)])[0])

    figures: list[float | None] = []
    plain, testing = learner(opt_func=SGD, metrics=mse), learner(opt_func=SGD, metrics=mse, cbs=Test)
    testing.model.load_state_dict(plain.model.state_dict())
    plain.fit(2, 0.1)
    testing.fit(2, 0.1)
    assert testing.recorder.values == plain.recorder.values
    assert all(figure is not None and figure > 1000 for figure in figures)


def test_validate_within_a_fit_that_fails_lets_the_fit_go_on() -> None:
    steps: list[int] = []

    class Look(Callback):
        def after_batch(self) -> None:
            if self.training:
                steps.append(self.iter)
                with pytest.raises(ValueError, match="empty"):
                    self.learn.validate(dl=[])

    learner(cbs=Look).fit(1)
    assert steps == [0, 1]


def test_validate_within_a_fit_leaves_each_module_in_its_mode() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    modes: list[bool] = []

    class Freeze(Callback):
        def before_batch(self) -> None:
            if self.training:
                model[1].eval()
                self.learn.validate()
                modes.extend([model[0].training, model[1].training])

    learner(model=model, cbs=Freeze).fit(1)
    assert modes == [True, False] * 2


def test_validate_alone_leaves_gradients_and_history() -> None:
    learn = learner()
    learn.model.weight.grad = torch.ones_like(learn.model.weight)
    learn.validate()
    assert learn.model.weight.grad is not None


@pytest.mark.parametrize("cancel", [CancelEpochException, CancelFitException])
def test_validate_alone_can_be_cancelled(cancel: type[Exception]) -> None:
    class Stop(Callback):
        def after_batch(self) -> None:
            raise cancel

    assert learner(cbs=Stop).validate() == [None]


def test_fit_within_a_fit_changes_nothing_of_the_one_that_runs() -> None:
    class Nested(Callback):
        def after_batch(self) -> None:
            with pytest.raises(RuntimeError):
                self.learn.fit(7, lr=5.0)
            assert (self.n_epoch, self.opt.param_groups[0]["lr"]) == (1, 0.1)

    learner(cbs=Nested).fit(1, 0.1)


def test_interrupt_while_cleaning_up_leaves_the_learner_usable() -> None:
    class Bad(nn.Linear):
        def zero_grad(self, set_to_none: bool = True) -> None:
            if armed.pop():
                raise KeyboardInterrupt

    armed = [False, True]
    learn = learner(model=Bad(3, 1))
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1)
    learn.fit(1)
    assert len(learn.recorder.values) == 1


def test_one_batch_can_be_run_by_hand() -> None:
    learn = learner(opt_func=SGD)
    learn.one_batch(0, learn.dls.one_batch())
    assert learn.pred.shape == (4, 1)


def test_metrics_and_loaders_may_be_set_afterwards_in_any_form() -> None:
    learn = learner()
    learn.metrics, learn.dls = [mse], ([(X, Y)], [(X, Y)])  # type: ignore[list-item, assignment]
    learn.fit(1)
    assert learn.recorder.metric_names == ["epoch", "train_loss", "valid_loss", "mse", "time"]


def test_copies_of_a_learner_train_on_their_own() -> None:
    learn = learner(opt_func=SGD)
    learn.fit(1)
    twin = copy.deepcopy(learn)
    before = learn.model.weight.clone()
    twin.fit(1, 0.1)
    assert torch.equal(learn.model.weight, before)
    assert not torch.equal(twin.model.weight, before)


def test_subclass_of_a_default_callback_takes_its_place() -> None:
    class Mine(ProgressCallback):
        pass

    assert sum(isinstance(cb, ProgressCallback) for cb in learner(cbs=Mine).cbs) == 1


def test_equal_callbacks_are_told_apart() -> None:
    @dataclasses.dataclass
    class Equal(Callback):
        n: int = 0

    one, two = Equal(), Equal()
    learn = learner(cbs=[one, two])
    learn.remove_cb(two)
    assert one.learn is learn
    assert not hasattr(two, "learn")


def test_numbers_of_other_libraries_are_taken() -> None:
    learn = learner()
    learn.fit(np.int64(1), lr=np.float32(0.25))
    learn.fit(1, lr=torch.tensor(0.5))  # type: ignore[arg-type]
    assert learn.opt.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Learner(line_dls().train, nn.Linear(3, 1)), "dls must be DataLoaders(train, valid) or a pair"),
        (lambda: Learner([(X, Y)], nn.Linear(3, 1)), "dls must be DataLoaders(train, valid) or a pair"),
        (lambda: Learner({"train": [(X, Y)]}, nn.Linear(3, 1)), "dls must be DataLoaders(train, valid) or a pair"),
        (lambda: Learner(None, nn.Linear(3, 1)), "dls must be DataLoaders(train, valid) or a pair"),
        (lambda: learner(model=line_dls()), "model must be an nn.Module, got an object of DataLoaders"),
        (
            lambda: Learner(line_dls(), nn.Linear(3, 1), nn.MSELoss),
            "loss_func must be a function or a module, got the class MSELoss: make one",
        ),
        (lambda: learner(opt_func=partial(torch.optim.SGD, lr=0.5)), "leave lr out of opt_func"),
        (lambda: learner(metrics=nn.L1Loss), "a metric must be made before it is given: L1Loss(), got the class"),
        (lambda: learner(metrics="mae"), "give the metric itself, metrics=mae, not its name in quotes"),
        (lambda: learner().validate(line_dls().train), "ds_idx must be a loader's number, got an object of DataLoader"),
        (lambda: learner(opt_func=lambda p, lr: None).fit(1), "opt_func must give a torch.optim.Optimizer, got None"),
        (lambda: learner(line_dls().to("cuda:7")).fit(1), "the device 'cuda:7' is not there"),
    ],
)
def test_argument_of_the_wrong_kind_is_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        make()
    assert message in str(caught.value)


def test_precision_of_another_optimizers_averages_is_left_alone() -> None:
    class Precise(torch.optim.SGD):
        """Keeps an average in double precision."""

        def step(self, closure: object = None) -> None:
            for p in self.param_groups[0]["params"]:
                self.state[p].setdefault("average", torch.zeros_like(p, dtype=torch.float64))

    learn = learner(opt_func=Precise)
    learn.fit(1)
    learn.fit(1)
    assert learn.opt.state[learn.model.weight]["average"].dtype is torch.float64


# ---- layers: rates of their own, freezing ----


def layered_model() -> nn.Sequential:
    """Three layers: a linear one with a norm, a linear one, a weight."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.Linear(4, 4), nn.Linear(4, 1, bias=False)
    )


def by_layer(model: nn.Module) -> list[Iterator[nn.Parameter]]:
    return [layer.parameters() for layer in model.children()]


def layered(**kwargs: object) -> Learner:
    return learner(**{"model": layered_model(), "splitter": by_layer, **kwargs})


def moved_names(learn: Learner, **kwargs: object) -> list[str]:
    """The parameters that another fit changes, by a bit at least."""
    before = copy.deepcopy(dict(learn.model.named_parameters()))
    learn.fit(1, **kwargs)  # type: ignore[arg-type]
    return [name for name, p in learn.model.named_parameters() if not torch.equal(p, before[name])]


WEIGHTS = ["0.0.weight", "0.1.weight", "0.1.bias", "1.weight", "1.bias", "2.weight"]
"""All but the bias before the norm, which has no effect on the loss but by rounding."""
OPT_FUNCS = [SGD, Adam, torch.optim.SGD, torch.optim.AdamW, partial(OptimWrapper, opt=torch.optim.AdamW, mom=0.8)]


def rates(learn: Learner) -> list[float]:
    return [group["lr"] for group in learn.opt.param_groups]


@pytest.mark.parametrize("opt_func", OPT_FUNCS)
def test_fit_takes_a_rate_for_each_layer(opt_func: Callable[..., torch.optim.Optimizer]) -> None:
    learn = layered(opt_func=opt_func)
    learn.fit(1, lr=slice(1e-4, 1e-2))
    assert rates(learn) == pytest.approx([1e-4, 1e-4, 1e-3, 1e-3, 1e-2])
    learn.fit(1, lr=slice(1e-2))
    assert rates(learn) == pytest.approx([1e-3, 1e-3, 1e-3, 1e-3, 1e-2])
    learn.fit(1, lr=[1e-4, 2e-4, 3e-4])
    assert rates(learn) == [1e-4, 1e-4, 2e-4, 2e-4, 3e-4]
    learn.fit(1, lr=1e-3)
    assert rates(learn) == [1e-3] * 5


@pytest.mark.parametrize("opt_func", OPT_FUNCS)
def test_learner_has_a_rate_for_each_layer(opt_func: Callable[..., torch.optim.Optimizer]) -> None:
    learn = layered(opt_func=opt_func, lr=slice(1e-4, 1e-2))
    learn.create_opt()
    assert rates(learn) == pytest.approx([1e-4, 1e-4, 1e-3, 1e-3, 1e-2])
    learn.fit(1, lr=0.5)
    learn.fit(1)
    assert rates(learn) == pytest.approx([1e-4, 1e-4, 1e-3, 1e-3, 1e-2])


def test_single_layer_has_the_last_rate_of_a_slice() -> None:
    learn = learner(lr=slice(1e-4, 1e-2))
    learn.fit(1)
    assert rates(learn) == [1e-2, 1e-2]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: layered(lr=slice(0, 1)), "lr must be a slice between numbers greater than 0"),
        (lambda: layered(lr=[0.1, -0.1]), "lr must be a finite number of at least 0, got -0.1"),
        (lambda: layered(lr=[0.1, 0.2]).fit(1), "lr must be one number, or one for each of the 3 layers, got 2"),
        (
            lambda: layered().fit(1, lr=[0.1, 0.2]),
            "Adam: lr must be one number, or one for each of the 3 layers, got 2",
        ),
        (lambda: layered().fit(1, lr=slice(None)), "lr must be slice(last) or slice(first, last), got slice(None"),
        (lambda: layered(opt_func=torch.optim.SparseAdam, wd=0.1).fit(1), "SparseAdam has no hyperparameter 'wd'"),
        (lambda: layered().freeze_to(-4), "n must be a whole number of at least -3, got -4"),
    ],
)
def test_bad_rates_and_layers_are_refused(act: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        act()


@pytest.mark.parametrize("opt_func", OPT_FUNCS)
@pytest.mark.parametrize("train_bn", [True, False])
def test_freeze_trains_the_last_layer_and_norms_with_train_bn(
    opt_func: Callable[..., torch.optim.Optimizer], train_bn: bool
) -> None:
    learn = layered(opt_func=opt_func, train_bn=train_bn, wd=0.1)
    learn.fit(1)
    learn.freeze()
    assert moved_names(learn, lr=0.1) == [*(["0.1.weight", "0.1.bias"] if train_bn else []), "2.weight"]
    learn.unfreeze()
    assert set(moved_names(learn, lr=0.1)) >= set(WEIGHTS)


def test_freeze_to_before_any_fit() -> None:
    learn = layered(train_bn=False, opt_func=SGD)
    learn.freeze_to(1)
    assert moved_names(learn, lr=0.1) == ["1.weight", "1.bias", "2.weight"]
    learn.freeze_to(-1)
    assert moved_names(learn, lr=0.1) == ["2.weight"]


def trainable_by_layer(model: nn.Module) -> list[list[nn.Parameter]]:
    return [[p for p in layer.parameters() if p.requires_grad] for layer in model.children()]


@pytest.mark.parametrize("splitter", [by_layer, trainable_by_layer])
def test_one_optimizer_keeps_its_averages_over_freezing(splitter: Callable[..., object]) -> None:
    learn = layered(splitter=splitter, train_bn=False)
    lines: list[str] = []
    learn.fit(1)
    learn.logger = lines.append
    opt, steps = learn.opt, []
    for act in (lambda: None, learn.freeze, learn.unfreeze):
        act()
        learn.fit(1)
        steps.append([opt.state[p]["step"] for p in (learn.model[0][0].weight, learn.model[2].weight)])
    assert learn.opt is opt
    assert steps == [[4, 4], [4, 6], [6, 8]]
    assert not any("optimizer" in line for line in lines)


def test_new_optimizer_leaves_frozen_layers_frozen() -> None:
    learn = layered(train_bn=False, opt_func=SGD)
    learn.freeze()
    assert moved_names(learn, lr=0.1, reset_opt=True) == ["2.weight"]


def test_other_splitter_makes_a_new_optimizer() -> None:
    learn = learner(model=layered_model())
    learn.fit(1)
    learn.splitter = by_layer
    learn.freeze()
    assert [group["layer"] for group in learn.opt.param_groups] == [0, 0, 1, 1, 2]
    assert moved_names(learn, lr=0.1) == ["0.1.weight", "0.1.bias", "2.weight"]


def test_head_that_was_replaced_while_frozen_is_trained() -> None:
    learn = layered(train_bn=False, opt_func=SGD)
    learn.freeze()
    learn.model[2] = nn.Linear(4, 1)
    assert moved_names(learn, lr=0.1) == ["2.weight", "2.bias"]


def test_freeze_with_one_layer_freezes_nothing_and_says_so() -> None:
    learn, lines = learner(), []
    learn.logger = lines.append
    learn.freeze()
    assert lines == ["freeze_to(-1): nothing is frozen, as there is one layer; Learner(splitter=...) makes several"]
    assert moved_names(learn, lr=0.1) == ["weight", "bias"]


def test_unfreeze_says_what_the_optimizer_has_not_got() -> None:
    model = layered_model()
    model[1].requires_grad_(False)
    learn, lines = learner(model=model), []
    learn.logger = lines.append
    learn.unfreeze()
    assert lines == ["2 of the model's parameters stay frozen, as the splitter left them out of the optimizer"]


def test_everything_frozen_warns_then_refuses_to_train_then_trains_again() -> None:
    learn = layered(train_bn=False, opt_func=SGD)
    with pytest.warns(RuntimeWarning, match="there are 3 layers, so all of them are frozen: nothing is trained"):
        learn.freeze_to(3)
    with pytest.raises(ValueError, match=r"has no parameters to train: it has none at all, or all of them are frozen"):
        learn.fit(1)
    learn.unfreeze()
    assert set(moved_names(learn, lr=0.1)) >= set(WEIGHTS)


def test_everything_frozen_with_the_default_splitter_can_be_unfrozen() -> None:
    learn = learner(opt_func=SGD)
    with pytest.warns(RuntimeWarning, match="there is 1 layer, so all of them are frozen: nothing is trained"):
        learn.freeze_to(1)
    with pytest.raises(ValueError, match="or all of them are frozen"):
        learn.fit(1)
    learn.unfreeze()
    assert moved_names(learn, lr=0.1) == ["weight", "bias"]


def test_optimizer_set_by_hand_before_a_fit_is_used() -> None:
    learn = learner()
    opt = learn.opt = torch.optim.SGD(learn.model.parameters(), lr=0.1)
    assert moved_names(learn, lr=0.1) == ["weight", "bias"]
    assert learn.opt is opt


def test_copy_of_a_learner_goes_on_with_its_averages() -> None:
    learn = layered()
    learn.fit(1)
    twin = copy.deepcopy(learn)
    twin.fit(1)
    assert twin.opt.state[twin.model[2].weight]["step"] == 4
    assert learn.opt.state[learn.model[2].weight]["step"] == 2


def test_wrapped_optimizer_has_its_methods_in_a_learner() -> None:
    learn = layered(opt_func=partial(OptimWrapper, opt=torch.optim.AdamW, mom=0.8), wd=0.2)
    learn.fit(1, lr=0.1)
    assert isinstance(learn.opt, torch.optim.AdamW)
    assert [(h["lr"], h["mom"], h["wd"]) for h in learn.opt.hypers] == [
        (0.1, 0.8, wd) for wd in (0.2, 0.0, 0.2, 0.0, 0.2)
    ]
