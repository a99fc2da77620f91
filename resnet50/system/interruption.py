"""Signals as flags: "stop" and "save" at the next step. Standard library, Python 3.10.

SIGTERM and SIGINT only set the first flag; the loop checks it between two steps, all ranks agree,
one checkpoint is written, and the run ends as resumable. A second SIGINT ends the process at once.
SIGUSR1 sets the other flag: one checkpoint is written, and the run continues. The thread of
run/spot_watch.py may set both as well, with a reason that the run logs.
"""

import os
import signal
from collections import deque
from types import FrameType


class Interrupted(Exception):  # noqa: N818 (not an error)
    """A signal asked to stop, and all ranks have agreed on it."""


def ignore_late_signals() -> None:
    """For a process that is done: a SIGTERM from here on changes nothing.

    Python gives every signal its default action back as it exits, and Slurm signals a job more than
    once: a rank that had saved would be reported as killed.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class Interruption:
    """`requested` turns true on the first SIGTERM or SIGINT, `save_requested` on SIGUSR1."""

    def __init__(self) -> None:
        self.requested, self.save_requested = False, False
        self._was_signalled = False
        self._reasons: deque[str] = deque()  # its appends and pops are safe from any thread
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        signal.signal(signal.SIGUSR1, self._on_save)

    def request_stop(self, reason: str) -> None:
        """Ask to save and stop; from any thread."""
        self._reasons.append(reason)
        self.requested = True

    def request_save(self, reason: str) -> None:
        """Ask to save and continue; from any thread."""
        self._reasons.append(reason)
        self.save_requested = True

    def acknowledge_save(self) -> set[str]:
        """Clear the request to save; returns the reasons given until now, each once."""
        self.save_requested = False
        reasons = set()
        while self._reasons:
            reasons.add(self._reasons.popleft())
        return reasons

    def _on_stop(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self._was_signalled:
            os._exit(130)
        self.requested = self._was_signalled = True

    def _on_save(self, signum: int, frame: FrameType | None) -> None:
        self.request_save("SIGUSR1: saving, then continuing")
