"""--mirror: what is copied, in which order; how it is restored; what happens when it cannot be."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from support.needs import needs_root
from support.runs import newest_checkpoint

from resnet50.config.train_config import TrainConfig
from resnet50.records import checkpoint, run_folder, status
from resnet50.run import mirror, mirror_manifest, mirror_start, supervisor
from resnet50.run.mirror import Mirror
from resnet50.run.mirror_lock import LOCK, MirrorLock
from resnet50.run.mirror_manifest import POINTER
from resnet50.system.folder_store import FolderStore
from resnet50.system.store import Store, open_store

RUN = "ab" * 16


class Killed(BaseException):
    """The process ends here."""


class Watched(FolderStore):
    """A folder that notes what is done to it, in order, and may end the process before it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "--mirror")
        self.done: list[str] = []
        self.before: Callable[[str], None] = lambda what: None

    def _note(self, what: str) -> None:
        self.before(what)
        self.done.append(what)

    def put(self, name: str, data: bytes) -> None:
        self._note(f"put {name}")
        super().put(name, data)

    def put_file(self, name: str, file) -> None:
        self._note(f"put {name}")
        super().put_file(name, file)

    def create(self, name: str, data: bytes) -> str | None:
        self._note(f"put {name}")
        return super().create(name, data)

    def delete(self, name: str) -> None:
        self._note(f"delete {name}")
        super().delete(name)


@pytest.fixture
def run_dir(tmp_path) -> Path:
    """The folder of a run that has yet to write a checkpoint."""
    folder = tmp_path / "run"
    folder.mkdir()
    settings = TrainConfig(recipe="tiny", run_dir=str(folder)).to_json()
    (folder / "config.json").write_text(json.dumps({"run": RUN, "settings": settings}))
    (folder / "log.jsonl").write_text('{"kind": "event", "step": 0, "text": "begun"}\n')
    return folder


def write(run_dir: Path, step: int, keep: int = 3) -> None:
    """What the writer of checkpoints leaves, and the log of that step."""
    folder = run_folder.checkpoints_dir(run_dir)
    checkpoint.save(folder, step, {"step": step, "x": torch.full((64,), step)})
    checkpoint.prune(folder, keep)
    with open(run_dir / "log.jsonl", "a") as file:
        file.write(json.dumps({"kind": "train", "step": step}) + "\n")


def mirror_of(run_dir: Path, store: Store) -> Mirror:
    more = {"owner": "me", "pid": os.getpid(), "keep": 2, "data": {}}
    return Mirror(store.url, run_dir, store=store, **more)


@pytest.fixture
def started(run_dir, tmp_path) -> Iterator[Mirror]:
    """A mirror at work, of a run with a first checkpoint."""
    write(run_dir, 3)
    copying = mirror_of(run_dir, Watched(tmp_path / "mirror"))
    copying.start(3, -1)
    yield copying
    copying._end.set()
    copying._wake.set()


def restored(store: Store, folder: Path) -> int:
    """The step with which a new folder begins."""
    manifest, _ = mirror_manifest.read(store)
    manifest = mirror_manifest.with_unnamed(store, manifest)
    if not manifest.copies:
        return -1
    said = []
    mirror_start.restore(store, manifest, folder, said.append)
    assert run_folder.read_id(folder) == RUN and "restored from" in said[-1]
    assert not [text for text in said if "warning" in text]
    step = checkpoint.newest_step(run_folder.checkpoints_dir(folder))
    assert checkpoint.load(newest_checkpoint(folder))["step"] == step
    logged = (folder / "log.jsonl").read_text()
    assert f'"step": {step}}}' in logged and "restored" in logged
    return step


def test_small_files_then_checkpoint_then_pointer_and_old_ones_go_last(run_dir, tmp_path):
    store = Watched(tmp_path / "mirror")
    copying = mirror_of(run_dir, store)
    copying._begin()
    assert store.done == [f"put {POINTER}"]
    for step in (3, 6, 9):
        store.done.clear()
        write(run_dir, step)
        copying.note(step, is_best=step == 3)
        copying._copy_all()
    names = [what.split(".")[0] for what in store.done]
    assert names == [
        "put log",
        "put checkpoints/step_000000009",
        f"put {POINTER}".removesuffix(".json"),
    ], "config.json has not changed, and the best and the newest two are kept"
    store.done.clear()
    write(run_dir, 12)
    copying.note(12, is_best=False)
    copying._copy_all()
    assert store.done[-2:][0] == f"put {POINTER}"
    assert store.done[-1].startswith("delete checkpoints/step_000000006.")
    manifest, _ = mirror_manifest.read(store)
    assert [copy.step for copy in manifest.copies] == [3, 9, 12] and manifest.best_step == 3
    assert restored(store, tmp_path / "new") == 12
    best = checkpoint.load(tmp_path / "new/checkpoints/best.pt")
    assert best["step"] == 3


def test_ended_before_any_of_its_writes_it_has_the_newest_checkpoint_or_the_one_before(
    run_dir, tmp_path
):
    """Each kill is followed by a start on an empty disk, which copies on."""
    for number in range(40):
        store = Watched(tmp_path / f"mirror{number}")
        left = [number]

        def end(what: str, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed

        folder = tmp_path / f"first{number}"
        folder.mkdir()
        (folder / "config.json").write_bytes((run_dir / "config.json").read_bytes())
        store.before = end
        was_killed = True
        with suppress(Killed):
            copying = mirror_of(folder, store)
            copying._begin()
            for step in range(3, 16, 3):
                write(folder, step)
                copying.note(step, is_best=True)
                copying._copy_all()
            was_killed = False
        if not was_killed:
            break  # it has been ended before each of them
        store.before = lambda what: None
        whole = [int(name[17:26]) for name in store.list("checkpoints")]
        if store.get(POINTER):
            assert restored(store, tmp_path / f"second{number}") == max(whole, default=-1)
    assert number > 15


def test_a_store_that_hangs_holds_up_nobody(started):
    gate, has_come = threading.Event(), threading.Event()

    def hang(what: str) -> None:
        if "checkpoints" in what:
            has_come.set()
            gate.wait(20)

    assert started._idle.wait(20)
    started._store.before = hang
    write(started._run_dir, 6)
    started.note(6, is_best=False)
    assert has_come.wait(20)
    began = time.monotonic()
    started.note(9, is_best=False)
    assert started.status()["mirrored_step"] == 3
    assert not started.finish(lambda: 0.0, lambda: None) and "has step 3 of 9" in started.standing()
    assert time.monotonic() - began < 0.5
    gate.set()


def test_checkpoints_that_come_while_it_copies_are_passed_over(started):
    gate = threading.Event()
    assert started._idle.wait(20)
    started._store.before = lambda what: gate.wait(20) and None
    for step in (6, 9, 12, 15):
        write(started._run_dir, step)
        started.note(step, is_best=False)
    gate.set()
    assert started._idle.wait(20)
    manifest, _ = mirror_manifest.read(started._store)
    assert manifest.step == 15 and len(manifest.copies) == 2
    assert started.finish(lambda: 20.0, lambda: None) and started._store.get(LOCK) is None


def test_another_start_takes_over_and_this_one_stops_copying_and_says_so(started, monkeypatch):
    assert started._idle.wait(20)
    monkeypatch.setattr(mirror, "BEAT_S", 0.05)
    record = json.loads(started._store.get(LOCK)[0]) if started._store.get(LOCK) else {}
    started._store.put(LOCK, json.dumps(record | {"owner": "other"}).encode())
    lock = MirrorLock(started._store, "me", os.getpid())
    assert not lock.adopt()
    # Its next pointer would replace the other's: the other's is another version.
    manifest, version = mirror_manifest.read(started._store)
    started._store.replace(POINTER, manifest.to_bytes(), version)
    write(started._run_dir, 6)
    started.note(6, is_best=False)
    wait_until(lambda: started._is_taken)
    before = started._store.get(POINTER)
    write(started._run_dir, 9)
    started.note(9, is_best=False)
    assert started.finish(lambda: 20.0, lambda: None), "nothing more is to be done"
    assert started._store.get(POINTER) == before
    assert [text for text in started._messages if "another start has taken over" in text]
    assert len(started._messages) == 1


def wait_until(condition: Callable[[], object], timeout_s: float = 30) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.02)


def test_one_who_wrote_late_does_not_stop_the_one_who_has_the_lock(started, monkeypatch):
    monkeypatch.setattr(mirror, "FIRST_PAUSE_S", 0.05)
    wait_until(lambda: started._store.get(LOCK) and started._idle.is_set())
    manifest, version = mirror_manifest.read(started._store)
    started._store.replace(POINTER, manifest.to_bytes(), version)
    write(started._run_dir, 6)
    started.note(6, is_best=False)
    assert started._idle.wait(20) and not started._is_taken
    assert mirror_manifest.read(started._store)[0].step == 6
    assert "wrote there once more" in started._messages[0] and len(started._messages) == 2
    assert started.finish(lambda: 20.0, lambda: None)


@needs_root
def test_a_full_disk_is_said_once_and_caught_up_with(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(mirror, "LONGEST_PAUSE_S", 0.2)
    monkeypatch.setattr(mirror, "FIRST_PAUSE_S", 0.1)
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True, timeout=20
    )
    try:
        (disk / "filler").write_bytes(b"x" * 60_000)
        write(run_dir, 3)
        copying = mirror_of(run_dir, open_store(str(disk / "mirror"), "--mirror"))
        copying.start(3, -1)
        wait_until(lambda: copying._messages)
        assert not copying._idle.is_set()
        (disk / "filler").unlink()
        assert copying.finish(lambda: 20.0, lambda: None)
        first, last = copying._messages
        assert "No space left on device" in first and "minutes behind" in first
        assert last.endswith("has caught up: step 3")
    finally:
        copying._end.set()
        subprocess.run(["umount", "--lazy", disk], check=True, timeout=20)


def test_a_damaged_checkpoint_there_costs_only_itself(started, tmp_path):
    write(started._run_dir, 6)
    started.note(6, is_best=False)
    assert started._idle.wait(20)
    manifest, _ = mirror_manifest.read(started._store)
    path = Path(started._store.url) / manifest.copies[-1].name
    path.write_bytes(path.read_bytes()[:-100])
    said = []
    mirror_start.restore(started._store, manifest, tmp_path / "new", said.append)
    assert "is damaged: beginning from step 3" in said[0] and "step 3, run" in said[1]
    assert checkpoint.steps_in(tmp_path / "new/checkpoints") == [3]


@pytest.mark.parametrize("paid, kept", [(7000, 8000), (9000, 9000)])
def test_an_older_folder_of_the_run_is_brought_up_to_date(started, tmp_path, paid, kept):
    """A disk that was left behind, and is mounted again after the run went on elsewhere."""
    assert started._idle.wait(20)
    restored(started._store, tmp_path / "old")
    (tmp_path / "old/.paid_ms").write_text("8000\n")
    started._store.put(".paid_ms", b"%d\n" % paid)
    (tmp_path / "old/budget_events.jsonl").write_text('{"step": 5}\n')
    write(started._run_dir, 6)
    started.note(6, is_best=False)
    assert started._idle.wait(20)
    assert restored(started._store, tmp_path / "old") == 6
    assert checkpoint.steps_in(tmp_path / "old/checkpoints") == [3, 6]
    assert status.kept_paid_s(tmp_path / "old") == kept / 1000
    assert not (tmp_path / "old/budget_events.jsonl").exists(), "the run went on without it"


def test_a_signal_shortens_the_last_wait(started):
    gate, limits_s = threading.Event(), [600.0]
    assert started._idle.wait(20)
    started._store.before = lambda what: gate.wait(20) and None
    write(started._run_dir, 6)
    started.note(6, is_best=False)
    threading.Timer(0.3, lambda: limits_s.append(0.1)).start()
    began = time.monotonic()
    assert not started.finish(lambda: limits_s[-1], lambda: None)
    assert time.monotonic() - began < 10
    gate.set()


@pytest.mark.parametrize("step, state", [(3, "done"), (6, "interrupted")])
def test_a_run_that_is_done_is_so_elsewhere_only_with_its_last_checkpoint(
    started, tmp_path, step, state
):
    """status.json is copied before the checkpoint."""
    assert started._idle.wait(20)
    ended = {"state": "done", "step": step, "attempt": "a", "stop_step": step, "mirrored_step": 0}
    started._store.put("status.json", json.dumps(ended).encode())
    restored(started._store, tmp_path / "new")
    found = status.read_status(tmp_path / "new")
    assert found == ended | {"state": state, "mirrored_step": 3}


def test_a_run_that_is_done_and_not_copied_is_not_left_alone():
    cfg = TrainConfig(mirror="s3://bucket/run")
    assert not supervisor.is_mirrored(cfg, {"step": 6, "mirrored_step": 3})
    assert not supervisor.is_mirrored(cfg, {"step": 6})
    assert supervisor.is_mirrored(cfg, {"step": 6, "mirrored_step": 6})
    assert supervisor.is_mirrored(TrainConfig(), {"step": 6})


def test_files_that_were_removed_meanwhile_are_copied_again(started, tmp_path, monkeypatch):
    monkeypatch.setattr(mirror, "FIRST_PAUSE_S", 0.05)
    assert started._idle.wait(20)
    for name in started._store.list():
        if name != LOCK:
            started._store.delete(name)
    write(started._run_dir, 6)
    started.note(6, is_best=False)
    assert started._idle.wait(20)
    assert "its files are gone: copying all again" in started._messages[0]
    assert restored(started._store, tmp_path / "new") == 6


def test_a_newer_best_checkpoint_is_not_taken_for_an_older_one(run_dir, tmp_path):
    store = Watched(tmp_path / "mirror")
    copying = mirror_of(run_dir, store)
    copying._begin()
    for step in (3, 6, 9):
        write(run_dir, step, keep=1)
    folder = run_folder.checkpoints_dir(run_dir)
    checkpoint.mark_best(checkpoint.step_path(folder, 9))
    copying._best_step = 6
    assert copying._copy_checkpoint(6) is None, "it is gone, and best.pt is that of step 9"
    copying._best_step = 9
    checkpoint.step_path(folder, 9).unlink()
    assert copying._copy_checkpoint(9).step == 9


def test_the_paid_time_is_copied_between_two_checkpoints(started, monkeypatch):
    monkeypatch.setattr(mirror, "BEAT_S", 0.05)
    assert started._idle.wait(20)
    (started._run_dir / ".paid_ms").write_text("5000\n")
    wait_until(lambda: started._store.get(".paid_ms"))
    assert mirror_manifest.read(started._store)[0].step == 3
