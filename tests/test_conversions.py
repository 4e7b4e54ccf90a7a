"""The Learner's methods that change its precision and its layout in memory."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import line_dls
from torch import nn

from minilearn.callback import Callback
from minilearn.callbacks import ChannelsLast, MixedPrecision
from minilearn.learner import Learner
from minilearn.optim import SGD


def learner(model: nn.Module | None = None) -> Learner:
    return Learner(line_dls(), model or nn.Linear(3, 1), F.mse_loss, SGD)


def of(learn: Learner, kind: type[Callback]) -> list[Any]:
    return [cb for cb in learn.cbs if isinstance(cb, kind)]


@pytest.mark.parametrize(("method", "dtype"), [("to_fp16", torch.float16), ("to_bf16", torch.bfloat16)])
def test_to_half_precision_trains_in_it_and_gives_the_learner(method: str, dtype: torch.dtype) -> None:
    learn, seen = learner(), set()
    learn.model.register_forward_hook(lambda module, args, out: seen.add(out.dtype))
    assert getattr(learn, method)() is learn
    with learn.no_logging():
        learn.fit(1)
    assert seen == {dtype}


def test_the_last_precision_asked_for_is_the_one() -> None:
    learn = learner().to_fp16().to_bf16()
    assert [cb.dtype for cb in of(learn, MixedPrecision)] == [torch.bfloat16]


def test_to_fp16_hands_on_the_scalers_options() -> None:
    learn = learner().to_fp16(init_scale=8.0)
    with learn.no_logging():
        learn.fit(1)
    assert of(learn, MixedPrecision)[0].scaler.get_scale() == 8.0


@pytest.mark.parametrize("before", [torch.float64, torch.bfloat16, torch.float32])
def test_to_fp32_leaves_mixed_precision_and_makes_the_weights_float32(before: torch.dtype) -> None:
    learn = learner(nn.Linear(3, 1).to(before)).to_bf16()
    assert learn.to_fp32() is learn
    assert of(learn, MixedPrecision) == []
    assert learn.model.weight.dtype is torch.float32
    with learn.no_logging():
        learn.fit(1)


def test_to_fp32_where_nothing_was_mixed_is_no_error() -> None:
    assert learner().to_fp32().to_fp32().model.weight.dtype is torch.float32


def test_to_channelslast_adds_mixed_precision_once() -> None:
    learn = learner().to_channelslast().to_channelslast()
    assert [len(of(learn, kind)) for kind in (ChannelsLast, MixedPrecision)] == [1, 1]


def test_to_channelslast_keeps_the_precision_that_is_there() -> None:
    learn = learner().to_fp16().to_channelslast()
    assert [cb.dtype for cb in of(learn, MixedPrecision)] == [torch.float16]


def test_to_channelslast_can_do_without_mixed_precision() -> None:
    assert of(learner().to_channelslast(use_amp=False), MixedPrecision) == []


@pytest.mark.parametrize("to_fp32", [False, True])
def test_to_contiguous_takes_channels_last_back(to_fp32: bool) -> None:
    learn = learner(nn.Sequential(nn.Conv2d(2, 3, 3))).to_channelslast("bf16")
    learn.model.to(memory_format=torch.channels_last)
    assert learn.to_contiguous(to_fp32) is learn
    assert learn.model[0].weight.is_contiguous()
    assert of(learn, ChannelsLast) == []
    assert len(of(learn, MixedPrecision)) == (0 if to_fp32 else 1)
