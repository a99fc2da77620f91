"""One writer at a time: who gets the lock of a mirror, when, and who learns that it has lost it."""

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import s3_server

from resnet50.run import mirror, mirror_keeper, mirror_lock
from resnet50.run.mirror_lock import LOCK, MirrorLock
from resnet50.run.mirror_manifest import POINTER, Manifest
from resnet50.system.apart import run_apart
from resnet50.system.store import Store, open_store


@pytest.fixture
def store(tmp_path) -> Store:
    return open_store(str(tmp_path / "mirror"), "--mirror")


@pytest.fixture
def quick(monkeypatch) -> None:
    """An owner is dead after half a second, and a start waits for one second."""
    monkeypatch.setattr(mirror_lock, "DEAD_S", 0.5)
    monkeypatch.setattr(mirror_lock, "PATIENCE_S", 1.0)
    monkeypatch.setattr(mirror_lock, "POLL_S", 0.05)


def ended_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def held_by(store: Store, **changes: object) -> None:
    """Leave a lock of another start, described as this process is but for these changes."""
    record = {"owner": "other", **mirror_lock.described(os.getpid()), **changes}
    store.put(LOCK, json.dumps(record).encode())


def owner_of(store: Store) -> str:
    return json.loads(store.get(LOCK)[0])["owner"]


def claim(store: Store, owner: str = "me") -> list[str]:
    """Claim the lock; returns what was said."""
    said = []
    MirrorLock(store, owner, os.getpid()).claim(said.append)
    return said


def test_a_free_lock_is_taken_without_a_word_and_freed(store):
    assert claim(store) == [] and owner_of(store) == "me"
    assert claim(store) == [], "the same start again, as after a crash of its ranks"
    MirrorLock(store, "other", os.getpid()).release()
    assert owner_of(store) == "me"
    MirrorLock(store, "me", os.getpid()).release()
    assert store.list() == {} or set(store.list()) == {".guard"}


def test_a_dead_process_of_this_machine_loses_it_at_once(store):
    held_by(store, pid=ended_process())
    began = time.monotonic()
    assert ["taken over from process" in text for text in claim(store)] == [True]
    assert time.monotonic() - began < 1 and owner_of(store) == "me"


def test_its_number_may_belong_to_another_process_by_now(store):
    held_by(store, started=1)
    assert "which has ended" in claim(store)[0]


@pytest.mark.parametrize("key", ["boot_id", "pid_namespace"])
def test_elsewhere_it_loses_it_when_its_beat_is_old(store, quick, key):
    """On another machine, or in another container of this one, where its number means nothing."""
    held_by(store, **{key: "another", "pid": ended_process(), "host": "node7"})
    began = time.monotonic()
    said = claim(store)
    assert time.monotonic() - began >= 0.4 and owner_of(store) == "me"
    assert "node7" in said[0] and "waiting up to" in said[0]
    assert "taken over" in said[1] and "no sign of life" in said[1]


def test_a_beat_that_is_old_already_is_not_waited_for(store, quick):
    held_by(store, boot_id="another")
    old_s = time.time() - 3600
    os.utime(Path(store.url) / LOCK, (old_s, old_s))
    began = time.monotonic()
    assert len(claim(store)) == 1 and time.monotonic() - began < 0.3


def test_a_living_owner_is_waited_for_and_then_named(store, quick):
    lock, ended = MirrorLock(store, "living", os.getpid()), threading.Event()
    lock._record["boot_id"] = "another"
    assert lock.adopt()

    def beat() -> None:
        while not ended.wait(0.1):
            assert lock.beat()

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(ValueError, match=f"in use by process {os.getpid()} on .*alive"):
            claim(store)
    finally:
        ended.set()
        thread.join()
    assert owner_of(store) == "living"


def test_an_owner_that_was_away_learns_that_it_has_lost(store):
    owner = MirrorLock(store, "before", ended_process())
    owner.claim(print)
    assert owner.beat() and owner.beat()
    claim(store)
    assert not owner.beat() and not owner.adopt()
    owner.release()
    assert owner_of(store) == "me"


def test_a_beat_whose_answer_was_lost_is_its_own(store):
    owner = MirrorLock(store, "me", os.getpid())
    owner.claim(print)
    MirrorLock(store, "me", os.getpid()).adopt()
    assert owner.beat() and owner.beat()


def test_of_many_that_take_over_one_wins(store, quick, monkeypatch):
    monkeypatch.setattr(mirror_lock, "DEAD_S", 60.0)
    held_by(store, pid=ended_process())
    results = []

    def try_it(name: str) -> None:
        mine = MirrorLock(store, name, os.getpid())
        try:
            mine.claim(lambda text: None)
        except ValueError:
            results.append("")
        else:
            results.append(name)

    threads = [threading.Thread(target=try_it, args=(f"start {n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results)[:-1] == [""] * 5 and sorted(results)[-1] == owner_of(store)


def test_machines_that_tell_no_boot_id_are_not_the_same_one(store, quick, monkeypatch, tmp_path):
    monkeypatch.setattr(mirror_lock, "BOOT_ID", tmp_path / "none")
    held_by(store, pid=ended_process())
    began = time.monotonic()
    assert "no sign of life" in claim(store)[-1] and time.monotonic() - began >= 0.4


def test_a_dead_lock_that_cannot_be_taken_over_is_tried_for_so_long_only(store, quick, monkeypatch):
    held_by(store, pid=ended_process())
    tries = []
    monkeypatch.setattr(store, "replace", lambda *words: tries.append(words))
    with pytest.raises(ValueError, match="is in use by"):
        claim(store)
    assert 2 < len(tries) < 10


def test_a_record_that_nobody_can_read_is_judged_by_its_age(store, quick):
    store.put(LOCK, b"{")
    assert "an unknown host" in claim(store)[0] and owner_of(store) == "me"


def test_the_record_says_whose_it_is(store):
    claim(store)
    record = json.loads(store.get(LOCK)[0])
    assert record["host"] == socket.gethostname() and record["pid"] == os.getpid()
    assert len(record["boot_id"]) == 36 and record["pid_namespace"].startswith("pid:[")


@pytest.mark.parametrize("mode", ["fine", "ignore"])
def test_a_bucket_has_it_too_and_a_server_without_conditions_is_warned_of(
    tmp_path, monkeypatch, mode
):
    with s3_server.serve(tmp_path) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.tell(mode)

        def work(say) -> bool:
            store = open_store(f"s3://{s3_server.BUCKET}/run", "--mirror")
            held_by(store, pid=ended_process())
            owner = MirrorLock(store, "before", ended_process())
            owner.claim(say)
            assert owner.beat()
            MirrorLock(store, "me", os.getpid()).claim(say)
            assert not owner.beat() and owner_of(store) == "me"
            MirrorLock(store, "me", os.getpid()).release()
            return store.list() == {}

        said = []
        assert run_apart(work, said.append, lambda: False)
    warnings = [text for text in said if text.startswith("warning")]
    assert len(warnings) == (0 if mode == "fine" else 2)
    assert all("no conditional writes: start only one" in text for text in warnings)


def test_a_server_without_conditions_is_known_to_the_ranks_too(tmp_path, monkeypatch):
    """Their store is another one than that of the process that took the lock."""
    run_dir = tmp_path / "run"
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "config.json").write_text(json.dumps({"run": "ab" * 16, "settings": {}}))
    with s3_server.serve(tmp_path) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.tell("ignore")

        def work(say) -> bool:
            store = open_store(url := f"s3://{s3_server.BUCKET}/run", "--mirror")
            MirrorLock(store, "before", os.getpid()).claim(say)
            of_rank = mirror.Mirror(url, run_dir, owner="before", pid=os.getpid(), keep=2, data={})
            of_rank._begin()
            of_rank._reopen()
            assert not of_rank._store.is_conditional
            pointer = store.get(POINTER)
            held_by(store)
            lock = of_rank._lock(of_rank._store)
            assert not lock.adopt() and not lock.beat() and owner_of(store) == "other"
            store.put(POINTER, pointer[0] + b" ")
            with pytest.raises(mirror.TakenError):
                of_rank._write_pointer(Manifest("ab" * 16, "", best_step=3))
            return store.get(POINTER)[0] == pointer[0] + b" "

        assert run_apart(work, print, lambda: False)


@pytest.fixture
def keeping(store, monkeypatch) -> Iterator[None]:
    """The keeper of "me" at work, a hundred times as quick; its beats are the only ones."""
    monkeypatch.setattr(mirror_keeper, "BEAT_S", 0.1)
    monkeypatch.setattr(mirror_keeper, "QUIET_S", 0.15)
    mirror_keeper.keep(store.url, "--mirror", "me")
    yield
    mirror_keeper.stop()
    assert not mirror_keeper._kept


def versions(store: Store, seconds: float) -> set[str]:
    """The versions of the lock that were seen meanwhile; "" for none."""
    seen, until_s = set(), time.monotonic() + seconds
    while time.monotonic() < until_s:
        found = store.get(LOCK)
        seen.add(found[1] if found else "")
        time.sleep(0.02)
    return seen


def test_between_its_claim_and_the_first_beat_of_a_rank_it_is_kept(store, keeping):
    assert versions(store, 0.5) == {""}, "a keeper makes no lock"
    claim(store)
    assert len(versions(store, 1.5)) >= 3 and owner_of(store) == "me"
    rank = MirrorLock(store, "me", os.getpid())
    assert all(rank.beat() or rank.adopt() for _ in range(50)), "the two do not dispute it"
    rank.release()
    assert versions(store, 0.5) == {""}


def test_a_keeper_leaves_the_lock_of_another_start_alone(store, keeping):
    held_by(store, boot_id="another")
    assert len(versions(store, 0.6)) == 1 and owner_of(store) == "other"


def test_a_lock_that_changes_while_a_rank_adopts_it_is_still_its_own(store, monkeypatch):
    claim(store)
    rank, keeper = (MirrorLock(store, "me", os.getpid()) for _ in range(2))
    replace, left = store.replace, [2]

    def replace_late(name: str, data: bytes, version: str) -> str | None:
        if left[0]:
            left[0] -= 1
            replace(name, data + b" ", keeper.version_if_ours())
        return replace(name, data, version)

    monkeypatch.setattr(store, "replace", replace_late)
    assert rank.adopt() and not left[0]
