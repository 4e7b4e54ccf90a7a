"""HookCallback: which batches it hooks, and that no hook outlives the fit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import line_dls
from torch import Tensor, nn

from minilearn.callback import (
    Callback,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    CancelTrainException,
)
from minilearn.callbacks import HookCallback
from minilearn.learner import Learner
from minilearn.optim import SGD


class Calls(HookCallback):
    "Notes each call: the training batch's number, or -1 in validation."

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls: list[int] = []

    def hook(self, module: nn.Module, inputs: Any, output: Any) -> Tensor:
        self.calls.append(self.train_iter if self.training else -1)
        return output


def learner(*cbs: Callback, train_rows: int = 8, **options: Any) -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    learn = Learner(line_dls(train_rows), model, F.mse_loss, SGD, cbs=cbs, **options)
    learn.logger = lambda text: None
    return learn


def is_bare(model: nn.Module) -> bool:
    return not any(m._forward_hooks or m._backward_hooks for m in model.modules())


def test_every_batch_is_hooked_in_training_and_validation() -> None:
    cb = Calls()
    learn = learner(cb)
    learn.fit(2)
    assert cb.calls == [0, 0, 1, 1, -1, -1, 2, 2, 3, 3, -1, -1]
    assert cb.modules == [learn.model[0], learn.model[2]]


def test_modules_without_parameters_are_hooked_if_asked() -> None:
    cb = Calls(include_paramless=True)
    learner(cb).fit(1)
    assert cb.calls == [0, 0, 0, 1, 1, 1, -1, -1, -1]


def test_given_modules_are_hooked() -> None:
    learn = learner()
    cb = Calls([learn.model[1]])
    learn.fit(1, cbs=cb)
    assert cb.calls == [0, 1, -1]
    assert tuple(cb.hooks.stored[0].shape) == (4, 2)  # type: ignore[union-attr]


def test_a_function_does_instead_of_a_subclass() -> None:
    cb = HookCallback(hook=lambda module, inputs, output: output.shape)
    learner(cb).fit(1)
    assert cb.hooks is not None
    assert cb.hooks.stored == [(4, 2), (4, 1)]


def test_a_new_model_is_hooked_in_place_of_the_old() -> None:
    cb = Calls()
    learn = learner(cb)
    learn.fit(1)
    learn.model = nn.Sequential(nn.Linear(3, 1))
    learn.fit(1)
    assert cb.modules == [learn.model[0]]


@pytest.mark.filterwarnings("ignore:Full backward hook")  # of the first layer, whose input needs no gradient
def test_gradients_are_hooked_if_asked() -> None:
    seen: list[Any] = []
    cb = HookCallback(is_forward=False, hook=lambda module, inputs, output: seen.append(output[0].shape))
    learner(cb).fit(1)
    assert seen == [(4, 1), (4, 2)] * 2


class Boom(Callback):
    "Raises in one event of the fit."

    run_valid = False

    def __init__(self, event: str, error: type[BaseException]) -> None:
        self.wanted, self.error = event, error

    def _at(self, event: str) -> None:
        if event == self.wanted:
            raise self.error

    def before_fit(self) -> None:
        self._at("before_fit")

    def after_pred(self) -> None:
        self._at("after_pred")

    def after_batch(self) -> None:
        self._at("after_batch")

    def after_epoch(self) -> None:
        self._at("after_epoch")


@pytest.mark.parametrize("every", [None, 1, 2])
@pytest.mark.parametrize("remove_end", [True, False])
@pytest.mark.parametrize("event", ["before_fit", "after_pred", "after_batch", "after_epoch"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_no_hook_is_left_after_an_error(
    every: int | None, remove_end: bool, event: str, error: type[BaseException]
) -> None:
    learn = learner(Calls(every=every, remove_end=remove_end), Boom(event, error))
    with pytest.raises(error):
        learn.fit(1)
    assert is_bare(learn.model)


@pytest.mark.parametrize(
    "cancel", [CancelBatchException, CancelTrainException, CancelEpochException, CancelFitException]
)
def test_no_hook_is_left_after_a_cancel(cancel: type[Exception]) -> None:
    learn = learner(Calls(every=1), Boom("after_pred", cancel))
    learn.fit(1)
    assert is_bare(learn.model)


def test_validation_is_not_hooked_though_the_training_was_cancelled() -> None:
    cb = Calls(every=1)
    learner(cb, Boom("after_pred", CancelTrainException)).fit(2)
    assert cb.calls == [0, 0, 0, 0]


def test_hooks_stay_after_the_fit_until_they_are_removed() -> None:
    cb = Calls(remove_end=False)
    learn = learner(cb)
    learn.fit(1)
    assert not is_bare(learn.model)
    learn.fit(1)
    assert cb.calls == 2 * [0, 0, 1, 1, -1, -1]  # once, not twice
    cb.remove()
    assert is_bare(learn.model)


def test_a_callback_removed_in_the_middle_of_a_fit_takes_its_hooks_along() -> None:
    cb = Calls()

    class Remove(Callback):
        def before_train(self) -> None:
            self.learn.remove_cb(cb)

    learn = learner(cb, Remove())
    learn.fit(1)
    assert cb.calls == []


@pytest.mark.parametrize("every", [0, -1])
def test_a_wrong_every_is_refused(every: int) -> None:
    with pytest.raises(ValueError, match=f"every must be a whole number of at least 1, got {every}"):
        HookCallback(every=every)


def test_a_hook_that_is_no_function_is_refused() -> None:
    with pytest.raises(TypeError, match=r"hook must be a function of \(module, inputs, output\), got 3"):
        HookCallback(hook=3)  # type: ignore[arg-type]


def compiled_and_eager(make: Callable[[], HookCallback]) -> tuple[Learner, Learner]:
    """A compiled and an uncompiled Learner after a fit, each with a callback of its own."""
    torch._dynamo.reset()
    learns = [learner(make(), train_rows=24, compile=compile) for compile in (True, False)]
    for learn in learns:
        learn.fit(2)
    for p, q in zip(*(learn.model.parameters() for learn in learns), strict=True):
        torch.testing.assert_close(p, q)
    return learns[0], learns[1]


def calls_of(learn: Learner) -> list[int]:
    (cb,) = [cb for cb in learn.cbs if isinstance(cb, Calls)]
    return cb.calls


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, about itself
def test_each_nth_batch_is_hooked_beside_a_compiled_model() -> None:
    compiled, eager = compiled_and_eager(lambda: Calls(every=4))
    assert calls_of(compiled) == calls_of(eager) == [0, 0, 4, 4, 8, 8]
    assert compiled.compiled is not None
    assert compiled.compiled._graphs  # the others were compiled


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fit_with_each_batch_hooked_is_not_compiled_and_says_so() -> None:
    with pytest.warns(RuntimeWarning, match="compile=True: Calls hooks every batch") as caught:
        compiled, eager = compiled_and_eager(Calls)
    assert len(caught) == 1
    assert calls_of(compiled) == calls_of(eager)
    assert compiled.compiled is not None
    assert not compiled.compiled._graphs


@pytest.mark.filterwarnings("ignore:compile=True")
def test_a_learner_compiles_again_after_an_error_in_a_hooked_batch() -> None:
    learn = learner(Calls(), Calls(every=2), Boom("after_pred", RuntimeError), compile=True)
    before = learn.compiled
    with pytest.raises(RuntimeError):
        learn.fit(1)
    assert learn.compiled is before
