"""The curves for TensorBoard are those of log.jsonl, once each, whatever interrupted the run."""

import json
import subprocess
from pathlib import Path

import pytest
from support.commands import run, tiny_flags, train_words
from support.in_process import run_here
from support.logs import fill, make_log
from support.needs import needs_root

from resnet50.records.log import RunLog

tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def curves(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: for every name its steps and values."""
    events = tensorboard.EventAccumulator(str(run_dir / "tensorboard")).Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def logged(run_dir: Path, kind: str, name: str) -> list[tuple[int, float]]:
    """The same from log.jsonl."""
    records = map(json.loads, (run_dir / "log.jsonl").read_text().splitlines())
    return [
        (record["step"], pytest.approx(record[name], rel=1e-6))  # TensorBoard keeps 32 bits
        for record in records
        if record["kind"] == kind and record[name] is not None
    ]


def test_a_run_in_two_parts_has_every_step_once(image_folder, tmp_path):
    flags = [*tiny_flags(image_folder, tmp_path / "run"), "--tensorboard"]
    for more in (["--max_steps=5"], ["--max_steps=0"]):
        result = run_here(train_words(*flags, *more), tmp_path)
        assert result.code == 0, result.err
    found = curves(tmp_path / "run")
    for kind, name in (("train", "loss"), ("train", "lr"), ("epoch", "val_top1")):
        expected = logged(tmp_path / "run", kind, name)
        assert found[f"{kind}/{name}"] == expected and len(expected) > 2, name
    assert [step for step, _ in found["train/loss"]] == list(range(1, 13))


def test_what_came_after_the_checkpoint_of_a_resume_is_dropped(tmp_path):
    log = make_log(tmp_path, tensorboard=True)
    log.begin(0)
    fill(log, 1, 8)  # and no close: a kill
    log._tensorboard._writer.flush()
    again = make_log(tmp_path, tensorboard=True)
    again.results.rows = log.results.rows[:1]
    again.begin(5)
    fill(again, 6, 7)
    again.close("interrupted", 7)
    assert [step for step, _ in curves(tmp_path)["train/loss"]] == [1, 2, 3, 4, 5, 6, 7]


def test_without_the_flag_nothing_is_written_and_other_ranks_never_write(tmp_path):
    for name, more in (("a", {}), ("b", {"tensorboard": True, "is_main": False})):
        (tmp_path / name).mkdir()
        log: RunLog = make_log(tmp_path / name, **more)
        log.begin(0)
        fill(log, 1, 4)
        log.close("interrupted", 4)
        assert not (tmp_path / name / "tensorboard").exists()


def test_a_missing_package_is_named_before_anything_is_made(image_folder, tmp_path):
    (tmp_path / "without").mkdir()
    (tmp_path / "without/tensorboard.py").write_text("raise ImportError('not installed')\n")
    words = [*tiny_flags(image_folder, tmp_path / "run"), "--tensorboard"]
    result = run(train_words(*words), tmp_path, PYTHONPATH=str(tmp_path / "without"))
    assert result.code == 2 and result.err.count("\n") == 1, result.err
    assert "--tensorboard needs a package: pip install tensorboard" in result.err
    assert not (tmp_path / "run/config.json").exists()


@needs_root
def test_a_full_disk_costs_curves_and_not_the_run(tmp_path, capsys):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=True)
    try:
        log = make_log(tmp_path, tensorboard=True)
        log.begin(0)
        (tmp_path / "ballast").write_bytes(b"x" * 50_000)
        for _ in range(30):
            fill(log, 1, 8)
        log.close("interrupted", 8)
        assert "No space left on device: skipping this record" in capsys.readouterr().out
    finally:
        subprocess.run(["umount", tmp_path], check=True)
