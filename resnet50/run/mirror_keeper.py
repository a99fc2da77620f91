"""Keeps a mirror's lock alive while no rank beats: before their first step, and after a crash.

Restoring, importing, fitting the batch and listing a million files may together take minutes, and a
lock without a beat for 60 s is taken over (mirror_lock.py). A process of its own looks every 10 s
whether the lock is this start's and has stood still, and only then beats. It never makes a lock,
and ends with the process that started it.
"""

import atexit
import multiprocessing
import os
import time
from multiprocessing.context import ForkProcess
from multiprocessing.synchronize import Event

from resnet50.run.mirror_lock import BEAT_S, MirrorLock
from resnet50.system import processes
from resnet50.system.store import open_store

# Longer than a living rank's lock stands still; with a look on either side well below DEAD_S.
QUIET_S = 1.5 * BEAT_S
JOIN_S = 2.0
_kept: list[tuple[ForkProcess, Event]] = []


def keep(url: str, option: str, owner: str) -> None:
    """Keep the lock that this process's start takes, until `stop` or the end of this process."""
    stop()
    # Forked, as in system/apart.py: no thread of a bucket's client may be in this process.
    context = multiprocessing.get_context("fork")
    end = context.Event()
    words = url, option, owner, os.getpid(), end
    keeper = context.Process(target=_keep, args=words, daemon=True)
    keeper.start()
    _kept.append((keeper, end))
    # After `start`: it runs before multiprocessing's own, which would wait for the process.
    atexit.register(stop)


def stop() -> None:
    """End it, if there is one; the lock stays."""
    while _kept:
        keeper, end = _kept.pop()
        end.set()
        keeper.join(JOIN_S)  # a beat under way would make the lock again
        keeper.kill()
        keeper.join()


def _keep(url: str, option: str, owner: str, pid: int, end: Event) -> None:
    processes.ignore_signals()
    processes.die_with_parent(pid)
    lock: MirrorLock | None = None
    seen, since_s = "", 0.0
    while not end.wait(BEAT_S):
        try:
            lock = lock or MirrorLock(open_store(url, option), owner, pid)
            version = lock.version_if_ours()
            if version != seen:
                seen, since_s = version, time.monotonic()
            elif version and time.monotonic() - since_s >= QUIET_S:
                lock.renew(version)
        except Exception:  # whoever else works with the mirror says what is wrong
            lock = None  # with credentials that may have been renewed meanwhile
