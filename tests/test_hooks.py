"""Hooks: what they see, that they go whatever happens, and what is told about a model with them."""

from collections import namedtuple

import pytest
import torch
from torch import Tensor, nn

from minilearn.hooks import (
    Hook,
    Hooks,
    dummy_eval,
    has_params,
    hook_output,
    hook_outputs,
    layers_of,
    model_sizes,
    num_features_model,
    total_params,
)


def is_bare(model: nn.Module) -> bool:
    """Whether no hook is on any module."""
    return not any(m._forward_hooks or m._backward_hooks for m in model.modules())


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1)))


def test_a_hook_stores_what_its_function_returns() -> None:
    model, x = net(), torch.rand(5, 3)
    with Hook(model[0], lambda module, inputs, output: (module, inputs, output.sum())) as hook:
        model(x)
    module, (seen,), total = hook.stored
    assert module is model[0]
    assert torch.equal(seen, x)
    assert torch.equal(total, model[0](x).detach().sum())


def test_a_hook_leaves_the_answer_as_it_is() -> None:
    model, x = net(), torch.rand(5, 3)
    expected = model(x)
    with Hook(model[0], lambda *args: torch.zeros(5, 4)):
        assert torch.equal(model(x), expected)


def test_a_hook_goes_though_the_block_fails() -> None:
    model = net()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), hook_outputs(model):
        model(torch.rand(2, 100))
    assert is_bare(model)


def test_a_hook_removed_twice_is_removed() -> None:
    model = net()
    hook = hook_output(model[0])
    hook.remove()
    hook.remove()
    assert is_bare(model)


def test_hooks_that_cannot_all_be_made_leave_none() -> None:
    model = net()
    with pytest.raises(TypeError, match=r"module must be an nn.Module, got 'relu'"):
        Hooks([model[0], "relu"], print)  # type: ignore[list-item]
    assert is_bare(model)


def test_an_error_in_a_hook_says_where_it_was() -> None:
    def fails(*args: object) -> None:
        raise KeyError("x")

    model = net()
    with Hook(model[1], fails), pytest.raises(KeyError) as caught:
        model(torch.rand(2, 3))
    assert caught.value.__notes__ == ["raised in a hook on ReLU"]


def test_what_is_stored_is_detached_unless_asked_otherwise() -> None:
    model = net()
    with hook_outputs(model) as detached, hook_outputs(model, detach=False) as attached:
        model(torch.rand(2, 3))
    assert not any(stored.requires_grad for stored in detached.stored)
    assert all(stored.requires_grad for stored in attached.stored)


Pair = namedtuple("Pair", "a b")


class Nested(nn.Module):
    def forward(self, x: Tensor) -> dict[str, object]:
        x = x * torch.ones(1, requires_grad=True)
        return {"pair": Pair(x, [x]), "name": "n"}


def test_nested_outputs_are_detached_in_their_own_form() -> None:
    model = Nested()
    with hook_output(model) as hook:
        model(torch.rand(2))
    pair = hook.stored["pair"]
    assert isinstance(pair, Pair)
    assert not pair.a.requires_grad
    assert not pair.b[0].requires_grad
    assert hook.stored["name"] == "n"


def test_backward_hooks_see_the_gradients_by_the_outputs() -> None:
    model, x = net(), torch.rand(5, 3, requires_grad=True)
    with hook_outputs(model, grad=True) as hooks:
        pred = model(x)
        pred.square().sum().backward()
    assert torch.equal(hooks[2].stored[0], 2 * pred.detach())
    assert is_bare(model)


def test_hooks_are_a_list_of_hooks() -> None:
    model = net()
    with Hooks(model, lambda module, inputs, output: type(module).__name__) as hooks:
        model(torch.rand(2, 3))
    assert len(hooks) == 3
    assert [hook.stored for hook in hooks] == hooks.stored == ["Linear", "ReLU", "Linear"]


@pytest.mark.parametrize("modules", [None, 3])
def test_what_are_no_modules_is_said(modules: object) -> None:
    with pytest.raises(TypeError, match=f"modules must be modules or a model, got {modules}"):
        Hooks(modules, print)  # type: ignore[arg-type]


def test_what_is_no_function_is_said() -> None:
    with pytest.raises(TypeError, match=r"hook_func must be a function of \(module, inputs, output\), got None"):
        Hook(nn.ReLU(), None)  # type: ignore[arg-type]


def test_model_sizes_are_those_of_the_children() -> None:
    assert model_sizes(convolutions(), (16, 16)) == [(1, 6, 8, 8), (1, 6, 8, 8), (1, 8, 4, 4)]


def test_model_sizes_of_any_module_with_children() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.spare = nn.Conv2d(1, 2, 3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    assert model_sizes(Net(), (5, 5)) == [(1, 2, 3, 3), None]


def test_features_are_the_channels_that_come_last() -> None:
    assert num_features_model(convolutions()) == 8


def test_features_are_found_for_models_that_need_large_pictures() -> None:
    assert num_features_model(nn.Sequential(nn.Conv2d(1, 4, 100))) == 4


def test_a_model_without_convolutions_has_no_known_input() -> None:
    with pytest.raises(ValueError, match="Sequential has no convolution over height and width"):
        num_features_model(net())


def test_features_of_a_model_that_ends_in_none_are_refused() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum()

    with pytest.raises(ValueError, match=r"gives no features: its output's shape is torch.Size\(\[\]\)"):
        num_features_model(nn.Sequential(nn.Conv2d(1, 2, 3), Sum()))


def test_dummy_eval_leaves_modes_random_numbers_and_averages_alone() -> None:
    model = convolutions().train()
    model[1].eval()
    before, average = torch.get_rng_state(), model[1].running_mean.clone()
    dummy_eval(model, (16, 16))
    assert [m.training for m in model] == [True, False, True]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model[1].running_mean, average)


def test_dummy_eval_has_the_models_dtype() -> None:
    assert dummy_eval(nn.Conv2d(3, 2, 1).double(), (4, 6)).dtype == torch.float64


def test_parameters_are_counted_once_and_trained_if_any_is() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    model.append(model[0])
    assert total_params(model) == (16, True)
    model[0].weight.requires_grad_(False)
    assert total_params(model) == (16, True)
    model[0].bias.requires_grad_(False)
    assert total_params(model) == (16, False)
    assert total_params(nn.ReLU()) == (0, False)
    assert total_params(nn.LazyLinear(3)) == (0, True)


def test_has_params_looks_into_children() -> None:
    assert has_params(net())
    assert not has_params(nn.Sequential(nn.ReLU()))


def test_layers_are_what_has_parameters_of_its_own() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.BatchNorm1d(2)))
    assert layers_of(model) == [model[0], model[1][1]]
    assert layers_of(model, include_paramless=True) == [model[0], model[1][0], model[1][1]]


def test_a_layer_with_a_reparametrised_weight_is_one_layer() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2, bias=False)))
    assert layers_of(model) == [model[0]]
