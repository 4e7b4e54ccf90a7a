"""A run that several processes keep together is taken up by as many, by more, by fewer, and by one alone."""

import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from sharded_file_processes import together
from torch import nn

from minilearn.callback import Callback
from minilearn.callbacks.checkpoint import Checkpoint
from minilearn.callbacks.distributed import Distributed
from minilearn.data import DataLoaders
from minilearn.learner import Learner
from minilearn.sharded_conversions import merge_checkpoint
from minilearn.sharded_manifest import MANIFEST

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks processes that know torch")


class Stops(Callback):
    "Ends a fit with an error, after so many training batches."

    order = Checkpoint.order

    def __init__(self, after: int) -> None:
        self.left = after

    def after_batch(self) -> None:
        if self.training:
            self.left -= 1
            if not self.left:
                raise ConnectionError("the end")


class Told(Callback):
    "Is told by the system to end, in its third training batch."

    order = Checkpoint.order - 1

    def after_batch(self) -> None:
        if self.training and self.epoch == 0 and self.iter == 2:
            signal.raise_signal(signal.SIGTERM)


def fit(rank: int, folder: Path, kind: str, stop: int = 0, told: int | None = None) -> dict[str, Any]:
    """Two epochs with batches of four rows in each process; what the weights and the history are at the end."""
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    torch.manual_seed(1)
    x = torch.randn(32, 6)
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4))
    dls = DataLoaders.from_tensors(x, x[:, :4], x[:8], x[:8, :4], bs=4)
    cbs = [Distributed(kind)] if world > 1 else []
    learn = Learner(dls, model, nn.functional.mse_loss, opt_func=torch.optim.Adam, path=folder, cbs=cbs)
    said: list[str] = []
    learn.logger = said.append
    kept = Checkpoint("run", every_batches=1, every_s=None, keep=2)
    with suppress(ConnectionError):
        learn.fit(2, lr=0.01, cbs=[kept, *([Stops(stop)] if stop else []), *([Told()] if rank == told else [])])
    weights = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return {
        "weights": [weight.tolist() for weight in weights],
        "values": learn.recorder.values,
        "taken up": any("going on from" in text for text in said),
        "files": sorted(path.name for path in (folder / "run").iterdir()),
    }


@pytest.mark.parametrize("kind", ["fsdp", "ddp"])
def test_an_interrupted_run_of_several_processes_ends_as_one_that_was_not(kind: str, tmp_path: Path) -> None:
    undisturbed = together(2, fit, tmp_path / "whole", kind)
    assert all(isinstance(told, dict) for told in undisturbed), undisturbed
    stopped = together(2, fit, tmp_path / "first", kind, 6)
    assert all(isinstance(told, dict) for told in stopped), stopped
    assert all(name.isdecimal() == (kind == "fsdp") for name in stopped[0]["files"]), stopped[0]["files"]
    for n in (2, 1) if kind == "ddp" else (2, 4, 1):
        shutil.copytree(tmp_path / "first", tmp_path / str(n))
        for told in together(n, fit, tmp_path / str(n), kind):
            assert isinstance(told, dict), told
            assert told["taken up"]
            assert len(told["values"]) == 2
            if n == 2:  # with more or fewer, steps have more or fewer rows
                assert told["values"] == undisturbed[0]["values"]
                assert told["weights"] == undisturbed[0]["weights"]


def test_a_run_of_one_process_is_taken_up_by_several_and_a_damaged_checkpoint_is_set_aside(tmp_path: Path) -> None:
    (stopped,) = together(1, fit, tmp_path / "first", "fsdp", 3)
    assert [Path(name).suffix for name in stopped["files"]] == [".safetensors"] * 2
    stopped = together(2, fit, tmp_path / "first", "fsdp", 2)
    assert isinstance(stopped[0], dict), stopped
    manifest = max((tmp_path / "first" / "run").glob(f"*/{MANIFEST}"))
    manifest.write_bytes(manifest.read_bytes()[:-1])
    merged = merge_checkpoint(
        min((tmp_path / "first" / "run").glob(f"*/{MANIFEST}")).parent, tmp_path / "alone" / "run" / "1"
    )
    assert merged.is_file()
    told = together(2, fit, tmp_path / "first", "fsdp")
    assert isinstance(told[0], dict), told
    assert any(name.endswith(".damaged") for name in told[0]["files"])
    (alone,) = together(1, fit, tmp_path / "alone", "fsdp")
    assert all(end["taken up"] and len(end["values"]) == 2 for end in (*told, alone))


def test_a_signal_to_one_process_ends_all_at_the_same_batch_with_a_checkpoint(tmp_path: Path) -> None:
    undisturbed = together(2, fit, tmp_path / "whole", "fsdp")
    ended = together(2, fit, tmp_path / "run", "fsdp", 0, 1)
    assert all("SystemExit: 143" in str(told) for told in ended), ended
    first, second = (next(line for line in str(told).splitlines() if line.startswith("in epoch")) for told in ended)
    assert first == second, "they end at different batches"
    again = together(2, fit, tmp_path / "run", "fsdp")
    assert [told["taken up"] for told in again] == [True, True]
    assert [told["weights"] for told in again] == [told["weights"] for told in undisturbed]
