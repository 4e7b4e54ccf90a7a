"""Callbacks found by name, listed by event, and put to rest."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import line_dls
from torch import nn

from minilearn.callback import Callback
from minilearn.callbacks import (
    CSVLogger,
    EarlyStopping,
    GatherPreds,
    MCDropout,
    MixUp,
    ProgressCallback,
    ReduceLROnPlateau,
    TerminateOnNaN,
)
from minilearn.learner import Learner
from minilearn.optim import SGD


def learner(cbs: Any = None, **kwargs: Any) -> Learner:
    torch.manual_seed(0)
    learn = Learner(line_dls(), nn.Linear(3, 1), F.mse_loss, SGD, lr=0.1, cbs=cbs, **kwargs)
    learn.logger = lambda line: None
    return learn


def got(learn: Learner, name: str) -> Any:
    """What `learn.<name>` gives; found at run time, so the type checker does not know of it."""
    return getattr(learn, name)


# ---- by name ----


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (EarlyStopping, "early_stopping"),
        (CSVLogger, "csv_logger"),
        (ReduceLROnPlateau, "reduce_lr_on_plateau"),
        (MCDropout, "mc_dropout"),
        (MixUp, "mix_up"),
        (GatherPreds, "gather_preds"),
        (TerminateOnNaN, "terminate_on_na_n"),
        (ProgressCallback, "progress"),
    ],
)
def test_callbacks_have_fastais_names(kind: type[Callback], name: str) -> None:
    assert kind().name == name


def test_callback_is_found_by_its_name() -> None:
    stopping = EarlyStopping()
    assert got(learner(stopping), "early_stopping") is stopping


def test_callback_with_a_name_of_its_own_is_found_by_that() -> None:
    class Mine(Callback):
        name = "yours"

    mine = Mine()
    assert got(learner(mine), "yours") is mine


def test_of_two_callbacks_of_one_name_none_is_taken() -> None:
    with pytest.raises(AttributeError, match=r"this Learner has 2 callbacks 'early_stopping'; learn\.cbs has them all"):
        got(learner([EarlyStopping(), EarlyStopping("train_loss")]), "early_stopping")


def test_callback_that_was_removed_is_no_longer_found() -> None:
    learn = learner(EarlyStopping)
    learn.remove_cb(EarlyStopping)
    with pytest.raises(AttributeError, match="Learner has no attribute 'early_stopping'"):
        got(learn, "early_stopping")


def test_misspelt_name_of_a_callback_says_the_nearest_one() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'early_stoping'; did you mean 'early_stopping'\?"):
        got(learner(EarlyStopping), "early_stoping")


def test_callbacks_are_completed_in_a_notebook() -> None:
    assert {"early_stopping", "progress", "train_eval", "fit"} <= set(dir(learner(EarlyStopping)))


# ---- by event ----


def test_callbacks_of_an_event_come_in_their_order() -> None:
    learn = learner(EarlyStopping)
    names = [type(cb).__name__ for cb in learn.ordered_cbs("after_epoch")]
    assert names == ["TrainEval", "Recorder", "ProgressCallback", "EarlyStopping"]


def test_callbacks_of_no_event_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"no event 'after_epok'; did you mean 'after_epoch'\?"):
        learner().ordered_cbs("after_epok")


def test_training_loop_is_shown_with_who_acts_in_it() -> None:
    class Mine(Callback):
        order = 99

        def before_fit(self) -> None: ...

        def before_step(self) -> None: ...

        def after_batch(self) -> None: ...

        def cleanup_fit(self) -> None: ...

    lines: list[str] = []
    learn = learner(Mine, default_cbs=False)
    learn.logger = lines.append
    learn.show_training_loop()
    assert "\n".join(lines) == (
        "after_create\n"
        "before_fit: Mine\n"
        "  before_epoch\n"
        "    before_train\n"
        "      before_batch\n"
        "        after_pred\n"
        "        after_loss\n"
        "        before_backward\n"
        "        after_cancel_backward\n"
        "        after_backward\n"
        "        before_step: Mine\n"
        "        after_cancel_step\n"
        "        after_step\n"
        "      after_cancel_batch\n"
        "      after_batch: Mine\n"
        "    after_cancel_train\n"
        "    after_train\n"
        "    before_validate\n"
        "      the batch's events as above, without backward and step\n"
        "    after_cancel_validate\n"
        "    after_validate\n"
        "  after_cancel_epoch\n"
        "  after_epoch\n"
        "after_cancel_fit\n"
        "after_fit\n"
        "cleanup_fit: Mine"
    )


# ---- at rest ----


class Log(Callback):
    """Notes its events, and rests from `since` on."""

    order = 99
    acts_in_step = False

    def __init__(self, since: str = "") -> None:
        self.since, self.events = since, list[str]()

    def note(self, event: str) -> None:
        self.events.append(event)
        if event == self.since:
            self.run = False

    def before_fit(self) -> None:
        self.note("before_fit")

    def before_epoch(self) -> None:
        self.note("before_epoch")

    def after_loss(self) -> None:
        self.note("after_loss")

    def after_fit(self) -> None:
        self.note("after_fit")

    def cleanup_fit(self) -> None:
        self.note("cleanup_fit")


def test_callback_at_rest_hears_only_of_the_end() -> None:
    log = Log(since="before_fit")
    learner(log).fit(1)
    assert log.events == ["before_fit", "cleanup_fit"]


def test_rest_may_begin_within_a_batch() -> None:
    log = Log(since="after_loss")
    learner(log).fit(1)
    assert log.events == ["before_fit", "before_epoch", "after_loss", "cleanup_fit"]


def test_rest_before_a_fit_is_for_that_fit() -> None:
    log = Log()
    learn = learner(log)
    log.run = False
    learn.fit(1)
    assert log.events == ["cleanup_fit"]
    assert log.run
    learn.fit(1)
    assert log.events[1:3] == ["before_fit", "before_epoch"]


def test_rest_before_a_callback_is_added_counts() -> None:
    log = Log()
    log.run = False
    learner(log).fit(1)
    assert log.events == ["cleanup_fit"]


def test_rest_ends_with_a_fit_that_fails() -> None:
    class Fails(Callback):
        def after_loss(self) -> None:
            raise KeyError

    log = Log(since="before_fit")
    learn = learner(log)
    with pytest.raises(KeyError):
        learn.fit(1, cbs=Fails)
    assert log.run
    learn.fit(1)
    assert log.events.count("before_fit") == 2


def test_callback_that_is_put_to_rest_in_an_event_does_not_hear_of_it() -> None:
    log = Log()

    class PutsToRest(Callback):
        def before_epoch(self) -> None:
            log.run = False

    learner([PutsToRest(), log]).fit(1)
    assert log.events == ["before_fit", "cleanup_fit"]


def test_class_that_always_rests_hears_of_nothing() -> None:
    class Never(Log):
        run = False

    log = Never()
    learner(log).fit(1)
    assert log.events == ["cleanup_fit"]


def test_callback_can_stay_out_of_a_search_as_in_fastai() -> None:
    class OnlyFits(Callback):
        seen = 0

        def before_fit(self) -> None:
            self.run = not hasattr(self.learn, "lr_finder")

        def after_loss(self) -> None:
            self.seen += 1

    only = OnlyFits()
    learn = learner(only)
    learn.lr_find(1e-5, 1e-2, num_it=20, show_plot=False, suggest_funcs=None)
    assert only.seen == 0
    learn.fit(1)
    assert only.seen == 3
    assert only.run


@pytest.mark.parametrize("value", [None, "now", 1, np.bool_(False)])
def test_run_is_true_or_false(value: Any) -> None:
    with pytest.raises(TypeError, match=r"Log\.run says whether its events come, True or False, got"):
        Log().run = value


# ---- the last epoch's figures ----


def test_final_record_is_the_last_row() -> None:
    learn = learner()
    learn.fit(2)
    assert learn.final_record == learn.recorder.values[1]


def test_final_record_is_missed_before_a_fit() -> None:
    with pytest.raises(ValueError, match="no final_record yet: no epoch has been recorded"):
        learner().final_record  # noqa: B018 -- reading it is the test


def test_smooth_loss_is_the_recorders() -> None:
    learn = learner()
    assert learn.smooth_loss is None
    learn.fit(1)
    assert learn.smooth_loss == learn.recorder.losses[-1]
