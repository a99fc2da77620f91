"""The promise of test_resume.py with the training methods on: each of them resumes exactly."""

import json
import os
import signal
from pathlib import Path

import pytest
from support.commands import ONE_RANK, start, tiny_flags, train_words, wait_for
from support.in_process import run_here
from support.runs import assert_same_end, status_of, steps_logged

RUNS = {
    "growing images, mixup and CutMix, averages": [
        "--epochs=6",
        "--image_size=64",
        "--start_image_size=32",
        "--grow_start_epoch=1",
        "--grow_end_epoch=5",
        "--image_size_multiple=8",
        "--eval_resize_size=73",
        "--mixup_alpha=0.2",
        "--cutmix_alpha=1",
        "--trivial_augment",
        "--random_erasing=0.3",
        "--loss=bce",
        "--blurpool",
        "--ema_every_steps=3",
        "--ema_decay=0.99",
        "--schedule=warmup_cosine",
        "--warmup_epochs=1.5",
        "--decoupled_weight_decay",
        "--weight_decay=5e-3",
    ],
    "a plateau after the cycle, AdamW": [
        "--epochs=10",
        "--plateau_epochs=8",
        "--plateau_patience=0",
        "--plateau_factor=0.5",
        "--plateau_lr=0.02",
        "--max_lr=0.01",
        "--optimizer=adamw",
        "--no_nesterov",
        "--cycle_momentum",
        "--image_size=48",
        "--eval_resize_size=48",
        "--size_stages=32:60,48:40",
        "--shuffle_sizes",
        "--alternate_flips",
        "--decay_norms",
    ],
    "a plateau alone, evaluated every second epoch": [
        "--epochs=12",
        "--schedule=plateau",
        "--warmup_epochs=1",
        "--plateau_patience=0",
        "--eval_every_epochs=2",
        "--max_lr=1.0",
        "--clip_grad_norm=0",
    ],
    "steps": ["--epochs=5", "--schedule=step", "--step_epochs=2", "--warmup_epochs=0.5"],
}


def flags_of(name: str, image_folder: Path, run_dir: Path, num_workers: int) -> list[object]:
    return [*tiny_flags(image_folder, run_dir), *RUNS[name], f"--num_workers={num_workers}"]


def falls(run_dir: Path) -> list[dict]:
    """The times that the learning rate fell on a plateau."""
    records = map(json.loads, (run_dir / "log.jsonl").read_text().splitlines())
    return [r for r in records if r["kind"] == "event" and "on a plateau" in r["text"]]


@pytest.mark.parametrize("name", list(RUNS))
def test_killed_and_resumed_equals_straight(name, image_folder, tmp_path, request):
    """SIGKILL of every process after two thirds of the steps, in the long form after a third too;
    each start with another number of loader processes."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    result = run_here(train_words(*flags_of(name, image_folder, straight, 1)), tmp_path)
    assert result.code == 0, result.err
    last_step = status_of(straight)["step"]
    kills = ((1, 2), (2, 0)) if request.config.getoption("--long") else ((2, 0),)
    for part, num_workers in kills:
        words = train_words(*flags_of(name, image_folder, killed, num_workers))
        process = start(words, tmp_path, **ONE_RANK)
        goal = part * last_step // 3
        wait_for(
            lambda process=process, goal=goal: (
                len(steps_logged(killed)) >= goal or process.poll() is not None
            )
        )
        assert process.poll() is None, "it ended before the kill, which then shows nothing"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    words = train_words(*flags_of(name, image_folder, killed, 2))
    result = run_here(words, tmp_path)
    assert result.code == 0 and "resuming at step" in result.out, result.err
    assert_same_end(straight, killed)
    if "plateau" in name:
        texts = [event["text"] for event in falls(straight)]
        assert texts and set(texts) == {event["text"] for event in falls(killed)}


def test_a_limit_in_between_leaves_a_plateau_alone(image_folder, tmp_path):
    """The evaluation that ends a start early counts for nothing: the run continues as if it had
    never stopped."""
    name = "a plateau alone, evaluated every second epoch"
    ends = []
    for run_dir, stops in ((tmp_path / "straight", [0]), (tmp_path / "stopped", [20, 0])):
        for stop in stops:
            flags = flags_of(name, image_folder, run_dir, 0)
            words = train_words(*flags, f"--max_steps={stop}")
            result = run_here(words, tmp_path)
            assert result.code == 0, result.err
        ends.append([(s["step"], s["lr"], s["loss"]) for s in steps_logged(run_dir)])
    assert ends[0] == ends[1]
