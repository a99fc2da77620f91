"""Processes that live and die together, whatever signals come. Standard library, Python 3.10."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
SUPERVISOR_PID = "TRAIN_SUPERVISOR_PID"  # environment variable from run/supervisor.py to its ranks


def ignore_signals() -> None:
    """Keep a loader process alive when torchrun or the terminal signals its whole group.

    Otherwise the loader dies before the rank has saved (faults seen in the field:
    KempnerInstitute/KempnerForge#177, goodfire-ai/spd#677).
    """
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)


@contextmanager
def children_without_sigusr1() -> Iterator[None]:
    """Block SIGUSR1 for programs started in this block, which it would kill during their imports.

    A signal mask is inherited; this process gets a SIGUSR1 that came meanwhile when the block ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def children_of(parent_pid: int) -> list[int]:
    """Ids of a process's children, whichever thread started them.

    Read from every process's own entry: /proc/PID/task/TID/children is not in all kernels (it needs
    CONFIG_PROC_CHILDREN).
    """
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in pids if _parent_of(pid) == parent_pid]


def _parent_of(pid: int) -> int:
    """0 for a process that has ended."""
    try:
        # "PID (NAME) STATE PARENT ...", where a name may contain anything, even parentheses.
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except OSError:
        return 0


def started(pid: int) -> int:
    """When a process started, in clock ticks since the boot; 0 if there is none, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] == b"Z" else int(fields[19])  # the 22nd, after "PID (NAME)"


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel SIGKILL this process when its parent dies. Does nothing outside Linux.

    parent_pid: the expected parent; if it died before the call, this process exits with 1.
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
        if _parent_of(parent_pid) != int(supervisor_pid):
            os._exit(1)
