"""--device_batch_size auto: the most that fits under a real limit, agreed on, recorded, once."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.commands import (
    ONE_RANK,
    PROGRAM_PATH,
    PROGRAMS,
    finish,
    run,
    run_program,
    start,
    tiny_flags,
    torchrun_words,
    train_words,
    wait_for,
)
from support.in_process import run_here
from support.pictures import make_folder
from support.runs import status_of

import train
from resnet50.config.train_flags import Request
from resnet50.data import splits
from resnet50.run.resolve import resolve
from resnet50.training import batch_fit
from resnet50.training.plan import make_plan

BATCH, SMALLER, PRIME = 249, 83, 251  # 249 = 3 x 83, and 251 has no smaller candidate
FLAGS = ["--recipe=tiny", "--amp=fp32", "--image_size=160", "--eval_resize_size=160"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """252 training images: a large batch fits into it."""
    return make_folder(tmp_path_factory.mktemp("many") / "data", 84, 1)


def auto_words(folder: Path, run_dir: Path, batch: int, *more: object) -> list[object]:
    batch_flags = [f"--total_batch_size={batch}", "--device_batch_size=auto", "--epochs=1"]
    return train_words(*FLAGS, *batch_flags, f"--data_dir={folder}", f"--run_dir={run_dir}", *more)


def recorded(run_dir: Path) -> dict:
    return json.loads((run_dir / "config.json").read_text())["settings"]


@given(st.integers(1, 5000))
def test_candidates_are_the_largest_divisors_up_to_half_of_each_other(images):
    sizes = batch_fit.candidates(images)
    assert sizes[0] == images and all(images % size == 0 for size in sizes)
    assert all(size >= 2 for size in sizes[1:])
    for size, smaller in zip(sizes, [*sizes[1:], 1], strict=True):  # 1: of the last there is none
        assert smaller <= max(size // 2, 1)
        assert all(images % between for between in range(smaller + 1, size // 2 + 1))


@pytest.fixture(scope="module")
def under_limit() -> list[object]:
    """What to put before a command so that the smaller batch fits and the larger does not.

    It is an address space halfway between what a step of each takes; without it the larger fits.
    """
    result = run_program("peak_memory", SMALLER, BATCH)
    assert result.code == 0, result.err
    smaller, larger, fitting = map(int, result.out.split())
    assert fitting == BATCH
    assert larger - smaller > 300_000, "kB: too little between them to tell them apart"
    return ["prlimit", f"--as={1024 * (smaller + larger) // 2}"]


def test_under_a_limit_a_smaller_batch_trains_and_stays_the_runs(
    folder, under_limit, tmp_path, capsys
):
    run_dir = tmp_path / "run"
    words = auto_words(folder, run_dir, BATCH)
    result = run([*under_limit, *words], tmp_path, **ONE_RANK)
    assert result.code == 0, result.err
    assert f"trying {BATCH} images of 160 px" in result.out
    assert f"device batch size: {SMALLER} fit" in result.out
    assert recorded(run_dir)["device_batch_size"] == SMALLER
    assert (status_of(run_dir)["state"], status_of(run_dir)["step"]) == ("done", 1)

    result = run_here(words, tmp_path)  # now the larger one would fit
    assert result.code == 0 and "resuming at step 1" in result.out, result.err
    assert "trying" not in result.out and f"x 3 micro-batches x {SMALLER} images" in result.out
    assert recorded(run_dir)["device_batch_size"] == SMALLER
    assert train.main([f"--run_dir={run_dir}", f"--device_batch_size={BATCH}"]) == 2
    assert f"--device_batch_size {BATCH} (the run has {SMALLER})" in capsys.readouterr().err

    cfg = resolve(Request({"run_dir": str(run_dir), "device_batch_size": "auto"}), 2)
    with pytest.raises(ValueError, match="does not divide over 2 ranks: start 1, 3 of them"):
        make_plan(cfg, len(splits.open_dataset(folder).train), 2)
    new = Request({"total_batch_size": BATCH, "device_batch_size": "auto"}, fresh=True)
    with pytest.raises(ValueError, match=f"--total_batch_size {BATCH} does not divide over 2"):
        resolve(new, 2)


def test_where_nothing_fits_one_line_says_so(folder, under_limit, tmp_path):
    words = auto_words(folder, tmp_path / "run", PRIME)
    result = run([*under_limit, *words], tmp_path, **ONE_RANK)
    assert result.code == 2 and "Traceback" not in result.err, result.err
    (line,) = (line for line in result.err.splitlines() if "error: " in line)
    assert f"--device_batch_size auto: not even {PRIME} images of 160 px fit" in line
    assert "use a smaller --image_size" in line
    assert status_of(tmp_path / "run")["state"] == "config error"


def test_a_given_batch_that_does_not_fit_is_told_in_one_line(folder, under_limit, tmp_path):
    words = auto_words(folder, tmp_path / "run", BATCH, f"--device_batch_size={BATCH}")
    result = run([*under_limit, *words], tmp_path, **ONE_RANK)
    assert result.code == 2 and "Traceback" not in result.err, result.err
    (line,) = (line for line in result.out.splitlines() if "error: " in line)
    assert f"step 1: --device_batch_size {BATCH} of 160 px (" in line
    assert "--device_batch_size auto" in line
    assert status_of(tmp_path / "run")["state"] == "config error"


@pytest.mark.parametrize("full_at", [0, 1])
def test_one_rank_without_memory_ends_all_of_them(image_folder, tmp_path, full_at):
    """At once; after steps that went well it is a crash, which the supervisor restarts."""
    program = PROGRAMS / "train_until_full.py"
    words = torchrun_words(2, program, *tiny_flags(image_folder, tmp_path / "run"))
    begin = time.monotonic()
    result = run(words, tmp_path, FULL_AT=str(full_at), **PROGRAM_PATH)
    assert result.code != 0 and time.monotonic() - begin < 120
    told = "error: not enough memory on cpu for step 1: --device_batch_size 8 of 32 px (CUDA out"
    assert (told in result.err) == (full_at == 0), result.err
    assert ("OutOfMemoryError" in result.err) == (full_at == 1)
    state = status_of(tmp_path / "run")["state"]
    assert state == ("config error" if full_at == 0 else "running")


def test_a_killed_child_has_run_out_of_memory_and_other_errors_are_told(tmp_path):
    """Among them a child that could not even begin, which must not be retried forever."""
    result = run_program("try_batch_sizes", cwd=tmp_path)
    assert result.code == 0, result.err
    assert result.out.splitlines() == [
        "16",
        "--device_batch_size auto: KeyError: 'a mistake'",
        "--device_batch_size auto: the process that tries sizes ended before the first one",
    ]


def test_ranks_take_what_fits_on_all_of_them_and_end_together(tmp_path):
    words = torchrun_words(2, PROGRAMS / "agree_on_batch_size.py")
    result = run(words, tmp_path, **PROGRAM_PATH)
    assert result.code == 0, result.err
    told = "[4, 2, 'ValueError', 'Interrupted', 'Interrupted'], [16, 8, 4, 2], [2]"
    assert sorted(result.out.splitlines()) == [f"rank {rank}: {told}" for rank in (0, 1)]


def trying_children(pid: int) -> list[int]:
    """Ids of a process's children that try sizes."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    return [child for child, command in commands.items() if b"spawn_main" in command]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_while_trying_ends_the_child_too(folder, tmp_path, no_leftovers, signum):
    words = auto_words(folder, tmp_path / "run", BATCH, "--layers=9,9,9,9")
    process = start(words, tmp_path, **ONE_RANK)
    wait_for(lambda: trying_children(process.pid))
    child = Path(f"/proc/{trying_children(process.pid)[0]}")
    # Imports take less: it is at work on a batch.
    peak = re.compile(r"VmHWM:\s+(\d+) kB")
    wait_for(lambda: int(peak.search((child / "status").read_text())[1]) > 900_000)
    begin = time.monotonic()
    os.kill(process.pid, signum)
    result = finish(process)
    wait_for(lambda: not child.exists(), timeout_s=10, what="the child's end")
    assert time.monotonic() - begin < 20 and not (tmp_path / "run" / "config.json").exists()
    assert result.code == (75 if signum == signal.SIGTERM else -signum), result.err
    assert "Traceback" not in result.err
    if signum == signal.SIGTERM:
        assert "interrupted before the first step; the same command starts again" in result.out
        assert status_of(tmp_path / "run")["state"] == "interrupted"
