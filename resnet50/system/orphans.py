"""Ending a program with all that it started, even what has left its group. Standard library, Python
3.10."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from resnet50.system import processes

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
END_S = 5.0


@contextmanager
def adopted() -> Iterator[Callable[[], None]]:
    """Yields a function that kills all that was started in this block and by its programs.

    Also what left its group or session, as `setsid` and daemons do: on Linux, an orphan becomes
    this process's child in this block. Elsewhere it kills nothing.
    """
    before = descendants_of(os.getpid())
    _adopt(True)
    try:
        yield lambda: _end_all(before)
    finally:
        _adopt(False)


def descendants_of(parent_pid: int) -> set[int]:
    """Ids of a process's children, theirs, and so on."""
    found: set[int] = set()
    new = {parent_pid}
    while new := {child for pid in new for child in processes.children_of(pid)} - found:
        found |= new
    return found


def _end_all(before: set[int]) -> None:
    """Kill all descendants but those from before, again until none is left: a process may have
    started another one since we looked."""
    deadline = time.monotonic() + END_S
    while started := descendants_of(os.getpid()) - before:
        for pid in started:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for pid in started:
            with suppress(ChildProcessError):  # a grandchild, or reaped by its Popen
                os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > deadline:  # one that waits for a dead disk cannot be ended
            return
        time.sleep(0.02)


def _adopt(on: bool) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, int(on))
