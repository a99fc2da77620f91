"""The promise: a run that was killed, anywhere, ends bit for bit like one that was not."""

import os
import random
import signal
from pathlib import Path

import pytest
import torch
from support.commands import (
    ONE_RANK,
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
from support.pictures import STEPS_PER_EPOCH
from support.runs import assert_same_end, newest_checkpoint, status_of, steps_logged

import prepare_data

LAST_STEP = 3 * STEPS_PER_EPOCH


@pytest.fixture(scope="module")
def straight(image_folder, tmp_path_factory) -> Path:
    """A run that nothing interrupts."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    result = run_here(train_words(*tiny_flags(image_folder, run_dir)), run_dir.parent)
    assert result.code == 0, result.err
    return run_dir


def test_the_same_command_gives_the_same_bits(straight, image_folder, tmp_path):
    words = train_words(*tiny_flags(image_folder, tmp_path / "run"))
    assert run(words, tmp_path, **ONE_RANK).code == 0
    assert_same_end(straight, tmp_path / "run")
    state = torch.load(newest_checkpoint(straight), weights_only=True)
    assert state["step"] == LAST_STEP == 12
    assert [row["step"] for row in state["rows"]] == [4, 8, 12]
    assert len(steps_logged(straight)) == LAST_STEP


# Checkpoints come at steps 3, 4, 6, 8, 9, 12: step 5 is in mid-epoch and repeats a step, 8 is an
# epoch's edge, 10 repeats one in the last epoch.
@pytest.mark.parametrize(
    "kill_at, num_workers",
    [
        pytest.param(5, 0, marks=pytest.mark.long),
        (5, 2),
        (8, 2),
        pytest.param(10, 0, marks=pytest.mark.long),
    ],
)
def test_killed_and_resumed_equals_straight(straight, image_folder, tmp_path, kill_at, num_workers):
    words = train_words(*tiny_flags(image_folder, tmp_path / "run"), f"--num_workers={num_workers}")
    process = start(words, tmp_path, **ONE_RANK)
    wait_for(lambda: len(steps_logged(tmp_path / "run")) >= kill_at)
    kill(process)
    result = run_here(words, tmp_path)
    assert result.code == 0, result.err
    assert "resuming at step" in result.out
    assert_same_end(straight, tmp_path / "run")


@pytest.mark.long
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_killed_at_random_moments_equals_straight(image_folder, tmp_path, num_ranks):
    """SIGKILL of every process at once, again and again, until a start gets to the end."""
    rng = random.Random(num_ranks)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for run_dir, num_kills in ((straight, 0), (killed, 3)):
        flags = [*tiny_flags(image_folder, run_dir), "--num_workers=1", "--epochs=12"]
        words, variables = train_words(*flags), ONE_RANK
        if num_ranks > 1:
            words, variables = torchrun_words(num_ranks, "train.py", *flags), {}
        for _ in range(num_kills):
            kill_after(rng.randrange(1, 5), words, run_dir, variables)
        result = run(words, tmp_path, **variables)
        assert result.code == 0, result.err
    assert_same_end(straight, killed)


def kill_after(num_steps: int, words: list[object], run_dir: Path, variables: dict) -> None:
    """Start a run, and end it when it has logged this many more steps."""
    goal = len(steps_logged(run_dir)) + num_steps
    process = start(words, run_dir.parent, **variables)
    wait_for(lambda: len(steps_logged(run_dir)) >= goal or process.poll() is not None)
    assert process.poll() is None, "it ended before the kill, which then shows nothing"
    kill(process)


def test_a_signal_saves_the_step_it_came_in(straight, image_folder, tmp_path):
    flags = [*tiny_flags(image_folder, tmp_path / "run"), "--num_workers=2", "--save_every_steps=0"]
    words = train_words(*flags)
    process = start(words, tmp_path, **ONE_RANK)
    wait_for(lambda: len(steps_logged(tmp_path / "run")) >= 2)
    os.killpg(process.pid, signal.SIGTERM)  # the loaders too, as torchrun does
    logged = len(steps_logged(tmp_path / "run"))
    result = finish(process)
    assert result.code == 75, result.err
    assert "Traceback" not in result.err and "interrupted at step" in result.out
    status = status_of(tmp_path / "run")
    assert status["state"] == "interrupted"
    saved = torch.load(newest_checkpoint(tmp_path / "run"), weights_only=True)["step"]
    assert saved == status["step"] >= logged
    assert run_here(words, tmp_path).code == 0
    assert_same_end(straight, tmp_path / "run")


def test_longer_runs_go_on_from_where_a_limit_ended_them(straight, image_folder, tmp_path):
    words = train_words(*tiny_flags(image_folder, tmp_path / "run"))
    first = run_here([*words, "--max_steps=8"], tmp_path)
    assert first.code == 0 and "done: 2 epochs" in first.out
    assert status_of(tmp_path / "run")["state"] == "done"
    assert run_here([*words, "--max_steps=0"], tmp_path).code == 0
    assert_same_end(straight, tmp_path / "run")


def test_a_resnet50_resumes_to_the_bit_as_well(image_folder, tmp_path):
    flags = [f"--data_dir={image_folder}", "--epochs=2", "--image_size=32", "--ema_decay=0.9"]
    flags += ["--total_batch_size=16", "--device_batch_size=8", "--num_workers=2", "--amp=fp32"]
    flags += ["--log_every_steps=1", "--eval_every_epochs=2", "--max_lr=0.02", "--max_steps=6"]
    words = train_words(*flags, f"--run_dir={tmp_path / 'straight'}")
    assert run_here(words, tmp_path).code == 0
    words = train_words(*flags, f"--run_dir={tmp_path / 'killed'}")
    process = start(words, tmp_path, **ONE_RANK)
    first = tmp_path / "killed/checkpoints/step_000000004.pt"  # the epoch's, in the background
    wait_for(lambda: len(steps_logged(tmp_path / "killed")) >= 5 and first.exists())
    kill(process)
    result = run_here(words, tmp_path)
    assert result.code == 0 and "resuming at step 4" in result.out
    assert_same_end(tmp_path / "straight", tmp_path / "killed")
    state = torch.load(newest_checkpoint(tmp_path / "killed"), weights_only=True)
    assert len(state["model"]) == 320


def test_a_damaged_newest_checkpoint_costs_its_steps_and_nothing_else(
    straight, image_folder, tmp_path
):
    words = train_words(*tiny_flags(image_folder, tmp_path / "run"))
    assert run_here([*words, "--max_steps=7"], tmp_path).code == 0
    newest = newest_checkpoint(tmp_path / "run")
    assert newest.name == "step_000000007.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    result = run_here([*words, "--max_steps=0"], tmp_path)
    assert result.code == 0 and "is damaged" in result.out and "resuming at step 6" in result.out
    assert newest.with_name("step_000000007.pt.corrupt").exists()
    assert_same_end(straight, tmp_path / "run")


@pytest.mark.parametrize("levels", ["none", "48"])
def test_growing_images_out_of_a_pack_resume_bit_for_bit(image_folder, tmp_path, levels):
    flags = ["--out", str(tmp_path / "packed"), "--levels", levels]
    assert prepare_data.main([str(image_folder), *flags]) == 0

    def words(name: str, num_workers: int) -> list[object]:
        flags = [
            *tiny_flags(tmp_path / "packed", tmp_path / name),
            "--image_size=48",
            "--eval_resize_size=48",
            "--start_image_size=32",
            "--min_crop_scale=0.5",  # of which many fit into a level
            "--image_size_multiple=8",
            "--grow_end_epoch=2",
            f"--num_workers={num_workers}",
        ]
        return train_words(*flags)

    assert run_here(words("straight", 0), tmp_path).code == 0
    for kill_at in (3, 6):
        process = start(words("killed", 2), tmp_path, **ONE_RANK)
        wait_for(lambda goal=kill_at: len(steps_logged(tmp_path / "killed")) >= goal)
        kill(process)
    result = run_here(words("killed", 1), tmp_path)
    assert result.code == 0 and "resuming at step" in result.out, result.err
    assert_same_end(tmp_path / "straight", tmp_path / "killed")


@pytest.mark.long
def test_a_killed_loader_ends_the_rank_and_the_run_resumes_as_if_nothing_was(
    straight, image_folder, tmp_path
):
    words = train_words(*tiny_flags(image_folder, tmp_path / "run"), "--num_workers=2")
    process = start(words, tmp_path, **ONE_RANK)
    wait_for(lambda: len(steps_logged(tmp_path / "run")) >= 4)
    loaders = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(loaders) == 2
    os.kill(int(loaders[0]), signal.SIGKILL)
    result = finish(process)
    if result.code:  # otherwise all its batches were ready already
        assert "a loader process ended with code -9" in result.err
    result = run_here(words, tmp_path)
    assert result.code == 0, result.err
    assert_same_end(straight, tmp_path / "run")
