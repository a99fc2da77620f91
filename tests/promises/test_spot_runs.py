"""Real runs that get a spot notice: saved, stopped, and resumed as if nothing had happened."""

import shutil
import time
from pathlib import Path

import pytest
from support.commands import ONE_RANK, finish, run, start, tiny_flags, train_words, wait_for
from support.metadata_service import STOPPING, FakeService
from support.pictures import training_gate, validation_gate
from support.runs import (
    assert_same_end,
    events_of,
    newest_checkpoint,
    saved_steps,
    status_of,
    steps_logged,
)

from resnet50.run import instance_metadata, spot_watch

pytestmark = pytest.mark.usefixtures("no_leftovers")
HEARD_WITHIN_S = 10.0 * 4  # 10 s, with slack for a busy machine


@pytest.fixture(scope="module")
def straight(image_folder, tmp_path_factory) -> Path:
    """A run that nothing interrupts, which asks for a service where there is none."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    words = train_words(*tiny_flags(image_folder, run_dir), "--save_every_steps=0")
    nobody = {instance_metadata.ENDPOINT: "http://127.0.0.1:9", instance_metadata.DISABLED: ""}
    result = run(words, run_dir.parent, **ONE_RANK, **nobody)
    assert result.code == 0, result.err
    assert result.err == "" and "spot" not in result.out
    assert saved_steps(run_dir) == {4, 8, 12}
    return run_dir


@pytest.fixture
def words(image_folder, tmp_path) -> list[object]:
    """The same run with loader processes, on images of its own, in tmp_path."""
    shutil.copytree(image_folder, tmp_path / "images")
    flags = tiny_flags(tmp_path / "images", tmp_path / "run")
    return train_words(*flags, "--save_every_steps=0", "--keep_checkpoints=100", "--num_workers=2")


def begin(words: list[object], service: FakeService, cwd: Path):
    return start(words, cwd, **ONE_RANK, **service.environment)


def assert_stopped(process, run_dir: Path) -> dict:
    """It ended as interrupted, saved where it ended, and said why once; returns its status."""
    result = finish(process)
    assert result.code == 75, result.err
    assert "Traceback" not in result.err and result.out.count(STOPPING) == 1
    status = status_of(run_dir)
    assert status["state"] == "interrupted" and events_of(run_dir).count(STOPPING) == 1
    return status


def test_a_notice_in_training_saves_and_stops_and_nothing_is_lost(
    straight, words, service, tmp_path
):
    """The run that resumes from there has a service that answers with nonsense."""
    gate = training_gate(tmp_path / "images", step=2)
    process = begin(words, service, tmp_path)
    gate.wait_for_reader()
    wait_for(lambda: len(steps_logged(tmp_path / "run")) == 2)
    service.give_notice()
    began = time.monotonic()
    service.wait_until_told(spot_watch.INSTANCE_ACTION, HEARD_WITHIN_S)
    gate.open()
    status = assert_stopped(process, tmp_path / "run")
    assert time.monotonic() - began < HEARD_WITHIN_S
    assert status["step"] == 3
    assert newest_checkpoint(tmp_path / "run").name == f"step_{status['step']:09d}.pt"
    service.asked.clear()
    service.garbage = [b"HTTP/1.1 200 OK\r\n\r\n", b"[" * 9_000]
    result = finish(begin([*words, "--spot_watch=on"], service, tmp_path))
    assert result.code == 0 and result.err == "" and "spot" not in result.out
    assert ("GET", spot_watch.INSTANCE_ACTION, 0) in service.asked
    assert_same_end(straight, tmp_path / "run")


def test_a_notice_in_evaluation_stops_it_and_a_recommendation_later_costs_one_save(
    straight, words, service, tmp_path
):
    gate = validation_gate(tmp_path / "images")
    process = begin(words, service, tmp_path)
    gate.wait_for_reader()
    service.give_notice()
    service.wait_until_told(spot_watch.INSTANCE_ACTION, HEARD_WITHIN_S)
    gate.open()
    assert assert_stopped(process, tmp_path / "run")["step"] == 4
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") == 1  # no row yet
    service.found.clear()

    gate = training_gate(tmp_path / "images", step=5)
    process = begin(words, service, tmp_path)
    gate.wait_for_reader()
    wait_for(lambda: len(steps_logged(tmp_path / "run")) == 5)  # past the save of step 4
    service.recommend()
    service.wait_until_told(spot_watch.REBALANCE, HEARD_WITHIN_S)
    gate.open()
    result = finish(process)
    assert result.code == 0, result.err
    assert result.out.count("rebalance recommendation of 2026-01-31T11:50:00Z") == 1
    assert saved_steps(tmp_path / "run") - {4, 8, 12} in ({5}, {6})
    assert_same_end(straight, tmp_path / "run")


def test_a_notice_during_start_up_ends_it(words, service, tmp_path):
    service.give_notice()
    process = begin([*words, "--max_lr=auto"], service, tmp_path)
    assert_stopped(process, tmp_path / "run")
    assert not saved_steps(tmp_path / "run")
