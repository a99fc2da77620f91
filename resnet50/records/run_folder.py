"""A run's folder: what is in it, the settings of the run, and which run to resume.

    runs/NAME/config.json    the run's id, settings, command line, commit, versions, hardware
    runs/NAME/status.json    its state (status.py)
    runs/NAME/checkpoints/   step_000001200.pt, best.pt (checkpoint.py)

Both JSON files are replaced whole, so that a reader never sees half of one.
"""

import os
import platform
import subprocess
import uuid
from pathlib import Path

import torch

from resnet50.records import checkpoint, ownership, paid_clock, status
from resnet50.records.ownership import CHECKPOINTS, CONFIG
from resnet50.system import files, git

RUNS = Path("runs")


def checkpoints_dir(run_dir: Path) -> Path:
    return run_dir / CHECKPOINTS


def make_room(run_dir: Path, overwrite: bool) -> None:
    """Delete the run in the folder, if `overwrite`, and no file that is not a run's."""
    if not ownership.has_run(run_dir):
        return
    if not overwrite:
        step = status.known_status(run_dir).get("step", "?")
        raise ValueError(
            f"--fresh: there is a run in {run_dir}, at step {step}. Leave --fresh out to resume "
            "it, add --overwrite to delete it, or give another --run_dir"
        )
    ownership.remove_run(run_dir)


def write_config(
    run_dir: Path,
    settings: dict[str, object],
    command_line: list[str],
    device_type: str,
    precision: str,
    budget: dict[str, object] | None = None,
) -> None:
    """Write config.json, for resuming and to record how the run was made.

    device_type, precision: the run's device and precision, such as "cuda" and "bf16"; budget: what
    its settings were planned from (run/budget_start.py), None without a budget.
    """
    num_gpus = torch.cuda.device_count() if device_type == "cuda" else 0
    gpus = [torch.cuda.get_device_name(i) for i in range(num_gpus)]
    if settings_problem(run_dir) and (run_dir / CONFIG).exists():
        checkpoint.put_aside(run_dir / CONFIG)
    record = {
        "run": read_id(run_dir) or uuid.uuid4().hex,
        "settings": settings,
        "command_line": command_line,
        "commit": commit(),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "gpus": gpus,
        "device": device_type,
        "precision": precision,
        "cpu_cores": os.cpu_count(),
        "platform": platform.platform(),
    }
    if budget is not None:
        record["budget"] = budget
    files.write_json(run_dir / CONFIG, record)


def read_id(run_dir: Path) -> str:
    """What tells this run from all others, made at its start; empty without a run, and for one from
    before runs had ids."""
    try:
        return str(files.read_json(run_dir / CONFIG).get("run", ""))
    except ValueError:
        return ""


def read_budget(run_dir: Path) -> dict[str, object]:
    """What a run's settings were planned from; empty if that is lost, or there was no budget.

    If config.json is gone or damaged, it comes from a checkpoint, as the settings do.
    """
    if settings_problem(run_dir):
        budget = newest_contents(run_dir).get("budget")
    else:
        budget = files.read_json(run_dir / CONFIG).get("budget")
    return budget if isinstance(budget, dict) else {}


def read_settings(run_dir: Path) -> dict[str, object] | None:
    """The settings a run was started with; None if there is no run.

    If config.json is gone or damaged, they come from a checkpoint, which has them all. Raises
    ValueError, naming file and remedy, if there is none either.
    """
    problem = settings_problem(run_dir)
    if not problem:
        return files.read_json(run_dir / CONFIG)["settings"]
    if contents := newest_contents(run_dir):
        return contents["config"]
    if not (run_dir / CONFIG).exists():
        return None
    raise ValueError(
        f"{problem}, and no checkpoint there has its settings. Put a good copy there, start over "
        "with --fresh --overwrite, or give another --run_dir"
    )


def newest_contents(run_dir: Path) -> dict:
    """What the newest whole checkpoint of a run holds; empty without one."""
    for path in reversed(checkpoint.files_in(checkpoints_dir(run_dir))):
        try:
            return checkpoint.load(path)
        except checkpoint.DamagedCheckpointError:
            continue
    return {}


def settings_problem(run_dir: Path) -> str:
    """Why config.json does not tell a run's settings; empty if it does."""
    path = run_dir / CONFIG
    try:
        if isinstance(files.read_json(path).get("settings"), dict):
            return ""
    except ValueError as error:
        return str(error)
    return f"{path} has no settings" if path.exists() else f"{path} is not there"


def problems(run_dir: Path) -> list[str]:
    """What is missing or damaged in a run's folder, and how the run continues without it."""
    found = []
    if not ownership.has_run(run_dir):
        return found
    if problem := settings_problem(run_dir):
        found.append(f"{problem}: taking the settings from a checkpoint")
    lost = "" if paid_clock.read(run_dir) else ": time and cost count from now on"
    try:
        if not status.read_status(run_dir) and checkpoint.files_in(checkpoints_dir(run_dir)):
            found.append(f"{run_dir / status.FILE} is missing{lost}")
    except ValueError as error:
        found.append(f"{error}{lost}")
    return found


def refuse_cpu(run_dir: Path) -> None:
    """Raise ValueError if a run from a GPU would continue on a CPU, at a hundredth of the speed,
    because a driver or a variable hides the GPU."""
    try:
        gpus = files.read_json(run_dir / CONFIG).get("gpus")
    except ValueError:
        return
    if isinstance(gpus, list) and gpus:
        raise ValueError(
            f"the run in {run_dir} trained on {gpus[0]}, but torch sees no GPU here: check "
            "nvidia-smi and CUDA_VISIBLE_DEVICES, or give --device cpu to continue without one"
        )


def refuse_lost_checkpoints(run_dir: Path) -> None:
    """Raise ValueError if a run saved checkpoints and none is left: starting at 0 would replace
    its results."""
    if checkpoint.files_in(checkpoints_dir(run_dir)):
        return
    stood = status.known_status(run_dir)
    # A run may be killed between its first row and its first checkpoint, and then starts over; an
    # older status.json, which lacks saved_step, counts as saved from the second row on.
    had_some = stood.get("saved_step", -1) >= 0 or stood.get("state") == status.DONE
    if had_some or ("saved_step" not in stood and ownership.num_rows(run_dir) >= 2):
        raise ValueError(
            f"the run in {run_dir} reached step {stood.get('step', '?')}, but its checkpoints are "
            f"gone: put best.pt or a step_*.pt back into {checkpoints_dir(run_dir)}, start "
            "over with --fresh --overwrite, or give another --run_dir"
        )


def commit() -> str:
    """The commit of this code, with -dirty for local changes; empty outside of git."""
    here = str(Path(__file__).parent)
    describe = ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        result = subprocess.run(
            describe, env=git.environment(), capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip()


def newest_unfinished(runs: Path = RUNS) -> Path | None:
    """The most recently started run that can be resumed, as its folder; None without one."""
    unfinished = [
        path.parent
        for path in runs.glob(f"*/{CONFIG}")
        if ownership.has_run(path.parent)
        and status.known_status(path.parent).get("state") not in status.ENDED
    ]
    return max(unfinished, key=lambda run: (run / CONFIG).stat().st_mtime, default=None)
