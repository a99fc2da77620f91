"""What a run left in its folder, and whether two ended alike."""

import json
from pathlib import Path

import torch

from resnet50.training.engine import TrainState


def status_of(run_dir: Path) -> dict:
    path = run_dir / "status.json"
    return json.loads(path.read_text()) if path.exists() else {}


def steps_logged(run_dir: Path) -> list[dict]:
    """The training records of log.jsonl, without what depends on the clock."""
    clock = ("seconds", "images_per_s", "data_wait_pct")
    path = run_dir / "log.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [
        {key: value for key, value in record.items() if key not in clock}
        for record in records
        if record["kind"] == "train"
    ]


def values_of(state: TrainState) -> dict[str, object]:
    """What a checkpoint holds of a training state."""
    return {
        "step": state.step,
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scheduler": state.learning_rate.state_dict(),
        "scaler": state.scaler.state_dict(),
        "ema": None if state.ema is None else state.ema.module.state_dict(),
        "num_averaged": 0 if state.ema is None else state.ema.num_updates,
    }


def events_of(run_dir: Path) -> list[str]:
    """The texts of log.jsonl's events."""
    path = run_dir / "log.jsonl"
    records = map(json.loads, path.read_text().splitlines()) if path.exists() else []
    return [record["text"] for record in records if record["kind"] == "event"]


def newest_checkpoint(run_dir: Path) -> Path:
    return max((run_dir / "checkpoints").glob("step_*.pt"))


def saved_steps(run_dir: Path) -> set[int]:
    return {int(path.stem.split("_")[1]) for path in (run_dir / "checkpoints").glob("step_*.pt")}


def assert_same_end(one: Path, other: Path) -> None:
    """Two finished runs ended bit for bit alike: state, rows and logged losses."""
    first, second = (
        torch.load(newest_checkpoint(run_dir), weights_only=True) for run_dir in (one, other)
    )
    for key in ("model", "ema", "optimizer", "scheduler", "scaler", "step", "epoch_sums"):
        assert_same(first[key], second[key], key)
    clock = ("seconds", "images_per_s", "data_wait_pct", "cost_usd")
    for a, b in zip(first["rows"], second["rows"], strict=True):
        for key in a.keys() - set(clock):
            assert a[key] == b[key], f"row {a['step']}: {key}"
    assert steps_logged(one) == steps_logged(other)


def assert_same(a: object, b: object, where: str) -> None:
    """Equal values, and equal bits in every tensor, however nested."""
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where
