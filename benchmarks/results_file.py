"""Results of benchmarks that take hours: one line of JSON a run, so that they go on where they
stopped."""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from resnet50.records import run_folder
from resnet50.system import limits

# Two-sided 95% points of Student's t, by the number of pairs less one.
T_95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


def machine() -> dict[str, object]:
    """What a run's speed depends on besides its settings, and the commit that it was made with."""
    return {
        "commit": run_folder.commit(),
        "cpu": limits.cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


def add_options(parser: argparse.ArgumentParser, name: str) -> None:
    """The options that all of them have. name: of the results file in runs."""
    add = parser.add_argument
    add("--data_dir", type=Path, required=True, metavar="DIR", help="packed, or a folder")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="[0 1 2]")
    add("--flags", nargs="*", default=[], metavar="WORD", help="more flags of train.py, without --")
    path = Path("runs") / name
    add("--results", type=Path, default=path, metavar="FILE", help=f"[{path}]")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Their values, and `machine`; ends the program if there is no such data."""
    args = parser.parse_args(argv)
    if not args.data_dir.is_dir():
        parser.error(f"--data_dir {args.data_dir}: no such folder")
    args.data_dir = args.data_dir.resolve()
    args.flags = [f"--{word}" for word in args.flags]
    args.machine = machine()
    return args


def find(path: Path, key: dict[str, object]) -> dict[str, object] | None:
    """The run with this key that is in the file already, if any."""
    lines = path.read_text().splitlines() if path.exists() else []
    return next((run for run in map(json.loads, lines) if run["key"] == key), None)


def append(path: Path, key: dict[str, object], result: dict[str, object]) -> dict[str, object]:
    """Add a run to the file; returns it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    run = {"key": key, "date": datetime.now(UTC).isoformat(timespec="seconds"), **result}
    with path.open("a") as file:
        file.write(json.dumps(run) + "\n")
    return run


def paired(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Mean difference, paired by seed, and its 95% interval, such as +1.2 (+0.3 to +2.1)."""
    differences = [one - other for one, other in zip(ours, theirs, strict=True)]
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return f"{mean:+.1f}"
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    # Beyond the table its last value, with which the interval is a little too wide.
    half = T_95.get(len(differences) - 1, T_95[9]) * error
    return f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"
