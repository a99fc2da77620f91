"""A run's folder: what is in it, the settings of the run, and which run to resume.

    runs/NAME/config.json    settings, command line, commit, versions, hardware
    runs/NAME/status.json    its state (status.py)
    runs/NAME/checkpoints/   step_000001200.pt, best.pt (checkpoint.py)

Both JSON files are replaced whole, so that a reader never sees half of one.
"""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch

from resnet50.records import status
from resnet50.system import files

RUNS = Path("runs")
CONFIG, LOG = "config.json", "log.jsonl"
FILES = (CONFIG, status.FILE, LOG, "metrics.csv", "metrics.md", "curves.png")


def checkpoints_dir(run_dir: Path) -> Path:
    return run_dir / "checkpoints"


def has_run(run_dir: Path) -> bool:
    return (run_dir / CONFIG).exists() or checkpoints_dir(run_dir).exists()


def make_room(run_dir: Path, overwrite: bool) -> None:
    """Delete the run in the folder, if `overwrite`, and no file that is not a run's."""
    if not has_run(run_dir):
        return
    if not overwrite:
        step = status.read_status(run_dir).get("step", "?")
        raise ValueError(
            f"--fresh: there is a run in {run_dir}, at step {step}. Leave --fresh out to resume "
            "it, add --overwrite to delete it, or give another --run_dir"
        )
    for folder in (checkpoints_dir(run_dir), run_dir / "tensorboard"):
        if folder.exists():
            shutil.rmtree(folder)
    for name in FILES:
        (run_dir / name).unlink(missing_ok=True)


def write_config(run_dir: Path, settings: dict[str, object], command_line: list[str]) -> None:
    """Write config.json, for resuming and to show later how the run was made."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    record = {
        "settings": settings,
        "command_line": command_line,
        "commit": commit(),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "gpus": gpus,
        "cpu_cores": os.cpu_count(),
        "platform": platform.platform(),
    }
    files.write_json(run_dir / CONFIG, record)


def read_settings(run_dir: Path) -> dict[str, object] | None:
    """The settings a run was started with; None if there is no run."""
    record = files.read_json(run_dir / CONFIG)
    if not record:
        return None
    settings = record.get("settings")
    if not isinstance(settings, dict):
        raise ValueError(f"{run_dir / CONFIG} has no settings: not written by this program")
    return settings


def commit() -> str:
    """The commit of this code, with -dirty for local changes; empty outside of git."""
    here = str(Path(__file__).parent)
    describe = ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        result = subprocess.run(describe, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip()


def newest_unfinished(runs: Path = RUNS) -> Path | None:
    """The most recently started run that can be resumed, as its folder; None without one."""
    unfinished = [
        path.parent
        for path in runs.glob(f"*/{CONFIG}")
        if status.read_status(path.parent).get("state") not in status.ENDED
    ]
    return max(unfinished, key=lambda run: (run / CONFIG).stat().st_mtime, default=None)
