"""The benchmark for a CUDA GPU, as far as it goes without one."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).parent.parent.parent / "benchmarks"


@pytest.fixture
def gpu() -> Iterator[ModuleType]:
    """benchmarks/gpu.py, importable as it is when it is run."""
    threads = torch.get_num_threads()
    sys.path.insert(0, str(FOLDER))
    try:
        import gpu as benchmark

        yield benchmark
    finally:
        sys.path.remove(str(FOLDER))
        torch.set_num_threads(threads)


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_without_a_gpu_a_line_says_so_and_no_table_is_written(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--out", str(tmp_path / "table.md")]) == 0
    assert capsys.readouterr().out == "there is no CUDA GPU here: nothing was measured\n"
    assert not list(tmp_path.iterdir())


def test_trial_runs_the_linear_case_without_bar_or_table(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    eager = next(case for case in gpu.cases(torch.device("cpu")) if case.name == "linear, random")
    monkeypatch.setattr(gpu, "cases", lambda device: [gpu.replace(eager, bar=0.0)])
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path / "table.md")]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("linear, random ")
    assert " × (" in line
    assert "≤" not in line
    assert not list(tmp_path.iterdir())


def test_promised_bars_are_judged(gpu: ModuleType) -> None:
    bars = {case.name: case.bar for case in gpu.cases(torch.device("cpu")) if case.bar is not None}
    assert bars == {
        "linear, random": 1.10,
        "linear, random, CUDA graphs": 0.30,
        "linear, MNIST": 1.10,
        "linear, MNIST, CUDA graphs": 0.30,
        "ResNet-18, random": 1.02,
        "ResNet-18, MNIST": 1.02,
        "no reading": 0.0,
    }


def test_sides_end_alike_in_bfloat16(gpu: ModuleType, one_thread: None) -> None:
    import models
    from harness import Setting

    lenet = next(job for job in gpu.jobs(torch.device("cpu")) if job.name == "LeNet, random")
    model = lenet.model()
    assert model(torch.rand(2, 1, 28, 28)).dtype == torch.float32
    assert models.eager(lenet, Setting(trial=True)).figure > 0
