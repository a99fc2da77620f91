"""What every store of files offers, and its errors; system/store.py opens one."""

import time
from abc import ABC, abstractmethod
from typing import BinaryIO, NamedTuple


class StoreError(OSError):
    """A store did not do what it was asked; the text is one line with its place and a remedy.

    reason: the text without the place. is_passing: whether the same may work later without the
    user: no answer, an overloaded server, a full disk. trouble: the same for all reasons that come
    from one trouble; the reason by default.
    """

    def __init__(self, place: str, reason: str, *, is_passing: bool, trouble: str = "") -> None:
        super().__init__(f"{place}: {reason}")
        self.place, self.reason, self.is_passing = place, reason, is_passing
        # A server that is away, overloaded, or full may show it in many ways.
        self.trouble = "away" if is_passing else trouble or reason


class Entry(NamedTuple):
    """What a store knows of a file without reading it."""

    num_bytes: int
    modified_s: float  # by the store's own clock
    version: str  # changes with each writing


class Store(ABC):
    """A place for files. Every method may raise StoreError."""

    def __init__(self, url: str) -> None:
        self.url = url
        # Whether `create` and `replace` are atomic; found out by `test_conditions`.
        self.is_conditional = True

    def test_conditions(self, name: str) -> None:  # noqa: B027 (a disk need not be asked)
        """Find out whether this store has conditional writes, with a file that is there."""

    @abstractmethod
    def put(self, name: str, data: bytes) -> None:
        """Write or replace a small file."""

    @abstractmethod
    def put_file(self, name: str, file: BinaryIO) -> None:
        """Write or replace a file with the rest of an open one, of any size."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> str | None:
        """Write a small file unless there is one; returns its version, None if there is one.

        Atomic where the store has conditional writes, as S3 has and disks have.
        """

    @abstractmethod
    def replace(self, name: str, data: bytes, version: str) -> str | None:
        """Replace a small file that is still this version; returns the new one, None if it is
        another one, or gone. Atomic where the store has conditional writes."""

    @abstractmethod
    def get(self, name: str) -> tuple[bytes, str] | None:
        """A small file and its version; None if there is none."""

    @abstractmethod
    def read(self, name: str, start: int, length: int) -> bytes:
        """This many bytes of a file from `start` on; fewer at its end. From any thread."""

    @abstractmethod
    def entry(self, name: str) -> Entry | None:
        """None if there is no such file."""

    @abstractmethod
    def list(self, under: str = "", limit: int = 0) -> dict[str, Entry]:
        """All files, by name; those under one folder of the store, by their whole names.

        limit: enough of them, which a store of a million files gives sooner; 0: all.
        """

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""

    def size(self, name: str) -> int:
        """Bytes of a file. Raises StoreError if there is none."""
        if (found := self.entry(name)) is None:
            raise StoreError(f"{self.url}/{name}", "it is not there", is_passing=False)
        return found.num_bytes

    def now(self, name: str) -> float:
        """The time by the store's clock, in seconds; `name` is written and removed for that.

        To be compared with an entry's modified_s: this machine's clock may differ by minutes.
        """
        self.put(name, b"")
        found = self.entry(name)
        self.delete(name)
        return found.modified_s if found else time.time()
