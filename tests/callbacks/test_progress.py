"""What is printed: into a pipe, on a terminal, in a notebook."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import line_dls
from nbclient import NotebookClient
from torch import nn

from minilearn.callback import Callback, CancelTrainException, CancelValidException
from minilearn.learner import Learner
from minilearn.metrics import mse

SCRIPT = """
import time, torch
from torch import nn
from minilearn.callback import Callback
from minilearn.learner import Learner
from minilearn.metrics import mse

class Slow(Callback):
    def after_batch(self):
        time.sleep(0.03)
        if self.epoch == {interrupt_in}: raise KeyboardInterrupt

x, y = torch.randn(8, 3), torch.randn(8, 1)
loader = [(x, y)] * 8
learn = Learner((loader, loader), nn.Linear(3, 1), nn.functional.mse_loss, metrics=mse, cbs=Slow)
try: learn.fit(2)
except KeyboardInterrupt: print("interrupted")
"""
ROW = r"\d  \d+\.\d{6} +\d+\.\d{6} +\d+\.\d{6}  \d\d:\d\d"


def learner(**kwargs: object) -> Learner:
    return Learner(line_dls(), nn.Linear(3, 1), nn.functional.mse_loss, metrics=mse, **kwargs)  # type: ignore[arg-type]


def screen(raw: str) -> list[str]:
    """The lines that a person sees in the end, where a carriage return goes back to the start of the line."""
    lines = []
    for line in raw.replace("\r\n", "\n").split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return [line for line in lines if line]


def test_pipe_gets_one_clean_line_an_epoch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(interrupt_in=9)], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == "epoch  train_loss  valid_loss  mse       time"
    assert [bool(re.fullmatch(r"[01]    " + ROW[2:], line)) for line in lines[1:]] == [True, True]
    assert "\r" not in done.stdout
    assert "█" not in done.stdout


def on_a_terminal(code: str) -> str:
    """All that a script writes to a terminal."""
    leader, follower = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=follower, stderr=follower, stdin=follower)
    os.close(follower)
    raw = b""
    while True:
        try:
            block = os.read(leader, 4096)
        except OSError:  # Linux's way to say that nobody writes to the terminal any more
            break
        if not block:
            break
        raw += block
    os.close(leader)
    assert process.wait() == 0
    return raw.decode()


def test_terminal_shows_a_bar_with_the_loss_and_keeps_the_table() -> None:
    raw = on_a_terminal(SCRIPT.format(interrupt_in=9))
    assert "█" in raw
    assert re.search(r"epoch 1/2 train \|█+-*\| .*\[\d/8 .* \d+\.\d{4}\]", raw)
    assert "epoch 2/2 valid" in raw
    lines = screen(raw)
    assert lines[0] == "epoch  train_loss  valid_loss  mse       time"
    assert len(lines) == 3
    assert all(re.fullmatch(r"[01]      ?\d.*\d\d:\d\d", line) for line in lines[1:])


def test_ctrl_c_on_a_terminal_takes_the_bar_away_and_keeps_the_table() -> None:
    lines = screen(on_a_terminal(SCRIPT.format(interrupt_in=1)))
    assert [line.split()[0] for line in lines] == ["epoch", "0", "interrupted"]


def run_notebook(code: str, tmp_path: Path) -> list[nbformat.NotebookNode]:
    """The outputs of a notebook's cell."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs: list[nbformat.NotebookNode] = notebook.cells[0].outputs
    return outputs


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("interrupt_in", [9, 1])
def test_notebook_shows_the_table_and_no_bar_in_the_end(tmp_path: Path, interrupt_in: int) -> None:
    outputs = run_notebook(SCRIPT.format(interrupt_in=interrupt_in), tmp_path)
    html = "".join(output.data.get("text/html", "") for output in outputs if output.output_type == "display_data")
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert re.findall(r"<th>(\w+)</th>", html) == ["epoch", "train_loss", "valid_loss", "mse", "time"]
    assert html.count("<tr>") == (2 if interrupt_in == 9 else 1)
    assert "<progress value" not in html
    assert printed == ("" if interrupt_in == 9 else "interrupted\n")


def test_no_bar_keeps_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    learn = learner()
    with learn.no_bar():
        learn.fit(1)
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert learn.show_bar


@pytest.mark.parametrize(
    ("event", "cancel", "empty"),
    [("before_train", CancelTrainException, "train_loss"), ("before_validate", CancelValidException, "valid_loss")],
)
def test_columns_line_up_where_figures_are_missing(
    capsys: pytest.CaptureFixture[str], event: str, cancel: type[Exception], empty: str
) -> None:
    def method(self: Callback) -> None:
        raise cancel

    learner(cbs=type("Cancel", (Callback,), {event: method})).fit(1)
    header, row = capsys.readouterr().out.splitlines()
    at = header.index(empty)
    assert row[at : at + 8].strip() == ""
    assert row.index(":") - 2 == header.index("time")


def test_long_names_widen_their_column(capsys: pytest.CaptureFixture[str]) -> None:
    def a_metric_with_a_very_long_name(pred: object, target: object) -> float:
        return 1.0

    learn = Learner(line_dls(), nn.Linear(3, 1), nn.functional.mse_loss, metrics=a_metric_with_a_very_long_name)
    learn.fit(1)
    header, row = capsys.readouterr().out.splitlines()
    assert row.index("1.000000") == header.index("a_metric")


def test_validate_alone_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    learner().validate()
    assert capsys.readouterr().out == ""


def test_line_that_says_which_loss_was_taken_is_not_written_into_a_bar() -> None:
    code = SCRIPT.format(interrupt_in=9).replace("nn.functional.mse_loss", "None")
    lines = screen(on_a_terminal(code))
    assert lines[0].startswith("loss_func: mean squared error")
    assert [line.split()[0] for line in lines[1:]] == ["epoch", "0", "1"]
