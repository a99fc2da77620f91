"""SIGUSR1: a checkpoint of the step it comes in; training continues as if nothing had happened."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from support.commands import (
    AS_USERS_HAVE_IT,
    ONE_RANK,
    finish,
    processes_mentioning,
    start,
    tiny_flags,
    torchrun_words,
    train_words,
    wait_for,
)
from support.in_process import run_here
from support.pictures import training_gate, validation_gate
from support.runs import assert_same_end, events_of, saved_steps, status_of, steps_logged

pytestmark = pytest.mark.usefixtures("no_leftovers")
EVENT = "SIGUSR1: saving, then continuing"


def flags_of(data_dir: Path, run_dir: Path) -> list[object]:
    return [
        *tiny_flags(data_dir, run_dir),
        "--save_every_steps=0",
        "--keep_checkpoints=100",
        "--num_workers=2",
    ]


def test_it_saves_in_start_up_training_and_evaluation_and_ends_with_the_same_bits(
    image_folder, tmp_path
):
    images, run_dir = tmp_path / "images", tmp_path / "run"
    shutil.copytree(image_folder, images)
    assert run_here(train_words(*flags_of(images, tmp_path / "straight")), tmp_path).code == 0

    in_training, in_evaluation = training_gate(images, step=2), validation_gate(images)
    slow_to_start = ONE_RANK | AS_USERS_HAVE_IT  # seconds from its status to its first step
    process = start(train_words(*flags_of(images, run_dir)), tmp_path, **slow_to_start)
    wait_for(lambda: status_of(run_dir))
    process.send_signal(signal.SIGUSR1)
    in_training.wait_for_reader()
    wait_for(lambda: len(steps_logged(run_dir)) == 2)
    for _ in range(3):
        os.killpg(process.pid, signal.SIGUSR1)  # the loaders too
    in_training.open()
    in_evaluation.wait_for_reader()
    process.send_signal(signal.SIGUSR1)
    in_evaluation.open()
    result = finish(process)
    assert result.code == 0 and result.err == "", result.err
    # While the third step waits for its images; signals as one, or two around a step's edge.
    assert {0, 4, 8, 12} < saved_steps(run_dir) <= {0, 2, 3, 4, 8, 12}
    assert result.out.count(EVENT) == events_of(run_dir).count(EVENT) in (3, 4)
    assert_same_end(tmp_path / "straight", run_dir)


def test_one_ranks_signal_is_all_ranks_save(image_folder, tmp_path):
    images, run_dir = tmp_path / "images", tmp_path / "run"
    shutil.copytree(image_folder, images)
    gate = training_gate(images, step=2)
    words = torchrun_words(2, "train.py", *flags_of(images, run_dir), "--max_steps=4")
    process = start(words, tmp_path)
    gate.wait_for_reader()
    wait_for(lambda: len(steps_logged(run_dir)) == 2)
    second = {
        pid
        for pid in processes_mentioning(str(run_dir))
        if b"LOCAL_RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()
    }
    assert len(second) == 3  # with its loaders
    for pid in second:
        os.kill(pid, signal.SIGUSR1)
    gate.open()
    result = finish(process)
    assert result.code == 0, result.err
    assert saved_steps(run_dir) in ({2, 4}, {3, 4}) and events_of(run_dir).count(EVENT) == 1
