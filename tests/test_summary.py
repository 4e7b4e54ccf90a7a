"""learn.summary(): its figures against those counted by hand, for models and batches of any form; and no trace."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilearn.callback import Callback
from minilearn.data import DataLoader, DataLoaders
from minilearn.learner import Learner
from minilearn.optim import SGD, Adam
from minilearn.summary import layer_info
from minilearn.summary_page import LayerRow


def learner(model: nn.Module, *inputs: Tensor, **options: Any) -> Learner:
    """A Learner over batches of four rows, one input unless others are given."""
    inputs = inputs or (torch.rand(8, 3),)
    rows = list(zip(*inputs, torch.rand(len(inputs[0]), 2), strict=True))
    dls = options.pop("dls", None) or DataLoaders.of([DataLoader(rows, 4, shuffle=True)])
    learn = Learner(dls, model, **{"loss_func": F.mse_loss, "opt_func": SGD, **options})
    learn.logger = lambda text: None
    return learn


def row(learn: Learner, path: str) -> LayerRow:
    (found,) = [row for row in learn.summary().rows if row.path == path]
    return found


def test_the_rows_are_the_modules_from_the_outside_in() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Sequential(nn.ReLU(), nn.Linear(5, 2, bias=False)))
    found = learner(model).summary()
    assert [(row.path, row.depth, row.kind, row.output, row.parameters, row.trained) for row in found.rows] == [
        ("", 0, "Sequential", (4, 2), 0, None),
        ("0", 1, "Linear", (4, 5), 20, True),
        ("1", 1, "Sequential", (4, 2), 0, None),
        ("1.0", 2, "ReLU", (4, 5), 0, None),
        ("1.1", 2, "Linear", (4, 2), 10, True),
    ]
    assert [row.multiply_adds for row in found.rows] == [0, 15, 0, 0, 10]
    assert (found.parameters, found.trainable_parameters, found.multiply_adds) == (30, 30, 25)


def test_the_page_shows_them() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    model[0].weight.requires_grad_(False)
    model[0].bias.requires_grad_(False)
    found = learner(model, opt_func=Adam).summary()
    assert str(found).splitlines() == [
        "Sequential, called with float32 (4, 3)",
        "",
        "layer        output  parameters  trained  multiply-adds",
        "─" * 55,
        "Sequential   (4, 2)",
        "  0: Linear  (4, 5)          20  no                  15",
        "  1: ReLU    (4, 5)",
        "  2: Linear  (4, 2)          12  yes                 10",
        "",
        "parameters: 32, of these 12 trained and 20 not",
        "multiply-adds: 25 a sample (one is two flops)",
        "memory in MB: parameters 0.00, buffers 0.00, gradients 0.00, optimizer 0.00, activations of this batch 0.00",
        "",
        "loss: mse_loss",
        "optimizer: Adam, made when a fit begins",
        "layers: 1 to freeze, none frozen",
        "callbacks: TrainEval, DevicePlacement, Preflight, Recorder, ProgressCallback, Divergence",
    ]
    assert repr(found) == str(found)  # what a notebook shows


def test_memory_is_that_of_the_tensors() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(5, 2))
    model[0].bias.requires_grad_(False)
    found = learner(model).summary()
    assert found.parameter_bytes == 4 * (15 + 5 + 10 + 10 + 2)
    assert found.gradient_bytes == found.parameter_bytes - 4 * 5
    assert found.buffer_bytes == 4 * 10 + 8
    assert found.activation_bytes == 4 * 4 * (5 + 5 + 2)  # what is computed in place, or is a view, takes none


@pytest.mark.parametrize(("opt_func", "averages"), [(SGD, 0), (torch.optim.RMSprop, 1), (torch.optim.AdamW, 2)])
def test_the_optimizers_memory_is_known_before_its_first_step(opt_func: Any, averages: int) -> None:
    learn = learner(nn.Linear(3, 2), opt_func=opt_func)
    before = learn.summary().optimizer_bytes
    learn.fit(1)
    after = learn.summary().optimizer_bytes
    assert before == after
    assert before is not None
    assert before >= 4 * 8 * averages


def test_the_memory_of_an_optimizer_that_needs_a_closure_is_unknown_before() -> None:
    found = learner(nn.Linear(3, 2), opt_func=torch.optim.LBFGS).summary()
    assert found.optimizer_bytes is None
    assert "optimizer unknown" in str(found)


def conv_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.Flatten(), nn.Linear(4 * 4 * 4, 2))


def test_multiply_adds_are_those_of_one_sample() -> None:
    found = learner(conv_net(), torch.rand(8, 1, 8, 8)).summary()
    assert [row.multiply_adds for row in found.rows] == [0, 4 * 4 * 4 * 9, 0, 4 * 4 * 4 * 2]


def test_large_counts_are_in_words() -> None:
    found = learner(nn.Linear(1500, 2000), torch.rand(8, 1500)).summary()
    assert "multiply-adds: 3.00 million a sample" in str(found)


@pytest.mark.parametrize("directions", [1, 2])
def test_recurrent_layers_count_each_step(directions: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(3, 4, batch_first=True, bidirectional=directions == 2)
            self.head = nn.Linear(4 * directions, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    learn = learner(Net(), torch.rand(8, 7, 3))
    assert row(learn, "rnn").multiply_adds == directions * 7 * (16 * 3 + 16 * 4)
    assert row(learn, "rnn").output == ((4, 7, 4 * directions), ((directions, 4, 4), (directions, 4, 4)))


def test_attention_is_seen_inside() -> None:
    """Torch has a faster way through its transformer, in which the layers are not called and nothing is counted."""
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(40, 2))
    fast = torch.backends.mha.get_fastpath_enabled()
    learn = learner(model, torch.rand(8, 5, 8))
    assert row(learn, "0.linear1").output == (4, 5, 16)
    assert row(learn, "0.self_attn").multiply_adds == 4 * 5 * 8 * 8 + 2 * 5 * 5 * 8  # its matrices, then attention
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_a_shared_module_counts_once_and_says_so() -> None:
    layer = nn.Linear(3, 3)
    found = learner(nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(3, 2))).summary()
    assert found.parameters == 12 + 8
    assert [(row.path, row.parameters, row.same_as, row.calls) for row in found.rows[1:4]] == [
        ("0", 12, None, 2),
        ("1", 0, None, 1),
        ("2", 0, "0", 0),
    ]
    assert found.multiply_adds == 9 + 9 + 6
    assert "as 0" in str(found)


def test_a_shared_parameter_counts_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), nn.Linear(3, 2))
    model[1].weight = model[0].weight
    found = learner(model).summary()
    assert found.parameters == 9 + 8
    assert [row.same_as for row in found.rows] == [None, None, "0", None]


def test_a_module_that_holds_parameters_beside_children() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.layer = nn.Parameter(torch.ones(2)), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.layer(x)

    assert [row.parameters for row in learner(Scaled()).summary().rows] == [2, 8]


class ByName(nn.Module):
    """Takes two inputs by name, and gives a dict, or an object with attributes."""

    def __init__(self, answer: Callable[..., Any] = dict) -> None:
        super().__init__()
        self.answer, self.layer, self.spare = answer, nn.Linear(3, 2), nn.Linear(1, 1)

    def forward(self, a: Tensor, b: Tensor) -> Any:
        return self.answer(logits=self.layer(a + b), hidden=(a, b))


def named_rows() -> list[dict[str, Tensor]]:
    return [{"a": torch.rand(3), "b": torch.rand(3), "y": torch.rand(2)} for _ in range(8)]


def test_dict_batches_and_models_that_give_dicts() -> None:
    learn = learner(ByName(), dls=DataLoaders.of([DataLoader(named_rows(), 4)]))
    assert row(learn, "").output == {"logits": (4, 2), "hidden": ((4, 3), (4, 3))}
    page = str(learn.summary())
    assert "called with {'a': float32 (4, 3), 'b': float32 (4, 3)}" in page
    assert "{logits: (4, 2), hidden: ((4, 3), (4, 3))}" in page


def test_models_that_give_an_object() -> None:
    learn = learner(ByName(SimpleNamespace), dls=DataLoaders.of([DataLoader(named_rows(), 4)]))
    assert row(learn, "").output == {"logits": (4, 2), "hidden": ((4, 3), (4, 3))}


def test_a_module_that_is_not_called_has_no_shape() -> None:
    learn = learner(ByName(), dls=DataLoaders.of([DataLoader(named_rows(), 4)]))
    assert (row(learn, "spare").output, row(learn, "spare").calls) == (None, 0)


def test_several_inputs() -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    learn = learner(Two(), torch.rand(8, 2), torch.rand(8, 2))
    assert "called with (float32 (4, 2), float32 (4, 2))" in str(learn.summary())


def test_a_model_without_parameters() -> None:
    found = learner(nn.Sequential(nn.Flatten(), nn.ReLU())).summary()
    assert (found.parameters, found.optimizer_bytes, found.multiply_adds) == (0, 0, 0)


def test_lazy_modules_are_counted_and_stay_lazy() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Linear(4, 2))
    learn = learner(model)
    assert [row.parameters for row in learn.summary().rows] == [0, 16, 8, 10]
    assert type(model[0]) is nn.LazyLinear
    assert type(model[1]) is nn.LazyBatchNorm1d
    assert not any(module._forward_hooks for module in model.modules())
    learn.fit(1)


def test_frozen_layers_are_named() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    learn = learner(model, splitter=lambda m: [list(m[:2].parameters()), list(m[2].parameters())])
    assert "layers: 2 to freeze, none frozen" in str(learn.summary())
    learn.freeze()
    assert "layers: 2 to freeze, number 0 frozen" in str(learn.summary())
    assert "optimizer: SGD\n" in str(learn.summary())


class Unsqueeze(Callback):
    "Gives the model what it asks for."

    def before_batch(self) -> None:
        self.learn.xb = (self.x[:, None],)


def test_callbacks_that_change_the_batch_take_part() -> None:
    learn = learner(nn.Sequential(nn.Conv1d(1, 4, 3), nn.Flatten(), nn.Linear(4, 2)), cbs=Unsqueeze())
    assert row(learn, "0").output == (4, 4, 1)


def noisy() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2))


def test_a_fit_after_it_is_the_one_without_it() -> None:
    def weights(look: bool) -> list[Tensor]:
        learn = learner(noisy(), torch.linspace(0, 1, 24).reshape(8, 3))
        torch.manual_seed(2)
        if look:
            learn.summary()
        learn.fit(1)
        if look:
            learn.summary()
        learn.fit(1)
        return [value.clone() for value in learn.model.state_dict().values()]

    torch.manual_seed(3)
    alone = weights(False)
    torch.manual_seed(3)
    for a, b in zip(alone, weights(True), strict=True):
        assert torch.equal(a, b)


LOOKED_UP = {"_handlers", "_handlers_of"}
"""Attributes that are there once somebody has asked for them."""


def test_modes_and_attributes_are_as_before() -> None:
    learn = learner(noisy().train())
    learn.model[1].eval()
    before, modes = copy.copy(learn.__dict__), [m.training for m in learn.model.modules()]
    learn.summary()
    assert learn.__dict__.keys() - LOOKED_UP == before.keys() - LOOKED_UP
    assert [m.training for m in learn.model.modules()] == modes


def test_after_an_error_everything_is_as_before() -> None:
    learn = learner(nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2)))
    before = learn.__dict__.keys() - {"dls", *LOOKED_UP}
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        learn.summary()
    assert learn.__dict__.keys() - {"dls", *LOOKED_UP} == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in learn.model.modules())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, about itself
def test_a_compiled_model_is_seen_as_it_is_written() -> None:
    model = torch.compile(nn.Sequential(nn.Linear(3, 2)))
    found = learner(model).summary()  # type: ignore[arg-type]
    assert [(row.path, row.output, row.calls) for row in found.rows] == [
        ("", (4, 2), 1),
        ("_orig_mod", (4, 2), 1),
        ("_orig_mod.0", (4, 2), 1),
    ]
    assert found.multiply_adds == 6


def test_a_loader_that_can_be_run_through_once_is_left_alone() -> None:
    rows = iter([(torch.rand(4, 3), torch.rand(4, 2))])
    with pytest.raises(ValueError, match="a loader that can be run through only once"):
        learner(nn.Linear(3, 2), dls=[rows]).summary()
    assert len(list(rows)) == 1


def test_an_empty_loader_is_said() -> None:
    with pytest.raises(ValueError, match="the training loader is empty: it has 0 batches"):
        learner(nn.Linear(3, 2), dls=[[]]).summary()


def test_in_the_middle_of_a_fit_it_is_refused() -> None:
    class Look(Callback):
        def before_epoch(self) -> None:
            self.learn.summary()

    with pytest.raises(RuntimeError, match="this Learner is in a fit already"):
        learner(nn.Linear(3, 2), cbs=Look()).fit(1)


def test_long_shapes_are_cut() -> None:
    class Many(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x] * 20

    (line,) = [line for line in str(learner(Many()).summary()).splitlines() if line.startswith("Many  ")]
    assert line == "Many   ((4, 3), (4, 3), (4, 3), (4, 3), (4, 3), (4…"


def test_layer_info_is_a_tuple_for_each_layer() -> None:
    learn = learner(nn.Sequential(nn.Linear(3, 5), nn.Sequential(nn.ReLU(), nn.Linear(5, 2))))
    assert layer_info(learn, torch.rand(4, 3)) == [
        ("Linear", 20, True, (1, 5), False),
        ("ReLU", "", "", (1, 5), True),
        ("Linear", 12, True, (1, 2), False),
    ]


def test_a_model_that_takes_its_labels_has_a_loss_of_its_own() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.layer(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    batch = {"x": torch.rand(4, 3), "labels": torch.tensor([0, 1, 1, 0])}
    assert Learner([[batch]], Own()).summary().loss == "the model's own, where it gives one"
