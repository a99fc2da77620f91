"""A part of a run dies or hangs: the rest ends or is ended, nothing is left running, and the run
then ends as if nothing had happened.

tests/promises/test_supervisor.py kills supervisor, torchrun, rank or loader under
`python train.py`, and tests/promises/test_resume.py a loader of a rank alone.
"""

import os
import signal
import time
from pathlib import Path

import pytest
from support.commands import (
    finish,
    processes_mentioning,
    start,
    torchrun_words,
    train_words,
    wait_for,
)
from support.in_process import run_here
from support.kills import assert_as_if_nothing_was, assert_no_orphans, flags_of, reach
from support.runs import events_of, status_of, steps_logged

pytestmark = pytest.mark.usefixtures("no_leftovers")
HANG_S = 6.0
RECOVERS_WITHIN_S = 20.0 * 4  # 20 s, with slack for a busy machine
IN_TIME = "--hang_minutes=0.1"


def ranks_and_loaders(run_dir: Path) -> dict[str, list[int]]:
    """Processes of a run by LOCAL_RANK: the rank first, then its loaders; torchrun is not among
    them."""
    found: dict[str, list[int]] = {}
    for pid in sorted(processes_mentioning(str(run_dir))):
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if entry.startswith(b"LOCAL_RANK="):
                found.setdefault(entry[11:].decode(), []).append(pid)
    return found


def assert_resumes(words: list[object], data_dir: Path, run_dir: Path) -> None:
    """The same command, with one rank this time, runs to the end."""
    result = run_here(words, run_dir.parent)
    assert result.code == 0, result.err
    assert_as_if_nothing_was(data_dir, run_dir)


def test_a_rank_that_stands_still_is_ended_and_started_again(image_folder, tmp_path):
    """The supervisor sees no step, asks where it hangs, kills it, and the next attempt ends."""
    run_dir = tmp_path / "run"
    words = train_words(*flags_of(image_folder, run_dir, "--num_workers=1", IN_TIME))
    process = start(words, tmp_path)
    reach(process, run_dir, 5)
    before = ranks_and_loaders(run_dir)["0"]
    assert len(before) == 2
    os.kill(before[0], signal.SIGSTOP)
    stopped_s = time.monotonic()
    attempt, logged = status_of(run_dir)["attempt"], len(steps_logged(run_dir))
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in before), HANG_S + 4 * 5)
    wait_for(lambda: status_of(run_dir)["attempt"] != attempt)
    wait_for(lambda: any("resuming at step" in text for text in events_of(run_dir)))
    assert time.monotonic() - stopped_s < RECOVERS_WITHIN_S
    result = finish(process)
    assert result.code == 0, result.err
    assert f"no step for {HANG_S:g} s: ending this attempt" in result.out
    assert "training crashed; restarting from step" in result.out and logged < 56
    assert_no_orphans(run_dir, timeout_s=5)
    assert_as_if_nothing_was(image_folder, run_dir)


@pytest.mark.long
def test_a_rank_of_two_that_stands_still_ends_both(image_folder, tmp_path):
    """Under torchrun alone: the other one waits 1.5 times --hang_minutes for it, then all ends."""
    run_dir = tmp_path / "run"
    flags = flags_of(image_folder, run_dir, "--num_workers=1", IN_TIME)
    # torchrun gives a rank 30 s to end before it kills it, and this one does not respond.
    shorter = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "3"}
    process = start(torchrun_words(2, "train.py", *flags), tmp_path, **shorter)
    reach(process, run_dir, 5)
    os.kill(ranks_and_loaders(run_dir)["1"][0], signal.SIGSTOP)
    began = time.monotonic()
    result = finish(process, 1.5 * HANG_S + 30 + RECOVERS_WITHIN_S)
    assert time.monotonic() - began > 1.5 * HANG_S - 1
    assert result.code == 1 and "Timed out waiting" in result.err
    assert_no_orphans(run_dir, timeout_s=5)
    assert_resumes(train_words(*flags), image_folder, run_dir)


@pytest.mark.parametrize(
    "victim", [pytest.param(v, marks=pytest.mark.long) for v in ("rank", "loader", "torchrun")]
)
def test_a_killed_part_of_two_ranks_ends_all_of_it(image_folder, tmp_path, victim):
    run_dir = tmp_path / "run"
    flags = flags_of(image_folder, run_dir, "--num_workers=1")
    process = start(torchrun_words(2, "train.py", *flags), tmp_path)
    reach(process, run_dir, 5)
    rank, loader = ranks_and_loaders(run_dir)["1"]
    os.kill({"rank": rank, "loader": loader, "torchrun": process.pid}[victim], signal.SIGKILL)
    began = time.monotonic()
    assert finish(process).code == (-signal.SIGKILL if victim == "torchrun" else 1)
    assert_no_orphans(run_dir, timeout_s=5)
    assert time.monotonic() - began < RECOVERS_WITHIN_S
    assert status_of(run_dir)["state"] == "running"  # nobody was left to write another one
    assert_resumes(train_words(*flags), image_folder, run_dir)
