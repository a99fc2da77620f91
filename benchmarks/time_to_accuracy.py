"""How long a recipe takes to reach the accuracy that other loops have after some minutes.

    python benchmarks/time_to_accuracy.py --minutes 10
    python benchmarks/time_to_accuracy.py --data_dir DIR --recipe small --minutes 10 --seeds 0 1 2
    python benchmarks/time_to_accuracy.py --data_dir DIR --recipe small --timm ../timm

Runs, one after the other and for every seed: train.py with the recipe; plain_loop.py in fp32 as
users write it, and in bf16 with channels_last; and, with --timm, the train.py of timm's repository
(its package does not contain that script) with AdamW at a rate that suits it, and with the settings
of torchvision's references. All use the same images, and are tested on the same part of
each. This script times them all from the start of the process: imports count, and for train.py so
does packing the images. By default these are Fashion-MNIST's, which `./setup_and_train.sh --demo`
downloads. Adds each run to --results as it ends, skips those of the same commit, processor, and
torch that are there, writes curves.png into --out, and prints the table of benchmarks/README.md.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

import results_file
from training_rivals import OURS, REPOSITORY, Point, Rival, rivals, watch

from resnet50.config.recipes import RECIPES
from resnet50.config.train_config import TrainConfig
from resnet50.data import splits
from resnet50.system import figures, limits
from resnet50.system.figures import Figure

OUR_COLOR = "#0072B2"


def as_folder(data_dir: Path, work: Path) -> Path:
    """The images as a folder with a folder per class, unpacked if they are packed."""
    if not (data_dir / "train.pack").exists():
        return data_dir
    for split in (splits.open_split(data_dir, name) for name in ("train", "val")):
        for index in range(len(split)):
            folder = work / split.root.stem / split.classes[split.labels[index]]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(split.open(index).pixels()).save(folder / f"{index}.png")
    return work


def run_ours(args: argparse.Namespace, seed: int) -> list[Point]:
    """Pack the images if they are not, then train; the clock runs from before the packing."""
    started, packed = time.monotonic(), args.data_dir
    if not (packed / "train.pack").exists():
        packed = args.work / f"packed_{seed}"
        words = [args.data_dir, f"--out={packed}"]
        watch([REPOSITORY / "prepare_data.py", *words], args.out / f"pack_{seed}.log", started)
    run_dir = args.work / f"run_{seed}"
    command = [
        REPOSITORY / "train.py",
        f"--data_dir={packed}",
        f"--run_dir={run_dir}",
        f"--recipe={args.recipe}",
        f"--seed={seed}",
        "--max_minutes=0",
        "--log_every_s=60",
    ]
    points = watch([*command, *args.flags], args.out / f"train_{seed}.log", started)
    shutil.copy(run_dir / "metrics.csv", args.out / f"train_{seed}.csv")
    shutil.copy(run_dir / "curves.png", args.out / f"train_{seed}.png")
    return points


def run_one(args: argparse.Namespace, name: str, rival: Rival | None, seed: int) -> list[Point]:
    """The evaluations of one run: those in the results file, or of a run now."""
    length = {"epochs": args.timm_epochs} if name.startswith("timm") else {"minutes": args.minutes}
    ours = {"recipe": args.recipe, "flags": args.flags}
    key = {"name": name, "data": args.data_dir.name, "seed": seed, **args.machine}
    shared = ("image_size", "timm_image_size", "timm_crop_scale", "crop_pct", "plain_batch_size")
    theirs = {name: getattr(args, name) for name in shared} | length
    key |= ours if rival is None else theirs
    print(f"seed {seed}: {name}", flush=True)
    run = results_file.find(args.results, key)
    if run is None:
        if rival is None:
            points = run_ours(args, seed)
        else:
            log = args.out / f"{name.replace(' ', '_').replace(',', '')}_{seed}.log"
            points = watch(rival.command(args, seed), log, time.monotonic(), rival.evaluation)
        run = results_file.append(args.results, key, {"points": points})
    return [Point(*point) for point in run["points"]]


def time_to(points: Sequence[Point], top1: float) -> float | None:
    """Seconds to the first evaluation that reaches it."""
    return next((point.seconds for point in points if point.top1 >= top1), None)


def table(results: dict[str, dict[int, list[Point]]], minutes: float) -> str:
    """Markdown: the last figure of train.py, the best ones of the other loops, and how soon
    train.py had those, as a part of the minutes; then the differences, paired by seed."""
    others = [name for name in results if name != OURS]
    heads = ["seed", OURS, *(f"{name} | {OURS} had that after" for name in others)]
    lines = [f"| {' | '.join(heads)} |", "|---" * (2 + 2 * len(others)) + "|"]
    for seed, ours in results[OURS].items():
        cells = [f"{ours[-1].top1:.1f}% in {ours[-1].seconds:.0f} s"]
        for name in others:
            points = results[name][seed]
            theirs = max(point.top1 for point in points)
            seconds = time_to(ours, theirs)
            cells += [f"{theirs:.1f}% in {points[-1].seconds:.0f} s"]
            cells += [f"{seconds:.0f} s: {seconds / 60 / minutes:.2f}" if seconds else "never"]
        lines.append(f"| {seed} | {' | '.join(cells)} |")
    ends = [points[-1].top1 for points in results[OURS].values()]
    for name in others:
        theirs = [max(point.top1 for point in points) for points in results[name].values()]
        lines.append(f"\n{OURS}'s end against the best of {name}, points: ")
        lines[-1] += results_file.paired(ends, theirs)
    return "\n".join(lines)


def draw(
    path: Path, results: dict[str, dict[int, list[Point]]], colors: dict[str, str], title: str
) -> None:
    """Top-1 over minutes, one line per run."""
    figure = Figure(figsize=(9, 5.5), dpi=100, layout="constrained")
    axis = figure.add_subplot()
    for name, runs in results.items():
        for number, points in enumerate(runs.values()):
            minutes = [0, *(point.seconds / 60 for point in points)]
            axis.plot(
                minutes,
                [0, *(point.top1 for point in points)],
                color=colors[name],
                marker="o",
                markersize=3,
                label=None if number else name,
            )
    axis.set(xlabel="minutes since the start", ylabel="validation top-1, %", ylim=(0, None))
    axis.set_title(title)
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
    figures.save(figure, path)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data_dir", type=Path, default=REPOSITORY / "data" / "fashion-mnist", metavar="DIR")
    add("--recipe", choices=list(RECIPES), default="demo", help="what train.py runs [demo]")
    add("--flags", nargs="*", default=[], metavar="WORD", help="more flags of train.py, without --")
    add("--minutes", type=float, default=10, metavar="X", help="minutes for the plain loop [10]")
    add(
        "--plain_batch_size",
        type=int,
        default=64,
        metavar="N",
        help="images per step of the plain loop [64]",
    )
    add("--timm", type=Path, metavar="DIR", help="clone of huggingface/pytorch-image-models")
    add("--timm_epochs", type=int, default=10, metavar="N", help="that take the minutes [10]")
    add("--timm_image_size", type=int, default=64, metavar="N", help="px, in tests too [64]")
    add("--timm_crop_scale", type=float, default=0.35, metavar="X", help="area, at least [0.35]")
    add("--only", nargs="*", metavar="NAME", help="of the other loops only these")
    add("--seeds", type=int, nargs="+", default=[0], metavar="N")
    add("--results", type=Path, metavar="FILE", help="of all runs [OUT/results.jsonl]")
    add("--out", type=Path, default=Path("runs/time_to_accuracy"), metavar="DIR")
    return parser


def read_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, checked, and what the runs need besides."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not args.data_dir.is_dir():
        parser.error(
            f"--data_dir {args.data_dir}: no such folder; setup_and_train.sh --demo makes it"
        )
    if args.timm and not (args.timm / "train.py").is_file():
        parser.error(
            f"--timm {args.timm}: has no train.py; it must be a clone of timm's repository"
        )
    names = list(rivals(args))
    for name in args.only or ():
        if name not in names:
            parser.error(f"--only {name}: choose from {', '.join(names)} (timm's need --timm)")
    args.flags = [f"--{word}" for word in args.flags]
    cfg = TrainConfig(**RECIPES[args.recipe].settings)
    args.image_size = cfg.eval_crop
    args.crop_pct = cfg.eval_crop / cfg.eval_resize
    args.out.mkdir(parents=True, exist_ok=True)
    args.data_dir, args.out = args.data_dir.resolve(), args.out.resolve()
    args.timm = args.timm and args.timm.resolve()
    args.results = args.results or args.out / "results.jsonl"
    args.machine = results_file.machine()
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run them all, write the results and curves.png, print the table."""
    args = read_args(argv)
    loops: dict[str, Rival | None] = {OURS: None}
    loops |= {n: rival for n, rival in rivals(args).items() if args.only is None or n in args.only}
    results: dict[str, dict[int, list[Point]]] = {name: {} for name in loops}
    with tempfile.TemporaryDirectory() as work:
        args.work = Path(work)
        args.folder = as_folder(args.data_dir, args.work / "folder")
        try:
            for seed in args.seeds:
                for name, rival in loops.items():
                    results[name][seed] = run_one(args, name, rival, seed)
        except RuntimeError as error:
            print(f"time_to_accuracy.py: error: {error}", file=sys.stderr)
            return 2
    colors = {name: rival.color if rival else OUR_COLOR for name, rival in loops.items()}
    size = f"{args.image_size} px" + (f" (timm: {args.timm_image_size} px)" if args.timm else "")
    title = f"{args.data_dir.name}, tested at {size}, {limits.cpu_name()}"
    draw(args.out / "curves.png", results, colors, title)
    print(table(results, args.minutes))
    if not args.timm:
        print("timm was not measured: --timm DIR names a clone of its repository")
    return 0


if __name__ == "__main__":
    sys.exit(main())
