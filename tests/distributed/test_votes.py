"""What one process decides by its clock, a signal or its own loss, all do at the same batch."""

import re
from pathlib import Path

import pytest
from processes import in_processes

from minilearn.votes import Votes

PARTING = Path(__file__).parent / "parting.py"
CASES = ("together", "restore", "terminate", "signal", "signal int", "signal valid", "clock")


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("parting")
    return folder, in_processes(PARTING, 2, folder, *CASES, timeout_s=300)


def of(case: str, text: str) -> str:
    (line,) = re.findall(f"^{case}: (.*)$", text, re.MULTILINE)
    return str(line)


@pytest.mark.parametrize("case", CASES)
def test_processes_end_at_the_same_batch_with_the_same_weights(case: str, printed: tuple[Path, list[str]]) -> None:
    assert of(case, printed[1][0]) == of(case, printed[1][1])


@pytest.mark.parametrize(("case", "way"), [("signal", "told 143"), ("signal int", "told by Ctrl-C")])
def test_a_signal_to_one_process_ends_all(case: str, way: str, printed: tuple[Path, list[str]]) -> None:
    ended, batches, rows, _ = of(case, printed[1][0]).split(", ")
    assert (ended, rows) == (way, "1 rows")
    assert 50 < int(batches.split()[0]) < 150


def test_a_signal_in_validation_ends_all_after_its_training(printed: tuple[Path, list[str]]) -> None:
    assert of("signal valid", printed[1][0]).startswith("told 143, 100 batches, 1 rows")


def test_a_fit_that_all_end_for_one_ends_soon(printed: tuple[Path, list[str]]) -> None:
    ended, batches, *_ = of("together", printed[1][0]).split(", ")
    assert ended == "by itself"
    assert 53 < int(batches.split()[0]) < 150


def test_a_loss_that_is_no_number_in_one_process_is_told_once_with_its_rank(printed: tuple[Path, list[str]]) -> None:
    told = [line for text in printed[1] for line in text.splitlines() if line.startswith("warned: ")]
    assert len(told) == 1
    assert told[0].startswith("warned: rank 1: the training loss is not a finite number since epoch 1, batch 4")
    assert "input has nan or inf in 2 of its 2 rows" in told[0]
    assert "as at the beginning of epoch 1 again" in told[0]
    assert not of("restore", printed[1][0]).endswith("nan")


def test_one_process_speaks(printed: tuple[Path, list[str]]) -> None:
    assert printed[1][0].count("train_loss") == len(CASES)
    assert "train_loss" not in printed[1][1]
    assert printed[1][0].count("the fit was ended: the loss of training batch 54 is not a finite number") == 1


def test_the_clock_of_one_process_has_rank_0_write(printed: tuple[Path, list[str]]) -> None:
    assert len(list((printed[0] / "clock").glob("*.safetensors"))) >= 3  # the fit's end is one


def test_a_process_alone_decides_by_itself() -> None:
    alone = Votes()
    alone.begin(str)
    assert [alone.ask("end", True), alone.ask("end", False), alone.at_once("end", 7)] == [True, False, 7]
