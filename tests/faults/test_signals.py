"""What a fit does on SIGTERM and Ctrl-C; the long script, in short, and what it does not look at."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import line_dls
from torch.nn import functional as F

from minilearn.callback import Callback
from minilearn.callbacks import Checkpoint
from minilearn.checkpoints import CheckpointFolder
from minilearn.data import DataLoader
from minilearn.data.position import deaf_to_ctrl_c
from minilearn.learner import Learner
from minilearn.optim import SGD

HERE = Path(__file__).parent
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Sends(Callback):
    """Sends signals to this process in the second training batch."""

    def __init__(self, *numbers: int, apart_s: float = 0.0) -> None:
        self.numbers, self.apart_s = numbers, apart_s
        self.seen = 0

    def before_batch(self) -> None:
        if self.training and self.epoch == 0 and self.iter == 1:
            for number in self.numbers:
                signal.raise_signal(number)
                time.sleep(self.apart_s)
        self.seen += 1


def learner(path: Path, *cbs: Callback) -> Learner:
    torch.manual_seed(0)
    learn = Learner(line_dls(16), torch.nn.Linear(3, 1), F.mse_loss, SGD, 0.01, cbs=list(cbs), path=path)
    learn.logger = lambda text: None
    return learn


@pytest.fixture(autouse=True)
def python_listens_to_ctrl_c() -> object:
    """As a shell starts a program, unless in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_signals_at_random_moments_are_taken_as_they_should_be() -> None:
    script = [sys.executable, str(HERE / "signals.py"), "--signals", "6", "--seed", "1"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 of 6 signals" in done.stdout


def test_sigterm_leaves_a_checkpoint_of_that_batch_and_ends_with_143(tmp_path: Path) -> None:
    learn = learner(tmp_path, Sends(signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        learn.fit(3, checkpoint="run")
    assert ended.value.code == 143
    found = CheckpointFolder(tmp_path / "run", 2).newest()
    assert found is not None
    assert (found[1]["epoch"], found[1]["batch"]) == (0, 2)


def test_ctrl_c_is_a_keyboard_interrupt_after_which_a_notebook_goes_on(tmp_path: Path) -> None:
    learn = learner(tmp_path, Sends(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        learn.fit(3, checkpoint="run")
    learn.validate()  # what heard the signal does not cut this short
    learn.fit(3, checkpoint="run")
    assert learn.recorder.epochs == [0, 1, 2]
    assert learn.recorder.iters == [4, 8, 12]


@pytest.mark.parametrize("how", ["whole", "stopped", "failed"])
def test_handlers_are_put_back_however_the_fit_ends(how: str, tmp_path: Path) -> None:
    class Fails(Callback):
        def before_validate(self) -> None:
            raise ValueError("on purpose")

    cbs = {"whole": [], "stopped": [Sends(signal.SIGTERM)], "failed": [Fails()]}[how]
    before = [signal.getsignal(number) for number in SIGNALS]
    try:
        learner(tmp_path, *cbs).fit(1, checkpoint="run")
    except (SystemExit, ValueError):
        assert how != "whole"
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_second_signal_ends_the_fit_at_once(tmp_path: Path) -> None:
    learn = learner(tmp_path, sends := Sends(signal.SIGINT, signal.SIGINT, apart_s=0.3))
    with pytest.raises(KeyboardInterrupt):
        learn.fit(3, checkpoint="run")
    assert sends.seen == 1  # within that very batch
    assert CheckpointFolder(tmp_path / "run", 2).newest() is None


def test_one_signal_sent_twice_at_once_is_one(tmp_path: Path) -> None:
    learn = learner(tmp_path, Sends(signal.SIGINT, signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        learn.fit(3, checkpoint="run")
    assert CheckpointFolder(tmp_path / "run", 2).newest() is not None


def test_signal_after_the_last_batch_is_not_lost(tmp_path: Path) -> None:
    class Late(Callback):
        def after_fit(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit):
        learner(tmp_path, Late()).fit(1, checkpoint="run")
    again = learner(tmp_path)
    again.fit(1, checkpoint="run")
    assert again.recorder.epochs == [0]


def test_signal_that_was_ignored_before_is_ignored_in_a_fit(tmp_path: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    learn = learner(tmp_path, Sends(signal.SIGINT))
    learn.fit(1, checkpoint="run")
    assert learn.recorder.epochs == [0]


def test_fit_in_another_thread_goes_without_signals(tmp_path: Path) -> None:
    learn, before = learner(tmp_path), signal.getsignal(signal.SIGTERM)
    seen = []

    class Looks(Callback):
        def before_batch(self) -> None:
            seen.append(signal.getsignal(signal.SIGTERM) is before)

    learn.add_cb(Looks())
    thread = threading.Thread(target=lambda: learn.fit(1, checkpoint="run"))
    thread.start()
    thread.join()
    assert learn.recorder.epochs == [0]
    assert all(seen)


def test_fork_of_a_process_in_a_fit_ends_at_sigterm_and_not_at_ctrl_c(tmp_path: Path) -> None:
    ends = []

    class Forks(Callback):
        def before_train(self) -> None:
            for number in (signal.SIGINT, signal.SIGTERM):
                child = os.fork()
                if not child:
                    os.kill(os.getpid(), number)
                    time.sleep(0.05)
                    os._exit(7)
                ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    learner(tmp_path, Forks()).fit(1, checkpoint=Checkpoint("run"))
    assert ends == [7, -signal.SIGTERM]


class Rows(torch.utils.data.Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.tensor(float(signal.getsignal(signal.SIGINT) == signal.SIG_IGN))


def test_workers_do_not_hear_ctrl_c() -> None:
    assert next(iter(DataLoader(Rows(), 4, num_workers=1))).tolist() == [1.0] * 4


def test_main_process_hears_it_again_once_they_are_started() -> None:
    before = signal.getsignal(signal.SIGINT)
    with deaf_to_ctrl_c():
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_while_the_last_checkpoint_is_written_waits_for_it(tmp_path: Path) -> None:
    class Heavy(Callback):
        """A state that takes a while to write."""

        def state_dict(self) -> dict[str, object]:
            return {"heavy": torch.zeros(50_000_000)}

        def load_state_dict(self, state: object) -> None:
            pass

    def press() -> None:
        while not list((tmp_path / "run").glob(".000001*.part")):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        learner(tmp_path, Heavy()).fit(1, checkpoint=Checkpoint("run", every_epoch=False))
    found = CheckpointFolder(tmp_path / "run", 2).newest()
    assert found is not None
    assert found[1]["finished"]
