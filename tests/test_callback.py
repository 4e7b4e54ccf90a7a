"""The callback base class: what it refuses, what can be read when, what an error says."""

import traceback
from collections.abc import Callable

import pytest
import torch
from conftest import line_dls
from torch import nn

from minilearn.callback import Callback, CancelBatchException, CancelFitException, CancelTrainException
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.optim import SGD


def learner(cbs: object = None, **kwargs: object) -> Learner:
    learn = Learner(line_dls(), nn.Linear(3, 1), nn.functional.mse_loss, SGD, lr=0.1, cbs=cbs, **kwargs)  # type: ignore[arg-type]
    learn.logger = lambda line: None
    return learn


def test_misspelt_event_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match=r"Mine\.after_bacth is not an event; did you mean 'after_batch'\?"):
        type("Mine", (Callback,), {"after_bacth": lambda self: None})


def test_event_with_an_argument_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match=r"Mine\.after_batch must be a method without arguments"):
        type("Mine", (Callback,), {"after_batch": lambda self, learn: None})


def test_state_is_read_only_and_says_where_to_write() -> None:
    class Writes(Callback):
        def after_loss(self) -> None:
            self.loss = self.loss * 2  # type: ignore[misc]

    with pytest.raises(AttributeError, match=r"a callback reads self\.loss and writes self\.learn\.loss"):
        learner(Writes).fit(1)


def test_unknown_name_says_the_nearest_one() -> None:
    class Reads(Callback):
        def after_loss(self) -> None:
            self.los  # type: ignore[attr-defined]  # noqa: B018

    with pytest.raises(AttributeError, match=r"Reads has no attribute 'los'; did you mean 'loss'\?"):
        learner(Reads).fit(1)


def test_name_of_the_learner_says_where_it_is() -> None:
    class Reads(Callback):
        def after_loss(self) -> None:
            self.opt_func  # type: ignore[attr-defined]  # noqa: B018

    with pytest.raises(
        AttributeError, match=r"Reads has no attribute 'opt_func'; the Learner has: self\.learn\.opt_func"
    ):
        learner(Reads).fit(1)


def test_model_attribute_is_not_looked_up_through_the_callback() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'weight'"):
        learner().recorder.weight  # type: ignore[attr-defined]  # noqa: B018


def test_typo_on_the_learner_says_the_nearest_one() -> None:
    with pytest.raises(AttributeError, match=r"Learner has no attribute 'loss_fun'; did you mean 'loss_func'\?"):
        learner().loss_fun  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    ("name", "event", "when"),
    [
        ("loss", "before_batch", "before after_loss"),
        ("loss", "after_pred", "before after_loss"),
        ("pred", "before_batch", "before after_pred"),
        ("xb", "before_train", "before before_batch"),
        ("x", "before_train", "before before_batch"),
        ("yb", "before_epoch", "before before_batch"),
        ("dl", "before_fit", "before before_train"),
        ("n_iter", "before_epoch", "before before_train"),
        ("iter", "before_validate", "before before_batch"),
    ],
)
def test_value_that_does_not_exist_yet_says_when_it_appears(name: str, event: str, when: str) -> None:
    def read(self: Callback) -> None:
        if self.epoch == 1:  # the batch, the loss and the loader of the first epoch were there
            getattr(self, name)

    reader = type("Reads", (Callback,), {event: read})
    if name in ("dl", "n_iter"):
        reader = type("Reads", (Callback,), {event: lambda self: getattr(self, name)})
    with pytest.raises(AttributeError, match=rf"learn\.{name} does not exist yet: it is set before {when[7:]}"):
        learner(reader).fit(2)


def test_opt_before_the_first_fit_says_how_to_make_it() -> None:
    with pytest.raises(AttributeError, match=r"learn\.opt does not exist yet: .* learn\.create_opt\(\) makes it now"):
        learner().opt  # noqa: B018


def test_callback_without_a_learner_says_so() -> None:
    with pytest.raises(AttributeError, match="Recorder has not been added to a Learner yet"):
        type("Recorder", (Callback,), {})().epoch  # noqa: B018


def test_state_is_what_the_loop_has() -> None:
    seen: dict[str, object] = {}

    class Look(Callback):
        def after_loss(self) -> None:
            if self.training and self.epoch == 1 and self.iter == 1:
                for name in ("epoch", "n_epoch", "iter", "n_iter", "train_iter", "pct_train", "training"):
                    seen[name] = getattr(self, name)
                assert self.model is self.learn.model
                assert self.opt is self.learn.opt
                assert self.dls is self.learn.dls
                assert self.dl is self.dls.train
                assert self.x is self.xb[0]
                assert self.y is self.yb[0]
                assert torch.equal(self.loss, nn.functional.mse_loss(self.pred, self.y))

    learner(Look).fit(2)
    assert seen == {
        "epoch": 1,
        "n_epoch": 2,
        "iter": 1,
        "n_iter": 2,
        "train_iter": 3,
        "pct_train": 0.75,
        "training": True,
    }


def test_error_in_a_callback_passes_through_with_a_note_saying_whose_and_where() -> None:
    class Fails(Callback):
        def after_pred(self) -> None:
            if self.training and self.epoch == 1 and self.iter == 1:
                raise KeyError("mine")

    with pytest.raises(KeyError) as caught:
        learner(Fails).fit(2)
    assert caught.value.__notes__ == [
        "raised in Fails.after_pred",
        "in epoch 1 of 2, training batch 1 of 2 (counted from 0)",
    ]


def test_error_in_the_model_has_a_note_saying_where() -> None:
    learn = learner()
    learn.model = nn.Linear(4, 1)
    with pytest.raises(RuntimeError) as caught:
        learn.fit(1)
    assert caught.value.__notes__ == [
        "the model was given (float32 (4, 3))",
        "in epoch 0 of 1, training batch 0 of 2 (counted from 0)",
    ]


def test_assertion_in_a_callback_stays_an_assertion() -> None:
    class Asserts(Callback):
        def before_batch(self) -> None:
            assert self.epoch > 5

    with pytest.raises(AssertionError):
        learner(Asserts).fit(1)


def test_cancel_with_nothing_to_cancel_says_so() -> None:
    class Misplaced(Callback):
        def before_epoch(self) -> None:
            raise CancelBatchException

    with pytest.raises(CancelBatchException) as caught:
        learner(Misplaced).fit(1)
    text = "".join(traceback.format_exception(caught.value))
    assert "raised in Misplaced.before_epoch, where there is nothing that it could cancel" in text


def test_what_was_replaced_last_is_put_back_first() -> None:
    class Swap(Callback):
        def __init__(self, logger: Callable[[str], object]) -> None:
            self.logger = logger

        def before_fit(self) -> None:
            self.logger, self.learn.logger = self.learn.logger, self.logger

        cleanup_fit = before_fit

    learn = learner()
    before = learn.logger
    learn.fit(1, cbs=[Swap(lambda line: None), Swap(lambda line: None)])
    assert learn.logger is before


def test_all_callbacks_clean_up_though_one_fails_at_it() -> None:
    cleaned: list[str] = []

    class Bad(Callback):
        def cleanup_fit(self) -> None:
            raise OSError("bad")

    class Good(Callback):
        order = 1

        def cleanup_fit(self) -> None:
            cleaned.append("good")

    with pytest.raises(OSError, match="bad"):
        learner([Bad, Good]).fit(1)
    assert cleaned == ["good"]


def test_fit_lets_go_of_batch_prediction_loss_and_gradients() -> None:
    learn = learner()
    learn.fit(1)
    for name in ("xb", "yb", "pred", "loss", "dl", "iter"):
        assert not hasattr(learn, name)
    assert all(p.grad is None for p in learn.model.parameters())


def test_error_lets_go_of_batch_prediction_loss_and_gradients_too() -> None:
    class Fails(Callback):
        def before_step(self) -> None:
            raise KeyError

    learn = learner(Fails)
    with pytest.raises(KeyError):
        learn.fit(1)
    for name in ("xb", "yb", "pred", "loss", "dl", "iter"):
        assert not hasattr(learn, name)
    assert all(p.grad is None for p in learn.model.parameters())


def test_cancelled_batch_skips_the_step() -> None:
    class Skip(Callback):
        def before_step(self) -> None:
            raise CancelBatchException

    learn = learner(Skip)
    before = learn.model.weight.clone()
    learn.fit(1)
    assert torch.equal(learn.model.weight, before)


def test_batch_cancelled_before_the_step_lets_gradients_add_up() -> None:
    grads: list[torch.Tensor] = []

    class EverySecond(Callback):
        def before_step(self) -> None:
            grads.append(self.model.weight.grad.clone())  # type: ignore[union-attr, operator]
            if self.iter % 2 == 0:
                raise CancelBatchException

    learn = learner(EverySecond)
    start = learn.model.weight.detach().clone()
    learn.fit(1)
    assert len(grads) == 2
    assert not torch.equal(grads[0], grads[1])
    assert torch.allclose(learn.model.weight, start - 0.1 * grads[1])


def test_batch_cancelled_after_the_step_has_its_gradients_cleared() -> None:
    seen: list[bool] = []

    class Cancels(Callback):
        def before_batch(self) -> None:
            if self.training:
                seen.append(self.model.weight.grad is None)

        def after_step(self) -> None:
            raise CancelBatchException

    learner(Cancels).fit(1)
    assert seen == [True, True]


def test_loss_replaced_in_after_loss_is_what_is_trained_on() -> None:
    class Double(Callback):
        def after_loss(self) -> None:
            self.learn.loss = self.loss * 2

    plain, doubled = learner(), learner(Double)
    doubled.model.load_state_dict(plain.model.state_dict())
    plain.fit(1, lr=0.2)
    doubled.fit(1, lr=0.1)
    assert torch.allclose(plain.model.weight, doubled.model.weight)


def test_loss_grad_changes_what_is_trained_on_and_not_what_is_recorded() -> None:
    class Scale(Callback):
        def after_loss(self) -> None:
            if self.training:
                self.learn.loss_grad *= 2

    plain, scaled = learner(), learner(Scale)
    scaled.model.load_state_dict(plain.model.state_dict())
    plain.fit(1, lr=0.2)
    scaled.fit(1, lr=0.1)
    assert torch.allclose(plain.model.weight, scaled.model.weight)
    assert plain.recorder.values == scaled.recorder.values


def test_two_callbacks_of_one_class_do_not_collide() -> None:
    class Count(Callback):
        def __init__(self) -> None:
            self.n = 0

        def after_batch(self) -> None:
            self.n += 1

    one, two = Count(), Count()
    learner([one, two]).fit(1)
    assert one.n == two.n == 3


def test_callback_of_another_learner_is_refused() -> None:
    cb = type("Mine", (Callback,), {})()
    learner(cb)
    with pytest.raises(ValueError, match="the callback Mine belongs to another Learner; remove it there first"):
        learner(cb)


def test_what_is_no_callback_is_refused() -> None:
    with pytest.raises(TypeError, match="cbs must be a Callback or a list of them, got 3"):
        learner(3)
    with pytest.raises(TypeError, match="cbs must be a Callback or a list of them, got 'mine'"):
        learner(["mine"])


def test_removing_what_is_not_there_says_what_is() -> None:
    class Mine(Callback):
        pass

    with pytest.raises(
        ValueError, match="this Learner has no callback Mine; it has TrainEval, DevicePlacement, Preflight"
    ):
        learner().remove_cb(Mine)


def test_fit_within_a_fit_is_refused() -> None:
    class Nested(Callback):
        def after_batch(self) -> None:
            self.learn.fit(1)

    with pytest.raises(RuntimeError, match="this Learner is in a fit already"):
        learner(Nested).fit(1)


def test_cancelled_fit_keeps_the_weights_it_has() -> None:
    class Stop(Callback):
        def after_batch(self) -> None:
            raise CancelFitException

    learn = learner(Stop)
    before = learn.model.weight.clone()
    learn.fit(1)
    assert not torch.equal(learn.model.weight, before)


def test_state_dict_is_empty_by_default() -> None:
    cb = Callback()
    assert cb.state_dict() == {}
    cb.load_state_dict({})


def test_loaders_may_be_a_pair() -> None:
    dls = line_dls()
    learn = Learner((dls.train, dls.valid), nn.Linear(3, 1), nn.functional.mse_loss)
    assert isinstance(learn.dls, DataLoaders)


def test_error_on_its_way_keeps_the_word_when_cleaning_up_fails_too() -> None:
    class Fails(Callback):
        def after_pred(self) -> None:
            raise KeyError("first")

        def cleanup_fit(self) -> None:
            raise OSError("second")

    learn = learner(Fails)
    with pytest.raises(KeyError) as caught:
        learn.fit(1)
    assert caught.value.__notes__[-1] == "then Fails.cleanup_fit failed too: OSError('second')"
    learn.remove_cb(Fails)
    learn.fit(1)


@pytest.mark.parametrize(
    "name", ["befor_batch", "aftr_epoch", "on_epoch_end", "begin_fit", "on_train_batch_start", "cleanup_fits"]
)
def test_method_that_was_meant_to_be_an_event_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=f"Mine.{name} is not an event"):
        type("Mine", (Callback,), {name: lambda self: None})


@pytest.mark.parametrize("name", ["fit_line", "batch_mean", "on_top", "step_size", "loss_after"])
def test_method_of_ones_own_is_no_false_alarm(name: str) -> None:
    type("Mine", (Callback,), {name: lambda self: None})


def test_event_that_is_a_static_method_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Mine\.after_batch must be a method without arguments"):
        type("Mine", (Callback,), {"after_batch": staticmethod(lambda: None)})


def test_input_is_written_through_the_learners_tuple() -> None:
    class Writes(Callback):
        def before_batch(self) -> None:
            self.x = 2 * self.x  # type: ignore[misc]

    with pytest.raises(AttributeError, match=r"a callback reads self\.x and writes self\.learn\.xb = \(x,\)"):
        learner(Writes).fit(1)


def test_error_after_an_epoch_names_no_batch() -> None:
    class Fails(Callback):
        def after_epoch(self) -> None:
            raise KeyError

    with pytest.raises(KeyError) as caught:
        learner(Fails).fit(1)
    assert caught.value.__notes__[-1] == "in epoch 0 of 1 (counted from 0)"


def test_error_in_a_validation_by_itself_names_no_epoch() -> None:
    class Fails(Callback):
        def after_pred(self) -> None:
            raise KeyError

    learn = learner()
    learn.fit(5)
    with pytest.raises(KeyError) as caught:
        learn.validate(cbs=Fails)
    assert caught.value.__notes__[-1] == "in a validation, validation batch 0 of 1 (counted from 0)"


def test_epoch_is_the_first_of_this_fit_from_the_start() -> None:
    seen: list[int] = []

    class Look(Callback):
        def before_fit(self) -> None:
            seen.append(self.epoch)

    learn = learner(Look)
    learn.fit(3)
    learn.fit(2)
    assert seen == [0, 0]


def test_gradients_of_a_training_part_that_was_cancelled_are_cleared() -> None:
    seen: list[bool] = []

    class Cancel(Callback):
        def before_batch(self) -> None:
            if self.training:
                seen.append(self.model.weight.grad is None)

        def after_backward(self) -> None:
            raise CancelTrainException

    learner(Cancel).fit(2)
    assert seen == [True, True]


def test_callbacks_are_shown_by_their_class() -> None:
    assert repr(learner().cbs[0]) == "TrainEval"
