"""The training loops that time_to_accuracy.py compares: train.py, plain_loop.py, and timm's."""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from resnet50.training.device import choose_precision

REPOSITORY = Path(__file__).parent.parent
# How an evaluation reads in the output; the last group is the top-1 accuracy in percent.
EPOCH = re.compile(r"^epoch \d+/\d+: .*validation top-1 ([\d.]+)%")
TIMM_TEST = re.compile(r"Test \(EMA\): \[ *(\d+)/\1\] .* Acc@1: .*?\( *([\d.]+)\)")
OURS = "train.py"

# The optimizer and weight decay of the recipe `small`, at the rate that it had at 64 px; and the
# settings of torchvision's references/classification/train.py for its V1 weights.
TIMM_ADAMW = "--opt adamw --lr 1e-3 --weight-decay 0.05 --sched cosine --warmup-epochs 2"
TIMM_SGD = "--opt momentum --lr-base 0.1 --weight-decay 1e-4 --sched step --decay-rate 0.1"
TIMM_ALL = "--model resnet50 --device cpu --channels-last --sched-on-updates --smoothing 0.1"
TIMM_AVERAGE = "--model-ema --model-ema-decay 0.98"


class Point(NamedTuple):
    """An evaluation: seconds since the process started, and processor seconds of its whole tree."""

    seconds: float
    core_seconds: float
    top1: float


class Rival(NamedTuple):
    """A loop to compare with.

    command: from the arguments of time_to_accuracy.py and a seed; evaluation: see EPOCH; color: in
    the picture, of Okabe and Ito, color-blind safe.
    """

    command: Callable[[argparse.Namespace, int], list[object]]
    evaluation: re.Pattern
    color: str


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

    return sum(ticks[number] for number in ticks if descends(number)) / os.sysconf("SC_CLK_TCK")


def watch(
    command: Sequence[object], log: Path, started: float, evaluation: re.Pattern = EPOCH
) -> list[Point]:
    """Run a Python script, its output into a file, and note every evaluation that it prints.

    started: of the clock, time.monotonic(). Raises RuntimeError if the command fails.
    """
    points = []
    process = subprocess.Popen(
        [sys.executable, "-u", *map(str, command)],
        cwd=log.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    with log.open("w") as file:
        for line in process.stdout:
            file.write(line)
            file.flush()
            if match := evaluation.search(line):
                now = time.monotonic() - started
                top1 = float(match[match.lastindex])
                points.append(Point(now, core_seconds(process.pid), top1))
                print(f"  {now:6.0f} s  {top1}%", flush=True)
    if process.wait() != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {process.returncode}: {log}")
    return points


def plain_command(args: argparse.Namespace, seed: int, *more: str) -> list[object]:
    """plain_loop.py on the folder of images, for the minutes."""
    return [
        REPOSITORY / "benchmarks" / "plain_loop.py",
        f"--data_dir={args.folder}",
        f"--image_size={args.image_size}",
        f"--crop_pct={args.crop_pct}",
        f"--minutes={args.minutes}",
        f"--batch_size={args.plain_batch_size}",
        f"--seed={seed}",
        *more,
    ]


def timm_command(args: argparse.Namespace, seed: int, settings: str) -> list[object]:
    """train.py of timm's repository, for as many epochs as take the minutes."""
    size = args.timm_image_size
    val = next(name for name in ("val", "validation") if (args.folder / name).is_dir())
    num_classes = sum(path.is_dir() for path in (args.folder / "train").iterdir())
    precision = choose_precision("auto", torch.device("cpu"))
    amp = ["--amp", "--amp-dtype", "bfloat16"] if precision.dtype == torch.bfloat16 else []
    return [
        args.timm / "train.py",
        f"--data-dir={args.folder}",
        f"--val-split={val}",
        f"--num-classes={num_classes}",
        *("--input-size", 3, size, size),
        f"--crop-pct={args.crop_pct}",
        *("--scale", args.timm_crop_scale, 1),
        "--batch-size=32",
        f"--epochs={args.timm_epochs}",
        f"--seed={seed}",
        "--workers=2",
        f"--output={args.work / 'timm'}",
        *f"{TIMM_ALL} {TIMM_AVERAGE} {settings}".split(),
        *amp,
    ]


def rivals(args: argparse.Namespace) -> dict[str, Rival]:
    """Those that can run here, by name."""
    found = {
        "plain loop, fp32": Rival(plain_command, EPOCH, "#D55E00"),
        "plain loop, bf16, channels_last": Rival(
            lambda args, seed: plain_command(args, seed, "--bf16"), EPOCH, "#009E73"
        ),
    }
    if args.timm:
        step = f"{TIMM_SGD} --decay-epochs {max(1, args.timm_epochs // 3)} --warmup-epochs 0"
        found["timm, AdamW"] = Rival(
            lambda args, seed: timm_command(args, seed, TIMM_ADAMW), TIMM_TEST, "#CC79A7"
        )
        found["timm, torchvision's settings"] = Rival(
            lambda args, seed: timm_command(args, seed, step), TIMM_TEST, "#E69F00"
        )
    return found
