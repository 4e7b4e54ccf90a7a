"""Batches cast to the model's precision."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import line_dls
from torch import Tensor, nn

from minilearn.callback import Callback
from minilearn.callbacks import Cast
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.optim import SGD


class Look(Callback):
    """Keeps the dtypes of what the model sees and is compared with."""

    order = Cast.order + 1

    def __init__(self) -> None:
        self.seen: set[tuple[torch.dtype, ...]] = set()

    def before_batch(self) -> None:
        self.seen.add((self.x.dtype, self.y.dtype))


def fitted(model: nn.Module, cbs: Any, dls: Any = None, loss_func: Any = F.mse_loss, **options: Any) -> Learner:
    learn = Learner(dls or line_dls(), model, loss_func, SGD, cbs=cbs, **options)
    with learn.no_logging():
        learn.fit(1, 0.1)
    return learn


def test_a_double_model_takes_float_data() -> None:
    look = Look()
    fitted(nn.Linear(3, 1).double(), [Cast, look])
    assert look.seen == {(torch.float64, torch.float64)}


def test_whole_numbers_stay_what_they_are() -> None:
    look = Look()
    x, y = torch.randn(8, 3), torch.arange(8) % 2
    dls = DataLoaders.from_tensors(x, y, x, y, bs=4, device="cpu")
    fitted(nn.Linear(3, 2).double(), [Cast, look], dls, F.cross_entropy)
    assert look.seen == {(torch.float64, torch.int64)}


def test_another_precision_can_be_asked_for() -> None:
    look = Look()
    learn = Learner(line_dls(), nn.Linear(3, 1).to(torch.bfloat16), F.mse_loss, SGD, cbs=[Cast(torch.bfloat16), look])
    learn.validate()
    assert look.seen == {(torch.bfloat16, torch.bfloat16)}


def test_a_batch_of_the_models_precision_is_not_copied() -> None:
    class Same(Callback):
        order = Cast.order - 1

        def before_batch(self) -> None:
            kept.append(self.xb)

    class Compare(Callback):
        order = Cast.order + 1

        def before_batch(self) -> None:
            same.append(self.xb is kept[-1])

    kept: list[Any] = []
    same: list[bool] = []
    fitted(nn.Linear(3, 1), [Cast, Same, Compare])
    assert same == [True] * 3


def test_dict_batches_are_cast_too() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(3, 1)

        def forward(self, a: Tensor) -> Tensor:
            return self.line(a)

    fitted(Named().double(), Cast, [[{"a": torch.randn(4, 3), "y": torch.randn(4, 1)}]])


def test_a_model_cast_between_fits_is_followed() -> None:
    look = Look()
    learn = fitted(nn.Linear(3, 1), [Cast, look])
    learn.model.double()
    with learn.no_logging():
        learn.fit(1)
    assert look.seen == {(torch.float32, torch.float32), (torch.float64, torch.float64)}


def test_after_an_error_the_next_fit_looks_anew() -> None:
    class Broken(Callback):
        def after_pred(self) -> None:
            raise ValueError("broken")

    cast = Cast()
    with pytest.raises(ValueError, match="broken"):
        fitted(nn.Linear(3, 1), [cast, Broken])
    assert cast._now is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_with_compile_the_whole_step_is_compiled_and_the_numbers_are_eagers() -> None:
    found = []
    for compile in (False, True):
        torch.manual_seed(0)
        found.append(fitted(nn.Linear(3, 1).double(), Cast, compile=compile))
    assert {key[0] for key in found[1].compiled._graphs} == {"step"}
    torch.testing.assert_close(found[0].model.weight, found[1].model.weight)


def test_dtype_is_a_floating_point_type() -> None:
    with pytest.raises(TypeError, match=r"dtype must be a floating-point type, such as torch.float64, got 'float'"):
        Cast("float")  # type: ignore[arg-type]
