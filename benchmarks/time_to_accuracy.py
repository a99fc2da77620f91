"""How long a recipe takes to reach the accuracy that a plain loop has after some minutes.

    python benchmarks/time_to_accuracy.py --minutes 10
    python benchmarks/time_to_accuracy.py --data_dir DIR --recipe small --minutes 10 --seeds 0 1 2

Runs, one after the other and for every seed: plain_loop.py in fp32 as users write it, the same in
bf16 with channels_last, and train.py with the recipe. All use the same images and are tested at the
same size. This script times them all from the start of the process: imports count, and for train.py
so does packing the images. By default these are Fashion-MNIST's, which
`./setup_and_train.sh --demo` downloads. Writes results.json and curves.png into --out, and prints
the table of benchmarks/README.md.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from resnet50.config.recipes import RECIPES
from resnet50.config.train_config import TrainConfig
from resnet50.data import splits
from resnet50.system import figures
from resnet50.system.figures import Figure
from resnet50.training import throughput

REPOSITORY = Path(__file__).parent.parent
EPOCH = re.compile(r"^epoch \d+/\d+: .*validation top-1 ([\d.]+)%")
OURS, FP32, BF16 = "train.py", "plain loop, fp32", "plain loop, bf16, channels_last"
COLORS = {OURS: "#0072B2", FP32: "#D55E00", BF16: "#009E73"}  # Okabe and Ito, color-blind safe


class Point(NamedTuple):
    """An evaluation: seconds since the process started, and processor seconds of its whole tree."""

    seconds: float
    core_seconds: float
    top1: float


def core_seconds(pid: int) -> float:
    """Processor time of a process, of its descendants, and of those of them that have ended."""
    parents, ticks = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, fields = int(stat.parent.name), stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        parents[number], ticks[number] = int(fields[1]), sum(map(int, fields[11:15]))

    def descends(number: int) -> bool:
        while number not in (0, pid):
            number = parents.get(number, 0)
        return number == pid

    return sum(ticks[number] for number in ticks if descends(number)) / 100


def watch(command: Sequence[object], log: Path, started: float) -> list[Point]:
    """Run a command, its output into a file, and note every evaluation that it prints.

    started: of the clock, time.monotonic(). Raises RuntimeError if the command fails.
    """
    points = []
    process = subprocess.Popen(
        [sys.executable, "-u", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    with log.open("w") as file:
        for line in process.stdout:
            file.write(line)
            file.flush()
            if match := EPOCH.match(line):
                now = time.monotonic() - started
                points.append(Point(now, core_seconds(process.pid), float(match[1])))
                print(f"  {now:6.0f} s  {match[1]}%", flush=True)
    if process.wait() != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {process.returncode}: {log}")
    return points


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


def run_plain(args: argparse.Namespace, seed: int, bf16: bool, name: str) -> list[Point]:
    """The plain loop on the folder, at the size that the recipe is tested at."""
    command = [
        REPOSITORY / "benchmarks" / "plain_loop.py",
        f"--data_dir={args.folder}",
        f"--image_size={args.image_size}",
        f"--minutes={args.minutes}",
        f"--batch_size={args.plain_batch_size}",
        f"--seed={seed}",
    ]
    command += ["--bf16"] if bf16 else []
    return watch(command, args.out / f"{name}_{seed}.log", time.monotonic())


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


def time_to(points: Sequence[Point], top1: float) -> float | None:
    """Seconds to the first evaluation that reaches it."""
    return next((point.seconds for point in points if point.top1 >= top1), None)


def table(results: dict[str, dict[str, list[Point]]], minutes: float) -> str:
    """Markdown: the last figure of train.py, the best ones of the plain loops, and how soon
    train.py had those, as a part of the minutes."""
    heads = ["seed", OURS, *(f"{name} | {OURS} had that after" for name in (FP32, BF16))]
    lines = [f"| {' | '.join(heads)} |", "|---" * 6 + "|"]
    for seed, ours in results[OURS].items():
        cells = [f"{ours[-1].top1:.1f}% in {ours[-1].seconds:.0f} s"]
        for name in (FP32, BF16):
            points = results[name][seed]
            theirs = max(point.top1 for point in points)
            seconds = time_to(ours, theirs)
            cells += [f"{theirs:.1f}% in {points[-1].seconds:.0f} s"]
            cells += [f"{seconds:.0f} s: {seconds / 60 / minutes:.2f}" if seconds else "never"]
        lines.append(f"| {seed} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(path: Path, results: dict[str, dict[str, list[Point]]], title: str) -> None:
    """Top-1 over minutes, one line per run."""
    figure = Figure(figsize=(9, 5.5), dpi=100, layout="constrained")
    axis = figure.add_subplot()
    for name, runs in results.items():
        for number, points in enumerate(runs.values()):
            minutes = [0, *(point.seconds / 60 for point in points)]
            axis.plot(
                minutes,
                [0, *(point.top1 for point in points)],
                color=COLORS[name],
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
    add("--seeds", type=int, nargs="+", default=[0], metavar="N")
    add("--out", type=Path, default=Path("runs/time_to_accuracy"), metavar="DIR")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run them all, write results.json and curves.png, print the table."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not args.data_dir.is_dir():
        parser.error(
            f"--data_dir {args.data_dir}: no such folder; setup_and_train.sh --demo makes it"
        )
    args.flags = [f"--{word}" for word in args.flags]
    args.image_size = TrainConfig(**RECIPES[args.recipe].settings).eval_crop
    args.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, list[Point]]] = {OURS: {}, FP32: {}, BF16: {}}
    with tempfile.TemporaryDirectory() as work:
        args.work = Path(work)
        args.folder = as_folder(args.data_dir, args.work / "folder")
        for seed in args.seeds:
            for name, run in (
                (OURS, lambda seed: run_ours(args, seed)),
                (FP32, lambda seed: run_plain(args, seed, False, "fp32")),
                (BF16, lambda seed: run_plain(args, seed, True, "bf16")),
            ):
                print(f"seed {seed}: {name}", flush=True)
                results[name][str(seed)] = run(seed)
                (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    title = f"{args.data_dir.name}, tested at {args.image_size} px, {throughput.cpu_name()}"
    draw(args.out / "curves.png", results, title)
    print(table(results, args.minutes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
