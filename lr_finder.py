"""Find the maximum learning rate: a range test with the training's own model, data and step.

    python lr_finder.py --data_dir DIR --start_lr=1e-7 --end_lr=10 --num_iter=100
    python lr_finder.py --recipe fast16 --total_batch_size 512 --out runs/lr_finder
    torchrun --standalone --nproc_per_node=4 lr_finder.py --data_dir DIR

Trains for num_iter steps while the learning rate grows from start_lr to end_lr, prints three
suggestions and the one to take as --max_lr, and writes result.json, curve.csv and three pictures.
The last line is a JSON object: {"max_lr": ..., "suggestions": {...}}. Takes train.py's settings,
since the best rate depends on batch, image size and augmentation; a single GPU accumulates the
whole batch from micro-batches. `python train.py --max_lr auto` does all of this by itself. Exit
codes: 0 done, 2 change something, 75 interrupted.
"""

import resnet50.system.preflight  # noqa: F401 (first: it reports what this Python lacks)

# isort: split
import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from resnet50.config import train_flags
from resnet50.config.command_line import Parser, print_error
from resnet50.config.fields import AUTO
from resnet50.config.recipes import RECIPES
from resnet50.config.train_config import TrainConfig
from resnet50.data.splits import open_dataset
from resnet50.records import ownership, run_folder, status
from resnet50.run import initial_weights, start
from resnet50.run.resolve import resolve, with_data
from resnet50.system import outputs, processes
from resnet50.system.interruption import Interrupted, Interruption
from resnet50.training import batch_fit, build, distributed, lr_curve, range_test
from resnet50.training.distributed import Ranks
from resnet50.training.range_test import Range

OUT = run_folder.RUNS / "lr_finder"


def build_parser() -> argparse.ArgumentParser:
    """The command line: the range, and train.py's settings."""
    parser = Parser(
        "lr_finder.py",
        __doc__,
        usage="lr_finder.py [--data_dir DIR] [--start_lr X] [--end_lr X] [--num_iter N] [--out DIR]"
        " [--FLAG VALUE ...]",
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("--start_lr", type=float, metavar="X", help=f"first rate [{Range.start_lr:g}]")
    add("--end_lr", type=float, metavar="X", help=f"last rate [{Range.end_lr:g}]")
    add("--num_iter", type=int, metavar="N", help=f"steps between them [{Range.num_iter}]")
    add("--out", type=Path, default=OUT, metavar="DIR", help=f"folder for the results [{OUT}]")
    add("--json", type=Path, default=None, metavar="FILE", help="also write the last line here")
    train_flags.add_settings(parser, {name: r.summary for name, r in RECIPES.items()})
    return parser


def check_outputs(args: argparse.Namespace) -> None:
    """Raise ValueError now for outputs that could not be written at the end, or that would replace
    a file of another program."""
    outputs.check({"json": args.json}, {"json": ("max_lr", "suggestions")})
    if foreign := ownership.foreign_range_test(args.out):
        raise ValueError(
            f"--out {args.out}: its {foreign.name} is not from a range test, and would be "
            "replaced: give another --out, or move that file away"
        )
    outputs.check_folder("out", args.out)


def find(
    args: argparse.Namespace, ranks: Ranks, rates: Range, stop: Interruption
) -> lr_curve.Suggestions:
    """Run the test on all ranks. Raises ValueError for bad settings, and Interrupted."""
    known = {item.name for item in fields(TrainConfig)}
    given = {name: value for name, value in vars(args).items() if name in known}
    if "run_dir" in given:
        raise ValueError("--run_dir is for train.py: lr_finder.py changes no run, give --out")
    # The rate is what the range test looks for; it sets the rate of every step itself.
    request = train_flags.Request({**given, "max_lr": AUTO}, fresh=True)
    cfg = with_data(resolve(request, ranks.world_size))
    say = start.printer(ranks)
    splits = open_dataset(Path(cfg.data_dir), cfg.upright)
    cfg = batch_fit.fit_batch_size(cfg, ranks, stop, say)
    weights, lines = initial_weights.read(cfg, splits.train.classes)
    for line in lines:
        say(line)
    parts = build.set_up(cfg, ranks, splits, weights=weights)
    say(
        f"{cfg.data_dir}: {len(splits.train)} training images, {len(splits.train.classes)} "
        f"classes; {parts.plan.describe_batch()}\n{ranks.device.type}, {parts.precision.name}, "
        f"{rates.num_iter} steps from {rates.start_lr:g} to {rates.end_lr:g}"
    )
    found = range_test.find_max_lr(parts, rates, args.out, stop, say)
    del parts  # and with it the wrapped model
    distributed.disconnect()
    return found


def report(found: lr_curve.Suggestions, args: argparse.Namespace) -> int:
    """Say what was found; the last line is for programs. Returns the exit code."""
    for warning in found.warnings:
        print(f"warning: {warning}")
    print(f"{found}\nrecommended: --max_lr {found.recommended:g} (pictures in {args.out})")
    line = json.dumps({"max_lr": found.recommended, "suggestions": found.as_dict()})
    print(line, flush=True)
    if not args.json:
        return 0

    def write(path: Path) -> None:
        path.write_text(f"{line}\n")

    problem = outputs.write_or_keep("json", args.json, write)
    return print_error("lr_finder.py", problem) if problem else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run as a rank, and report on rank 0."""
    args = build_parser().parse_args(argv)
    if distributed.launched_by_torchrun():
        processes.die_with_launcher()
    stop, ranks = Interruption(), Ranks()
    try:
        ranks = distributed.read_ranks()
        names = [item.name for item in fields(Range)]
        check_outputs(args)
        rates = replace(Range(), **{n: getattr(args, n) for n in names if n in args})
        found = find(args, ranks, rates, stop)
        if ranks.is_main:
            return report(found, args)
    except Interrupted:
        if ranks.is_main:
            print("lr_finder.py: interrupted", file=sys.stderr)
        return status.EXIT_CODES[status.INTERRUPTED]
    except (ValueError, OSError) as error:
        if ranks.is_main:
            print_error("lr_finder.py", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
