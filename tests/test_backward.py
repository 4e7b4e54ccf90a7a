"""The backward pass by torch's engine does what `Tensor.backward` does."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import minilearn.backward
from minilearn.backward import _engine, _one, backward


def loss_of(model: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.linspace(-1, 1, 24, dtype=dtype).reshape(4, 6)
    loss: Tensor = model(x).sigmoid().mean()
    return loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_are_those_of_torchs_own_backward(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 1)).to(dtype)
    loss_of(model, dtype).backward()
    want = [p.grad for p in model.parameters()]
    model.zero_grad()
    backward(loss_of(model, dtype))
    for p, grad in zip(model.parameters(), want, strict=True):
        assert grad is not None
        assert p.grad is not None
        assert torch.equal(p.grad, grad)
    backward(loss_of(model, dtype))
    assert not torch.equal(next(model.parameters()).grad, want[0]), "a second one adds up"  # type: ignore[arg-type]


def test_engine_can_be_called_by_this_release_of_torch() -> None:
    assert _engine() is not None, "torch's engine is called in another way now: every batch takes some 20 µs more"


def test_graph_is_used_up_and_hooks_are_called() -> None:
    model, seen = nn.Linear(6, 1), []
    loss = loss_of(model)
    loss.register_hook(lambda grad: seen.append(float(grad)))
    model.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p is model.weight))
    backward(loss)
    assert seen == [1.0, True]
    with pytest.raises(RuntimeError, match="second time"):
        backward(loss)


class Careless(torch.autograd.Function):
    """Writes to the gradient that it is given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.mul_(3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_function_that_writes_to_its_gradient_spoils_no_later_pass(dtype: torch.dtype) -> None:
    x = torch.ones((), dtype=dtype, requires_grad=True)
    for passes in (1, 2, 3):
        backward(Careless.apply(x))
        assert float(x.grad) == 3 * passes  # type: ignore[arg-type]
    assert float(_one(dtype)) == 1


@pytest.mark.parametrize("of", [lambda p: p.sum().detach(), lambda p: p * 2, lambda p: (p * 1j).sum()])
def test_what_has_no_backward_pass_says_the_same(of: Any) -> None:
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(RuntimeError) as torchs:
        of(p).backward()
    with pytest.raises(RuntimeError) as ours:
        backward(of(p))
    assert str(ours.value) == str(torchs.value)


def test_subclass_of_tensor_and_mode_are_asked() -> None:
    asked = []

    class Own(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            asked.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            asked.append(func)
            return func(*args, **(kwargs or {}))

    p = torch.ones((), requires_grad=True)
    backward((p * 2).as_subclass(Own))
    assert Tensor.backward in asked
    asked.clear()
    with Mode():
        backward(p * 2)
    assert Tensor.backward in asked
    assert float(p.grad) == 4  # type: ignore[arg-type]


def test_without_such_an_engine_it_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilearn.backward, "_engine", lambda: None)
    p = torch.ones((), requires_grad=True)
    backward(p * 2)
    assert float(p.grad) == 2  # type: ignore[arg-type]
