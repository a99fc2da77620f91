"""Disks that fail while a checkpoint is written: a warning, older files untouched, training
continues, a later save works, and the run ends as if nothing had happened.

Errors come from the kernel's side: strace makes real system calls on one file fail, and a tmpfs is
remounted read-only under the run. tests/commands/test_train.py fills a disk under a run, and
tests/records/test_checkpoint.py one under a single save.
"""

import hashlib
import subprocess
from pathlib import Path

import pytest
import torch
from support.commands import (
    ONE_RANK,
    PROGRAM_PATH,
    finish,
    program_words,
    run,
    start,
    train_words,
    wait_for,
)
from support.in_process import run_here
from support.kills import LAST_STEP, assert_as_if_nothing_was, flags_of
from support.needs import needs, needs_root
from support.runs import events_of, saved_steps

from resnet50.records import checkpoint
from resnet50.records.checkpoint_writer import CheckpointWriter

pytestmark = [pytest.mark.usefixtures("no_leftovers"), needs("strace")]


def sums(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.pt")
    }


def run_failing(words: list[object], cwd: Path, call: str, error: str, paths: list[Path]):
    """The command, with this system call failing on any of these files; error may say more, in
    strace's syntax."""
    strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", f"trace={call}"]
    strace += ["-e", f"inject={call}:error={error}"]
    strace += [word for path in paths for word in ("-P", path)]
    return run([*strace, *words], cwd, **ONE_RANK)


@pytest.mark.parametrize(
    "call, error, text",
    [
        ("fsync", "EIO", "Input/output error"),
        pytest.param("write", "ENOSPC", "No space left on device", marks=pytest.mark.long),
        pytest.param("write", "EIO", "Input/output error", marks=pytest.mark.long),
        pytest.param("openat", "EACCES", "Permission denied", marks=pytest.mark.long),
        pytest.param("rename", "EROFS", "Read-only file system", marks=pytest.mark.long),
    ],
)
def test_a_call_that_fails_costs_its_checkpoints_only(image_folder, tmp_path, call, error, text):
    """In the middle of the run, and at its end, where the same command runs again for the save."""
    run_dir = tmp_path / "run"
    words = train_words(*flags_of(image_folder, run_dir, "--keep_checkpoints=1000"))
    folder = run_dir / "checkpoints"
    failing = [6, 8, LAST_STEP]
    paths = [folder / f"step_{step:09d}.pt.partial" for step in failing]
    result = run_failing(words, tmp_path, call, error, paths)
    assert result.code == 75, result.out + result.err
    warnings = [text for text in events_of(run_dir) if text.startswith("warning")]
    for step in failing:
        assert sum(f"of step {step}: {folder}: {text}" in w for w in warnings) == 1, warnings
    assert len(warnings) == len(failing)
    assert {3, 4, 9, 12} <= saved_steps(run_dir) and not saved_steps(run_dir) & set(failing)
    assert not list(folder.glob("*.partial"))
    before = sums(folder)
    for name in before:
        checkpoint.load(folder / name)
    result = run_here(words, tmp_path)
    assert result.code == 0, result.err
    after = sums(folder)
    assert all(after[name] == before[name] for name in before if name != checkpoint.BEST)
    assert_as_if_nothing_was(image_folder, run_dir)


def test_a_save_that_fails_late_does_not_undo_the_last_one(image_folder, tmp_path):
    """Step 11's save fails while the last one waits for it; that is whole, so the run is done."""
    run_dir = tmp_path / "run"
    flags = flags_of(image_folder, run_dir, "--max_steps=12", "--save_every_steps=11")
    late = run_dir / "checkpoints" / "step_000000011.pt.partial"
    result = run_failing(train_words(*flags), tmp_path, "fsync", "EIO:delay_enter=4000000", [late])
    assert result.out.count("warning: no checkpoint of step 11") == 1, result.out
    assert result.code == 0 and 12 in saved_steps(run_dir)


@needs_root
def test_a_disk_that_turns_read_only_for_a_while_costs_its_checkpoints_only(image_folder, tmp_path):
    """As ext4 does after an error, and as an operator undoes."""
    run_dir = tmp_path / "run"
    folder = run_dir / "checkpoints"
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], check=True)

    def remount(how: str) -> bool:
        words = ["mount", "-o", f"remount,{how}", folder]
        return subprocess.run(words, stderr=subprocess.DEVNULL).returncode == 0

    process = None
    try:
        words = train_words(*flags_of(image_folder, run_dir, "--save_every_steps=1"))
        process = start(words, tmp_path, **ONE_RANK)
        wait_for(lambda: len(saved_steps(run_dir)) >= 2)
        wait_for(lambda: remount("ro"), what="a moment at which no checkpoint is being written")
        before = sums(folder)
        wait_for(lambda: any("warning: no checkpoint of step" in t for t in events_of(run_dir)))
        assert sums(folder) == before and process.poll() is None
        assert remount("rw")
        result = finish(process)
        assert result.code == 0, result.out + result.err
        assert "Read-only file system; older ones are kept" in result.out
        assert {int(p[5:14]) for p in before if p != checkpoint.BEST}.isdisjoint(
            saved_steps(run_dir)
        )
        assert_as_if_nothing_was(image_folder, run_dir)
    finally:
        if process:
            process.kill()
            process.wait()
        subprocess.run(["umount", folder], check=True)


@needs_root
def test_where_there_is_no_room_the_oldest_goes_and_two_stay(tmp_path):
    """Nothing is written before there is room, nor if there is none."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=True)
    try:
        folder = tmp_path / "checkpoints"
        writer = CheckpointWriter(folder, keep=3)

        def save(step: int, num_floats: int) -> OSError | None:
            state = {"step": step, "w": torch.full((num_floats,), float(step))}
            writer.start(step, state, is_best=False)
            writer.wait()
            failures = writer.take_failures()
            return failures[0].error if failures else None

        for step in (1, 2, 3):
            assert save(step, 70_000) is None  # 0.28 MB each: no fourth one fits
        assert checkpoint.steps_in(folder) == [1, 2, 3]
        assert save(4, 70_000) is None
        assert checkpoint.steps_in(folder) == [2, 3, 4]
        before = sums(folder)
        assert "No space" in save(5, 140_000).strerror  # not even beside two
        assert checkpoint.steps_in(folder) == [3, 4]
        assert all(before[name] == value for name, value in sums(folder).items())
        assert sorted(path.name for path in folder.iterdir()) == sorted(sums(folder))
        for step in (3, 4):
            assert checkpoint.load(checkpoint.step_path(folder, step))["step"] == step
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_each_failure_is_told_though_the_next_save_began_before_anyone_asked(tmp_path):
    (tmp_path / "checkpoints").write_text("no folder")
    writer = CheckpointWriter(tmp_path / "checkpoints", keep=3)
    for step in (1, 2):
        writer.start(step, {"step": step}, is_best=False)
    writer.wait()
    assert [failure.step for failure in writer.take_failures()] == [1, 2]
    assert writer.take_failures() == []


@needs_root
def test_what_cannot_fit_is_never_begun(tmp_path):
    """No file is opened for writing, as strace sees it: a full disk is not made fuller."""
    folder, trace = tmp_path / "disk", tmp_path / "trace"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    try:
        words = ["strace", "-f", "--seccomp-bpf", "-o", trace, "-e", "trace=openat,mkdir"]
        program = program_words("save_without_room", folder)
        result = run([*words, *program], Path.cwd(), **PROGRAM_PATH)
        assert result.code == 0, result.err
        calls = [line for line in trace.read_text().splitlines() if f'"{folder}' in line]
        assert calls and not any("O_CREAT" in call for call in calls)
        assert not list(folder.iterdir())
    finally:
        subprocess.run(["umount", folder], check=True)
