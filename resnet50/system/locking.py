"""Only one process at a time works in a folder. Standard library, Python 3.10."""

import errno
import fcntl
import os
import struct
from pathlib import Path

LOCK = ".lock"
FLOCK = "hhqqi"  # struct flock of Linux on 64 bits
# Errors from disks that have no locks: NFS without lockd, Lustre mounted without flock, some FUSE.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


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


def lock_holder(path: Path) -> int:
    """Process id of whoever holds a FolderLock's file; 0 if nobody does. Takes no lock itself.

    This asks the kernel: the number in the file outlives a process that was killed. So on a disk
    without locks, no holder is ever reported.
    """
    try:
        with open(path, "rb") as file:
            question = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = struct.unpack(FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, question))
    except OSError as error:
        if error.errno not in (errno.ENOENT, *NO_LOCKS):
            raise
        return 0
    return 0 if kind == fcntl.F_UNLCK else pid
