"""Files of a source, what a listing skips, and the listing of folders itself."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import dataset_paths
from resnet50.data import unused
from resnet50.data.unused import Unused

PLAIN = -1  # Member.method of uncompressed bytes; other values are zip's own numbers


class Member(NamedTuple):
    """One file. Small and picklable, since ImageNet has 1.3 million of them."""

    path: str  # inside the folder or archive, relative, with /
    file: str  # the file on disk that holds its bytes, absolute
    offset: int = 0  # where they begin there; in a zip, where its local header does
    size: int = -1  # bytes stored there; -1: the whole file
    method: int = PLAIN
    crc32: int = 0  # of the unpacked bytes, known in a zip only


@dataclass
class Passed:
    """What a listing skips, counted, and all folders that it finds, hidden ones apart."""

    unused: Unused = field(default_factory=Unused)
    folders: set[str] = field(default_factory=set)
    unreadable: set[str] = field(default_factory=set)
    dangling: set[str] = field(default_factory=set)

    def add_folder(self, path: str) -> None:
        """Remember a folder and those that it lies in."""
        while path and path not in self.folders:
            self.folders.add(path)
            path = path.rpartition("/")[0]

    def include(self, other: "Passed") -> None:
        """Add what the listing of a part has found."""
        self.unused.include([other.unused])
        self.folders |= other.folders
        self.unreadable |= other.unreadable
        self.dangling |= other.dangling

    def note_empty(self, paths: set[str]) -> None:
        """Count the empty folders. paths: of files and of hidden entries."""
        holding = {path.rpartition("/")[0] for path in (*paths, *self.folders)}
        for folder in sorted(self.folders - holding - self.unreadable):
            self.unused.add(unused.EMPTY, folder)


def is_hidden(path: str) -> bool:
    """Whether a file, or a folder that it lies in, is not part of the user's data."""
    return any(dataset_paths.is_hidden(part) for part in path.split("/"))


def folder_members(folder: Path, passed: Passed, leave_out: Path) -> Iterator[Member]:
    """Files of a folder; symbolic links are followed, since data folders often consist of them.

    leave_out: a folder that is skipped if it is in this one. Raises ValueError if a link leads
    back, or if the folder itself cannot be read.
    """
    pending: list[tuple[str, str, frozenset]] = [(str(folder), "", frozenset())]
    while pending:
        place, prefix, above = pending.pop()
        hidden = is_hidden(prefix)
        try:
            status = Path(place).stat()
            with os.scandir(place) as scan:
                entries = list(scan)
        except OSError as error:
            if not prefix:
                raise ValueError(f"{place} cannot be read ({error.strerror})") from error
            reason = unused.HIDDEN if hidden else unused.UNREADABLE
            passed.unused.add(reason, prefix.removesuffix("/"))
            passed.unreadable.add(prefix.removesuffix("/"))
            continue
        identity = (status.st_dev, status.st_ino)
        if identity in above and hidden:
            continue
        if identity in above:
            raise ValueError(f"{place}: links back to a folder that contains it; remove this link")
        if not entries and prefix and not hidden:
            passed.unused.add(unused.EMPTY, prefix.removesuffix("/"))
        for entry in entries:
            path = prefix + entry.name
            if entry.path == str(leave_out):
                continue
            if _is_folder(entry):
                pending.append((entry.path, f"{path}/", above | {identity}))
                passed.add_folder("" if is_hidden(path) else path)
                continue
            reason = _reason(entry, path)
            if not reason:
                yield Member(path, entry.path)
                continue
            passed.unused.add(reason, path)
            passed.dangling |= {path} if reason == unused.DANGLING else set()


def _reason(entry: os.DirEntry, path: str) -> str:
    """Why an entry that is no folder is not listed; "" if it is."""
    if is_hidden(path):
        return unused.HIDDEN
    if entry.is_file():
        return ""
    # The others are pipes, sockets and devices.
    return unused.DANGLING if entry.is_symlink() else unused.UNREADABLE


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to something unreadable, or to itself
        return False
