"""The files that a pack is made of, with size and time of each, so that changes are noticed.

For an archive, these are the archive file's own. A report keeps a sha256 over all, and for sets
that are not huge also eight bytes per file, which tell how many have changed.
"""

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from resnet50.data.unused import printable
from resnet50.packing.archives import LISTING_THREADS
from resnet50.packing.data_set import Picture, Source

MOST_MARKS = 100_000  # files; more would make report.json a file of megabytes
CHUNK = 256  # files that a thread examines at a time
MARK_BYTES = 8  # four of the path's hash, four of size and time
Stamp = tuple[int, int] | None  # size in bytes, time of the last change in ns; None: not there
Stamps = Mapping[str, Stamp]


def stamp(path: str) -> Stamp:
    """Size and time of a file."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def stamps_of(source: Source) -> dict[str, Stamp]:
    """Size and time of every file that holds pictures; Fashion-MNIST's are in none."""
    pictures = (picture for split in source.splits.values() for picture in split)
    files = {picture.member.file for picture in pictures if not isinstance(picture.member, bytes)}
    files |= {str(path.absolute()) for path in (*source.tables, *source.archives)}
    ordered = sorted(files)
    chunks = [ordered[at : at + CHUNK] for at in range(0, len(ordered), CHUNK)]
    with ThreadPoolExecutor(LISTING_THREADS) as pool:  # a network volume serves several at a time
        stamped = pool.map(lambda chunk: [stamp(path) for path in chunk], chunks)
        return dict(zip(ordered, chain.from_iterable(stamped), strict=True))


def marker(pictures: Sequence[Picture], stamps: Stamps) -> Callable[[int], bytes]:
    """What identifies the file of a picture, by the picture's number in its split."""

    def mark(index: int) -> bytes:
        member = pictures[index].member
        stamped = None if isinstance(member, bytes) else stamps.get(member.file)
        return repr((pictures[index].name, stamped)).encode(errors="surrogateescape")

    return mark


def digest_of(pictures: Sequence[Picture], stamps: Stamps) -> str:
    """sha256 over the files of a split."""
    mark, digest = marker(pictures, stamps), hashlib.sha256()
    for index in range(len(pictures)):
        digest.update(mark(index))
    return digest.hexdigest()


def to_json(source: Source, root: Path, stamps: Stamps) -> dict[str, object]:
    """What report.json records about a source's files; {} if it has none."""
    if source.archives:
        files = {str(path.absolute()): stamps[str(path.absolute())] for path in source.archives}
        return {"archives": {printable(path): stamped for path, stamped in files.items()}}
    marks = _marks(root, stamps)
    if not marks:
        return {}
    return {
        "files": len(marks),
        "sha256": hashlib.sha256(b"".join(sorted(marks))).hexdigest(),
        "marks": _packed(marks) if len(marks) <= MOST_MARKS else "",
    }


def _packed(marks: Iterable[bytes]) -> str:
    return base64.b64encode(b"".join(sorted(marks))).decode()


def _marks(root: Path, stamps: Stamps) -> dict[bytes, str]:
    """Path, relative to the source, by its mark."""
    marks = {}
    begin = f"{root.absolute()}/"
    for path, stamped in stamps.items():
        name = path.removeprefix(begin)
        parts = (name.encode(errors="surrogateescape"), repr(stamped).encode())
        size = MARK_BYTES // len(parts)
        mark = b"".join(hashlib.blake2b(part, digest_size=size).digest() for part in parts)
        marks[mark] = name
    return marks


def archives_changed(kept: Mapping[str, object]) -> str:
    """Which archives have changed since they were packed; "" if none."""
    differing = []
    for path, was in kept["archives"].items():
        now = stamp(path)
        if now is None:
            differing.append(f"{path} is gone")
        elif list(now) != was:
            differing.append(f"{path} has changed")
    return ", ".join(differing)


def files_changed(kept: Mapping[str, object], root: Path, stamps: Stamps) -> str:
    """How many files are new, changed and gone since they were packed; "" if none is."""
    marks = _marks(root, stamps)
    if hashlib.sha256(b"".join(sorted(marks))).hexdigest() == kept["sha256"]:
        return ""
    if not kept["marks"]:
        return f"{kept['files']:,} files then, {len(marks):,} now, or different ones"
    raw = base64.b64decode(kept["marks"])
    half = MARK_BYTES // 2
    before = {raw[i : i + MARK_BYTES] for i in range(0, len(raw), MARK_BYTES)}
    paths_before = {mark[:half] for mark in before}
    other = {mark: name for mark, name in marks.items() if mark not in before}
    changed = sorted(name for mark, name in other.items() if mark[:half] in paths_before)
    new = sorted(name for mark, name in other.items() if mark[:half] not in paths_before)
    num_gone = len(paths_before - {mark[:half] for mark in marks})
    parts = [
        f"{len(names):,} {kind} (such as {printable(names[0])})"
        for kind, names in (("new", new), ("changed", changed))
        if names
    ]
    return ", ".join([*parts, *([f"{num_gone:,} gone"] if num_gone else [])])
