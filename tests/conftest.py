"""What the tests share: real data where it is at hand, a folder of one's own, a log of events."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from minilearn.callback import EVENTS, Callback
from minilearn.data import DataLoaders
from minilearn.data.handwritten import Split, mnist_sample

collect_ignore = ["fastai_reference/scripts"]  # a test runs them; they hold none
collect_ignore_glob = ["fastai_reference/record_*.py"]  # run by hand, beside fastai

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts what is to run beside it deaf to Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("MPLBACKEND", "Agg")
if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # a process a core: more threads than cores wait for each other, ten times as long
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the programs that tests run
    torch.set_num_threads(1)
if os.environ.get("MINILEARN_DATA"):  # tests run programs in other folders
    os.environ["MINILEARN_DATA"] = str(Path(os.environ["MINILEARN_DATA"]).resolve())


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is read from or written to the data folder of whoever runs the tests."""
    home = tmp_path_factory.mktemp("data_home")
    monkeypatch.setenv("XDG_DATA_HOME", str(home))
    return home / "minilearn"


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """The folder with MNIST/raw; the test is skipped where `MINILEARN_DATA` names none."""
    root = Path(os.environ.get("MINILEARN_DATA", ""))
    if not (root / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip("needs MNIST: set MINILEARN_DATA to the folder that holds MNIST/raw")
    return root


@pytest.fixture(scope="session")
def threes_and_sevens() -> Split:
    """MNIST's threes and sevens; the test is skipped where they are not at hand."""
    if not (Path(os.environ.get("MINILEARN_DATA", "")) / "MNIST").is_dir():
        pytest.skip("needs MNIST: set MINILEARN_DATA to the folder that holds MNIST/raw")
    return mnist_sample()


@pytest.fixture
def dls() -> DataLoaders:
    """Two training batches and one validation batch of a line with noise: 3 → 1."""
    return line_dls()


def line_dls(train_rows: int = 8, valid_rows: int = 4, bs: int = 4) -> DataLoaders:
    """Loaders over y = x·(1, 2, 3) + noise; the same numbers each time, in the same order."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(train_rows + valid_rows, 3, generator=generator)
    y = x @ torch.tensor([[1.0], [2.0], [3.0]]) + 0.1 * torch.randn(len(x), 1, generator=generator)
    n = train_rows
    return DataLoaders.from_tensors(x[:n], y[:n], x[n:], y[n:], bs=bs, shuffle=False, device="cpu")


def events_log() -> tuple[type[Callback], list[str]]:
    """A callback that writes each event into a list, before any other callback has acted on it; and that list."""
    log: list[str] = []

    def writer(name: str) -> Callable[[Callback], None]:
        return lambda self: log.append(name)

    methods = {name: writer(name) for name in EVENTS if name != "after_create"}
    return type("Log", (Callback,), {**methods, "order": -100}), log
