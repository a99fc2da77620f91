"""A pack cut into ranges that can be fetched and checked one by one, and which of them are there.

Every range begins at a record and holds whole records, so that it can be compared with the
checksums of its own images as soon as it is there, and no second reading of the file is needed.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnet50.system import files


class Range(NamedTuple):
    """Bytes from start to end, which is not part of it; images: whose records lie there."""

    start: int
    end: int
    images: Sequence[int] = ()


def cut(offsets: np.ndarray, start: int, end: int, range_bytes: int) -> list[Range]:
    """Cut the bytes from start to end into ranges of about range_bytes each.

    offsets: (N,) where each image's record begins, in any order, none before start. A range is
    longer than range_bytes only if a single record is.
    """
    order = np.argsort(offsets, kind="stable")
    begins = offsets[order].astype(np.int64)
    ranges, first = [], 0
    while first < len(begins):
        at = start if first == 0 else int(begins[first])
        # The last record that begins early enough to end in this range, or simply the next one.
        next_first = max(int(np.searchsorted(begins, at + range_bytes, "right")) - 1, first + 1)
        if end - at <= range_bytes:
            next_first = len(begins)
        # Records that begin at the same place, as empty ones could, stay together.
        while next_first < len(begins) and begins[next_first] == begins[next_first - 1]:
            next_first += 1
        stop = end if next_first == len(begins) else int(begins[next_first])
        ranges.append(Range(at, stop, order[first:next_first].tolist()))
        first = next_first
    return ranges or pieces(start, end, range_bytes)


def pieces(start: int, end: int, piece_bytes: int) -> list[Range]:
    """Parts of at most piece_bytes, for what has no records."""
    return [Range(at, min(at + piece_bytes, end)) for at in range(start, end, piece_bytes)]


class Journal:
    """Which pack is being fetched, and which ranges of it are there, one JSON object a line.

    The first line says which pack: its URL and its header, in hexadecimal digits. A kill may cut
    the last line, which costs that range. What a line says is checked again before it counts, so
    nothing here needs to be on the disk before the bytes are.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            about, *lines = files.read_records(path)
            self.about: dict[str, str] = {name: about[name] for name in ("url", "header")}
            self.there = {(line["start"], line["end"]) for line in lines}
        except (ValueError, KeyError, TypeError):  # none, or a damaged one
            self.about, self.there = {}, set()

    def begin(self, about: dict[str, str]) -> None:
        """Begin anew or go on: the file then holds whole lines only, without one that was cut."""
        self.about = about
        lines = [about, *({"start": start, "end": end} for start, end in sorted(self.there))]
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        files.write_text(self.path, text, sync=False)

    def add(self, done: Range) -> None:
        """Note that a range is there. Raises OSError."""
        with open(self.path, "a") as file:
            file.write(json.dumps({"start": done.start, "end": done.end}) + "\n")
