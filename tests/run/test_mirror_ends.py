"""Starts with --mirror that train nothing, or not at once: how they end, and what they leave."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import finish, start, tiny_flags, train_words
from support.in_process import run_here
from support.needs import needs_root

from host import service
from resnet50.records import ownership, status
from resnet50.run import mirror_lock, mirror_start
from resnet50.run.mirror_lock import LOCK, MirrorLock
from resnet50.run.supervisor import ATTEMPT
from resnet50.system.apart import run_apart
from resnet50.system.folder_store import FolderStore
from resnet50.system.store import StoreError


@pytest.fixture
def place(image_folder, tmp_path) -> Path:
    """A folder with the data of a machine, a run of 4 steps on them, and its mirror."""
    shutil.copytree(image_folder, tmp_path / "images")
    words = words_of(tmp_path, "run", f"--data_dir={tmp_path / 'images'}")
    result = run_here(words, tmp_path)
    assert result.code == 0, result.err
    return tmp_path


def words_of(place: Path, run_dir: str, *more: object) -> list[object]:
    """train.py with these flags and the mirror there, in a run folder there."""
    flags = tiny_flags(place, place / run_dir)
    flags = [flag for flag in flags if not str(flag).startswith("--data_dir")]
    return train_words(*flags, "--max_steps=4", f"--mirror={place / 'mirror'}", *more)


def held_elsewhere(store: FolderStore, **changes: object) -> None:
    """Leave the lock of a start on another machine, which has just given a sign of life."""
    record = {"owner": "other", **mirror_lock.described(os.getpid()), "boot_id": "another"}
    store.put(LOCK, json.dumps(record | changes).encode())


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk]
    subprocess.run(words, check=True, timeout=20)
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True, timeout=20)


@needs_root
def test_a_disk_too_small_for_the_run_is_named(place, small_disk):
    words = words_of(place, "disk/run", f"--data_dir={place / 'images'}")
    result = run_here(words, place, as_rank=False)
    assert result.code == 2 and "Traceback" not in result.err, result.err
    assert f"--run_dir {small_disk / 'run'}: [Errno 28]" in result.err
    assert "the same disk" not in result.out
    assert not (place / "mirror" / LOCK).exists()


def test_the_data_may_lie_elsewhere_on_the_next_machine(place, monkeypatch):
    """Its --data_dir is found there, and not taken from the settings that were copied."""
    (place / "images").rename(place / "other")
    monkeypatch.setattr("dataset_paths.find_data_dir", lambda: place / "other")
    result = run_here(words_of(place, "new", "--max_steps=6"), place)
    assert result.code == 0 and "restored from" in result.out, result.err
    assert f"lies on the same disk as --run_dir {place / 'new'}, and is lost" in result.out
    settings = json.loads((place / "new/config.json").read_text())["settings"]
    assert settings["data_dir"] == str(place / "other")


def test_a_run_that_is_done_leaves_its_mirror_free(place):
    words = words_of(place, "run", f"--data_dir={place / 'images'}")
    result = run_here(words, place, as_rank=False)
    assert result.code == 0 and "is done at step 4" in result.out, result.err
    assert not (place / "mirror" / LOCK).exists()


def test_so_does_a_start_that_is_refused_after_it_was_restored(place, monkeypatch):
    def refuse(*_: object) -> None:
        assert (place / "mirror" / LOCK).exists()
        raise ValueError("--price_per_hour auto: no price is known")

    monkeypatch.setattr("resnet50.run.instance_price.settled", refuse)
    words = words_of(place, "new", f"--data_dir={place / 'images'}")
    result = run_here(words, place, as_rank=False)
    assert result.code == 2 and "restored from" in result.out, result.out + result.err
    assert "no price is known" in result.err
    assert not (place / "mirror" / LOCK).exists()


def test_setup_begins_again_for_a_run_that_is_done_and_has_a_new_mirror(place, in_process):
    question = ["is_settled", f"--run_dir={place / 'run'}"]
    for mirror, code in (("", 0), (f"--mirror={place / 'mirror'}", 0), ("--mirror=s3://b/run", 10)):
        assert in_process(service, *question, *filter(None, [mirror])).code == code


def test_told_to_stop_while_it_waits_it_ends_as_resumable(image_folder, tmp_path):
    store = FolderStore(tmp_path / "mirror", "--mirror")
    held_elsewhere(store)
    words = words_of(tmp_path, "run", f"--data_dir={image_folder}")
    process = start(words, tmp_path)
    lines = [process.stdout.readline() for _ in range(2)]
    assert "the same disk" in lines[0] and "waiting up to" in lines[1]
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    result = finish(process)
    assert result.code == 75 and "Traceback" not in result.err, result.err
    assert time.monotonic() - began < 20
    assert json.loads(store.get(LOCK)[0])["owner"] == "other"


def test_a_rank_whose_mirror_is_refused_leaves_the_reason(place, monkeypatch):
    """launch/slurm.sbatch asks for it: torchrun hides the exit codes of its ranks."""
    monkeypatch.setenv(ATTEMPT, "slurm-1-0")
    result = run_here(words_of(place, "new", f"--data_dir={place / 'images'}", "--fresh"), place)
    assert "--fresh starts another run" in result.err
    left = status.read_status(place / "new")
    assert left["state"] == status.CONFIG_ERROR and "--fresh starts" in left["message"]
    assert status.main([str(place / "new"), "slurm-1-0"]) == 2


def test_settings_that_rank_0_is_writing_are_nobody_elses(tmp_path):
    (tmp_path / "config.json.partial").write_text('{"run": ')
    ownership.refuse_foreign(tmp_path)


def test_a_lock_that_is_dead_and_cannot_be_taken_is_given_up(tmp_path, monkeypatch):
    """A start that is always quicker, or a server that refuses each condition."""
    tries = []

    class Refusing(FolderStore):
        def replace(self, name: str, data: bytes, version: str) -> None:
            tries.append(name)

    monkeypatch.setattr(mirror_lock, "PATIENCE_S", 0.5)
    store = Refusing(tmp_path / "mirror", "--mirror")
    held_elsewhere(store, boot_id=mirror_lock.described(0)["boot_id"], started=1)
    with pytest.raises(ValueError, match="is in use by process"):
        MirrorLock(store, "me", os.getpid()).claim(print)
    assert 1 < len(tries) < 6


def test_patience_begins_with_the_first_failure(monkeypatch):
    """Copying a checkpoint may have taken an hour until then."""
    monkeypatch.setattr(mirror_start, "PATIENCE_S", 0.2)
    monkeypatch.setattr(mirror_start, "FIRST_PAUSE_S", 0.01)
    fails = [True]

    def ask() -> bool:
        if fails and fails.pop():
            time.sleep(0.4)
            raise StoreError("there", "no answer", is_passing=True)
        return True

    assert mirror_start._patiently(ask, lambda text: None)


def test_one_that_is_killed_may_be_tried_again():
    with pytest.raises(StoreError, match="was killed") as caught:
        run_apart(lambda say: os.kill(os.getpid(), signal.SIGKILL), print, lambda: False)
    assert mirror_start.state_after(caught.value) == status.INTERRUPTED
