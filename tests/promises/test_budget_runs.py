"""The promise of --budget_usd: whatever happens, the schedule ends as the money does, and the run
is the one that its settings and its events describe."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.commands import (
    finish,
    kill,
    run,
    start,
    tiny_flags,
    torchrun_words,
    train_words,
    wait_for,
)
from support.in_process import run_here
from support.pictures import make_folder
from support.runs import (
    assert_same_end,
    events_of,
    newest_checkpoint,
    saved_steps,
    status_of,
    steps_logged,
)

from resnet50.records import ownership, paid_clock
from resnet50.run.budget import tolerance_s

BUSY = "import itertools\nfor _ in itertools.count(): pass"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More pictures than most tests need: an epoch of four steps would be one of evaluations."""
    return make_folder(tmp_path_factory.mktemp("photos"), 400, 10)


def words_of(photos: Path, run_dir: Path, *budget: str) -> list[object]:
    flags = ("--recipe=tiny", "--amp=fp32", "--log_every_steps=1", "--save_every_minutes=0.1")
    places = (f"--data_dir={photos}", f"--run_dir={run_dir}")
    return train_words(*flags, *places, "--epochs=100000", *budget)


def last_step(run_dir: Path) -> int:
    return max((record["step"] for record in steps_logged(run_dir)), default=0)


def replayed(photos: Path, run_dir: Path) -> Path:
    """An uninterrupted run of what the budget chose, with its events and without a budget."""
    settings = json.loads((run_dir / ownership.CONFIG).read_text())["settings"]
    chosen = [f"--{name}={settings[name]}" for name in ("epochs", "num_steps")]
    events = run_dir / ownership.BUDGET_EVENTS
    again = run_dir.with_name("again")
    chosen += [f"--eval_every_epochs={settings['eval_every_epochs']}", f"--budget_events={events}"]
    result = run_here(words_of(photos, again, *chosen), again.parent)
    assert result.code == 0, result.err
    return again


def assert_ended_with(run_dir: Path, total_s: float) -> None:
    """Within what is tolerated, after the schedule's last position."""
    spent_s = paid_clock.paid_before(run_dir)
    assert abs(spent_s - total_s) <= tolerance_s(total_s), (spent_s, events_of(run_dir))
    assert status_of(run_dir)["state"] == "done"
    state = torch.load(newest_checkpoint(run_dir), weights_only=True)
    assert state["scheduler"]["curve"]["last_epoch"] == state["config"]["num_steps"] - 1
    assert state["rows"][-1]["step"] == state["step"] == last_step(run_dir)


def test_a_minute_is_spent_though_it_is_killed_and_its_replay_has_the_same_bits(
    photos, tmp_path, no_leftovers
):
    run_dir = tmp_path / "run"
    words = words_of(photos, run_dir, "--budget_usd=0.05", "--price_per_hour=3")
    first = start(words, tmp_path)
    wait_for(lambda: paid_clock.read(run_dir) > 25 and saved_steps(run_dir))
    kill(first)
    again = run(words, tmp_path)
    assert again.code == 0, again.err
    assert "of which 0:" in again.out and "the schedule ends within the 0:" in again.out
    assert_ended_with(run_dir, 60.0)
    assert_same_end(run_dir, replayed(photos, run_dir))


@pytest.mark.long
@pytest.mark.parametrize("has_neighbor", [False, True], ids=["killed twice", "with a neighbor"])
def test_three_minutes_are_spent(photos, tmp_path, no_leftovers, has_neighbor):
    """Killed twice, or beside programs that want every core from the middle on."""
    run_dir, total_s = tmp_path / "run", 180.0
    words = words_of(photos, run_dir, f"--budget_hours={total_s / 3600}")
    at_s = (0.5 * total_s,) if has_neighbor else (0.35 * total_s, 0.7 * total_s)
    process, neighbors = start(words, tmp_path), []
    for moment_s in at_s:
        while paid_clock.read(run_dir) < moment_s and process.poll() is None:
            time.sleep(0.2)
        if has_neighbor:
            command = [sys.executable, "-c", BUSY]
            neighbors = [subprocess.Popen(command) for _ in range(os.cpu_count() or 1)]
        else:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            process = start(words, tmp_path)
    process.communicate(timeout=2 * total_s)
    for neighbor in neighbors:
        neighbor.kill()
        neighbor.wait()
    assert process.returncode == 0
    assert_ended_with(run_dir, total_s)
    assert_same_end(run_dir, replayed(photos, run_dir))


def test_stopped_while_it_measures_it_has_not_begun(photos, tmp_path, no_leftovers):
    run_dir = tmp_path / "run"
    process = start(words_of(photos, run_dir, "--budget_hours=1"), tmp_path)
    said = ""
    while "measuring this machine for up to 60 s" not in said:
        said += process.stdout.readline()
        assert process.poll() is None, said
    process.send_signal(signal.SIGTERM)
    result = finish(process)
    assert result.code == 75, result.err
    assert "interrupted before the first step" in result.out
    assert not (run_dir / ownership.CONFIG).exists()
    assert 0 < paid_clock.paid_before(run_dir) < 60  # the measuring counts


def test_two_ranks_share_a_plan_and_its_events(photos, tmp_path, no_leftovers):
    run_dir = tmp_path / "run"
    words = words_of(photos, run_dir, "--budget_hours=0.0125")
    result = run(torchrun_words(2, *words[1:]), tmp_path)
    assert result.code == 0, result.err
    assert result.out.count("budget: measured: a step takes") == 1
    assert_ended_with(run_dir, 45.0)


BUDGET = ("--budget_usd=0.05", "--price_per_hour=3")


@pytest.mark.parametrize(
    "flags, texts",
    [
        (["--budget_usd=5"], ["--budget_usd 5 needs --price_per_hour X"]),
        (["--budget_usd=0", "--price_per_hour=3"], ["--budget_usd 0 pays for nothing"]),
        (["--budget_hours=0"], ["--budget_hours 0 pays for nothing"]),
        (["--budget_hours=-1"], ["--budget_hours -1.0: must be at least 0"]),
        (["--budget_hours=nan"], ["--budget_hours nan: must be at least 0"]),
        ([*BUDGET, "--budget_hours=1"], ["--budget_usd 0.05 and --budget_hours 1 both say"]),
        ([*BUDGET, "--max_steps=9"], ["--max_steps 9 would end the run", "leave out one"]),
        ([*BUDGET, "--max_minutes=9"], ["--max_minutes 9 would end the run"]),
        ([*BUDGET, "--num_steps=9"], ["--num_steps 9 is what --budget_usd 0.05 chooses"]),
        ([*BUDGET, "--schedule=plateau"], ["--schedule plateau follows the validation loss"]),
    ],
)
def test_mistakes_end_with_2_and_begin_nothing(image_folder, tmp_path, flags, texts):
    run_dir = tmp_path / "run"
    words = ["--recipe=tiny", f"--data_dir={image_folder}", f"--run_dir={run_dir}", *flags]
    result = run_here(train_words(*words), tmp_path)
    assert result.code == 2, result.err
    assert all(text in result.err for text in texts), result.err
    assert not run_dir.exists()


def test_too_little_says_what_would_do(image_folder, tmp_path):
    run_dir = tmp_path / "run"
    words = ["--recipe=tiny", f"--data_dir={image_folder}", f"--run_dir={run_dir}"]
    result = run_here(train_words(*words, "--budget_hours=0.0001"), tmp_path)
    assert result.code == 2
    assert "--budget_hours 0.0001 is too little for tiny on this machine" in result.err
    assert "The least that makes sense is --budget_hours 0.0" in result.err
    assert not ownership.has_mark(run_dir)


def test_a_run_keeps_its_budget(image_folder, tmp_path):
    run_dir = tmp_path / "run"
    words = [*tiny_flags(image_folder, run_dir), "--max_steps=3"]
    assert run_here(train_words(*words), tmp_path).code == 0
    result = run_here(train_words(*words[:-1], "--budget_hours=2"), tmp_path)
    assert result.code == 2
    assert "--budget_hours 2.0 (the run has 0.0)" in result.err
    assert "That run is done at step 3" in result.err
