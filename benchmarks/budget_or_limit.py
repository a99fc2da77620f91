"""What a schedule that ends with the budget is worth: --budget_hours against --max_minutes.

    python benchmarks/budget_or_limit.py --data_dir data/clothing
    python benchmarks/budget_or_limit.py --data_dir data/clothing --flags ema_decay=0 --minutes 3 6

For each number of minutes and seed, two runs of the same recipe at the same time, each on its half
of the cores, which they exchange with each seed. One has the minutes as its budget and measures
this machine first; the other one is cut off by them, somewhere in a schedule of --epochs. Prints
the top-1 of the weights that each ends with, of the best ones before, and the paired differences.
Runs are added to --results as they end; those that are there, of the same commit, processor, and
torch, are not made again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import results_file

from resnet50.records import status

REPOSITORY = Path(__file__).parent.parent
BUDGET, LIMIT = "budget", "limit"
SLACK_S = 600.0  # that a run may take beside its minutes


def flags_of(kind: str, minutes: float) -> str:
    """The option of train.py that ends the run."""
    return f"--budget_hours={minutes / 60!r}" if kind == BUDGET else f"--max_minutes={minutes:g}"


def run_pair(args: argparse.Namespace, minutes: float, seed: int) -> dict[str, dict]:
    """Both runs, from the results file or made now. Raises RuntimeError if one fails."""
    common = [f"--recipe={args.recipe}", f"--epochs={args.epochs}", *args.flags]
    keys = {
        kind: {"data": args.data_dir.name, "flags": [*common, flags_of(kind, minutes)]}
        | {"seed": seed, **args.machine}
        for kind in (BUDGET, LIMIT)
    }
    found = {kind: results_file.find(args.results, key) for kind, key in keys.items()}
    if all(found.values()):
        return found
    cores = sorted(os.sched_getaffinity(0))
    halves = cores[: len(cores) // 2] or cores, cores[len(cores) // 2 :]
    with tempfile.TemporaryDirectory() as name:
        commands = {}
        for number, (kind, key) in enumerate(keys.items()):
            half = halves[(number + seed) % 2]
            words = [f"--data_dir={args.data_dir}", f"--run_dir={name}/{kind}", f"--seed={seed}"]
            commands[kind] = words + key["flags"], half
        train_both(commands, Path(name), 60 * minutes + SLACK_S)
        for kind, key in keys.items():
            found[kind] = results_file.append(args.results, key, result_of(Path(name, kind)))
    return found


def train_both(
    commands: dict[str, tuple[list[str], list[int]]], folder: Path, limit_s: float
) -> None:
    """Run train.py with both lists of flags, each on its cores. Raises RuntimeError if one fails,
    and ends the other one then."""
    processes = {}
    try:
        for kind, (flags, cores) in commands.items():
            with (folder / f"{kind}.txt").open("w") as out:
                processes[kind] = subprocess.Popen(
                    [sys.executable, "train.py", *flags],
                    cwd=REPOSITORY,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    preexec_fn=lambda cores=cores: os.sched_setaffinity(0, cores),
                )
        for kind, process in processes.items():
            if process.wait(limit_s):
                raise RuntimeError((folder / f"{kind}.txt").read_text()[-2000:])
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"train.py has not ended after {error.timeout:.0f} s") from None
    finally:
        for process in processes.values():
            process.terminate()  # it saves and ends
            process.wait(SLACK_S)


def result_of(run_dir: Path) -> dict[str, float]:
    """What a run came to."""
    rows = map(json.loads, (run_dir / "log.jsonl").read_text().splitlines())
    top1 = [row["val_top1"] for row in rows if row.get("val_top1") is not None]
    known = status.read_status(run_dir)
    return {
        "top1": top1[-1],
        "best_top1": max(top1),
        "steps": known["step"],
        "seconds": known["paid_s"],
    }


def table(pairs: dict[tuple[float, int], dict[str, dict]]) -> str:
    """Markdown."""
    head = ["minutes", "seed", "with a budget", "cut off", "its best weights before"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for (minutes, seed), pair in pairs.items():
        ours, theirs = pair[BUDGET], pair[LIMIT]
        cells = [f"{minutes:g}", f"{seed}"]
        cells += [f"{run['top1']:.1f}% in {run['seconds']:.0f} s" for run in (ours, theirs)]
        lines.append(f"| {' | '.join(cells)} | {theirs['best_top1']:.1f}% |")
    ours = [pair[BUDGET]["top1"] for pair in pairs.values()]
    for name, what in (("top1", "what the other one ends with"), ("best_top1", "its best")):
        theirs = [pair[LIMIT][name] for pair in pairs.values()]
        lines.append(f"\nagainst {what}: {results_file.paired(ours, theirs)} points")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    results_file.add_options(parser, "budget_or_limit.jsonl")
    add = parser.add_argument
    add("--recipe", default="small", help="[small]")
    add("--epochs", type=int, default=30, metavar="N", help="of the run that is cut off [30]")
    add("--minutes", type=float, nargs="+", default=[3, 6], metavar="X", help="[3 6]")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, print the table."""
    args = results_file.parse(build_parser(), argv)
    pairs = {}
    try:
        for seed in args.seeds:
            for minutes in args.minutes:
                print(f"seed {seed}: {minutes:g} minutes", flush=True)
                pairs[minutes, seed] = run_pair(args, minutes, seed)
    except RuntimeError as error:
        print(f"budget_or_limit.py: error: {error}", file=sys.stderr)
        return 2
    print(table(dict(sorted(pairs.items()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
