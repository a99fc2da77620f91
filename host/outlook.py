"""What the training will do and when it will be over: setup's last lines before it begins.

    python3 -m host.outlook --run_dir runs/imagenet --report runs/bench_1.json
    python3 -m host.outlook --run_dir runs/imagenet --budget_usd 5 --price_per_hour 1.6

Changes nothing. Standard library, Python 3.10. Exit codes: 0, 2 change something.
"""

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from host import meter
from resnet50.config.command_line import Parser, print_error
from resnet50.records import status
from resnet50.system import files


def clock(seconds: float) -> str:
    """Hours and minutes, or minutes."""
    minutes = max(round(seconds / 60), 0)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def when(seconds: float) -> str:
    """The time in so many seconds from now, as a person would read it."""
    return time.strftime("%a %d %b %H:%M %Z", time.localtime(time.time() + seconds))


def projection(report: Mapping[str, object]) -> tuple[str, float, float]:
    """Recipe, epochs and hours of bench.py's report; hours 0 if it does not have them."""
    recipe = report.get("recipe")
    if not isinstance(recipe, dict):
        return "", 0.0, 0.0
    known = status.numbers(recipe)
    return str(recipe.get("name", "")), known.get("epochs", 0.0), known.get("hours", 0.0)


def with_budget(args: argparse.Namespace, purse_s: float, report: Mapping) -> list[str]:
    """A run whose schedule is fitted to what is left of its purse."""
    paid_s = status.paid_s(args.run_dir)
    left_s = max(purse_s - paid_s, 0.0)
    given = "the budget of the run there"
    if not meter.stored_purse_s(args.run_dir):
        given = f"--budget_hours {args.budget_hours:g}"
        if args.budget_usd:
            given = f"--budget_usd {args.budget_usd:g}"
    spent = f", of which {clock(paid_s)} are spent" if paid_s >= 60 else ""
    lines = [f"{given} is {clock(purse_s)} of this host{spent}"]
    if paid_s:
        lines.append("training resumes, and its learning rate comes to its end as the time does")
    else:
        lines.append(
            "training measures this host first, for a tenth of that and a minute at most, then "
            "fits its schedule, so that the learning rate comes to its end as the time does, "
            "whatever interrupts in between"
        )
    name, epochs, hours = projection(report)
    if hours > 0 and not paid_s:
        bought = min(epochs * left_s / 3600 / hours, 2 * epochs)
        lines.append(
            f"projection: about {bought:.3g} epochs of {name}, which has {epochs:g}"
            f"{'; it takes no more, and the rest is left over' if bought == 2 * epochs else ''}"
        )
    lines.append(f"over at about {when(left_s)}, or sooner if it has all the epochs it may take")
    return lines


def without_budget(args: argparse.Namespace, report: Mapping) -> list[str]:
    """A run of its recipe's epochs, as long as they take."""
    known = status.numbers(status.known_status(args.run_dir))
    if left_s := known.get("remaining_s", 0.0):
        return [
            f"training resumes with about {clock(left_s)} left, over at about {when(left_s)}; "
            "nothing ends it sooner; a budget would have, but only a new run takes one"
        ]
    if args.max_steps:
        return [f"training ends after {args.max_steps:,} steps, its schedule unfinished"]
    name, epochs, hours = projection(report)
    if not hours:
        return [
            "how long it takes is not known here: --status tells once it trains; --budget_usd X or "
            "--budget_hours H would say when it is to be over"
        ]
    cost = report["recipe"].get("cost_usd")
    dollars = f", ${cost:.2f}" if isinstance(cost, int | float) and math.isfinite(cost) else ""
    unless = ", unless the options after -- change that" if args.has_more else ""
    return [
        f"projection: {epochs:g} epochs of {name} take about {clock(3600 * hours)}{dollars}, over "
        f"at about {when(3600 * hours)}{unless}; nothing ends it sooner, --budget_usd X would"
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the lines."""
    parser = Parser("python3 -m host.outlook", __doc__)
    add = parser.add_argument
    add("--run_dir", type=Path, required=True, metavar="DIR", help="run folder")
    add("--report", type=Path, metavar="FILE", help="what bench.py --json wrote for this host")
    money = {"type": float, "default": 0.0, "metavar": "X"}
    add("--budget_usd", **money, help="of the run")
    add("--budget_hours", **money, help="of the run")
    add("--price_per_hour", default="", metavar="X|auto", help="for --budget_usd")
    add("--max_steps", type=int, default=0, metavar="N", help="of train.py")
    add("--has_more", action="store_true", help="train.py gets options that may change its length")
    args = parser.parse_args(argv)
    try:
        report = files.read_json(args.report) if args.report else {}
    except ValueError:
        report = {}  # bench.py failed, and has said why
    try:
        words = args.budget_usd, args.budget_hours, args.price_per_hour
        purse_s = meter.stored_purse_s(args.run_dir) or meter.purse_s(*words)
    except ValueError as error:
        return print_error("host.outlook", error)
    lines = with_budget(args, purse_s, report) if purse_s else without_budget(args, report)
    print("\n".join(f"what will happen: {line}" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
