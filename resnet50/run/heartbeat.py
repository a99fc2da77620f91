"""A run's heartbeat: rank 0 writes its step into a small file as it advances, and the supervisor
ends a run whose file no longer changes.

Every rank waits for all others in every step, so a hang of any of them stops rank 0 too. Without a
supervisor the heartbeat keeps the clock of the run as well (records/paid_clock.py).
"""

import os
import time
from pathlib import Path

from resnet50.records.ownership import HEARTBEAT
from resnet50.records.paid_clock import PaidClock

EVERY_S = 1.0


class Heartbeat:
    """Written by rank 0, at most once a second."""

    def __init__(self, run_dir: Path, is_main: bool, paid_clock: PaidClock | None = None) -> None:
        self._file = -1
        self._paid_clock = paid_clock
        if is_main:
            self._file = os.open(run_dir / HEARTBEAT, os.O_WRONLY | os.O_CREAT, 0o666)
        self._next_s = 0.0

    def beat(self, step: int) -> None:
        """Show that the run is alive: in a step, an evaluation, or a wait for something slow."""
        if self._file < 0 or time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + EVERY_S
        if self._paid_clock is not None:
            self._paid_clock.keep()
        try:
            os.pwrite(self._file, b"%12d\n" % step, 0)
        except OSError:  # the disk is full or read-only: the file's time still shows life
            os.utime(self._file)


def read(run_dir: Path) -> tuple[int, int]:
    """Time of the last heartbeat, in nanoseconds, and its step; (0, -1) if there is none."""
    try:
        path = run_dir / HEARTBEAT
        return path.stat().st_mtime_ns, int(path.read_bytes() or b"-1")
    except (OSError, ValueError):
        return 0, -1
