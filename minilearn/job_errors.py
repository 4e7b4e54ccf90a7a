"""An error in one of several processes: whose it is, and which of them are only the ones that lost it."""

import os
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import Any

LOST = (
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused", "Socket closed"),
    *("failed to recv, got 0 bytes", "remote process exited", "Connection was closed", "Application timeout caused"),
)
"""What gloo, NCCL and torch's store say where another process has gone."""
TOO_LATE = (
    "Timed out waiting",
    "wait timeout after",
    "Timed out after",
    "Watchdog caught collective operation timeout",
)
"""What they say where another has not come."""
WAITS_S = 5.0
"""How long a process that has lost another waits for the launcher to end it: the lost one's error comes first."""
PHASES = {
    "_hear": "a meeting of the processes between two batches",
    "barrier": "a barrier",
    "from_main": "what rank 0 has to say",
    "of_rank": "what another has to say",
    "gathered": "what each has to say",
    "same_as_main": "rank 0's weights or buffers",
    "sum_all": "a sum of figures",
    "largest": "a decision of all",
    "start": "the beginning of the job",
    "backward": "the sum of the gradients",
    "_pre_forward": "rank 0's buffers",
}
"""What a process waits for in a function of minilearn's or torch's."""


def lost_another(error: BaseException) -> bool:
    """Whether an error, or its cause, is only that another process of the job has gone."""
    return _says(error, LOST)


def waited_in_vain(error: BaseException) -> bool:
    """Whether an error, or its cause, is that another process of the job has not come in time."""
    return _says(error, TOO_LATE)


def of_all(error: BaseException) -> BaseException:
    """The error, which every process of the job raises at the same place: rank 0 alone shows it."""
    vars(error)["of_all_processes"] = True
    return error


def name_rank(error: BaseException, rank: int, world: int, timeout_s: float) -> None:
    """Adds a note to an error: on which process of the job it came up, and what it waited for where it did; once."""
    if vars(error).get("of_rank") is not None:
        return
    vars(error)["of_rank"] = rank
    if waited_in_vain(error):
        error.add_note(
            f"rank {rank} of {world} has waited {timeout_s:g} s (timeout_s) for the other processes, for"
            f" {_phase(error)}: one of them hangs, takes longer, or has gone another way by itself, as where a callback"
            " ends the fit in one process alone"
        )
    elif vars(error).get("of_all_processes") is None:
        error.add_note(f"on rank {rank} of {world}")


def tell_errors(rank: int, world: int, timeout_s: float) -> None:
    """From now on an error that ends this process is told with its rank, and to torchrun; a lost process in one line.

    Args:
        rank: this process.
        world: how many there are.
        timeout_s: how long one waits for the others.
    """
    before = sys.excepthook

    def told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if lost_another(error) and not waited_in_vain(error):
            _line(f"rank {rank} of {world}: another process has ended; its own output says why")
            time.sleep(WAITS_S)  # the launcher sends SIGTERM meanwhile
        elif rank and vars(error).get("of_all_processes"):
            time.sleep(WAITS_S)
        else:
            name_rank(error, rank, world, timeout_s)
            _record(error)
            if waited_in_vain(error):
                _line("".join(traceback.format_exception_only(error)))  # the way to it is torch's
            else:
                before(kind, error, trace)
            sys.stderr.flush()

    sys.excepthook = told


def _record(error: BaseException) -> None:
    """Writes the error where torchrun looks for what it shows in its summary."""
    if not os.environ.get("TORCHELASTIC_ERROR_FILE") or not isinstance(error, Exception):
        return
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler  # here: few programs need it

    try:
        raise error
    except Exception:
        get_error_handler().record_exception(error)


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    chain: list[Any] = [error]
    while (chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 10:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)
    texts = [str(each) for each in chain if isinstance(each, (RuntimeError, OSError, SystemError))]
    return any(word in text for text in texts for word in words)


def _phase(error: BaseException) -> str:
    names = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((PHASES[name] for name in reversed(names) if name in PHASES), "an answer of theirs")


def _line(text: str) -> None:
    """One write, so that lines of several processes do not run into each other."""
    if threading.current_thread() is threading.main_thread():
        sys.stderr.write(text.rstrip("\n") + "\n")
        sys.stderr.flush()
