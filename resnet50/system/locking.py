"""Only one process at a time works in a folder. Standard library, Python 3.10."""

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import BinaryIO

LOCK = ".lock"
FLOCK = "hhqqi"  # struct flock of Linux on 64 bits
# Errors from disks that have no locks: NFS without lockd, Lustre mounted without flock, some FUSE.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
HIDDEN = -1  # in place of the id of a process that cannot be seen from here


class FolderLock:
    """Only one process works in a folder; the kernel frees the lock however that process ends.

    A POSIX record lock, since it belongs to this process alone: loader processes forked later do
    not keep it (as with flock), so a killed rank frees it although its loaders have yet to die.
    Raises ValueError naming the folder and the process that holds it. On a disk that has no locks
    it continues without, and `missing` says so: waiting would not help.
    """

    def __init__(self, folder: Path, name: str = LOCK, option: str = "--run_dir") -> None:
        self.missing = ""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / name, "a+")  # noqa: SIM115 (open as long as it locks)
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                self._file.seek(0)
                holder = self._file.read().strip() or "unknown"
                self._file.close()
                raise ValueError(
                    f"{option} {folder} is in use by process {holder}: wait for it, stop it, "
                    f"or give another {option}"
                ) from None
            self.missing = (
                f"{option} {folder}: this disk has no locks ({error.strerror}): nothing keeps a "
                "second process from working there at the same time, so start only one"
            )
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def release(self) -> None:
        self._file.close()


def lock_holder(path: Path, script: str) -> int:
    """Process id of whoever holds a FolderLock's file; 0 if nobody does. Takes no lock itself.

    script: what the holder's command line names. HIDDEN if the lock is held, but not by such a
    process here: it is in another container, or on another host. This asks the kernel, since the
    number in the file outlives a process that was killed. On a disk without locks that number is
    all there is, and counts as long as it belongs to such a process.
    """
    try:
        with open(path, "rb") as file:
            try:
                kind, pid = _conflicting_lock(file)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                pid = int(file.read().strip() or 0)
                return pid if script in (_command_line(pid) or "") else 0
    except (FileNotFoundError, ValueError):  # ValueError: the file holds no number
        return 0
    if kind == fcntl.F_UNLCK:
        return 0
    # For another PID namespace the kernel reports 0, for another host a negative number (NFS) or
    # that host's own (Lustre), which may be anybody's here. A process that dies loses its command
    # line before its locks.
    line = _command_line(pid)
    return pid if line is not None and (not line or script in line) else HIDDEN


def why_no_locks(path: Path) -> str:
    """The system's reason why this file's disk has no locks; empty if it has."""
    with open(path, "rb") as file:
        try:
            _conflicting_lock(file)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return error.strerror
    return ""


def _conflicting_lock(file: BinaryIO) -> tuple[int, int]:
    """Kind and process id of the lock that keeps this process from locking the file."""
    question = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = struct.unpack(FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, question))
    return kind, pid


def _command_line(pid: int) -> str | None:
    """None if there is no such process here, empty if it is ending."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return None
