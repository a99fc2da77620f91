"""Checkpoints written in the background: training waits for a copy in memory, not for the disk.

One thread, one file at a time. A failure, most likely a full disk, is kept until the loop asks with
`take_failures`: some steps later, or after `wait` if it needs the file before continuing.
"""

import errno
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from resnet50.config.train_config import LEAST_CHECKPOINTS
from resnet50.records import checkpoint

BYTES_A_TENSOR = 512  # of a file: name, shape, alignment


@dataclass(frozen=True)
class Failure:
    """A checkpoint that could not be written, and why."""

    step: int
    error: OSError


class CheckpointWriter:
    """Writes the checkpoints of one run, links the best one and deletes old ones."""

    def __init__(self, folder: Path, keep: int, written_step: int = -1) -> None:
        """written_step: of the newest checkpoint on disk; later saves update the attribute."""
        self.folder, self.keep, self.written_step = folder, keep, written_step
        # Told of each finished file, in the thread: its step, and whether it is the best so far.
        self.on_written: Callable[[int, bool], None] = lambda step, is_best: None
        # Of the last file: when it was begun, on the monotonic clock, and how long it took.
        self.begun_s, self.took_s = -float("inf"), 0.0
        self._thread: threading.Thread | None = None
        # Several, for on a slow disk the next save begins before the loop has asked about the last.
        self._failures: deque[Failure] = deque()
        self._bug: BaseException | None = None

    @property
    def is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, step: int, state: dict, is_best: bool) -> None:
        """Copy the state of `step` to host memory and begin to write it.

        Waits for the previous file if it is still being written. The caller may change the state
        as soon as this returns.
        """
        self.wait()
        self.begun_s = time.monotonic()
        words = (step, on_host(state), is_best)
        # Not a daemon: unless it is killed, the program ends only after this file is written.
        self._thread = threading.Thread(target=self._write, args=words, name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being written any more."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def take_failures(self) -> list[Failure]:
        """The checkpoints that could not be written since the last call, oldest first."""
        if self._bug is not None:
            raise self._bug
        return [self._failures.popleft() for _ in range(len(self._failures))]

    def _write(self, step: int, state: dict, is_best: bool) -> None:
        try:
            make_room(self.folder, state)
            path = checkpoint.save(self.folder, step, state)
            self.written_step = step
            if is_best:
                checkpoint.mark_best(path)
            self.on_written(step, is_best)
            checkpoint.prune(self.folder, self.keep)
        except OSError as error:
            self._failures.append(Failure(step, error))
        except BaseException as error:
            self._bug = error  # raised in the loop, where it ends the run as any other would
        self.took_s = time.monotonic() - self.begun_s


def make_room(folder: Path, state: dict) -> None:
    """Make sure that the disk has room for a file of this state, before any of it is written.

    If not, the oldest checkpoints are deleted, down to two. Raises OSError if that is too little.
    """
    checkpoint.make_folder(folder)
    needed = size_of(state)
    while shutil.disk_usage(folder).free < needed:
        steps = checkpoint.steps_in(folder)
        if len(steps) <= LEAST_CHECKPOINTS:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        checkpoint.step_path(folder, steps[0]).unlink()


def size_of(state: object) -> int:
    """Bytes of the tensors in a state, and a little for all else in the file."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size() + BYTES_A_TENSOR
    items = state.values() if isinstance(state, dict) else state
    return sum(map(size_of, items)) if isinstance(state, dict | list | tuple) else 0


def on_host(value: object) -> object:
    """A copy whose tensors are in host memory and that nothing changes any more."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: on_host(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on_host(item) for item in value)
    return value
