"""The promise of test_resume.py for a run whose end is moved: however it was killed, it ends with
the bits of one that took the same course from its start on (--budget_events)."""

import json
import signal
from pathlib import Path

import pytest
import torch
from support.commands import (
    ONE_RANK,
    PROGRAM_PATH,
    kill,
    program_words,
    run,
    start,
    tiny_flags,
    torchrun_words,
    train_words,
    wait_for,
)
from support.in_process import run_here
from support.runs import (
    assert_same_end,
    events_of,
    newest_checkpoint,
    saved_steps,
    status_of,
    steps_logged,
)

from resnet50.records import checkpoint, ownership
from resnet50.run import budget_events
from resnet50.training.course import Course, Event

STEPS = 30  # of four an epoch: the last one is a partial epoch
# What reads the schedule, and what must not: growing images, averages, mixing by step.
METHODS = [
    "--epochs=8",
    f"--num_steps={STEPS}",
    "--image_size=64",
    "--eval_resize_size=73",
    "--start_image_size=32",
    "--grow_start_epoch=1",
    "--grow_end_epoch=7",
    "--image_size_multiple=8",
    "--mixup_alpha=0.2",
    "--cycle_momentum",
]


def flags_of(image_folder: Path, run_dir: Path, *more: object) -> list[object]:
    return [*tiny_flags(image_folder, run_dir), *METHODS, *more]


def file_of(run_dir: Path) -> Path:
    return run_dir / ownership.BUDGET_EVENTS


def steered_words(script: str, image_folder: Path, run_dir: Path, *more: object) -> list[object]:
    """A run with a controller that follows a script (programs/steer_train.py)."""
    return program_words("steer_train", script, *flags_of(image_folder, run_dir, *more))


def replayed(image_folder: Path, run_dir: Path, events: Path, *more: object) -> Path:
    """An uninterrupted run with the events of another one."""
    flags = flags_of(image_folder, run_dir, f"--budget_events={events}", *more)
    result = run_here(train_words(*flags), run_dir.parent)
    assert result.code == 0, result.err
    assert file_of(run_dir).read_bytes() == events.read_bytes()
    return run_dir


def assert_on_course(run_dir: Path, events: list[Event]) -> None:
    """It took every step once, with the rates of its positions, and was evaluated at its end."""
    course = Course(STEPS, events)
    logged = steps_logged(run_dir)
    assert [record["step"] for record in logged] == list(range(1, course.end_step + 1))
    state = torch.load(newest_checkpoint(run_dir), weights_only=True)
    assert state["step"] == course.end_step == state["rows"][-1]["step"]
    assert state["rows"][-1]["val_top1"] is not None
    assert state["scheduler"]["curve"]["last_epoch"] == STEPS - 1
    assert [Event(**values) for values in state["events"]] == events
    assert status_of(run_dir)["stop_step"] == course.end_step
    record = json.loads((run_dir / "record.json").read_text())
    assert [Event(**values) for values in record["budget_events"]] == events


@pytest.mark.parametrize("script, ends", [("4:24,13:20", [24, 20]), ("4:20,9:23", [20, 23])])
def test_a_run_whose_end_moved_and_that_was_killed_equals_its_replay(
    image_folder, tmp_path, script, ends
):
    """Twice forward, or forward and back, then killed; then resumed without a controller."""
    run_dir = tmp_path / "run"
    words = steered_words(script, image_folder, run_dir, "--num_workers=2")
    process = start(words, tmp_path, **ONE_RANK, **PROGRAM_PATH)
    wait_for(lambda: len(steps_logged(run_dir)) >= 17 or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    kill(process)
    events = budget_events.read(file_of(run_dir))
    assert [event.end_step for event in events] == ends
    # Two loaders and two spare slots: the images of two steps and a half were asked for.
    assert 5 < events[0].step <= 8 and events[0].paid_s > 0
    result = run_here(train_words(*flags_of(image_folder, run_dir)), tmp_path)
    assert result.code == 0 and "resuming at step" in result.out, result.err
    moved = f"the schedule's end was moved 2 times: it ends at step {ends[1]} instead of 30"
    assert moved in result.out
    pace = f"{'faster' if ends[1] < ends[0] else 'slower'}, to end at step {ends[1]} instead of"
    assert any(f"{pace} {ends[0]} (as the" in text for text in events_of(run_dir))
    assert_on_course(run_dir, events)
    straight = replayed(image_folder, tmp_path / "straight", file_of(run_dir), "--num_workers=1")
    assert_same_end(straight, run_dir)


def test_a_checkpoint_follows_an_event(image_folder, tmp_path):
    """So a resume need not go back before it; nothing else asks for one within an epoch."""
    run_dir = tmp_path / "run"
    more = "--save_every_steps=0", "--keep_checkpoints=20"
    # Before the first epoch's checkpoint: after one, its share of the time has to pass.
    words = steered_words("1:24", image_folder, run_dir, "--num_workers=2", *more)
    result = run(words, tmp_path, **ONE_RANK, **PROGRAM_PATH)
    assert result.code == 0, result.err
    assert [step for step in saved_steps(run_dir) if step % 4] == [2]


def test_a_kill_between_the_line_and_its_effect_changes_nothing(image_folder, tmp_path):
    run_dir = tmp_path / "run"
    words = steered_words("7:22!", image_folder, run_dir, "--num_workers=2")
    result = run(words, tmp_path, **ONE_RANK, **PROGRAM_PATH)
    assert result.code == -signal.SIGKILL
    (event,) = budget_events.read(file_of(run_dir))
    assert event.step > len(steps_logged(run_dir)) >= 7
    state = torch.load(newest_checkpoint(run_dir), weights_only=True)
    assert state["events"] == [] and state["step"] < event.step
    # The controller may look again, but not before the event; then it has nothing to do.
    words = steered_words("1:22", image_folder, run_dir, "--num_workers=1")
    result = run(words, tmp_path, **ONE_RANK, **PROGRAM_PATH)
    assert result.code == 0, result.err
    assert_on_course(run_dir, [event])
    assert event.step + 1 in {record["step"] for record in steps_logged(run_dir)}
    assert_same_end(replayed(image_folder, tmp_path / "straight", file_of(run_dir)), run_dir)


def test_a_replay_resumes_as_well_and_needs_its_file_no_more(image_folder, tmp_path):
    events = tmp_path / "theirs.jsonl"
    events.write_text('{"step": 6, "end_step": 21}')  # as one may type it
    ends = []
    for name, stops in (("straight", [0]), ("stopped", [4, 8, 0])):
        for stop in stops:
            flags = flags_of(image_folder, tmp_path / name, f"--max_steps={stop}")
            flags.append(f"--budget_events={events}")
            result = run_here(train_words(*flags), tmp_path)
            assert result.code == 0, result.err
            if name == "stopped":
                events.unlink(missing_ok=True)
        ends.append(tmp_path / name)
    assert_on_course(ends[0], [Event(6, 21)])
    assert_same_end(*ends)


def test_two_ranks_take_the_same_course(image_folder, tmp_path):
    run_dir, straight = tmp_path / "run", tmp_path / "straight"
    program = "tests/support/programs/steer_train.py"
    flags = flags_of(image_folder, run_dir, "--num_workers=1")
    words = torchrun_words(2, program, "4:16", *flags)
    result = run(words, tmp_path, **PROGRAM_PATH)
    assert result.code == 0, result.err
    events = budget_events.read(file_of(run_dir))
    assert_on_course(run_dir, events)
    flags = flags_of(image_folder, straight, f"--budget_events={file_of(run_dir)}")
    assert run(torchrun_words(2, "train.py", *flags), tmp_path).code == 0
    assert_same_end(straight, run_dir)


def test_the_number_of_steps_alone_changes_no_bit(image_folder, tmp_path):
    """Three whole epochs, said in steps; and the fingerprint of the schedule is what it was."""
    found = {}
    for name, more in (("epochs", []), ("steps", ["--num_steps=12"])):
        words = train_words(*tiny_flags(image_folder, tmp_path / name), *more)
        assert run_here(words, tmp_path).code == 0
        found[name] = torch.load(newest_checkpoint(tmp_path / name), weights_only=True)
    assert_same_end(tmp_path / "epochs", tmp_path / "steps")
    assert found["epochs"]["schedule"] == found["steps"]["schedule"]
    assert not {"num_steps", "events"} & found["epochs"]["schedule"].keys()
    assert not file_of(tmp_path / "steps").exists()


def test_a_checkpoint_from_before_there_were_budgets_resumes_with_the_same_bits(
    image_folder, tmp_path
):
    for name in ("straight", "old"):
        words = train_words(*tiny_flags(image_folder, tmp_path / name))
        if name == "old":
            assert run_here([*words, "--max_steps=8"], tmp_path).code == 0
            state = checkpoint.load(newest_checkpoint(tmp_path / name))
            config = json.loads((tmp_path / name / "config.json").read_text())
            del state["events"]
            for settings in (state["config"], config["settings"]):
                del settings["num_steps"], settings["budget_events"]
            checkpoint.write(newest_checkpoint(tmp_path / name), state)
            (tmp_path / name / "config.json").write_text(json.dumps(config))
            (tmp_path / name / ".paid_ms").unlink()
            words += ["--max_steps=0"]
        result = run_here(words, tmp_path)
        assert result.code == 0, result.err
    assert "resuming at step 8" in result.out
    assert_same_end(tmp_path / "straight", tmp_path / "old")


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "cannot be read: No such file"),
        ('{"step": 5}\n', "line 1 is no event such as"),
        ('{"step": 5, "end_step": 20}\n\n', "line 2 is no event"),
        ('{"step": 5, "end_step": 20, "why": 3}\n', "line 1 is no event"),
        ('{"step": 5, "end_step": 31}\n', "step 31 is later than step 30"),
        ('{"step": 0, "end_step": 20}\n', "must be at step 1 or later"),
    ],
)
def test_events_that_make_no_course_are_refused(image_folder, tmp_path, text, message):
    events = tmp_path / "events.jsonl"
    if text is not None:
        events.write_text(text)
    flags = flags_of(image_folder, tmp_path / "run", f"--budget_events={events}")
    result = run_here(train_words(*flags), tmp_path)
    assert result.code == 2 and f"{events}" in result.err and message in result.err, result.err
    assert "Traceback" not in result.err
