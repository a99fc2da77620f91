"""Files that are whole at any moment, and JSON in them. Standard library, Python 3.10.

A file is written next to its place and renamed, so that a reader finds the old one or the new one,
never half of it, even after a kill at any moment. `sync` makes that true after a power cut, too.
"""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

# Errors from disks that cannot sync a folder: old CIFS, shares of virtual machines, DrvFs, FUSE.
# PostgreSQL ignores the first two, in fsync_fname of src/common/file_utils.c.
NO_FOLDER_SYNC = (errno.EBADF, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
# Errors of file systems without hard links: exFAT, and buckets mounted as folders.
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)


@contextmanager
def replaced(path: Path, mode: str = "w", *, sync: bool) -> Iterator[IO]:
    """A file to write into; it replaces the old one when the block ends.

    sync: flush the bytes and then the name to the disk before returning. Raises OSError (disk full,
    read-only); whatever is raised in the block, the old file stays and no other file is left.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, mode) as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
        if sync:
            sync_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Flush the folder's names to the disk: only then does a rename in it survive a power cut.

    Does nothing on a disk that cannot, since the file itself is synced; see `folder_sync_problem`.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def folder_sync_problem(folder: Path) -> str:
    """Why a rename in this folder may not survive a power cut; empty where it does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        return os.strerror(error.errno) if error.errno in NO_FOLDER_SYNC else ""
    finally:
        os.close(descriptor)
    return ""


def write_text(path: Path, text: str, *, sync: bool) -> None:
    """Replace a file by this text. Raises OSError, in which case the old file stays."""
    with replaced(path, sync=sync) as file:
        file.write(text)


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Replace a file by a JSON object, on the disk when this returns: otherwise a power cut could
    leave an empty file under the name. Raises OSError, in which case the old file stays."""
    write_text(path, json.dumps(values, indent=2) + "\n", sync=True)


def read_json(path: Path) -> dict[str, object]:
    """A JSON object, empty if there is no file. Raises ValueError naming a damaged file."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return values


def read_records(path: Path) -> list[dict]:
    """The whole lines of a log of JSON objects; a kill may have cut the last one."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
