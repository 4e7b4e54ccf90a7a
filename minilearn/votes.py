"""What the processes of a job decide together: one has a reason, and all act on it at the same batch."""

import time
from collections.abc import Callable

from minilearn import distributed
from minilearn.errors import did_you_mean
from minilearn.job_errors import of_all

EVERY_S = 0.5
"""How far apart two meetings are, by the slowest process's clock."""
FARTHER = 8
"""How many times as far as the last the next one may be, so that a quick batch does not put it off for long."""
NAMES = ("signal", "checkpoint", "diverged", "not finite", "end")
"""What can be asked; "end" is for callbacks that are not minilearn's."""


class Votes:
    """Questions that any process may answer with yes, and that all get the same answer to at the same batch.

    In a fit of several processes `Distributed` holds meetings, one about every half second: a sum of a few
    numbers, by which each knows what any has answered since the last. It sets out before a batch and is read before the
    next one, so that nobody waits for it; the batches are those that all agree on, as each meeting says when the next
    one is.

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
        self._heard: dict[str, int] = {}
        self._coming: Callable[[], list[float]] | None = None
        self._kind = 0
        self._where: Callable[[], str] = str

    def begin(self, where: Callable[[], str]) -> None:
        """A fit begins, in all processes; `where` says how far it is, for the message where they part."""
        self.open, self._where = distributed.world_size() > 1, where
        self._noted, self._agreed, self._heard = {}, {}, {}
        self._coming = None
        self._held, self._stride, self._left, self._since = 0, 1, 2, time.perf_counter()  # one batch has been then

    def end(self) -> None:
        """The fit has ended."""
        self.open = False
        self._where, self._coming = str, None

    def ask(self, name: str, mine: int) -> int:
        """What all have agreed on for this batch; in a process alone, `mine`.

        Args:
            name: the question, one of `NAMES`.
            mine: this process's answer: 0 for no, else yes. It counts from the next meeting on.
        Returns:
            The largest answer of all processes, as of the meeting that is read before this batch; 0 where none is.
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
        self._hear()
        noted = max(self._noted.pop(name, 0), self._heard.pop(name, 0))  # since the last batch
        return int(distributed.largest([max(mine, noted)])[0])

    def next_batch(self) -> None:
        """A batch begins: what was agreed for the one before is over, and a meeting is read, or sets out."""
        if not self.open:  # as where somebody validates, without a fit
            return
        self._hear()
        if self._agreed or self._heard:
            self._agreed, self._heard = self._heard, {}
        self._left -= 1
        if self._left == 0:
            self._meet(0)

    def last_meeting(self) -> None:
        """At the fit's end: processes that have parted are told so.

        Raises:
            RuntimeError: the others are elsewhere in the fit.
        """
        if self.open:
            self._hear()
            self._meet(1)
            self._hear()

    def _meet(self, kind: int) -> None:
        """Tells the others what this process has answered. `kind`: 0 between batches, 1 at the fit's end."""
        each_s = (time.perf_counter() - self._since) / self._stride
        noted, self._noted = [self._noted.get(name, 0) for name in NAMES], {}
        self._kind = kind
        self._coming = distributed.largest_later([self._held, -self._held, kind, -kind, each_s, *noted])

    def _hear(self) -> None:
        """Reads the meeting that is on its way, if there is one."""
        if self._coming is None:
            return
        most_held, least_held, most_kind, least_kind, slowest_s, *agreed = self._coming()
        self._coming = None
        if most_held != -least_held or most_kind != -least_kind:
            here = "is at the end of its fit" if self._kind else self._where()
            places = ", ".join(f"rank {rank} {place}" for rank, place in enumerate(distributed.gathered(here)))
            raise of_all(
                RuntimeError(
                    f"the processes of this job have parted: {places}. A callback that ends a batch, an epoch or a fit"
                    " must do so in all processes: votes.ask lets them decide together."
                )
            )
        self._heard |= {name: int(value) for name, value in zip(NAMES, agreed, strict=True) if value}
        for name in self._heard:
            self._noted.pop(name, None)  # the same answer again, while the meeting was on its way
        stride = min(FARTHER * self._stride, int(EVERY_S / max(slowest_s, 1e-6)))
        self._stride = self._left = max(1, stride)
        self._held, self._since = self._held + 1, time.perf_counter()


votes = Votes()
"""Those of this process."""
