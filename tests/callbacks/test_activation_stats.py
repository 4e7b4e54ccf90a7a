"""ActivationStats: its figures against torch's, what it keeps, and its pictures."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import line_dls
from torch import Tensor, nn

from minilearn.callback import Callback, CancelBatchException
from minilearn.callbacks import ActivationStats, ProgressCallback, activation_stats
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.optim import SGD


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))


def learner(*cbs: Callback, model: nn.Module | None = None, train_rows: int = 8, **options: Any) -> Learner:
    learn = Learner(line_dls(train_rows), model or net(), F.mse_loss, SGD, cbs=cbs, lr=0.1, **options)
    learn.remove_cb(ProgressCallback)
    learn.logger = lambda text: None
    return learn


def outputs_of(learn: Learner, n: int) -> list[list[Tensor]]:
    """What the two layers give in each of the first `n` training batches, computed by hand."""
    model = net()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for _, (x, y) in zip(range(n), [batch for _ in range(n) for batch in learn.dls.train], strict=False):
        first = model[0](x)
        last = model[2](model[1](first))
        found.append([first.detach(), last.detach()])
        F.mse_loss(last, y).backward()
        opt.step()
        opt.zero_grad()
    return found


def test_the_figures_are_those_of_the_outputs() -> None:
    cb = ActivationStats(with_hist=True, bins=10, hist_range=(-2, 2))
    learn = learner(cb)
    learn.fit(2)
    expected = outputs_of(learn, 4)
    assert cb.batches == [0, 1, 2, 3]
    for layers, outputs in zip(cb.stats, expected, strict=True):
        for found, x in zip(layers, outputs, strict=True):
            assert found["mean"] == pytest.approx(x.mean().item(), rel=1e-5)
            assert found["std"] == pytest.approx(x.std().item(), rel=1e-5)
            assert found["near_zero"] == pytest.approx((x.abs() <= 0.05).float().mean().item())
            assert torch.equal(found["hist"], torch.histc(x, 10, -2, 2))


@pytest.mark.parametrize("span", [(-1.0, 0.5), (-math.inf, 0.05), (-0.2, 0.2)])
def test_what_is_near_zero_is_between_two_numbers(span: tuple[float, float]) -> None:
    cb = ActivationStats(near_zero=span)
    learn = learner(cb)
    learn.fit(1)
    x = outputs_of(learn, 1)[0][0]
    assert cb.layer_stats(0)[2][0] == pytest.approx(((x >= span[0]) & (x <= span[1])).float().mean().item())


def test_a_layers_figures_are_lists_over_the_batches() -> None:
    cb = ActivationStats()
    learner(cb).fit(2)
    means, stds, shares = cb.layer_stats(-1)
    assert means == cb.stats.itemgot(1).itemgot("mean")
    assert stds == cb.stats.itemgot(1).itemgot("std")
    assert shares == cb.stats.itemgot(1).itemgot("near_zero")


def test_each_nth_batch_is_looked_at() -> None:
    cb = ActivationStats(every=3)
    learner(cb).fit(4)
    assert cb.batches == [0, 3, 6]


def test_a_second_fit_begins_anew() -> None:
    cb = ActivationStats()
    learn = learner(cb)
    learn.fit(2)
    learn.fit(1)
    assert cb.batches == [0, 1]


def test_a_validation_leaves_the_figures() -> None:
    cb = ActivationStats()
    learn = learner(cb)
    learn.fit(1)
    learn.validate()
    assert cb.batches == [0, 1]


def test_a_search_for_a_rate_leaves_the_figures() -> None:
    cb = ActivationStats()
    learn = learner(cb)
    learn.fit(1)
    learn.lr_find(num_it=10, show_plot=False)
    assert cb.batches == [0, 1]


def test_the_fit_is_the_one_without_it() -> None:
    watched, alone = learner(ActivationStats(with_hist=True)), learner()
    watched.fit(2)
    alone.fit(2)
    for p, q in zip(watched.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(p, q)


class Several(nn.Module):
    """A model with a layer that gives nested tuples, one that is not called every time, and one that never is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.sometimes, self.never = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 1), nn.Linear(4, 1)
        self.other, self.calls = nn.Linear(4, 1), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out, _ = self.rnn(x.unsqueeze(1))
        return (self.other if self.calls % 2 else self.sometimes)(out.squeeze(1))


def test_layers_that_give_several_tensors_or_are_not_called() -> None:
    cb = ActivationStats(with_hist=True)
    learn = learner(cb, model=Several())
    learn.fit(1)
    (out, h, c), sometimes, never, other = cb.stats[0]
    assert out["mean"] == pytest.approx(h["mean"])  # of one step
    assert c["mean"] != pytest.approx(h["mean"])
    assert cb.layer_stats(0, output=2)[0] == cb.stats.itemgot(0).itemgot(2).itemgot("mean")
    assert math.isnan(sometimes["mean"])
    assert math.isnan(never["mean"])
    assert not math.isnan(other["mean"])
    assert not math.isnan(cb.stats[1][1]["mean"])
    assert math.isnan(cb.stats[1][3]["mean"])


class Odd(nn.Module):
    """Gives a single number, and nothing at all, beside the prediction."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 1))

    def forward(self, x: Tensor) -> dict[str, Any]:
        pred = x @ self.weight
        return {"pred": pred, "one": pred.sum(), "none": pred[:0], "half": pred.half(), "flags": pred > 0, "name": "n"}


def test_outputs_of_any_form_have_figures() -> None:
    cb = ActivationStats(with_hist=True)
    learn = learner(cb, model=Odd())
    learn.loss_func = lambda pred, y: F.mse_loss(pred["pred"], y)
    learn.fit(1)
    ((pred, one, none, half, flags),) = cb.stats[0]
    assert one["std"] == 0
    assert math.isnan(none["mean"])
    assert half["mean"] == pytest.approx(pred["mean"], rel=1e-2)
    assert 0 <= flags["mean"] <= 1


def test_gradients_can_be_looked_at() -> None:
    cb = ActivationStats(is_forward=False, modules=nn.Sequential())
    learn = learner(cb)
    cb._asked = [learn.model[2]]
    learn.fit(1)
    first = outputs_of(learn, 1)[0][1].requires_grad_()
    F.mse_loss(first, next(iter(learn.dls.train))[1]).backward()
    assert first.grad is not None
    assert cb.stats[0][0][0]["mean"] == pytest.approx(first.grad.mean().item(), rel=1e-5)


class CancelSecond(Callback):
    "Cancels the second training batch."

    run_valid = False

    def before_batch(self) -> None:
        if self.train_iter == 1:
            raise CancelBatchException


def test_a_cancelled_batch_has_no_figures_and_moves_no_other() -> None:
    cb = ActivationStats()
    learner(cb, CancelSecond()).fit(2)
    assert cb.batches == [0, 2, 3]
    assert len(cb.stats) == 3


class Stop(Callback):
    "Fails in the third training batch."

    run_valid = False

    def after_pred(self) -> None:
        if self.train_iter == 2:
            raise RuntimeError


def test_after_an_error_no_hook_is_left_and_the_figures_so_far_are_there() -> None:
    cb = ActivationStats()
    learn = learner(cb, Stop())
    with pytest.raises(RuntimeError):
        learn.fit(2)
    assert not any(m._forward_hooks for m in learn.model.modules())
    assert cb.batches == [0, 1]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation_stats, "MAX_FIGURES", 8 * 2 * 3)  # eight batches of two layers
    monkeypatch.setattr(activation_stats._LateRows, "chunk", 4)
    cb = ActivationStats(every=2)
    learner(cb, train_rows=200).fit(1, lr=0.01)
    assert cb.stride == 4
    assert cb.batches == [0, 8, 16, 24, 32, 40, 48]


def test_a_run_that_was_cut_short_goes_on_with_the_same_figures() -> None:
    whole, cut = ActivationStats(with_hist=True), ActivationStats(with_hist=True)
    learner(whole).fit(3)

    class GoOn(Callback):
        "Puts a saved state back when a fit begins."

        order = ActivationStats.order + 1

        def before_fit(self) -> None:
            self.learn.train_iter = 2
            cut.load_state_dict(state)

    learn = learner(cut)
    learn.fit(1)
    state = cut.state_dict()
    learn.fit(3, start_epoch=1, cbs=GoOn())
    assert cut.batches == whole.batches
    assert torch.equal(torch.stack(cut._rows), torch.stack(whole._rows))


def test_a_state_is_of_its_own_memory() -> None:
    cb, other = ActivationStats(), ActivationStats()
    learner(cb).fit(1)
    state = cb.state_dict()
    other.load_state_dict(state)
    state["rows"].zero_()
    assert other.stats == cb.stats != 0


def test_an_empty_state_can_be_loaded() -> None:
    cb = ActivationStats()
    cb.load_state_dict(ActivationStats().state_dict())
    assert cb.stats == []


def test_a_state_with_other_histograms_is_refused() -> None:
    cb = ActivationStats(with_hist=True, bins=5)
    learner(cb).fit(1)
    with pytest.raises(ValueError, match="the state has 8 figures for each tensor, this ActivationStats 3"):
        ActivationStats().load_state_dict(cb.state_dict())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, about itself
def test_beside_a_compiled_model_the_figures_are_the_same() -> None:
    torch._dynamo.reset()
    compiled, eager = ActivationStats(every=3), ActivationStats(every=3)
    learn = learner(compiled, train_rows=32, compile=True)
    learn.fit(2)
    learner(eager, train_rows=32).fit(2)
    assert learn.compiled is not None
    assert any(key[0] == "step" for key in learn.compiled._graphs)
    assert compiled.batches == eager.batches == [0, 3, 6, 9, 12, 15]
    torch.testing.assert_close(torch.stack(compiled._rows), torch.stack(eager._rows))


def test_a_layer_that_is_not_there_is_said() -> None:
    cb = ActivationStats(with_hist=True)
    with pytest.raises(ValueError, match="no training batch has been looked at yet"):
        cb.layer_stats(0)
    learner(cb).fit(1)
    with pytest.raises(IndexError, match=r"idx must be a whole number in \[-2, 2\), got 2"):
        cb.layer_stats(2)
    with pytest.raises(IndexError, match=r"output must be a whole number in \[-1, 1\), got 1"):
        cb.hist(0, output=1)
    with pytest.raises(IndexError, match=r"batch must be a whole number in \[-2, 2\), got 7"):
        cb.plot_hist(0, batch=7)


def test_histograms_that_were_not_kept_are_said() -> None:
    cb = ActivationStats()
    learner(cb).fit(1)
    with pytest.raises(ValueError, match=r"make it ActivationStats\(with_hist=True\)"):
        cb.color_dim(0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bins": 0}, ValueError, "bins must be a whole number of at least 1, got 0"),
        ({"hist_range": (1, 1)}, ValueError, r"hist_range must be two finite numbers, the smaller first, got \(1, 1\)"),
        ({"hist_range": (0, math.inf)}, ValueError, "hist_range must be two finite numbers"),
        ({"near_zero": (1, 0)}, ValueError, r"near_zero must be two numbers, the smaller first, got \(1, 0\)"),
        ({"near_zero": 0.05}, TypeError, "near_zero must be two numbers, the smallest and the largest, got 0.05"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ActivationStats(**options)


def test_the_pictures_show_the_figures() -> None:
    cb = ActivationStats(with_hist=True, bins=10, hist_range=(-2, 2), every=2)
    learner(cb).fit(3)
    panels = cb.plot_layer_stats(0).child_axes
    assert [panel.get_title() for panel in panels] == ["mean", "standard deviation", "near zero"]
    for panel, figures in zip(panels, cb.layer_stats(0), strict=True):
        (line,) = panel.get_lines()
        assert list(line.get_xdata()) == [0, 2, 4]
        assert list(line.get_ydata()) == figures
    (image,) = cb.color_dim(0).get_images()
    assert torch.equal(torch.as_tensor(image.get_array().data), cb.hist(0))  # type: ignore[union-attr]
    assert list(image.get_extent()) == [-1, 5, -2, 2]
    ax = cb.plot_hist(0, batch=1)
    assert [bar.get_height() for bar in ax.patches] == cb.stats[1][0]["hist"].tolist()  # type: ignore[attr-defined]
    assert ax.get_title() == "layer 0: Linear, batch 2"


FASTAI = {  # of fastai 2.8.12 with torch 2.13.0, for each layer mean, std and near_zero, a figure a batch
    0: [
        [-0.0967622, 0.1412483, 0.2092891, 0.1080382, 0.1068259, 0.3182315],
        [0.6109515, 0.7528923, 0.349595, 0.7364676, 1.4636557, 1.9089028],
        [0.625, 0.5, 0.375, 0.5, 0.5, 0.5],
    ],
    1: [
        [0.2138121, 0.3787508, 0.2391956, 0.3530863, 0.6765594, 0.9796768],
        [0.3030226, 0.5387389, 0.3194942, 0.4548393, 0.8337888, 1.20252],
        [0.625, 0.5, 0.375, 0.5, 0.5, 0.5],
    ],
    2: [
        [-1.1580689, -3.01896, -2.3300977, 0.1689069, 2.5056677, 7.6562476],
        [0.0341716, 0.3322077, 1.1757268, 0.3716659, 0.3146921, 0.1876677],
        [1.0, 1.0, 1.0, 0.5, 0.0, 0.0],
    ],
}
FASTAI_HIST = [17.8354053, 6.8023949, 8.1886892, 5.8861041, 3.8712010, 3.4657359, 4.2766662, 1.0986123, 0.6931472]
"""Of its `hist` of the middle layer, the sum over batches of each of the first bins."""


def test_figures_are_those_of_fastai() -> None:
    x = torch.linspace(-2, 2, 24 * 3).reshape(24, 3).sin()
    y = x @ torch.tensor([[1.0], [2.0], [3.0]])
    model = net()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.linspace(-0.5, 0.6, p.numel()).reshape(p.shape))
    dls = DataLoaders.from_tensors(x, y, x[:4], y[:4], bs=4, shuffle=False, device="cpu")
    cb = ActivationStats(with_hist=True, modules=list(model), near_zero=(-math.inf, 0.05))
    learn = Learner(dls, model, F.mse_loss, SGD, cbs=cb)
    learn.logger = lambda text: None
    learn.fit(1, 0.05, wd=0)
    for layer, figures in FASTAI.items():
        for ours, theirs in zip(cb.layer_stats(layer), figures, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)
    assert cb.hist(1).sum(1)[:9].tolist() == pytest.approx(FASTAI_HIST, rel=1e-4)
    assert cb.hist(1).shape == (40, 6)
