"""The clock of a real run that is killed: no more than two seconds are lost, and the time between
a kill and the next start does not count."""

import time
from pathlib import Path

import pytest
from support.commands import (
    finish,
    processes_mentioning,
    start,
    tiny_flags,
    train_words,
    wait_for,
)
from support.kills import kill_all
from support.runs import status_of, steps_logged

from resnet50.records import paid_clock

pytestmark = pytest.mark.usefixtures("no_leftovers")


def run_until(condition, words: list[object], run_dir: Path) -> float:
    """Start `python train.py`, kill all of it once the condition holds; returns its seconds."""
    began_s = time.monotonic()
    process = start(words, run_dir.parent)
    wait_for(lambda: condition() or process.poll() is not None)
    assert process.poll() is None, finish(process).err
    time.sleep(1.5)  # so that some of it is not in the file yet
    ended_s = time.monotonic()
    kill_all(run_dir, process)
    return ended_s - began_s


def test_a_sigkill_loses_no_more_than_two_seconds(image_folder, tmp_path):
    run_dir = tmp_path / "run"
    words = train_words(*tiny_flags(image_folder, run_dir), "--epochs=100000", "--num_workers=1")
    path, total_s = run_dir / ".paid_ms", 0.0
    # During the imports of the ranks, and after a few steps.
    for condition in (path.exists, lambda: len(steps_logged(run_dir)) >= 3):
        lasted_s = run_until(condition, words, run_dir)
        counted_s = paid_clock.read(run_dir) - total_s
        assert lasted_s - 2 <= counted_s <= lasted_s + 0.1
        total_s += counted_s
        time.sleep(2)  # does not count
    began_s = time.monotonic()
    process = start([*words, f"--max_steps={len(steps_logged(run_dir)) + 2}"], tmp_path)
    wait_for(lambda: status_of(run_dir).get("state") == "done" or process.poll() is not None)
    trained_s = time.monotonic() - began_s
    result = finish(process)
    lasted_s = time.monotonic() - began_s
    assert result.code == 0, result.err
    # What Python takes to end, after torchrun has, is nobody's to write down.
    assert total_s + trained_s - 2 <= paid_clock.read(run_dir) <= total_s + lasted_s + 0.1
    # The rank's figure has the imports in it, too: torchrun's alone take longer than a second.
    assert total_s + 1 <= status_of(run_dir)["paid_s"] <= paid_clock.read(run_dir)
    assert not processes_mentioning(str(run_dir))
