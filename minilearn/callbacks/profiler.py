"""A few training batches as torch's profiler sees them, in a file that trace viewers open."""

from pathlib import Path
from typing import Any

import torch.profiler

from minilearn.callback import Callback
from minilearn.callbacks.progress import ProgressCallback
from minilearn.errors import whole
from minilearn.files import whole_file

WARM_UP = 1
"""How many batches the profiler watches and forgets, as its own start is slow."""


class Profiler(Callback):
    """Writes a Chrome trace of a few training batches: every operation, on the CPU and on the GPU, with its time.

    The trace opens in https://ui.perfetto.dev and in chrome://tracing. It is of each fit's first training batches,
    but for `skip` of them and one more, in which the profiler itself begins; what callbacks do is in it, and the
    validation where an epoch ends among them. It begins in `before_train`, is written in `after_batch`, and where the
    fit ends earlier, whatever ended it, in `cleanup_fit`, with the batches that there were. For a table of where a
    batch's time goes see `Learner.profile`.

    A batch that is traced takes up to several times as long; any other costs 1 µs on a CPU. It only looks
    on, so a compiled step stays whole.

    Args:
        path: the file, below ``learn.path`` unless it is absolute.
        skip: how many training batches to leave out at the start, which are slower than the others; with
            ``compile=True`` the compiler is at work in the first ones.
        active: how many batches to trace, at least 1.
        shapes: whether to note the operations' input shapes.
        memory: whether to note what memory is taken and let go.
        stack: whether to note which line of Python led to an operation.
    Raises:
        TypeError: `skip` or `active` is no whole number.
        ValueError: `skip` is less than 0 or `active` less than 1.
    """

    order = ProgressCallback.order + 10  # after all others: what they do in a batch is a part of it
    main_only = True
    acts_in_step = False
    run_valid = False
    run_search = False  # a search leaves no files

    def __init__(
        self,
        path: str | Path = "trace.json",
        skip: int = 3,
        active: int = 3,
        *,
        shapes: bool = False,
        memory: bool = False,
        stack: bool = False,
    ) -> None:
        self.path = Path(path)
        self.skip, self.active = whole("skip", skip), whole("active", active, 1)
        self.shapes, self.memory, self.stack = shapes, memory, stack
        self._profile: torch.profiler.profile | None = None
        self._left = 0
        self._told = True

    def before_fit(self) -> None:
        self._left = self.skip + WARM_UP + self.active
        self._told = True

    def before_train(self) -> None:
        if self._left and self._profile is None:
            self._profile = torch.profiler.profile(
                schedule=torch.profiler.schedule(
                    skip_first=self.skip, wait=0, warmup=WARM_UP, active=self.active, repeat=1
                ),
                on_trace_ready=self._write,
                record_shapes=self.shapes,
                profile_memory=self.memory,
                with_stack=self.stack,
            )
            self._profile.start()

    def after_batch(self) -> None:
        if self._profile is None:
            return
        self._profile.step()
        self._left -= 1
        if not self._left:
            self._stop()

    def after_epoch(self) -> None:
        if not self._told:  # not before: the bar is gone now
            self._told = True
            self.learn.logger(f"the trace is in {self.learn.path / self.path}")

    def cleanup_fit(self) -> None:
        self._stop()
        self._left = 0

    def _stop(self) -> None:
        profile, self._profile = self._profile, None
        if profile is not None:
            profile.stop()

    def _write(self, profile: Any) -> None:
        path = self.learn.path / self.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            profile.export_chrome_trace(file.name)
        self._told = False
