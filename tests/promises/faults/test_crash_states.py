"""Power cuts: every state of the disk that a save can leave behind leads to a whole checkpoint.

The system calls of four real background saves are recorded by strace and replayed, up to every one
of them, into an empty folder: once as a kill leaves it, and then as a power cut may, with any part
of what was written but not yet synced, and of the renames, links and deletions since the folder was
last synced. tests/records/test_checkpoint.py kills a process that saves, and fills a
disk.
"""

import itertools
import os
import random
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from support.commands import PROGRAM_PATH, REPOSITORY, program_words, run
from support.needs import needs

from resnet50.records import checkpoint

pytestmark = needs("strace")

BEST_AFTER = {0: (None, 1), 1: (1,), 2: (1, 3), 3: (3,), 4: (3,)}  # steps that best.pt may hold
CALLS = "openat,write,pwrite64,writev,lseek,ftruncate,fsync,fdatasync,rename,renameat,renameat2,"
CALLS += "link,linkat,unlink,unlinkat,close,mkdir,mkdirat,dup,dup2"
STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


@dataclass(frozen=True)
class Call:
    """One system call that succeeded."""

    name: str
    strings: list[bytes]
    words: str  # its arguments as strace writes them
    result: int


def calls_of(trace: str) -> list[Call]:
    """The calls in the order in which they ended."""
    begun, calls = {}, []
    for line in trace.splitlines():
        pid, _, text = line.partition(" ")
        text = text.strip()
        if text.endswith("<unfinished ...>"):
            begun[pid] = text.removesuffix("<unfinished ...>")
            continue
        if text.startswith("<..."):
            text = begun.pop(pid) + text.partition("resumed>")[2]
        match = re.match(r"(\w+)\((.*)\)\s*= (-?\d+)", text)
        if match and int(match[3]) >= 0:
            strings = [
                bytes.fromhex(string.replace("\\x", "")) for string in STRING.findall(match[2])
            ]
            calls.append(Call(match[1], strings, match[2], int(match[3])))
    return calls


@dataclass
class Disk:
    """Files in one folder: what is there now, and what would survive a power cut."""

    names: dict[str, int] = field(default_factory=dict)  # of files, by name
    data: dict[int, bytearray] = field(default_factory=dict)
    is_there: bool = False  # the folder
    synced_data: dict[int, bytes] = field(default_factory=dict)
    synced_names: dict[str, int] = field(default_factory=dict)
    is_folder_synced: bool = False
    pending: list[tuple] = field(default_factory=list)  # changes of names since the last sync

    def change(self, *change: object) -> None:
        apply(change, self.names)
        self.pending.append(change)

    def sync_names(self) -> None:
        self.synced_names, self.pending = dict(self.names), []


def apply(change: tuple, names: dict[str, int]) -> None:
    """Change names, as far as what is to be changed is there."""
    kind, name, other = change
    if kind == "create":
        names[name] = other
    elif kind == "unlink":
        names.pop(name, None)
    elif name in names:
        names[other] = names.pop(name) if kind == "rename" else names[name]


class Replay:
    """Does recorded calls over again, on a Disk."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.disk, self.num_saved = folder, Disk(), 0
        self._files: dict[int, tuple[int, int]] = {}  # by descriptor: file and position
        self._folders: dict[int, Path] = {}
        self._numbers = itertools.count()

    def do(self, call: Call) -> bool:
        """Returns whether it had to do with the folder, or with a save's end."""
        paths = [Path(os.fsdecode(string)) for string in call.strings]
        descriptor = int(call.words.split(",")[0]) if call.words[0].isdigit() else -1
        if call.name == "write" and call.strings == [b"saved"]:
            self.num_saved += 1
            return True
        if call.name == "close":
            self._files.pop(descriptor, None)
            self._folders.pop(descriptor, None)
            return False
        if call.name == "openat":
            return self._open(paths[0], call)
        if descriptor in self._files or descriptor in self._folders:
            return self._use(descriptor, call)
        if any(self.folder in (path, path.parent) for path in paths):
            return self._name(call.name, paths)
        return False

    def _open(self, path: Path, call: Call) -> bool:
        if path in (self.folder, self.folder.parent):
            self._folders[call.result] = path
            return False
        if path.parent != self.folder or "O_RDONLY" in call.words:
            return False
        assert "O_CREAT|O_TRUNC" in call.words, call.words
        number = next(self._numbers)
        self.disk.data[number] = bytearray()
        self.disk.change("create", path.name, number)
        self._files[call.result] = (number, 0)
        return True

    def _use(self, descriptor: int, call: Call) -> bool:
        disk = self.disk
        if descriptor in self._folders:
            assert call.name == "fsync", call.name
            if self._folders[descriptor] == self.folder:
                disk.sync_names()
            else:
                disk.is_folder_synced = disk.is_there
            return True
        number, at = self._files[descriptor]
        if call.name == "write":
            disk.data[number][at : at + call.result] = call.strings[0][: call.result]
            self._files[descriptor] = (number, at + call.result)
        elif call.name == "lseek":
            self._files[descriptor] = (number, call.result)
        else:
            assert call.name in ("fsync", "fdatasync"), call.name
            disk.synced_data[number] = bytes(disk.data[number])
        return call.name != "lseek"

    def _name(self, name: str, paths: list[Path]) -> bool:
        names = [path.name for path in paths]
        if name.startswith("mkdir"):
            self.disk.is_there = True
        elif name.startswith("unlink"):
            self.disk.change("unlink", names[0], None)
        else:
            assert name.removesuffix("at").removesuffix("at2") in ("rename", "link"), name
            self.disk.change("link" if "link" in name else "rename", *names)
        return True


Files = tuple[dict[str, int], dict[int, bytes]]  # numbers by name, contents by number


def after_a_kill(disk: Disk, rng: random.Random) -> list[Files]:
    """What is there, and the same with the last write cut short."""
    whole = {number: bytes(data) for number, data in disk.data.items()}
    states = [(dict(disk.names), whole)]
    for number in disk.names.values():
        if number not in disk.synced_data and whole[number]:
            cut = whole[number][: rng.randrange(len(whole[number]))]
            states.append((dict(disk.names), whole | {number: cut}))
    return states


def after_a_power_cut(disk: Disk, rng: random.Random) -> list[Files]:
    """Every beginning, and some other choices, of the changes that were not synced; with all, none
    and a part of what was written, and with zeros in its place."""
    pending = disk.pending
    choices = [tuple(pending[:length]) for length in range(len(pending) + 1)]
    choices += [tuple(c for c in pending if c is not lost) for lost in pending]
    choices += [tuple(c for c in pending if rng.random() < 0.5) for _ in range(8)]
    states = []
    for choice in dict.fromkeys(choices):
        names = dict(disk.synced_names)
        for change in choice:
            apply(change, names)
        losses = [len, lambda data: 0, None, *[lambda data: rng.randrange(len(data) + 1)] * 6]
        states += [(names, {n: survivor(disk, n, loss) for n in disk.data}) for loss in losses]
    return states


def survivor(disk: Disk, number: int, loss: object) -> bytes:
    """A file's content after a power cut; loss: how much of what was not synced is there, or None
    for zeros as if the length alone had come to the disk."""
    data, synced = bytes(disk.data[number]), disk.synced_data.get(number, b"")
    if data == synced:
        return data
    unsynced = data[len(synced) :]
    return synced + (bytes(len(unsynced)) if loss is None else unsynced[: loss(unsynced)])


def write_out(files: Files, folder: Path) -> None:
    """Put a state into an empty folder, links as links."""
    names, data = files
    folder.mkdir(parents=True)
    written: dict[int, Path] = {}
    for name, number in names.items():
        if number in written:
            os.link(written[number], folder / name)
        else:
            written[number] = folder / name
            (folder / name).write_bytes(data[number])


def check(folder: Path, num_saved: int) -> None:
    """A run resumes from the newest checkpoint that was completed, or from the one after it."""
    said: list[str] = []
    step = checkpoint.recover_newest(folder, said.append)
    assert step in (num_saved or -1, num_saved + 1), f"step {step} after {num_saved} saves: {said}"
    if step > 0:
        state = checkpoint.load(checkpoint.step_path(folder, step))
        assert state["step"] == step and all((w == step).all() for w in state["tensors"])
    assert not said, "no file under a checkpoint's name is ever damaged"
    best = folder / checkpoint.BEST
    best_step = checkpoint.load(best)["step"] if best.exists() else None
    assert best_step in BEST_AFTER[num_saved], f"best.pt of {best_step} after {num_saved} saves"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> tuple[Path, list[Call]]:
    """The folder of the four saves, and all calls that were made."""
    folder = tmp_path_factory.mktemp("recorded") / "run" / "checkpoints"
    folder.parent.mkdir()
    trace = folder.parent.parent / "trace"
    words = ["strace", "-f", "--seccomp-bpf", "-xx", "-s", "10000000", "-o", trace]
    words += ["-e", f"trace={CALLS}"]
    result = run([*words, *program_words("save_in_background", folder)], REPOSITORY, **PROGRAM_PATH)
    assert result.code == 0, result.err
    return folder, calls_of(trace.read_text())


@pytest.mark.parametrize(
    "states_of, at_least", [(after_a_kill, 40), (after_a_power_cut, 200)], ids=["kill", "power cut"]
)
def test_every_state_leads_to_the_last_checkpoint_or_the_one_before(
    recorded, tmp_path, states_of, at_least
):
    folder, calls = recorded
    replay, rng, seen = Replay(folder), random.Random(0), set()
    for call in calls:
        if not replay.do(call):
            continue
        if replay.num_saved and states_of is after_a_power_cut:
            assert replay.disk.is_folder_synced, "the folder itself may be gone"
        for names, data in states_of(replay.disk, rng):
            key = hash(
                (*((name, names[name], data[names[name]]) for name in names), replay.num_saved)
            )
            if key not in seen:
                seen.add(key)
                place = tmp_path / str(len(seen))
                write_out((names, data), place)
                check(place, replay.num_saved)
                shutil.rmtree(place)
    print(f"{len(seen)} states")
    assert replay.num_saved == 4
    assert replay.disk.names.keys() == {path.name for path in folder.iterdir()}
    assert len(seen) >= at_least


def test_the_replay_ends_with_the_very_files(recorded, tmp_path):
    folder, calls = recorded
    replay = Replay(folder)
    assert sum(map(replay.do, calls)) > 30
    write_out((replay.disk.names, replay.disk.data), tmp_path / "replayed")
    for path in folder.iterdir():
        assert (tmp_path / "replayed" / path.name).read_bytes() == path.read_bytes()
    assert torch.load(folder / "step_000000004.pt", weights_only=True)["step"] == 4
