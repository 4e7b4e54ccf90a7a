"""What `scaling` computes, against rings played through, torch's own buckets, processes here, and 1,024 that are fake."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from processes import at_length
from scale_processes import BLOCKS, few_parameters, transformer
from torch import nn

from minilearn.optim import SGD, Adam
from minilearn.scale import ScalingRow, buckets_of, scaling

ROOT = Path(__file__).parent.parent.parent
MATRIX_BYTES = 4 * 64 * 64


def square() -> nn.Module:
    """One parameter whose rows 2, 4, 8, … devices share evenly."""
    return nn.Linear(64, 64, bias=False, device="meta")


def row(model: nn.Module, devices: int, **options: Any) -> ScalingRow:
    return scaling(model, devices=(devices,), **options).rows[0]


# ---- formulas ----


def ring(devices: int, passes: int, size: int) -> int:
    """What the first of so many devices in a ring sends, chunk by chunk: each pass hands every chunk on N - 1 times."""
    chunk, sent = size // devices, 0
    for _ in range(passes):
        for _ in range(devices - 1):
            sent += chunk
    return sent


@pytest.mark.parametrize("devices", [1, 2, 8, 64])
def test_ddp_sends_what_a_rings_two_passes_send(devices: int) -> None:
    found = row(square(), devices)
    assert found.sent_bytes == found.gradient_sent_bytes == ring(devices, 2, MATRIX_BYTES)


@pytest.mark.parametrize("devices", [2, 8, 64])
def test_fsdp_gathers_the_outermost_parameters_once_and_those_of_units_twice(devices: int) -> None:
    two_units = nn.Sequential(square(), square())
    assert row(square(), devices, strategy="fsdp").sent_bytes == ring(devices, 2, MATRIX_BYTES)
    assert row(two_units, devices, strategy="fsdp", blocks=nn.Linear).sent_bytes == 2 * ring(devices, 3, MATRIX_BYTES)
    kept = row(two_units, devices, strategy="fsdp", blocks=nn.Linear, reshard_after_forward=False)
    assert kept.sent_bytes == 2 * ring(devices, 2, MATRIX_BYTES)


def test_time_is_the_messages_latency_and_the_bytes_over_the_bandwidth() -> None:
    found = row(square(), 8, bytes_per_s=1e6, latency_s=0.5, step_s=1.0)
    assert found.communication_s == pytest.approx(14 * 0.5 + found.sent_bytes / 1e6)
    assert found.communication_frac == pytest.approx(found.communication_s / (1 + found.communication_s))
    assert row(square(), 8).communication_frac is None


def test_one_device_sends_nothing_and_has_no_buckets() -> None:
    for strategy in ("ddp", "fsdp"):
        found = row(square(), 1, strategy=strategy, step_s=1.0)
        assert (found.sent_bytes, found.collectives, found.communication_frac, found.working_bytes) == (0, 0, 0.0, 0)
        assert found.memory_bytes == 4 * MATRIX_BYTES


@pytest.mark.parametrize(
    ("opt_func", "states"),
    [(SGD, 0), (partial(SGD, mom=0.9), 1), (Adam, 2), (partial(torch.optim.SGD, momentum=0.9), 1)],
)
def test_optimizers_state_is_so_many_times_the_parameters(opt_func: Callable[..., Any], states: int) -> None:
    assert row(square(), 1, opt_func=opt_func).optimizer_bytes == states * MATRIX_BYTES
    assert row(square(), 4, opt_func=opt_func, strategy="fsdp").optimizer_bytes == states * MATRIX_BYTES // 4


def test_ddp_holds_gradients_twice_unless_they_live_in_buckets() -> None:
    assert row(square(), 2).working_bytes == 0
    assert row(square(), 2, gradient_as_bucket_view=False).working_bytes == MATRIX_BYTES


def test_half_precision_halves_what_fsdp_gathers_and_not_what_is_held() -> None:
    full = row(square(), 2, strategy="fsdp")
    half = row(square(), 2, strategy="fsdp", param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    assert half.sent_bytes - half.gradient_sent_bytes == (full.sent_bytes - full.gradient_sent_bytes) // 2
    assert (half.gradient_sent_bytes, half.parameter_bytes) == (full.gradient_sent_bytes, full.parameter_bytes)
    assert row(square(), 2, strategy="fsdp", param_dtype=torch.bfloat16).sent_bytes == full.sent_bytes // 2


def test_frozen_parameters_have_neither_gradients_nor_state_and_are_gathered_all_the_same() -> None:
    model = nn.Sequential(square(), square())
    model[0].requires_grad_(False)
    ddp, fsdp = row(model, 2), row(model, 2, strategy="fsdp", blocks=nn.Linear)
    assert (ddp.gradient_bytes, ddp.optimizer_bytes, ddp.sent_bytes) == (MATRIX_BYTES, 2 * MATRIX_BYTES, MATRIX_BYTES)
    assert fsdp.sent_bytes - fsdp.gradient_sent_bytes == 2 * MATRIX_BYTES
    assert fsdp.gradient_sent_bytes == MATRIX_BYTES // 2


def test_tied_parameters_count_once() -> None:
    model = nn.Sequential(square(), square())
    model[1].weight = model[0].weight
    for strategy in ("ddp", "fsdp"):
        assert row(model, 2, strategy=strategy).parameter_bytes in (MATRIX_BYTES, MATRIX_BYTES // 2)


def test_buffers_are_whole_on_every_device() -> None:
    norm = nn.BatchNorm1d(64, device="meta")
    assert row(norm, 64, strategy="fsdp").parameter_bytes == 2 * 4 + 2 * 64 * 4 + 8


def test_parameter_with_fewer_rows_than_devices_takes_a_row_on_each() -> None:
    found = row(nn.Linear(64, 10, bias=False, device="meta"), 1024, strategy="fsdp")
    assert (found.parameter_bytes, found.sent_bytes) == (64 * 4, 2 * 1023 * 64 * 4)


@pytest.mark.parametrize("size", [(2, 64, 100), (4, 512, 3000), (12, 768, 1000)])
def test_ddps_buckets_are_those_that_torch_fills(size: tuple[int, int, int]) -> None:
    params = list(transformer(*size).parameters())
    indices, _ = torch.distributed._compute_bucket_assignment_by_size(params[::-1], [1 << 20, 25 << 20])
    sizes = [sum(params[::-1][i].numel() * 4 for i in bucket) for bucket in indices]
    assert sorted(buckets_of(params)) == sorted(sizes)


def test_blocks_are_named_by_their_classes() -> None:
    model = nn.Sequential(square(), nn.Tanh(), nn.Bilinear(8, 8, 64, bias=False, device="meta"))
    assert row(model, 2, strategy="fsdp", blocks=nn.Bilinear).collectives == 5
    assert row(model, 2, strategy="fsdp", blocks=(nn.Linear, nn.Bilinear)).collectives == 6


def test_blocks_are_those_that_sharding_finds_unless_they_are_named() -> None:
    model = nn.Sequential(nn.Embedding(9, 64, device="meta"), *transformer(3, 64, 9)[1:4])
    named = row(model, 2, strategy="fsdp", blocks=nn.TransformerEncoderLayer)
    assert row(model, 2, strategy="fsdp") == named
    assert named.collectives == 2 + 3 * 3


def test_text_is_a_table_with_a_line_for_each_number_of_devices() -> None:
    text = str(scaling(square(), devices=(1, 1024), step_s=1.0))
    title, head, one, many = text.splitlines()
    assert title == "Linear, 4,096 parameters, Adam, ddp; bytes a device, computed"
    assert (
        " ".join(head.split()) == "devices parameters gradients optimizer working memory sent a step calls time share"
    )
    assert one.split()[:3] == ["1", "16.38", "kB"]
    assert many.split()[0] == "1,024"


# ---- errors ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "fdsp"}, "no strategy 'fdsp'; did you mean 'fsdp'"),
        ({"param_dtype": torch.bfloat16}, 'param_dtype and reduce_dtype belong to strategy="fsdp"'),
        ({"devices": (0,)}, "devices must be"),
        ({"bytes_per_s": 0}, "bytes_per_s must be"),
        ({"latency_s": -1}, "latency_s must be"),
        ({"step_s": 0}, "step_s must be"),
        ({"strategy": "fsdp", "blocks": nn.Conv2d}, "blocks: Linear has no module of Conv2d"),
    ],
)
def test_argument_that_cannot_be_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scaling(square(), **options)


@pytest.mark.parametrize("model", [nn.ReLU(), nn.LazyLinear(3)])
def test_model_without_known_parameters_is_refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="has no parameters, or some whose size is not known before its first batch"):
        scaling(model)


# ---- against torch.distributed ----


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """benchmarks/distributed_scale.py, importable as it is when it is run."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import distributed_scale

        return distributed_scale
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=at_length)])
def test_processes_hold_and_send_what_is_computed(benchmark: Any, processes: int) -> None:
    found = benchmark.run(processes, 256, timeout_s=120)
    for way in benchmark.WAYS:
        pairs = benchmark.pairs(benchmark.computed(256, way, processes), [one[way] for one in found], processes)
        exact = {name: (ours, theirs) for name, ours, theirs in pairs if not name.startswith("sent")}
        assert set(exact) == {"parameters", "gradients", "optimizer", "calls"}
        assert [name for name, (ours, theirs) in exact.items() if ours != theirs] == []
        ours, theirs = {name: figures for name, *figures in pairs if name.startswith("sent")}.popitem()[1]
        assert theirs == pytest.approx(ours, rel=0.01), way


@pytest.fixture(scope="module")
def fake() -> dict[str, Any]:
    """The figures of scale_processes.py."""
    script = Path(__file__).parent / "scale_processes.py"
    command = [sys.executable, "-W", "ignore", str(script)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def test_first_and_last_of_1024_hold_the_share_of_seven_billion_that_is_computed(fake: dict[str, Any]) -> None:
    model = transformer(32, 4096, 50_304)
    found = row(model, 1024, strategy="fsdp").parameter_bytes
    assert [fake["first of 1,024"][0], fake["last of 1,024"][0]] == [found, found]
    assert fake["first of 1,024"][1] == found  # of the last one, what is rounded up counts for nothing
    assert found == pytest.approx(4 * sum(p.numel() for p in model.parameters()) / 1024, rel=0.01)


@pytest.mark.parametrize(
    ("name", "devices", "options"),
    [
        ("step of 1,024", 1024, {}),
        ("step of 16", 16, {}),
        ("step of 16, kept", 16, {"reshard_after_forward": False}),
        ("step of 16, half", 16, {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32}),
    ],
)
def test_fake_step_calls_and_sends_what_is_computed(
    fake: dict[str, Any], name: str, devices: int, options: dict[str, Any]
) -> None:
    model = few_parameters() if devices == 1024 else transformer(2, 256, 1000)
    found, stepped = row(model, devices, strategy="fsdp", blocks=BLOCKS, **options), fake[name]
    assert sum(stepped["calls"].values()) == found.collectives
    assert stepped["sent"]["scatter"] == found.gradient_sent_bytes
    assert stepped["sent"]["gather"] == found.sent_bytes - found.gradient_sent_bytes


@pytest.mark.parametrize(("name", "size"), [("peak of 16", (3, 512, 256)), ("peak of 16, large ends", (3, 512, 8000))])
def test_memory_is_at_most_what_is_computed_and_nearly_so(
    fake: dict[str, Any], name: str, size: tuple[int, int, int]
) -> None:
    found = row(transformer(*size), 16, opt_func=torch.optim.AdamW, strategy="fsdp", blocks=BLOCKS).memory_bytes
    assert 0.8 * found <= fake[name] <= found
