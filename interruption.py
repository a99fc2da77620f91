"""Signals: flags for "stop" and "save" at the next step, and children that die with their parent.

SIGTERM and SIGINT only set the first flag; the loop looks at it between two steps, all ranks agree,
one checkpoint is written, and the run ends as resumable. A second SIGINT ends the process at once.
SIGUSR1 sets the other flag: one checkpoint is written, and the run goes on. spot_watch.py's thread
may set both too, with a reason that the run logs.
"""

import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
SUPERVISOR_PID = "TRAIN_SUPERVISOR_PID"  # environment variable from supervisor.py to its ranks


class Interrupted(Exception):  # noqa: N818 (not an error)
    """A signal asked to stop, and all ranks have agreed on it."""


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
        """Ask to save and go on; from any thread."""
        self._reasons.append(reason)
        self.save_requested = True

    def take_reasons(self) -> set[str]:
        """What asked until now, each once; for whoever saves next, as it forgets the wish to."""
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
        self.request_save("SIGUSR1: saving, and going on")


def ignore_signals() -> None:
    """Let a loader process live on when torchrun or the terminal signals its whole group.

    Otherwise the loader dies before the rank has saved (faults seen in the field:
    KempnerInstitute/KempnerForge#177, goodfire-ai/spd#677).
    """
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)


@contextmanager
def children_without_sigusr1() -> Iterator[None]:
    """Programs started here never see SIGUSR1, of which they would die while they still import.

    A signal mask is inherited; this process gets a SIGUSR1 that comes meanwhile at the end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel SIGKILL this process when its parent dies. On Linux; elsewhere nothing.

    parent_pid: who the parent must be; if it died before the call, this process exits with 1.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def die_with_launcher() -> None:
    """`die_with_parent` for a rank, whose parent is torchrun.

    Under our supervisor torchrun must still be the supervisor's child; a torchrun that died while
    this rank was importing would leave it to some other parent.
    """
    parent_pid, supervisor_pid = os.getppid(), os.environ.get(SUPERVISOR_PID)
    die_with_parent(parent_pid)
    if supervisor_pid is not None:
        stat = Path(f"/proc/{parent_pid}/stat").read_text()
        if int(stat.rpartition(")")[2].split()[1]) != int(supervisor_pid):
            os._exit(1)
