"""An open file that holds back whoever reads it, so that a copy in the background stays there.

On a CPU that trains with all its cores, a copy at full speed makes the steps beside it as much
longer as it takes itself. With pauses it takes less from each, and something from more of them.
"""

import threading
import time
from typing import BinaryIO

REST = 3.0  # of the time that a block takes to be read and written
LONGEST_REST_S = 0.2  # a block that takes long waits for a network, and not for the CPU


class PacedFile:
    """Reads as `file` does, with a pause after each block, until `hurry` is set."""

    def __init__(self, file: BinaryIO, hurry: threading.Event) -> None:
        self._file, self._hurry = file, hurry
        self._begun_s: float | None = None  # the block before

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        if self._begun_s is not None:
            taken_s = time.monotonic() - self._begun_s
            self._hurry.wait(min(REST * taken_s, LONGEST_REST_S))
        self._begun_s = time.monotonic()
        return self._file.read(size)
