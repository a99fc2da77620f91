"""The file of events: what is read back, what is refused, and what a full disk leaves."""

import resource
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet50.config.train_config import TrainConfig
from resnet50.records import checkpoint, ownership, run_folder
from resnet50.run import budget_events
from resnet50.training.course import Event

A, B, C = Event(5, 24, 1.5, "slow"), Event(9, 20), Event(14, 18)


def file_of(run_dir: Path) -> Path:
    return run_dir / ownership.BUDGET_EVENTS


def found(run_dir: Path, said: list[str], step: int = -1, **more: object) -> list[Event]:
    cfg = TrainConfig(run_dir=str(run_dir), num_steps=30, **more)
    return budget_events.known_events(cfg, step, said.append)


def save(run_dir: Path, step: int, events: Sequence[Event] | None) -> None:
    """A checkpoint with these events; None: from before there were any."""
    values = {"step": step}
    if events is not None:
        values["events"] = [budget_events.as_values(event) for event in events]
    checkpoint.save(run_folder.checkpoints_dir(run_dir), step, values)


@given(st.lists(st.builds(Event, st.integers(), st.integers(), st.floats(0, 1e9), st.text())))
def test_what_is_written_or_appended_reads_back(tmp_path_factory, events):
    one, other = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("other")
    budget_events.write(one, events)
    for event in events:
        budget_events.append(other, event)
    assert file_of(one).exists() == bool(events)
    for folder in (one, other) if events else ():
        read = budget_events.read(file_of(folder))
        assert [(e, e.paid_s, e.why) for e in read] == [(e, e.paid_s, e.why) for e in events]


@pytest.mark.parametrize("length", range(0, 60, 7))
def test_a_line_that_a_kill_cut_short_had_no_effect_and_is_replaced(tmp_path, length):
    budget_events.write(tmp_path, [A])
    with open(file_of(tmp_path), "a") as file:
        file.write(
            '{"step": 9, "end_step": 20, "paid_s": 0.0, "why": "because it was slow"}'[:length]
        )
    assert found(tmp_path, []) == [A]
    budget_events.write(tmp_path, [A])
    budget_events.append(tmp_path, B)
    assert budget_events.read(file_of(tmp_path)) == [A, B]


def test_the_events_after_the_checkpoint_stand(tmp_path):
    save(tmp_path, 8, [A])
    budget_events.write(tmp_path, [A, B, C])
    assert found(tmp_path, [], 8) == [A, B, C]
    assert found(tmp_path, []) == [A, B, C]  # as after a kill before the first checkpoint


def test_events_that_the_file_lost_come_from_the_checkpoint(tmp_path):
    save(tmp_path, 12, [A, B])
    for kept in ([], [A]):
        budget_events.write(tmp_path, kept)
        said = []
        assert found(tmp_path, said, 12) == [A, B]
        assert "taking them from the checkpoint of step 12" in said[0]


@pytest.mark.parametrize(
    "saved, file", [([A], [B]), ([A], [A, Event(7, 20)]), ([], [A]), (None, [A])]
)
def test_a_file_that_is_not_what_the_run_did_is_refused(tmp_path, saved, file):
    save(tmp_path, 8, saved)
    budget_events.write(tmp_path, file)
    with pytest.raises(ValueError, match=r"budget_events.jsonl is not what the run .* delete it"):
        found(tmp_path, [], 8)
    file_of(tmp_path).unlink()
    assert found(tmp_path, [], 8) == (saved or [])


def test_the_events_to_replay_are_read_at_the_beginning_only(tmp_path):
    theirs = tmp_path / "theirs.jsonl"
    theirs.write_text('{"step": 5, "end_step": 24}\n{"step": 9, "end_step": 20}')
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    assert found(run_dir, [], budget_events=str(theirs)) == [A, B]
    save(run_dir, 3, [A])
    assert found(run_dir, [], 3, budget_events=str(theirs)) == [A]
    budget_events.write(run_dir, [C])
    assert found(run_dir, [], budget_events=str(theirs)) == [C]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path):
    """A limit on the size of files stands for the disk: a write then stops in the middle."""
    budget_events.write(tmp_path, [A])
    before = file_of(tmp_path).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
    try:
        with pytest.raises(OSError):
            budget_events.append(tmp_path, B)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file_of(tmp_path).read_bytes() == before


def test_a_file_of_endless_length_is_not_read_to_its_end():
    with pytest.raises(ValueError, match="no run has so many events"):
        budget_events.read(Path("/dev/zero"))
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        budget_events.read(Path("/"))
