"""What the processes of a job decide together: one has a reason, and all act on it at the same batch."""

import time
from collections.abc import Callable

from minilearn import distributed
from minilearn.errors import did_you_mean
from minilearn.job_errors import of_all

EVERY_S = 0.25
"""How far apart two meetings are, by the slowest process's clock."""
NAMES = ("signal", "checkpoint", "diverged", "not finite", "end")
"""What can be asked; "end" is for callbacks that are not minilearn's."""


class Votes:
    """Questions that any process may answer with yes, and that all get the same answer to at the same batch.

    In a fit of several processes `Distributed` holds meetings between two batches, one about every quarter of a second:
    a sum of a few numbers, by which each knows what any has answered since the last. The meetings are at batches that
    all agree on, as each says when the next one is.

    A callback that decides by what its own process alone knows (a clock, a signal, its own rows' loss) asks::

        def after_batch(self):
            if votes.ask("end", time.monotonic() > self.until):
                raise CancelFitException  # in all processes, at this batch

    One that raises in a process alone leaves the others waiting: they part, which the next meeting says where there is
    one, and else it is an error after `timeout_s`.
    """

    def __init__(self) -> None:
        self.open = False
        self._noted: dict[str, int] = {}
        self._agreed: dict[str, int] = {}
        self._where: Callable[[], str] = str

    def begin(self, where: Callable[[], str]) -> None:
        """A fit begins, in all processes; `where` says how far it is, for the message where they part."""
        self.open, self._where = distributed.world_size() > 1, where
        self._noted, self._agreed = {}, {}
        self._held, self._stride, self._left, self._since = 0, 1, 1, time.perf_counter()

    def end(self) -> None:
        """The fit has ended."""
        self.open = False
        self._where = str

    def ask(self, name: str, mine: int) -> int:
        """What all have agreed on for this batch; in a process alone, `mine`.

        Args:
            name: the question, one of `NAMES`.
            mine: this process's answer: 0 for no, else yes. It counts from the next meeting on.
        Returns:
            The largest answer of all processes as of the meeting before this batch; 0 where there was none.
        """
        if not self.open:
            return mine
        agreed = self._agreed.get(name, 0)
        if mine and not agreed:
            if name not in NAMES:
                raise ValueError(f"no question '{name}'{did_you_mean(name, NAMES)} There are {', '.join(NAMES)}.")
            self._noted[name] = max(int(mine), self._noted.get(name, 0))
        return agreed

    def at_once(self, name: str, mine: int) -> int:
        """The largest answer of all processes, which are all here now, as at the end of an epoch; alone, `mine`."""
        if not self.open:
            return mine
        noted = self._noted.pop(name, 0)  # since the last meeting
        return int(distributed.largest([max(mine, noted)])[0])

    def next_batch(self) -> None:
        """A batch begins: what was agreed for the one before is over, and there may be a meeting."""
        if not self.open:  # as where somebody validates, without a fit
            return
        if self._agreed:
            self._agreed = {}
        self._left -= 1
        if self._left == 0:
            self.meet(0)

    def meet(self, kind: int) -> None:
        """Tells the others what this process has answered, and hears what they have.

        Args:
            kind: 0 between batches, 1 at the fit's end; all are at the same.
        Raises:
            RuntimeError: the others are elsewhere in the fit.
        """
        now = time.perf_counter()
        each_s = (now - self._since) / self._stride
        noted = [self._noted.get(name, 0) for name in NAMES]
        most_held, least_held, most_kind, least_kind, slowest_s, *agreed = distributed.largest(
            [self._held, -self._held, kind, -kind, each_s, *noted]
        )
        if most_held != -least_held or most_kind != -least_kind:
            here = "is at the end of its fit" if kind else self._where()
            places = ", ".join(f"rank {rank} {place}" for rank, place in enumerate(distributed.gathered(here)))
            raise of_all(
                RuntimeError(
                    f"the processes of this job have parted: {places}. A callback that ends a batch, an epoch or a fit"
                    " must do so in all processes: votes.ask lets them decide together."
                )
            )
        self._noted = {}
        self._agreed = {name: int(value) for name, value in zip(NAMES, agreed, strict=True) if value}
        # No more than twice as far as the last, so that one quick batch does not put the next meeting off for long.
        self._stride = self._left = max(1, min(2 * self._stride, int(EVERY_S / max(slowest_s, 1e-6))))
        self._held, self._since = self._held + 1, time.perf_counter()


votes = Votes()
"""Those of this process."""
