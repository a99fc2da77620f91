"""Which training methods pay within a few minutes: each against the same baseline, seed by seed.

    python benchmarks/methods.py --data_dir data/clothing
    python benchmarks/methods.py --data_dir data/clothing --only "40 px" "SGD" --seeds 0
    python benchmarks/methods.py --data_dir data/fashion-part --recipe demo

Every method is a short run of the recipe with a few settings changed. One that makes a step cheaper
may take more of them. All are tested on whole pictures, of the largest training size unless their
name says otherwise. What they really took, imports included, is in the table: the least of the
seeds, since only that is free of what else the machine did. The differences from the baseline are
paired by seed, with their 95% interval; losers are listed as well as winners. Runs are added to
--results as they end; those that are there, of the same commit, processor, and torch, are not made
again.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import results_file
from training_rivals import REPOSITORY, watch

BASELINE = "baseline"


def size(side: int, epochs: int, tested_at: int = 0) -> str:
    """Flags for crops of this side, and tests on whole pictures, of the same side by default."""
    test = tested_at or side
    return (
        f"--image_size={side} --epochs={epochs} --eval_image_size={test} --eval_resize_size={test}"
    )


# Settings that the recipes had before they were made from what won here.
COSINE = "--anneal_strategy=cos --pct_start=0.3"
SHORT = f"{size(48, 3)} --max_lr=1e-3 --min_crop_scale=0.35 {COSINE}"
SHORT_DEMO = (
    "--epochs=1 --max_minutes=0 --total_batch_size=128 --ema_decay=0.95 --optimizer=sgd --nesterov "
    f"--max_lr=0.03 --weight_decay=5e-4 {COSINE}"
)
LINEAR = "--anneal_strategy=linear --pct_start=0.1"
TOGETHER = f"--max_lr=2e-3 {LINEAR} --min_crop_scale=0.5"
SMALL = {  # epochs of other sizes: as many as take about as long
    BASELINE: "",
    "32 px": size(32, 4),
    "40 px": size(40, 3),
    "64 px": size(64, 2),
    "tested at 60 px, not 48": size(48, 3, 60),
    "stages, 32 to 64 px": f"{size(64, 3)} --size_stages=32:20,48:40,64:40",
    "shuffled stages, 40 and 56 px": f"{size(56, 3)} --size_stages=40:50,56:50 --shuffle_sizes",
    "alternate flips": "--alternate_flips",
    "crops from 0.5": "--min_crop_scale=0.5",
    "linear decay": LINEAR,
    "rate 2e-3": "--max_lr=2e-3",
    "rate 2e-3, linear decay, crops from 0.5": TOGETHER,
    "these three, and 40 px": f"{TOGETHER} {size(40, 3)}",
    "these three, and 32 px": f"{TOGETHER} {size(32, 4)}",
    "batch 16": "--total_batch_size=16 --device_batch_size=16 --ema_decay=0.99",
    "batch 64": "--total_batch_size=64 --device_batch_size=64 --max_lr=2e-3 --ema_decay=0.96",
    "no average": "--ema_decay=0",
    "SGD": "--optimizer=sgd --max_lr=0.05 --nesterov --weight_decay=5e-4",
}
ADAMW = "--optimizer=adamw --no-nesterov --weight_decay=0.05"
DEMO = {
    BASELINE: "",
    "rate 0.06": "--max_lr=0.06",
    "AdamW, rate 1e-3": f"{ADAMW} --max_lr=1e-3",
    "AdamW, rate 2e-3": f"{ADAMW} --max_lr=2e-3",
    "batch 64": "--total_batch_size=64 --max_lr=0.02 --ema_decay=0.975",
    "linear decay": LINEAR,
    "AdamW, rate 2e-3, linear decay": f"{ADAMW} --max_lr=2e-3 {LINEAR}",
    "crops from 0.7": "--min_crop_scale=0.7",
    "no average": "--ema_decay=0",
    "no label smoothing": "--label_smoothing=0",
}
# Of each recipe that methods are compared for: flags that make it short, and its methods.
METHODS = {"small": (SHORT, SMALL), "demo": (SHORT_DEMO, DEMO)}


def run_one(args: argparse.Namespace, name: str, seed: int) -> dict[str, float]:
    """Seconds and last top-1 of a run: from the results file, or of a run now."""
    short, methods = METHODS[args.recipe]
    flags = [*short.split(), *methods[name].split(), *args.flags]
    key = {"data": args.data_dir.name, "recipe": args.recipe, "flags": flags, "seed": seed}
    key |= args.machine
    print(f"seed {seed}: {name}", flush=True)
    run = results_file.find(args.results, key)
    if run is None:
        with tempfile.TemporaryDirectory() as work:
            words = [f"--data_dir={args.data_dir}", f"--run_dir={work}/run", f"--seed={seed}"]
            words += [f"--recipe={args.recipe}", "--eval_every_epochs=0", *flags]
            log = args.results.resolve().with_suffix(".log")
            points = watch([REPOSITORY / "train.py", *words], log, time.monotonic())
        result = {"seconds": points[-1].seconds, "top1": points[-1].top1}
        run = results_file.append(args.results, key, {"name": name, **result})
    return run


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: best first, with the paired difference from the baseline."""
    top1 = {name: [run["top1"] for run in runs] for name, runs in results.items()}
    lines = ["| method | top-1, mean | seconds, least | against the baseline |", "|---" * 4 + "|"]
    for name in sorted(top1, key=lambda name: -statistics.mean(top1[name])):
        seconds = min(run["seconds"] for run in results[name])
        difference = "" if name == BASELINE else results_file.paired(top1[name], top1[BASELINE])
        mean = statistics.mean(top1[name])
        lines.append(f"| {name} | {mean:.1f}% | {seconds:.0f} | {difference} |")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    results_file.add_options(parser, "methods.jsonl")
    add = parser.add_argument
    add("--recipe", choices=list(METHODS), default="small", help="[small]")
    names = [f"of {recipe}: {'; '.join(methods)}" for recipe, (_, methods) in METHODS.items()]
    add("--only", nargs="+", metavar="NAME", help=f"[all] {'. '.join(names)}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, print the table."""
    parser = build_parser()
    args = results_file.parse(parser, argv)
    methods = METHODS[args.recipe][1]
    if unknown := [name for name in args.only or () if name not in methods]:
        parser.error(f"--only {unknown[0]!r}: the methods of {args.recipe} are in --help")
    args.results.parent.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys([BASELINE, *(args.only or methods)]))
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    try:
        for seed in args.seeds:  # seed by seed, so that runs are paired if it is cut short
            for name in names:
                results[name].append(run_one(args, name, seed))
    except RuntimeError as error:
        print(f"methods.py: error: {error}", file=sys.stderr)
        return 2
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
