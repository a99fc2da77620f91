"""Write a pack so that a kill costs seconds.

Beside FILE.pack.partial are its index so far and a state that says how far it is; what the state
counts is on the disk. FILE.pack itself appears whole, by a rename.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnet50.data import pack
from resnet50.data.pack import INDEX, Record
from resnet50.system import files

PART_NAMES = (".partial", ".index", ".state")
COMMIT_EVERY_S = 1.0  # of work that a kill may cost


class Note(NamedTuple):
    """Something about a picture that its owner should know. kind: "bad" or "repaired"."""

    kind: str
    name: str
    text: str


class Chunk(NamedTuple):
    """What a process made of some pictures. dropped: positions of those that are bad."""

    num_pictures: int
    records: list[Record]
    notes: list[Note]
    dropped: list[int]


class PackWriter:
    """A pack being written. Opened again for the same job, it continues from the last commit.

    num_done: pictures processed; num_images: those of them that are stored, the others are in
    `dropped`, by number; anew: why an earlier run's work is not continued, "" if it is.
    Raises OSError from every method if the disk is full or gone.
    """

    def __init__(
        self, path: Path, about: dict, job: str, mark: Callable[[int], bytes] | None = None
    ) -> None:
        """mark: identifies a picture's file, by number, and differs once the file has changed."""
        self.path = path
        self._about = about | {"sha256": "0" * 64}
        self._job = job
        self._mark = mark or (lambda index: b"")
        self._digest = hashlib.sha256()
        self.anew = ""
        self._parts = {end: path.with_name(path.name + end) for end in PART_NAMES}
        self.num_done, self.num_images = 0, 0
        self.notes: list[Note] = []
        self.dropped: list[int] = []
        self._end = pack.records_offset(self._about)
        self._take_over()
        self._records = open(self._parts[".partial"], "a+b")  # noqa: SIM115 (closed in `finish`)
        self._index = open(self._parts[".index"], "a+b")  # noqa: SIM115
        if not self.num_done:  # another job's records may lie where none of this one's will
            self._records.truncate(0)
        # A kill may have left something after the last commit.
        self._records.truncate(self._end)
        self._index.truncate(self.num_images * INDEX.itemsize)
        self._committed_s = time.monotonic()

    def _take_over(self) -> None:
        """Load the state of an earlier start, if it worked on the same job."""
        try:
            state = json.loads(self._parts[".state"].read_text())
            num_done, num_images, end = state["position"]
            are_there = (
                self._parts[".partial"].stat().st_size >= end
                and self._parts[".index"].stat().st_size >= num_images * INDEX.itemsize
            )
        except (OSError, ValueError):
            return
        if state["job"] != self._job:
            self.anew = "the pictures or the settings are not those of the interrupted run"
        elif are_there:
            digest = self._digest.copy()
            for index in range(num_done):
                digest.update(self._mark(index))
            # Older states have none.
            if state.get("source", digest.hexdigest()) != digest.hexdigest():
                self.anew = "files that were packed already have changed since"
                return
            self._digest = digest
            self.num_done, self.num_images, self._end = num_done, num_images, end
            self.notes = [Note(*note) for note in state["notes"]]
            self.dropped = state["dropped"]

    def append(self, chunk: Chunk) -> None:
        """Write a chunk after the others."""
        for record in chunk.records:
            self._index.write(record.index_entry(self._end).tobytes())
            self._records.write(record.table)
            self._records.write(record.payload)
            self._end += len(record.table) + len(record.payload)
        self.dropped += [self.num_done + position for position in chunk.dropped]
        self.notes += chunk.notes
        for index in range(self.num_done, self.num_done + chunk.num_pictures):
            self._digest.update(self._mark(index))
        self.num_done += chunk.num_pictures
        self.num_images += len(chunk.records)
        if time.monotonic() - self._committed_s > COMMIT_EVERY_S:
            self.commit()

    def commit(self) -> None:
        """Sync everything so far to the disk, then record it in the state."""
        for file in (self._records, self._index):
            file.flush()
            os.fsync(file.fileno())
        state = {
            "job": self._job,
            "source": self._digest.hexdigest(),
            "position": [self.num_done, self.num_images, self._end],
            "notes": self.notes,
            "dropped": self.dropped,
        }
        files.write_text(self._parts[".state"], json.dumps(state), sync=True)
        self._committed_s = time.monotonic()

    def finish(self, sha256: str) -> None:
        """Seal the file and give it its name; the other parts are deleted."""
        self.commit()
        self._index.seek(0)
        index = np.frombuffer(self._index.read(), INDEX)
        self._records.close()
        with open(self._parts[".partial"], "r+b") as file:
            pack.seal(file, self._about | {"sha256": sha256}, index)
            file.flush()
            os.fsync(file.fileno())
        os.replace(self._parts[".partial"], self.path)
        files.sync_folder(self.path.parent)
        self._index.close()
        for end in (".index", ".state"):
            self._parts[end].unlink()
