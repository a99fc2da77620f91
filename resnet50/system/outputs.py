"""What a command writes at its end: tried before the work, and saved elsewhere on failure."""

import json
import os
import tempfile
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

# How an earlier output is recognized: a JSON object by some of its keys, a table by its beginning.
Mark = Collection[str] | bytes


def check(
    files: Mapping[str, Path | None],
    marks: Mapping[str, Mark],
    inputs: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Raise ValueError, naming the option, for a file that could not be written, or that exists
    and is not an earlier output.

    files: path by option, None if not requested; marks: of the outputs, by option; inputs: what is
    read, by option, which no output may replace. Existing files are left unchanged.
    """
    seen: dict[Path, str] = {
        Path(str(value)).resolve(): option for option, value in inputs.items() if value
    }
    for option, path in files.items():
        if path is None:
            continue
        if (error := _error_of_opening(path)) is not None:
            reason = f"{error.strerror}: give a file in a folder"
            raise ValueError(f"--{option} {path} cannot be written: {reason}")
        other = seen.setdefault(path.resolve(), option)
        if other != option and not _is_special(path):
            raise ValueError(f"--{option} and --{other} are both {path}: give different files")
        if not may_replace(path, marks[option]):
            raise ValueError(
                f"--{option} {path} exists, and is not an earlier output of this option: give "
                "another name, or move that file away"
            )


def may_replace(path: Path, mark: Mark) -> bool:
    """Whether nothing is lost by writing there: no file yet, an empty one, or an earlier output."""
    if _is_special(path) or not path.is_file() or not path.stat().st_size:
        return True
    if isinstance(mark, bytes):
        with open(path, "rb") as file:
            return file.read(len(mark)) == mark
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(values, dict) and values.keys() >= set(mark)


def _error_of_opening(path: Path) -> OSError | None:
    """The error of opening a file for writing, if any; nothing is changed."""
    try:
        if _is_special(path):
            return None  # opening it would wait for its reader, or act on it
        is_new = not os.path.lexists(path)
        with open(path, "ab"):
            pass
        if is_new:
            path.unlink(missing_ok=True)  # another rank may have removed it
    except OSError as error:
        return error
    return None


def _is_special(path: Path) -> bool:
    """Whether the path is a pipe or a device."""
    return path.exists() and not path.is_file() and not path.is_dir()


def check_folder(option: str, folder: Path) -> None:
    """Raise ValueError, naming the option, for a folder into which no file could be written.

    It is tried; nothing is left of the try.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror
        raise ValueError(
            f"--{option} {folder} cannot be written: {reason}: give a folder"
        ) from None
    finally:
        for path in made:
            with suppress(OSError):  # it was not made, or another rank is trying too
                path.rmdir()


def write_or_keep(option: str, path: Path, write: Callable[[Path], None]) -> str:
    """Write a file or a folder; returns the message for the user if that failed, or "".

    write: called with the path, and again with one in the temporary folder if that fails, such as
    on a full disk: computed results must not be lost.
    """
    try:
        write(path)
    except OSError as error:
        problem = f"--{option} {path} could not be written: {error.strerror}"
    else:
        return ""
    try:
        kept = Path(tempfile.mkdtemp(prefix="kept_")) / path.name
        write(kept)
    except OSError:
        return problem
    return f"{problem}; it was saved to {kept}"
