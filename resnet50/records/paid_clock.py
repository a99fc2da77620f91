"""One clock for --max_minutes, dollars and budgets: the machine time of all of a run's attempts.

    runs/NAME/.paid_ms    milliseconds, as text

It begins when `python train.py` does, imports included, and runs as long as that lives; the ranks
are told when that was. The file is written every second, so that a SIGKILL loses no more than two.
Between a kill and the next start the clock stands still: nobody knows who paid then.
"""

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from resnet50.records import ownership, status
from resnet50.system import processes

EVERY_S = 1.0
# Environment variable from the supervisor to its ranks: seconds paid before its start, and its
# start on the monotonic clock, which all processes since a boot share.
HANDED_ON = "TRAIN_PAID"
TEXT_BYTES = status.PAID_BYTES


class PaidClock:
    """Counts on from before_s since started_s. The one process that keeps the file calls `keep`."""

    def __init__(
        self,
        run_dir: Path,
        before_s: float,
        started_s: float,
        *,
        is_kept_here: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = run_dir / ownership.PAID
        self._before_s, self._started_s, self._clock = before_s, started_s, clock
        self._is_kept_here = is_kept_here
        self._next_s = -float("inf")

    @classmethod
    def begin(cls, run_dir: Path, fresh: bool = False) -> "PaidClock":
        """The clock of an attempt that this process begins, and whose file it keeps.

        fresh: do not count what was paid in this folder before.
        """
        before_s = 0.0 if fresh else paid_before(run_dir)
        return cls(run_dir, before_s, start_of_command(), is_kept_here=True)

    @classmethod
    def of_rank(cls, run_dir: Path, fresh: bool = False) -> "PaidClock":
        """The supervisor's clock; without a supervisor, one that begins here."""
        handed_on = os.environ.get(HANDED_ON)
        if handed_on is None:
            return cls.begin(run_dir, fresh)
        before_s, started_s = map(float, handed_on.split())
        return cls(run_dir, before_s, started_s)

    @property
    def paid_s(self) -> float:
        """Seconds of machine time that this run has used, in all its attempts."""
        return self._before_s + self._clock() - self._started_s

    @property
    def attempt_s(self) -> float:
        """Seconds of this attempt alone."""
        return self._clock() - self._started_s

    def for_ranks(self) -> dict[str, str]:
        """The environment variable from which ranks read this clock."""
        return {HANDED_ON: f"{self._before_s!r} {self._started_s!r}"}

    def keep(self) -> None:
        """Write the file if a second has passed and this process is the one that does."""
        if self._is_kept_here and self._clock() >= self._next_s:
            self._next_s = self._clock() + EVERY_S
            self.write()

    def write(self) -> None:
        """Write the file. A full disk costs at most what status.json, too, does not know of."""
        text = b"%*d\n" % (TEXT_BYTES - 1, round(1000 * self.paid_s))
        with suppress(OSError):  # a full disk; the next write may find room
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                os.pwrite(file, text, 0)
            finally:
                os.close(file)


def paid_before(run_dir: Path) -> float:
    """Seconds that earlier attempts used; those of status.json if it knows of more, as in a run
    from before there was this clock, or in a copy without hidden files."""
    return status.paid_s(run_dir)


def read(run_dir: Path) -> float:
    """Seconds in the file; 0 without one, or if it holds something else."""
    return status.kept_paid_s(run_dir)


def start_of_command(name: str = status.SUPERVISOR) -> float:
    """When this command began, on the monotonic clock; now, where it is called by a program of
    another name, which may have run for a long time, such as a notebook."""
    main_file = getattr(sys.modules["__main__"], "__file__", None) or ""
    if Path(main_file).name != name:
        return time.monotonic()
    return time.monotonic() - processes.age_s()
