"""GatherPreds and FetchPreds in a fit of one's own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import line_dls
from torch import Tensor, nn

from minilearn.callback import Callback
from minilearn.callbacks import FetchPreds, FetchPredsCallback, GatherPreds, GatherPredsCallback
from minilearn.data import DataLoader
from minilearn.learner import Learner
from minilearn.metrics import mse


def learner(*cbs: Callback, **kwargs: Any) -> Learner:
    torch.manual_seed(0)
    learn = Learner(line_dls(), nn.Linear(3, 1), F.mse_loss, cbs=cbs, metrics=mse, **kwargs)
    learn.logger = lambda line: None
    return learn


def valid(learn: Learner) -> tuple[Tensor, Tensor]:
    x, y = learn.dls.valid_ds.tensors
    return x, y


def test_gathers_the_last_validation_of_a_fit() -> None:
    gather = GatherPreds(with_input=True, with_loss=True, with_decoded=True)
    learn = learner(gather)
    learn.fit(2)
    x, y = valid(learn)
    pred = learn.model(x).detach()
    torch.testing.assert_close(gather.all_tensors(), [x, pred, y, pred, (pred - y).square().squeeze(1)])


def test_gathering_changes_no_figure_of_the_fit() -> None:
    plain, gathered = learner(), learner(GatherPreds(with_loss=True))
    plain.fit(2)
    gathered.fit(2)
    assert gathered.recorder.values == plain.recorder.values


class Spoils(Callback):
    """Writes to a batch that is through."""

    order = 1000

    def after_batch(self) -> None:
        self.yb[0].zero_()


def test_target_written_to_after_its_batch_is_gathered_as_it_was() -> None:
    learn = learner()
    order = DataLoader(learn.dls.valid_ds, 4, shuffle=True)  # whose batches are copies, not the data set's own rows
    found, expected = learn.get_preds(dl=order, cbs=Spoils())[1], learn.get_preds(dl=order)[1]
    torch.testing.assert_close(found.sort(0).values, expected.sort(0).values)
    assert found.any()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_gathers_the_same_with_compile() -> None:
    found = []
    for compile in (False, True):
        gather = GatherPreds(with_input=True)
        learner(gather, compile=compile).fit(2)
        found.append(gather.all_tensors())
    torch.testing.assert_close(found[1], found[0])


def test_validation_that_fails_leaves_nothing(tmp_path: Path) -> None:
    class Fails(Callback):
        order = GatherPreds.order + 1

        def after_batch(self) -> None:
            if not self.training:
                raise ZeroDivisionError

    gather = GatherPreds(save_preds=tmp_path, with_input=True)
    with pytest.raises(ZeroDivisionError):
        learner(gather, Fails()).fit(1)
    assert list(tmp_path.iterdir()) == []
    assert gather.all_tensors() == [None, None, None]
    assert gather._parts == {}


def test_file_is_replaced_after_each_validation(tmp_path: Path) -> None:
    gather = GatherPreds(save_preds=tmp_path / "p.npy")
    learn = learner(gather)
    learn.fit(2)
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "p.npy")), learn.model(valid(learn)[0]).detach())


def test_fetches_another_loader_after_each_validation() -> None:
    x = torch.randn(5, 3)
    seen = []

    class Look(Callback):
        order = FetchPreds.order + 1

        def after_epoch(self) -> None:
            seen.append((fetch.preds[0], self.model(x).detach()))

    fetch = FetchPreds(dl=[(x[:2], x[:2, :1]), (x[2:], x[2:, :1])])
    learner(fetch, Look()).fit(2)
    assert len(seen) == 2
    for found, expected in seen:
        torch.testing.assert_close(found, expected)
    assert not torch.equal(seen[0][0], seen[1][0])


def test_fetching_changes_no_figure_of_the_fit() -> None:
    plain, fetched = learner(), learner(FetchPreds(ds_idx=0, with_input=True, with_decoded=True))
    plain.fit(2)
    fetched.fit(2)
    assert fetched.recorder.values == plain.recorder.values


def test_callbacks_named_hear_nothing_of_a_fetch() -> None:
    class Counts(Callback):
        n = 0

        def before_validate(self) -> None:
            self.n += 1

    counts, others = Counts(), Counts()
    learner(counts, others, FetchPreds(cbs=counts)).fit(1)
    assert (counts.n, others.n) == (1, 2)


def test_fetch_of_a_loader_that_is_not_there_is_an_error() -> None:
    with pytest.raises(IndexError, match="there is no loader 7"):
        learner(FetchPreds(7)).fit(1)


def test_fastais_names_are_the_same_classes() -> None:
    assert (GatherPredsCallback, FetchPredsCallback) == (GatherPreds, FetchPreds)


def test_gathering_keeps_nothing_for_a_checkpoint() -> None:
    gather = GatherPreds()
    learner(gather).fit(1)
    assert gather.state_dict() == {}
