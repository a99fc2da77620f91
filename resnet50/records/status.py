"""The state of a run: status.json, its states, their exit codes. Standard library, Python 3.10.

    status.json    state, attempt (id of the last start), message (why it was refused), step,
                   stop_step, epoch, best_top1, paid_s, cost_usd, images_per_s, data_wait_pct,
                   remaining_s, with --mirror mirrored_step and mirror_behind_s; a run that has
                   not reached its first step has the first three

Read by train.py's supervisor, by host/ before there is an environment, and by anyone who asks how a
run is doing. No other module reads the file or spells out a state; launch/slurm.sbatch asks with

    python -m resnet50.records.status RUN_DIR ATTEMPT    # ends with the exit code of that attempt
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from resnet50.system import files
from resnet50.system.locking import lock_holder

FILE = "status.json"
CONFIG = "config.json"  # the settings, which run_folder.py writes
SUPERVISOR = "train.py"
SUPERVISOR_LOCK = ".supervisor.lock"  # held by `python train.py` as long as it lives

RUNNING, DONE, INTERRUPTED = "running", "done", "interrupted"
DIVERGED, CRASHED, CONFIG_ERROR = "diverged", "crashed", "config error"
ENDED = (DONE, DIVERGED)  # nothing more happens without the user

# Exit codes of every command that trains; with none of these states it crashed, code 1.
# sysexits.h calls 75 EX_TEMPFAIL: try again.
EXIT_CODES = {DONE: 0, CONFIG_ERROR: 2, DIVERGED: 3, INTERRUPTED: 75}


def read_status(run_dir: Path) -> dict[str, object]:
    """What status.json holds; empty without one. Raises ValueError for a damaged file."""
    return files.read_json(run_dir / FILE)


def known_status(run_dir: Path) -> dict[str, object]:
    """`read_status` for resuming: empty for a damaged file too, such as a truncated copy. The
    checkpoints hold everything but the time and money of earlier attempts."""
    try:
        return read_status(run_dir)
    except ValueError:
        return {}


def write_status(run_dir: Path, **changes: object) -> None:
    """Change some entries of status.json and keep the others. Raises OSError."""
    files.write_json(run_dir / FILE, known_status(run_dir) | changes)


def state_of(run_dir: Path, attempt: str) -> str:
    """The state that this attempt wrote; empty if it wrote none."""
    status = known_status(run_dir)
    return str(status.get("state", "")) if status.get("attempt") == attempt else ""


def supervisor_of(run_dir: Path) -> int:
    """Process id of the supervisor that trains there; 0 if none does, HIDDEN if it cannot be seen
    from here."""
    return lock_holder(run_dir / SUPERVISOR_LOCK, SUPERVISOR)


def numbers(status: Mapping) -> dict[str, float]:
    """The entries that are numbers; in a file of another version, or one edited by hand, any may be
    missing or null."""
    return {name: value for name, value in status.items() if isinstance(value, int | float)}


def describe_progress(status: Mapping) -> str:
    """Step, epoch, top-1, speed, time and money, as far as they are known."""
    known = numbers(status)
    parts = [f"step {known.get('step', 0):,} of {known.get('stop_step', 0):,}"]
    if "epoch" in known:
        parts.append(f"epoch {known['epoch']:.2f}")
    if "best_top1" in known:
        parts.append(f"best top-1 {known['best_top1']:.2f}%")
    if "images_per_s" in known:
        parts.append(f"{known['images_per_s']:,.0f} images/s")
    if "data_wait_pct" in known:
        parts.append(f"waiting for data {known['data_wait_pct']:.0f}%")
    if known.get("mirror_behind_s", 0) > 60:
        parts.append(f"mirror {known['mirror_behind_s'] / 60:.0f} min behind")
    left_s = known.get("remaining_s", 0) if status.get("state") == RUNNING else 0
    if left_s:
        parts.append(
            f"left {left_s / 3600:.1f} h" if left_s > 5400 else f"left {left_s / 60:.0f} min"
        )
    if spent := known.get("cost_usd"):
        parts.append(f"${spent:.2f} so far")
        if "paid_s" in known:
            parts[-1] += f", ${spent + spent / max(known['paid_s'], 1) * left_s:.2f} at the end"
    return " · ".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of an attempt, which torchrun hides: 1 if it left no state, as in a crash."""
    run_dir, attempt = sys.argv[1:] if argv is None else argv
    return EXIT_CODES.get(state_of(Path(run_dir), attempt), 1)


if __name__ == "__main__":
    sys.exit(main())
