"""Signals: one flag for "stop at the next step", and children that never outlive their parent.

SIGTERM and SIGINT only set the flag; the loop looks at it between two steps, all ranks agree, one
checkpoint is written, and the run ends as resumable. A second SIGINT ends the process at once.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path
from types import FrameType

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
SUPERVISOR_PID = "TRAIN_SUPERVISOR_PID"  # environment variable from supervisor.py to its ranks


class Interrupted(Exception):  # noqa: N818 (not an error)
    """A signal asked to stop, and all ranks have agreed on it."""


class Interruption:
    """`requested` turns true on the first SIGTERM or SIGINT."""

    def __init__(self) -> None:
        self.requested = False
        signal.signal(signal.SIGTERM, self._request)
        signal.signal(signal.SIGINT, self._request)

    def _request(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self.requested:
            os._exit(130)
        self.requested = True


def ignore_signals() -> None:
    """Let a loader process live on when torchrun or the terminal signals its whole group.

    Otherwise the loader dies before the rank has saved (faults seen in the field:
    KempnerInstitute/KempnerForge#177, goodfire-ai/spd#677).
    """
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)


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
