"""A store that is a folder, such as one on a disk that other machines mount too."""

import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from resnet50.system import files
from resnet50.system.locking import NO_LOCKS
from resnet50.system.store_types import Entry, Store, StoreError

PARTIAL = ".partial"  # ends the names of files that are still being written
GUARD = ".guard"  # locked while a file of a folder is compared and replaced
COPY_BYTES = 1 << 20
# What no repetition mends: the user must change something.
LASTING = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)


class FolderStore(Store):
    """A folder, such as one on a disk that other machines mount too.

    The folder above it must exist, or a disk that is not mounted would go unnoticed: its files
    would lie on this machine's own. On a disk without locks two writers that replace a file at the
    same moment may both believe that they did.
    """

    def __init__(self, folder: Path, option: str) -> None:
        super().__init__(str(folder))
        self.folder = folder
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{option} {folder} is a file: give a folder, or s3://BUCKET/PREFIX")
        if not folder.parent.is_dir():
            raise ValueError(
                f"{option} {folder}: there is no folder {folder.parent}. Is its disk mounted? "
                "Mount it, or make that folder"
            )

    def put(self, name: str, data: bytes) -> None:
        with self._errors(name), self._replaced(name) as file:
            file.write(data)

    def put_file(self, name: str, file: BinaryIO) -> None:
        with self._errors(name), self._replaced(name) as copy:
            while block := file.read(COPY_BYTES):
                copy.write(block)

    def create(self, name: str, data: bytes) -> str | None:
        """Atomic where the disk has hard links; elsewhere the name is taken before the bytes are
        there."""
        path = self.folder / name
        beside = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
        with self._errors(name):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                beside.write_bytes(data)
                # A link fails if the name is taken, and the file has all its bytes by then.
                os.link(beside, path)
            except FileExistsError:
                return None
            except OSError as error:
                if error.errno not in files.NO_LINKS:
                    raise
                try:
                    path.open("xb").close()
                except FileExistsError:
                    return None
                os.replace(beside, path)
            finally:
                beside.unlink(missing_ok=True)
            return self._version(path)

    def replace(self, name: str, data: bytes, version: str) -> str | None:
        with self._errors(name), self._guard():
            if self._version(self.folder / name) != version:
                return None
            self.put(name, data)
            return self._version(self.folder / name)

    def get(self, name: str) -> tuple[bytes, str] | None:
        with self._errors(name):
            try:
                # One open file: its version is that of the bytes, whoever replaces it meanwhile.
                with open(self.folder / name, "rb") as file:
                    return file.read(), _version_of(os.fstat(file.fileno()))
            except FileNotFoundError:
                return None

    def read(self, name: str, start: int, length: int) -> bytes:
        with self._errors(name), open(self.folder / name, "rb") as file:
            file.seek(start)
            return file.read(length)

    def entry(self, name: str) -> Entry | None:
        with self._errors(name):
            try:
                stat = (self.folder / name).stat()
            except FileNotFoundError:
                return None
            return Entry(stat.st_size, stat.st_mtime, _version_of(stat))

    def list(self, under: str = "", limit: int = 0) -> dict[str, Entry]:
        """All files but the guard's, those of a writer under way included."""
        found = {}
        with self._errors(under):
            for path in (self.folder / under).rglob("*"):
                name = path.relative_to(self.folder).as_posix()
                # A file may be gone again by now: another writer has renamed it.
                if name != GUARD and path.is_file() and (entry := self.entry(name)):
                    found[name] = entry
                if 0 < limit <= len(found):
                    break
        return found

    def delete(self, name: str) -> None:
        with self._errors(name):
            (self.folder / name).unlink(missing_ok=True)

    def _version(self, path: Path) -> str:
        with suppress(FileNotFoundError):
            return _version_of(path.stat())
        return ""

    @contextmanager
    def _replaced(self, name: str) -> Iterator[BinaryIO]:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replaced(path, "wb", sync=True) as file:
            yield file

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Keep other processes from `replace`, on disks that have locks."""
        self.folder.mkdir(exist_ok=True)
        with open(self.folder / GUARD, "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                self.is_conditional = False
            yield

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except OSError as error:
            where = f"{self.url}/{name}" if name else self.url
            reason = f"{error.strerror or error}: is the disk mounted, writable, and not full?"
            is_passing = error.errno not in LASTING
            raise StoreError(where, reason, is_passing=is_passing) from error


def _version_of(stat: os.stat_result) -> str:
    """Each writing makes a new file and renames it, so that its number or its time changes."""
    return f"{stat.st_ino}-{stat.st_mtime_ns}-{stat.st_size}"
