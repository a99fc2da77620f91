"""The files of a run folder that say what the run is and how it stands.

    runs/NAME/config.json    settings, command line, commit, versions, hardware
    runs/NAME/status.json    state (running, done, interrupted, ...), step, dollars
    runs/NAME/checkpoints/   step_000001200.pt, best.pt

Both files are replaced in one step, so that a reader never sees half of one.
"""

import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch

RUNS = Path("runs")
FILES = ("config.json", "status.json", "log.jsonl", "metrics.csv", "metrics.md", "curves.png")
RUNNING, DONE, INTERRUPTED = "running", "done", "interrupted"
DIVERGED, CRASHED, CONFIG_ERROR = "diverged", "crashed", "config error"

# Exit codes of every command that trains (sysexits.h calls 75 EX_TEMPFAIL: try again).
EXIT_CODES = {DONE: 0, CONFIG_ERROR: 2, DIVERGED: 3, INTERRUPTED: 75}


def checkpoints_dir(run_dir: Path) -> Path:
    return run_dir / "checkpoints"


def has_run(run_dir: Path) -> bool:
    return (run_dir / "config.json").exists() or checkpoints_dir(run_dir).exists()


def make_room(run_dir: Path, overwrite: bool) -> None:
    """Delete the run that lies there, if told to, and nothing that is not a run's."""
    if not has_run(run_dir):
        return
    if not overwrite:
        step = read_status(run_dir).get("step", "?")
        raise ValueError(
            f"--fresh: a run lies in {run_dir}, at step {step}. Leave --fresh out to resume it, "
            "add --overwrite to delete it, or give another --run_dir"
        )
    for folder in (checkpoints_dir(run_dir), run_dir / "tensorboard"):
        if folder.exists():
            shutil.rmtree(folder)
    for name in FILES:
        (run_dir / name).unlink(missing_ok=True)


def write_json(path: Path, values: dict[str, object]) -> None:
    """Replace a file in one step. Raises OSError, and then the old file stands."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "w") as file:
            file.write(json.dumps(values, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave an empty file under the name
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, object]:
    """A JSON object, empty if there is no file. Raises ValueError naming a damaged file."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return values


def read_records(path: Path) -> list[dict]:
    """The whole lines of a log of JSON objects; a kill may have cut the last one."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def replace_text(path: Path, text: str) -> None:
    """Write a file that is whole at any time, old or new."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def read_status(run_dir: Path) -> dict[str, object]:
    return read_json(run_dir / "status.json")


def write_status(run_dir: Path, **changes: object) -> None:
    """Change some entries of status.json and keep the others."""
    write_json(run_dir / "status.json", read_status(run_dir) | changes)


def write_config(run_dir: Path, settings: dict[str, object], command_line: list[str]) -> None:
    """config.json, for resuming and for whoever asks later how this was made."""
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
    write_json(run_dir / "config.json", record)


def read_settings(run_dir: Path) -> dict[str, object] | None:
    """The settings a run was started with; None where no run lies."""
    record = read_json(run_dir / "config.json")
    if not record:
        return None
    settings = record.get("settings")
    if not isinstance(settings, dict):
        raise ValueError(f"{run_dir / 'config.json'} has no settings: not written by this program")
    return settings


def commit() -> str:
    """The commit of this code, with -dirty for local changes; empty outside of git."""
    here = Path(__file__).parent
    describe = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        result = subprocess.run(describe, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip()


def newest_unfinished(runs: Path = RUNS) -> Path | None:
    """The run folder started last among those that can go on; None without one."""
    unfinished = [
        path.parent
        for path in runs.glob("*/config.json")
        if read_status(path.parent).get("state") not in (DONE, DIVERGED)
    ]
    return max(unfinished, key=lambda run: (run / "config.json").stat().st_mtime, default=None)
