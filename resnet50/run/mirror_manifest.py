"""What lies in a mirror: mirror.json points to whole checkpoints, and names the run.

    mirror.json       the pointer: run's id, commit, data, and step, name, bytes and sha256 of each
                      checkpoint; written after them, so that what it names is there and whole
    checkpoints/step_000001200.3fa9c1d2e4b5.pt    with the first digits of the sha256 in the name:
                      two writers, or two attempts with other bits, never write the same file
    config.json, log.jsonl, metrics.csv, ...      as in the run's folder
    lock.json         who writes there (mirror_lock.py)

A checkpoint there is the same file as in the run's folder, and can be used as one.
"""

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from resnet50.records import checkpoint, ownership, status
from resnet50.system.store import Store, StoreError

POINTER = "mirror.json"
FORMAT = 1
# A leftover of a copy that was cut short, in a folder, has one more ending.
COPY_NAME = re.compile(r"checkpoints/step_(\d{9})\.[0-9a-f]{12}\.pt(\.partial)?")
HEX_64 = re.compile(r"[0-9a-f]{64}")
# The small files of a run; config.json first, since with it begins a folder of this run.
SMALL_FILES = (
    *(ownership.CONFIG, ownership.LOG, ownership.METRICS, "metrics.md", "curves.png"),
    *(ownership.RECORD, *ownership.IN_RANGE_TEST, status.FILE),
)


@dataclass(frozen=True)
class Copy:
    """One checkpoint in a mirror."""

    step: int
    name: str
    num_bytes: int
    sha256: str  # of all bytes before the file's trailer, which repeats it

    def __post_init__(self) -> None:
        is_whole = isinstance(self.step, int) and isinstance(self.num_bytes, int)
        is_whole = is_whole and HEX_64.fullmatch(self.sha256) is not None
        # Names come from outside: none may lead to another place.
        if not is_whole or self.name != name_of(self.step, self.sha256):
            raise ValueError(f"no entry of a checkpoint: {self.name!r}")


@dataclass(frozen=True)
class Manifest:
    """What mirror.json holds."""

    run: str  # the run's id, from its config.json
    commit: str  # of the code that wrote it
    data: dict = field(default_factory=dict)  # fingerprints of both splits
    copies: tuple[Copy, ...] = ()  # oldest first
    best_step: int = -1

    @property
    def step(self) -> int:
        """Of the newest checkpoint there; -1 without one."""
        return self.copies[-1].step if self.copies else -1

    def copy_of(self, step: int) -> Copy | None:
        return next((copy for copy in self.copies if copy.step == step), None)

    def to_bytes(self) -> bytes:
        return (json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n").encode()


def with_unnamed(store: Store, manifest: Manifest) -> Manifest:
    """With the later checkpoints, too, that were copied before the pointer could be written.

    Each is whole if it is there at all, and its own trailer has its sha256.
    """
    found = []
    for name, entry in store.list(ownership.CHECKPOINTS).items():
        match = COPY_NAME.fullmatch(name)
        if match and not match[2] and int(match[1]) > manifest.step:
            trailer = store.read(name, max(0, entry.num_bytes - checkpoint.TRAILER_BYTES), 1 << 10)
            with suppress(ValueError):  # no trailer, or another name's
                sha256 = checkpoint.sha256_of_trailer(trailer, name)
                found.append(Copy(int(match[1]), name, entry.num_bytes, sha256))
    return replace(manifest, copies=pruned([*manifest.copies, *found], 1 << 30, -1))


def name_of(step: int, sha256: str) -> str:
    path = checkpoint.step_path(Path(ownership.CHECKPOINTS), step)
    return str(path.with_suffix(f".{sha256[:12]}.pt"))


def pruned(copies: Iterable[Copy], keep: int, best_step: int) -> tuple[Copy, ...]:
    """The newest `keep` of them and the best one, oldest first, one a step (the last given)."""
    by_step = {copy.step: copy for copy in copies}
    newest = sorted(by_step)[-keep:]
    return tuple(by_step[step] for step in sorted({*newest, best_step} & by_step.keys()))


def read(store: Store) -> tuple[Manifest | None, str]:
    """What a mirror holds, and the pointer's version; (None, "") if it holds nothing.

    Raises ValueError if it is from a newer version of this program, and StoreError.
    """
    found = store.get(POINTER)
    if found is None:
        return None, ""
    where = f"{store.url}/{POINTER}"
    try:
        values = json.loads(found[0])
        number = values.pop("format")
        if number == FORMAT:
            copies = tuple(Copy(**copy) for copy in values.pop("copies"))
            return Manifest(**values, copies=copies), found[1]
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        text = f"it is damaged ({error}): put it right, or give another --mirror"
        raise StoreError(where, text, is_passing=False) from None
    raise ValueError(
        f"{where} was written by a newer version of this program (format {number}, here "
        f"{FORMAT}): update this one, or give another --mirror"
    )
