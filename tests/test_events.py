"""The whole sequence of events, compared with lists that are written out."""

from collections.abc import Callable

import pytest
from conftest import events_log
from torch import nn

from minilearn.callback import (
    EVENTS,
    Callback,
    CancelBackwardException,
    CancelBatchException,
    CancelEpochException,
    CancelException,
    CancelFitException,
    CancelStepException,
    CancelTrainException,
    CancelValidException,
)
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.optim import SGD

WHOLE_FIT = """
before_fit
  before_epoch
    before_train
      before_batch after_pred after_loss before_backward after_backward before_step after_step after_batch
      before_batch after_pred after_loss before_backward after_backward before_step after_step after_batch
    after_train
    before_validate
      before_batch after_pred after_loss after_batch
    after_validate
  after_epoch
  before_epoch
    before_train
      before_batch after_pred after_loss before_backward after_backward before_step after_step after_batch
      before_batch after_pred after_loss before_backward after_backward before_step after_step after_batch
    after_train
    before_validate
      before_batch after_pred after_loss after_batch
    after_validate
  after_epoch
after_fit
cleanup_fit
"""

SECOND_EPOCH = """
  before_epoch
    before_train
      before_batch after_pred after_loss before_backward after_backward before_step after_step after_batch
      before_batch after_pred after_loss before_backward after_backward before_step after_step after_batch
    after_train
    before_validate
      before_batch after_pred after_loss after_batch
    after_validate
  after_epoch
after_fit
cleanup_fit
"""

# What is raised once, at the first of which event, and the log of the two-epoch fit in which it happened.
CANCELLED: list[tuple[type[CancelException], str, str]] = [
    (
        CancelBackwardException,
        "before_backward",
        """
before_fit
  before_epoch
    before_train
      before_batch after_pred after_loss before_backward after_cancel_backward after_backward
        before_step after_step after_batch
      before_batch after_pred after_loss before_backward after_backward before_step after_step after_batch
    after_train
    before_validate
      before_batch after_pred after_loss after_batch
    after_validate
  after_epoch
"""
        + SECOND_EPOCH,
    ),
    (
        CancelStepException,
        "before_step",
        """
before_fit
  before_epoch
    before_train
      before_batch after_pred after_loss before_backward after_backward
        before_step after_cancel_step after_step after_batch
      before_batch after_pred after_loss before_backward after_backward before_step after_step after_batch
    after_train
    before_validate
      before_batch after_pred after_loss after_batch
    after_validate
  after_epoch
"""
        + SECOND_EPOCH,
    ),
    (
        CancelBatchException,
        "before_batch",
        """
before_fit
  before_epoch
    before_train
      before_batch after_cancel_batch after_batch
      before_batch after_pred after_loss before_backward after_backward before_step after_step after_batch
    after_train
    before_validate
      before_batch after_pred after_loss after_batch
    after_validate
  after_epoch
"""
        + SECOND_EPOCH,
    ),
    (
        CancelBatchException,
        "before_step",
        """
before_fit
  before_epoch
    before_train
      before_batch after_pred after_loss before_backward after_backward before_step after_cancel_batch after_batch
      before_batch after_pred after_loss before_backward after_backward before_step after_step after_batch
    after_train
    before_validate
      before_batch after_pred after_loss after_batch
    after_validate
  after_epoch
"""
        + SECOND_EPOCH,
    ),
    (
        CancelBatchException,
        "after_step",
        """
before_fit
  before_epoch
    before_train
      before_batch after_pred after_loss before_backward after_backward before_step after_step
        after_cancel_batch after_batch
      before_batch after_pred after_loss before_backward after_backward before_step after_step after_batch
    after_train
    before_validate
      before_batch after_pred after_loss after_batch
    after_validate
  after_epoch
"""
        + SECOND_EPOCH,
    ),
    (
        CancelTrainException,
        "before_train",
        """
before_fit
  before_epoch
    before_train after_cancel_train
    after_train
    before_validate
      before_batch after_pred after_loss after_batch
    after_validate
  after_epoch
"""
        + SECOND_EPOCH,
    ),
    (
        CancelTrainException,
        "after_batch",
        """
before_fit
  before_epoch
    before_train
      before_batch after_pred after_loss before_backward after_backward before_step after_step after_batch
    after_cancel_train
    after_train
    before_validate
      before_batch after_pred after_loss after_batch
    after_validate
  after_epoch
"""
        + SECOND_EPOCH,
    ),
    (
        CancelValidException,
        "before_validate",
        """
before_fit
  before_epoch
    before_train
      before_batch after_pred after_loss before_backward after_backward before_step after_step after_batch
      before_batch after_pred after_loss before_backward after_backward before_step after_step after_batch
    after_train
    before_validate after_cancel_validate
    after_validate
  after_epoch
"""
        + SECOND_EPOCH,
    ),
    (
        CancelEpochException,
        "after_loss",
        """
before_fit
  before_epoch
    before_train
      before_batch after_pred after_loss
  after_cancel_epoch
  after_epoch
"""
        + SECOND_EPOCH,
    ),
    (
        CancelEpochException,
        "after_train",
        """
before_fit
  before_epoch
    before_train
      before_batch after_pred after_loss before_backward after_backward before_step after_step after_batch
      before_batch after_pred after_loss before_backward after_backward before_step after_step after_batch
    after_train
  after_cancel_epoch
  after_epoch
"""
        + SECOND_EPOCH,
    ),
    (
        CancelFitException,
        "before_fit",
        """
before_fit
after_cancel_fit
after_fit
cleanup_fit
""",
    ),
    (
        CancelFitException,
        "after_pred",
        """
before_fit
  before_epoch
    before_train
      before_batch after_pred
after_cancel_fit
after_fit
cleanup_fit
""",
    ),
    (
        CancelFitException,
        "after_epoch",
        """
before_fit
  before_epoch
    before_train
      before_batch after_pred after_loss before_backward after_backward before_step after_step after_batch
      before_batch after_pred after_loss before_backward after_backward before_step after_step after_batch
    after_train
    before_validate
      before_batch after_pred after_loss after_batch
    after_validate
  after_epoch
after_cancel_fit
after_fit
cleanup_fit
""",
    ),
]

# An error at the first of each event, and all that has happened by the end of the fit.
UP_TO_FIRST_BATCH = "before_fit before_epoch before_train before_batch"
FIRST_BATCH = (
    UP_TO_FIRST_BATCH + " after_pred after_loss before_backward after_backward before_step after_step after_batch"
)
TRAINED = (
    FIRST_BATCH
    + " before_batch after_pred after_loss before_backward after_backward before_step after_step after_batch after_train"
)
VALIDATED = TRAINED + " before_validate before_batch after_pred after_loss after_batch after_validate"
FAILED = {
    "before_fit": "before_fit cleanup_fit",
    "before_epoch": "before_fit before_epoch cleanup_fit",
    "before_train": "before_fit before_epoch before_train cleanup_fit",
    "before_batch": "before_fit before_epoch before_train before_batch cleanup_fit",
    "after_pred": UP_TO_FIRST_BATCH + " after_pred cleanup_fit",
    "after_loss": UP_TO_FIRST_BATCH + " after_pred after_loss cleanup_fit",
    "before_backward": UP_TO_FIRST_BATCH + " after_pred after_loss before_backward cleanup_fit",
    "after_backward": UP_TO_FIRST_BATCH + " after_pred after_loss before_backward after_backward cleanup_fit",
    "before_step": UP_TO_FIRST_BATCH + " after_pred after_loss before_backward after_backward before_step cleanup_fit",
    "after_step": UP_TO_FIRST_BATCH
    + " after_pred after_loss before_backward after_backward before_step after_step cleanup_fit",
    "after_batch": FIRST_BATCH + " cleanup_fit",
    "after_train": TRAINED + " cleanup_fit",
    "before_validate": TRAINED + " before_validate cleanup_fit",
    "after_validate": VALIDATED + " cleanup_fit",
    "after_epoch": VALIDATED + " after_epoch cleanup_fit",
    "after_fit": WHOLE_FIT,
    "cleanup_fit": WHOLE_FIT,
    # with the cancel that leads there
    "after_cancel_backward": UP_TO_FIRST_BATCH
    + " after_pred after_loss before_backward after_cancel_backward cleanup_fit",
    "after_cancel_step": UP_TO_FIRST_BATCH
    + " after_pred after_loss before_backward after_backward before_step after_cancel_step cleanup_fit",
    "after_cancel_batch": UP_TO_FIRST_BATCH + " after_cancel_batch cleanup_fit",
    "after_cancel_train": "before_fit before_epoch before_train after_cancel_train cleanup_fit",
    "after_cancel_validate": TRAINED + " before_validate after_cancel_validate cleanup_fit",
    "after_cancel_epoch": "before_fit before_epoch after_cancel_epoch cleanup_fit",
    "after_cancel_fit": "before_fit after_cancel_fit cleanup_fit",
}
LEADS_TO: dict[str, tuple[str, type[CancelException]]] = {
    "after_cancel_backward": ("before_backward", CancelBackwardException),
    "after_cancel_step": ("before_step", CancelStepException),
    "after_cancel_batch": ("before_batch", CancelBatchException),
    "after_cancel_train": ("before_train", CancelTrainException),
    "after_cancel_validate": ("before_validate", CancelValidException),
    "after_cancel_epoch": ("before_epoch", CancelEpochException),
    "after_cancel_fit": ("before_fit", CancelFitException),
}


class Boom(Exception):
    """An error of a callback's own."""


def raiser(event: str, error: type[BaseException]) -> Callback:
    """A callback that raises `error` at the first of `event`."""

    def method(self: Callback) -> None:
        if not self.__dict__.get("raised"):
            self.__dict__["raised"] = True
            raise error

    return type("Raiser", (Callback,), {event: method})()


def learner(dls: DataLoaders, **kwargs: object) -> Learner:
    learn = Learner(dls, nn.Linear(3, 1), nn.functional.mse_loss, SGD, lr=0.1, **kwargs)  # type: ignore[arg-type]
    learn.logger = lambda line: None
    return learn


@pytest.mark.parametrize("default_cbs", [True, False])
def test_two_epoch_fit_has_every_event_in_order(dls: DataLoaders, default_cbs: bool) -> None:
    log_class, log = events_log()
    learner(dls, default_cbs=default_cbs).fit(2, cbs=log_class)
    assert log == WHOLE_FIT.split()


@pytest.mark.parametrize("default_cbs", [True, False])
@pytest.mark.parametrize(("error", "event", "expected"), CANCELLED, ids=lambda value: getattr(value, "__name__", None))
def test_cancel_goes_on_where_it_says(
    dls: DataLoaders, error: type[CancelException], event: str, expected: str, default_cbs: bool
) -> None:
    log_class, log = events_log()
    learner(dls, default_cbs=default_cbs).fit(2, cbs=[log_class, raiser(event, error)])
    assert log == expected.split()


@pytest.mark.parametrize("default_cbs", [True, False])
@pytest.mark.parametrize("event", FAILED)
def test_error_at_each_event_ends_the_fit_and_cleans_up(dls: DataLoaders, event: str, default_cbs: bool) -> None:
    log_class, log = events_log()
    learn = learner(dls, default_cbs=default_cbs)
    cbs = [log_class, raiser(event, Boom)]
    if event in LEADS_TO:
        cbs.append(raiser(*LEADS_TO[event]))
    with pytest.raises(Boom):
        learn.fit(2, cbs=cbs)
    assert log == FAILED[event].split()
    log.clear()
    learn.fit(2, cbs=log_class)  # the learner can be used again
    assert log == WHOLE_FIT.split()


def test_every_event_but_after_create_is_in_the_lists() -> None:
    assert set(FAILED) == set(EVENTS) - {"after_create"}


def test_after_create_comes_when_the_learner_is_made(dls: DataLoaders) -> None:
    made: list[Learner] = []

    class Made(Callback):
        def after_create(self) -> None:
            made.append(self.learn)

    learn = learner(dls, cbs=Made)
    assert made == [learn]


def test_validate_has_only_the_events_of_validation(dls: DataLoaders) -> None:
    log_class, log = events_log()
    learner(dls).validate(cbs=log_class)
    assert log == [
        "before_validate",
        "before_batch",
        "after_pred",
        "after_loss",
        "after_batch",
        "after_validate",
        "cleanup_fit",
    ]


def test_no_validation_loader_means_no_validation_events(dls: DataLoaders) -> None:
    log_class, log = events_log()
    learner(DataLoaders(dls.train)).fit(1, cbs=log_class)
    assert not any("validate" in event for event in log)


def test_start_epoch_leaves_the_epochs_before_it_out(dls: DataLoaders) -> None:
    log_class, log = events_log()
    learn = learner(dls)
    learn.fit(3, cbs=log_class, start_epoch=2)
    assert log.count("before_epoch") == 1
    assert learn.recorder.epochs == [2]
    assert len(learn.recorder.values) == 1


def test_callbacks_come_in_their_order_then_as_they_were_added(dls: DataLoaders) -> None:
    called: list[str] = []

    def make(name: str, order: float) -> Callback:
        return type(name, (Callback,), {"order": order, "before_fit": lambda self: called.append(name)})()

    learner(dls, cbs=[make("late", 2), make("first", 1), make("second", 1)]).fit(1)
    assert called == ["first", "second", "late"]


@pytest.mark.parametrize(("name", "train", "valid"), [("run_train", False, True), ("run_valid", True, False)])
def test_run_train_and_run_valid_choose_the_batches(dls: DataLoaders, name: str, train: bool, valid: bool) -> None:
    seen: set[bool] = set()

    def see(self: Callback) -> None:
        seen.add(self.training)

    events: dict[str, Callable[[Callback], None]] = dict.fromkeys(
        ["before_batch", "after_pred", "after_loss", "after_batch"], see
    )
    learner(dls, cbs=type("Part", (Callback,), {name: False, **events})).fit(1)
    assert seen == {part for part, wanted in ((True, train), (False, valid)) if wanted}


def test_callback_added_in_a_fit_takes_part_from_the_next_event_on(dls: DataLoaders) -> None:
    log_class, log = events_log()

    class Adder(Callback):
        def after_train(self) -> None:
            if self.epoch == 0:
                self.learn.add_cb(log_class)

    learner(dls, cbs=Adder).fit(1)
    assert log[0] == "before_validate"


def test_callback_removed_in_a_fit_is_no_longer_called(dls: DataLoaders) -> None:
    log_class, log = events_log()

    class Remover(Callback):
        def after_train(self) -> None:
            self.learn.remove_cb(log_class)

    learner(dls, cbs=[Remover, log_class]).fit(1)
    assert log[-2:] == ["after_train", "cleanup_fit"]  # it cleans up before it goes


def test_callback_removed_by_one_before_it_in_the_same_event_is_not_called(dls: DataLoaders) -> None:
    called: list[str] = []

    class Late(Callback):
        order = 5

        def after_batch(self) -> None:
            called.append("late")

    class Remover(Callback):
        def after_batch(self) -> None:
            if any(isinstance(cb, Late) for cb in self.learn.cbs):
                self.learn.remove_cb(Late)

    learner(dls, cbs=[Remover, Late]).fit(1)
    assert called == []
