"""Checkpoints that are whole or not there: save, verify, find, load, keep.

    sha256: the last 73 bytes of a checkpoint file are b"\\nsha256 " + 64 hex digits + b"\\n", over
    all bytes before them. `torch.load(path, weights_only=True)` reads the file as it is.

A file is whole at any moment, even after a power cut (system/files.py). torch.load alone would not
notice a flipped bit. Only tensors and plain values are stored; nothing here ever unpickles code.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch

from resnet50.system import files

FILE_NAME = re.compile(r"step_(\d{9})\.pt")
TRAILER_BYTES = len(b"\nsha256 ") + 64 + len(b"\n")
BEST = "best.pt"


class DamagedCheckpointError(ValueError):
    """A file that is not a whole checkpoint of this project; the text names it and says why."""


class _HashingFile:
    """What torch.save writes to: passes bytes on and hashes them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def step_path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:09d}.pt"


def steps_in(folder: Path) -> list[int]:
    """Steps of the checkpoint files in the folder, oldest first, not yet verified."""
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(int(match[1]) for match in map(FILE_NAME.fullmatch, names) if match)


def newest_step(folder: Path) -> int:
    """Step of the newest checkpoint file; -1 without one."""
    return max(steps_in(folder), default=-1)


def save(folder: Path, step: int, state: dict) -> Path:
    """Write the state of `step` and return its path; it then survives a power cut.

    Raises OSError as `write` does.
    """
    make_folder(folder)
    path = step_path(folder, step)
    write(path, state)
    return path


def write(path: Path, state: dict) -> None:
    """Write tensors and plain values, with their sha256; the old file stays until they are there.

    Raises OSError (disk full, read-only) and leaves no partial file behind.
    """
    with files.replaced(path, "wb", sync=True) as file:
        hashing = _HashingFile(file)
        try:
            # Hashed on its way to the disk, so that nothing need be read again.
            torch.save(state, hashing)
        except RuntimeError as error:
            # torch's zip writer reports a failed write as RuntimeError; the OSError is its context.
            raise _os_error(error) or error from None
        # After torch's zip: a reader searches for its directory from the end and allows for this.
        file.write(b"\nsha256 " + hashing.sha256.hexdigest().encode() + b"\n")


def _os_error(error: BaseException | None) -> OSError | None:
    """The OSError among an exception and what led to it."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def make_folder(folder: Path) -> None:
    """Make the folder of a run's checkpoints so that it survives a power cut."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        # Otherwise a power cut could lose the folder with the checkpoint that was synced into it.
        # Both the run's folder and the one above it may be new.
        for above in (folder.parent, folder.parent.parent):
            files.sync_folder(above)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and leftovers of interrupted saves."""
    # best.pt is a hard link of its own: that file stays under that name.
    for step in steps_in(folder)[:-keep]:
        step_path(folder, step).unlink()
    remove_partial(folder)


def files_in(folder: Path) -> list[Path]:
    """best.pt and the step files that exist, intact or not."""
    names = os.listdir(folder) if folder.is_dir() else []
    return [folder / name for name in sorted(names) if name == BEST or FILE_NAME.fullmatch(name)]


def partial_in(folder: Path) -> list[Path]:
    """Leftovers of interrupted saves; *.partial of other programs have other names."""
    # A user may have put the folder where another program downloads to: its files stay.
    names = os.listdir(folder) if folder.is_dir() else []
    wholes = {name: name.removesuffix(".partial") for name in names if name.endswith(".partial")}
    return [
        folder / n for n, whole in wholes.items() if whole == BEST or FILE_NAME.fullmatch(whole)
    ]


def remove_partial(folder: Path) -> None:
    for leftover in partial_in(folder):
        leftover.unlink()


def has_trailer(path: Path) -> bool:
    """Whether a file ends like this program's checkpoints; its hash is not verified."""
    try:
        # Asked about every file before a run starts, when hashing 300 MB each would take seconds.
        with open(path, "rb") as file:
            file.seek(-min(TRAILER_BYTES, os.fstat(file.fileno()).st_size), os.SEEK_END)
            return file.read(8) == b"\nsha256 "
    except OSError:
        return False


def put_aside(path: Path) -> Path:
    """Rename a file that is not a whole checkpoint to NAME.corrupt, or NAME.corrupt.2 and so on;
    returns the new path."""
    aside = path.with_name(f"{path.name}.corrupt")
    number = 1
    # Not over an earlier one: whoever looks into the damage may need both.
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.name}.corrupt.{number}")
    os.rename(path, aside)  # noqa: PTH104 (beside os.replace elsewhere)
    return aside


def mark_best(path: Path) -> None:
    """Make `best.pt` a hard link to this checkpoint, or a copy without hard links, atomically."""
    link(path, path.with_name(BEST))


def link(path: Path, name: Path) -> None:
    """Give a checkpoint a second name, replacing any file of that name."""
    # Linked under a temporary name and renamed, since a link cannot replace a file.
    partial = name.with_name(f"{name.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        # A link costs nothing; a copy would write 300 MB at every new best.
        os.link(path, partial)
    except OSError as error:
        # A disk without hard links is not an error; a full one is.
        if error.errno not in files.NO_LINKS:
            raise
        shutil.copyfile(path, partial)
    os.replace(partial, name)
    files.sync_folder(path.parent)


def verify(path: Path) -> None:
    """Raise DamagedCheckpointError, naming the file, unless it is whole and its sha256 is right."""
    try:
        remaining = path.stat().st_size - TRAILER_BYTES
        with open(path, "rb") as file:
            sha256 = hashlib.sha256()
            while remaining > 0 and (block := file.read(min(remaining, 1 << 20))):
                sha256.update(block)
                remaining -= len(block)
            trailer = file.read()
    except OSError as error:
        raise DamagedCheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if trailer != b"\nsha256 " + sha256.hexdigest().encode() + b"\n":
        raise DamagedCheckpointError(
            f"{path} is damaged or not a checkpoint of this program (its sha256 does not match)"
        )


def size_and_sha256(file: BinaryIO) -> tuple[int, str]:
    """Bytes of an open checkpoint file, and the sha256 that its trailer states; from its start on
    again when this returns. Raises DamagedCheckpointError if it has no trailer."""
    num_bytes = file.seek(0, os.SEEK_END)
    file.seek(max(0, num_bytes - TRAILER_BYTES))
    sha256 = sha256_of_trailer(file.read(), file.name)
    file.seek(0)
    return num_bytes, sha256


def sha256_of_trailer(trailer: bytes, name: str) -> str:
    """What the last bytes of a checkpoint state. Raises DamagedCheckpointError naming the file."""
    if trailer[:8] != b"\nsha256 " or len(trailer) != TRAILER_BYTES:
        raise DamagedCheckpointError(f"{name} is not a whole checkpoint of this program")
    return trailer[8:-1].decode("ascii", "replace")


def load(path: Path) -> dict:
    """Verify a checkpoint and read it onto the CPU."""
    verify(path)
    # Onto the CPU: a run may have been saved on a GPU that is not here any more.
    return torch.load(path, map_location="cpu", weights_only=True)


def recover_newest(folder: Path, say: Callable[[str], None], may_rename: bool = True) -> int:
    """Step of the newest checkpoint that is whole, after moving damaged newer ones out of the way;
    -1 if there are no checkpoints.

    Damaged newer ones are reported through `say` and, by the one process that may, renamed to
    *.corrupt, never deleted. If every file is damaged, nothing is renamed and
    DamagedCheckpointError is raised: starting over would lose the run.
    """
    damaged: list[tuple[Path, str]] = []
    for step in reversed(steps_in(folder)):
        try:
            verify(step_path(folder, step))
        except DamagedCheckpointError as error:
            damaged.append((step_path(folder, step), str(error)))
            continue
        # Only now that a whole one is found. They must be renamed, or `prune` would count them and
        # delete a good one instead.
        for path, reason in damaged if may_rename else []:
            say(f"{reason}; renamed to {put_aside(path).name}, resuming from step {step}")
        return step
    if damaged:
        raise DamagedCheckpointError(
            f"no checkpoint in {folder} is whole: {damaged[0][1]}. Put a good copy there, "
            "start over with --fresh --overwrite, or give another --run_dir"
        )
    return recover_best(folder, say, may_rename) if (folder / BEST).exists() else -1


def recover_best(folder: Path, say: Callable[[str], None], may_link: bool) -> int:
    """Step of best.pt, if only that is left of a run; it is a full checkpoint too.

    The one process that may write also gives it a step file's name. Raises DamagedCheckpointError.
    """
    try:
        step = load(folder / BEST)["step"]
    except DamagedCheckpointError as error:
        raise DamagedCheckpointError(
            f"no step_*.pt in {folder}, and {error}. Put a good copy there, start over with "
            "--fresh --overwrite, or give another --run_dir"
        ) from None
    if may_link:
        say(f"no step_*.pt in {folder}: resuming from {BEST}, the checkpoint of step {step}")
        link(folder / BEST, step_path(folder, step))
    return step
