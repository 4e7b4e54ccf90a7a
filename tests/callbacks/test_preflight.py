import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import events_log, line_dls
from torch import Tensor, nn

from minilearn.callback import Callback, CancelBatchException
from minilearn.callbacks import Preflight
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.optim import SGD
from minilearn.preflight import ITEMS, Check, Finding

BYTES = torch.arange(8 * 16).view(8, 16).float() + 100


def learner(*cbs: Callback | type[Callback], **options: Any) -> Learner:
    torch.manual_seed(0)
    return Learner(line_dls(16), nn.Linear(3, 1), **({"loss_func": F.mse_loss, "cbs": cbs} | options))


def quiet(learn: Learner, epochs: int = 1) -> None:
    with learn.no_logging():
        learn.fit(epochs)


def test_no_batch_after_the_first_knows_of_it() -> None:
    seen: list[set[str]] = []

    class Notes(Callback):
        def after_batch(self) -> None:
            table = self.learn._handlers
            of_batch = ("before_batch", "after_pred", "after_loss", "after_backward", "after_batch")
            seen.append({e for e in of_batch if any(isinstance(h.__self__, Preflight) for h in table.get(e, ()))})

    quiet(learner(Notes), epochs=2)
    assert len(seen) == 2 * (4 + 1)
    assert seen == [set()] * 10


def test_next_fit_is_looked_at_again() -> None:
    learn = learner()
    quiet(learn)
    learn.model = nn.Sequential(nn.Linear(3, 1), nn.Sigmoid())
    learn.loss_func = lambda pred, target: F.binary_cross_entropy_with_logits(pred, target.sigmoid())
    quiet(learn)  # a loss by hand is not looked into
    learn.loss_func = nn.BCEWithLogitsLoss()
    learn.dls = DataLoaders.from_tensors(torch.randn(8, 3), torch.ones(8, 1), bs=4, device="cpu")
    with pytest.raises(ValueError, match="sigmoid again"):
        quiet(learn)


def test_events_are_those_of_a_fit_without_it() -> None:
    log, events = events_log()
    quiet(learner(log))
    other, without = events_log()
    quiet(learner(other).remove_cb(Preflight))
    assert events == without


def test_weights_and_random_numbers_are_those_of_a_fit_without_it() -> None:
    learn, bare = learner(), learner().remove_cb(Preflight)
    quiet(learn)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    bare = learner().remove_cb(Preflight)
    quiet(bare)
    assert torch.equal(learn.model.weight, bare.model.weight)
    assert torch.equal(torch.get_rng_state(), state)


def test_removed_it_says_nothing() -> None:
    learn = learner(loss_func=nn.BCEWithLogitsLoss())
    learn.model = nn.Sequential(nn.Linear(3, 1), nn.Sigmoid())
    learn.dls = DataLoaders.from_tensors(torch.randn(8, 3), torch.ones(8, 1), bs=4, device="cpu")
    quiet(learn.remove_cb(Preflight))


def test_error_leaves_no_hook_in_the_model() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("in the model")

    model = nn.Sequential(nn.Flatten(), Fails(), nn.Linear(16, 2))
    dls = DataLoaders.from_tensors(BYTES, torch.zeros(8).long(), bs=4, device="cpu")
    with pytest.raises(KeyError):
        quiet(Learner(dls, model, loss_func=F.cross_entropy))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_look_leaves_no_hook_in_the_model() -> None:
    model = nn.Sequential(nn.Linear(16, 2))
    dls = DataLoaders.from_tensors(BYTES, torch.tensor([0, 1] * 4), bs=4, device="cpu")
    learn = Learner(dls, model, loss_func=nn.CrossEntropyLoss(reduction="sum"))
    with pytest.warns(RuntimeWarning, match=r"not normalised: whole numbers from 100 to 2\d\d"):
        quiet(learn)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_cancelled_first_batch_is_no_error() -> None:
    class Skips(Callback):
        order = -5  # before the look

        def before_batch(self) -> None:
            if self.iter == 0:
                raise CancelBatchException

    learn = learner(Skips)
    quiet(learn)
    assert learn.opt.state[learn.model.weight]["step"] == 3


def test_compiled_steps_are_the_same_beside_it() -> None:
    learn, eager = learner(compile=True), learner()
    quiet(learn, 2)
    quiet(eager, 2)
    quiet(learn)  # whose first batch is a graph already
    quiet(eager)
    assert torch.allclose(learn.model.weight, eager.model.weight, atol=1e-6)


def test_two_parts_that_are_trained_in_turns_are_sound() -> None:
    class Turns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts, self.turn = nn.ModuleList([nn.Linear(3, 1), nn.Linear(3, 1)]), 0

        def forward(self, x: Tensor) -> Tensor:
            self.turn += 1
            return self.parts[self.turn % 2](x)

    quiet(Learner(line_dls(32), Turns(), loss_func=F.mse_loss, opt_func=SGD))


def test_check_prints_a_page_with_every_item(capsys: pytest.CaptureFixture[str]) -> None:
    page = learner().check()
    printed = capsys.readouterr().out
    assert printed == f"{page}\n"
    assert all(f" {kind} " in printed for kind in ITEMS)
    assert "Linear  (4, 3) → (4, 1)" in printed
    assert "mse_loss: predictions float32 (4, 1) against targets float32 (4, 1)" in printed
    assert printed.endswith("nothing was found to be wrong\n")
    assert page.ok


def test_page_counts_errors_and_warnings() -> None:
    found = [Finding("inputs", "They are odd.", "Look.", sure) for sure in (True, False, False)]
    page = Check(found, [], [], {})
    assert len(page.errors) == 1
    assert len(page.warnings) == 2
    assert str(page).endswith("1 error, 2 warnings")


def test_check_takes_the_rate_that_is_given() -> None:
    learn = learner(opt_func=SGD, lr=1e-3)
    with learn.no_logging():
        assert learn.check().ok
        assert [one.kind for one in learn.check(lr=1e4).errors] == ["learning rate"]


def test_check_leaves_callbacks_optimizer_and_modes_alone() -> None:
    learn = learner()
    quiet(learn)
    cbs, opt, state = list(learn.cbs), learn.opt, copy.deepcopy(learn.opt.state_dict())
    with learn.no_logging():
        learn.check()
    assert learn.cbs == cbs
    assert learn.opt is opt
    assert learn.opt.state_dict().keys() == state.keys()
    assert not learn.model.training


def test_check_refuses_a_loader_that_it_would_use_up() -> None:
    batches = iter([(torch.zeros(2, 3), torch.zeros(2, 1))])
    with pytest.raises(ValueError, match="check would use up a loader"):
        Learner(DataLoaders(batches, device="cpu"), nn.Linear(3, 1), loss_func=F.mse_loss).check()
