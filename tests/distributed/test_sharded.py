"""Sharded models (FSDP2) in several processes: each claim is a function of `sharded_checks.py`, run in all of them."""

import ast
import os
from pathlib import Path

import pytest
import torch
from processes import at_length
from sharded_processes import run_checks
from torch import nn

from minilearn.materialize import materialize
from minilearn.sharding import checkpoint_activations, shard_model, sharding_units

CHECKS = Path(__file__).with_name("sharded_checks.py")
NAMES = [
    found.name.removeprefix("check_")
    for found in ast.parse(CHECKS.read_text()).body
    if isinstance(found, ast.FunctionDef) and found.name.startswith("check_")
]
IN_FOUR = [
    "every_optimizer_moves_pieces_as_it_moves_whole_parameters",
    "shards_of_two_axes_hold_whole_copies_of_pieces",
    "all_begin_with_the_first_ones_numbers_and_tied_weights_stay_tied",
    "a_model_from_the_meta_device_begins_as_one_that_was_made_in_one_process",
    "gradients_are_clipped_by_the_norm_of_the_whole",
    "gradients_are_clipped_adaptively_unit_by_unit",
]
"""What depends on how many processes there are: with four, some hold nothing of a parameter."""

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available() or os.name != "posix",
    reason="needs torch.distributed with gloo",
)


@pytest.fixture(scope="module")
def in_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return run_checks(CHECKS, 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def in_four(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return run_checks(CHECKS, 4, tmp_path_factory.mktemp("four"), [f"check_{name}" for name in IN_FOUR])


def holds(found: dict[str, str], name: str) -> None:
    said = found.get(f"check_{name}")
    if said is None:
        pytest.fail("not reached: " + next((text for text in found.values() if text), "no process said why"))
    assert said == "", said


@pytest.mark.parametrize("name", NAMES)
def test_in_two_processes(in_two: dict[str, str], name: str) -> None:
    holds(in_two, name)


@at_length
@pytest.mark.parametrize("name", IN_FOUR)
def test_in_four_processes(in_four: dict[str, str], name: str) -> None:
    holds(in_four, name)


# ---- what needs no processes ----


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.feed = nn.MultiheadAttention(width, 2), nn.Linear(width, width)


class Net(nn.Module):
    """A body of blocks, a large part of its own, and single layers of any size."""

    def __init__(self, width: int = 1024) -> None:
        super().__init__()
        self.body = nn.Module()
        self.body.blocks = nn.ModuleList([Block(8) for _ in range(2)])
        self.part = nn.Module()
        self.part.layer = nn.Linear(width, width)
        self.attention = nn.MultiheadAttention(width, 2)
        self.rows = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(width, width))
        self.head = nn.Linear(width, width)


def test_units_are_the_blocks_that_repeat_and_large_parts() -> None:
    with torch.device("meta"):
        model = Net()
    names = {module: name for name, module in model.named_modules()}
    assert [names[unit] for unit in sharding_units(model)] == [
        "body.blocks.0",
        "body.blocks.1",
        "part",
        "attention",
        "rows.3",
    ]


def test_a_unit_shares_no_parameter_with_a_module_outside_it() -> None:
    model = Net(8)
    assert len(sharding_units(model)) == 2
    model.head.weight = model.body.blocks[0].feed.weight
    assert sharding_units(model) == [model.body.blocks[1]]


def test_torchs_encoder_has_its_layers_as_units() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 3, enable_nested_tensor=False)
    assert sharding_units(model) == list(model.layers)


def test_without_processes_sharding_says_how_to_start_them() -> None:
    with pytest.raises(ValueError, match="no process group: start the script by torchrun"):
        shard_model(nn.Linear(2, 2))


@pytest.mark.parametrize("training", [True, False])
def test_activations_are_computed_again_in_the_backward_pass_alone(training: bool) -> None:
    calls = []

    class Layer(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(torch.is_grad_enabled())
            return super().forward(x).tanh()

    model = checkpoint_activations(nn.Sequential(Layer(3, 3), nn.Linear(3, 3), Layer(3, 3)), Layer)
    assert checkpoint_activations(model, [Layer]) is model  # once more: nothing more
    model.train(training)
    loss = model(torch.ones(2, 3, requires_grad=True)).sum()
    assert len(calls) == 2
    loss.backward()
    assert len(calls) == 4
    with torch.no_grad():
        model(torch.ones(2, 3))
    assert len(calls) == 6


def test_a_graph_that_is_kept_computes_again_each_time() -> None:
    model = checkpoint_activations(nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))), nn.BatchNorm1d)
    loss = model(torch.randn(4, 3, generator=torch.Generator().manual_seed(0))).square().sum()
    loss.backward(retain_graph=True)
    first = model[0][0].weight.grad.clone()
    loss.backward()
    torch.testing.assert_close(model[0][0].weight.grad, 2 * first)
    assert int(model[0][1].num_batches_tracked) == 1


def test_a_class_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"classes: the model has no Conv2d.* It has Linear"):
        checkpoint_activations(nn.Linear(2, 2), nn.Conv2d)
    with pytest.raises(TypeError, match="classes must be classes of modules"):
        checkpoint_activations(nn.Linear(2, 2), "Linear")


def test_nothing_is_materialised_where_there_are_values() -> None:
    model = nn.Linear(2, 2)
    weight, before = model.weight, model.weight.clone()
    assert materialize(model) is model
    assert model.weight is weight
    assert torch.equal(weight, before)


def test_values_that_are_there_stay_beside_those_that_are_made() -> None:
    torch.manual_seed(0)
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].bias = nn.Parameter(torch.tensor([5.0, 6.0]))
    materialize(model)
    assert model[0].bias.tolist() == [5.0, 6.0]
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_a_method_of_the_model_for_each_module_has_the_last_word() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.gain = nn.Linear(2, 2), nn.Parameter(torch.empty(2))

        def _init_weights(self, module: nn.Module) -> None:
            if isinstance(module, nn.Linear):
                module.weight.data.fill_(3.0)
            if module is self:
                module.gain.data.fill_(4.0)

    with torch.device("meta"):
        model = Model()
    materialize(model)
    assert bool((model.first.weight == 3).all())
    assert bool((model.gain == 4).all())
    assert bool(model.first.bias.isfinite().all())


def test_a_mask_that_no_method_fills_is_named() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.register_buffer("mask", torch.ones(2, 2, dtype=torch.bool), persistent=False)

        def reset_parameters(self) -> None:
            self.linear.reset_parameters()

    with torch.device("meta"):
        model = Masked()
    with pytest.raises(ValueError, match="the buffer 'mask' came from the meta device and has no value: Masked"):
        materialize(model)
