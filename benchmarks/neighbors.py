"""What loader processes at full load cost the process that they feed, by their number and niceness.

    python benchmarks/neighbors.py --data_dir DIR
    python benchmarks/neighbors.py --data_dir DIR --num_workers 1 --niceness 0 --rounds 25

DIR holds a pack, such as of photo_corpus.py's pictures. There are two kinds of step, both on one
thread:
* train: a ResNet50's, which needs its core all the time.
* launch: what a process does that feeds a GPU: small operations for 8 ms, then a sleep of 4 ms, as
  if it waited for the device; and the same again.
In every round, each of them runs alone, then beside every loader in turn, whose batches it does not
wait for. The table shows how many times as long it takes as alone (median over the rounds, 10th to
90th percentile), and what the loader delivers meanwhile. Seconds are of the wall clock, since the
question is also who waits for a core: nothing else may run on the machine. As many loader processes
as there are cores, as train.py has them with a GPU, are one process too many.
"""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from resnet50.config.train_config import TrainConfig
from resnet50.data import crops
from resnet50.data import loader as loader_module
from resnet50.data.loader import Loader
from resnet50.data.sampling import BatchKey
from resnet50.system import limits
from resnet50.training import engine, throughput

BATCH = 16  # images of a step, and of a batch of the loader
LAUNCH_S, DEVICE_S = 0.008, 0.004  # of the second kind of step, each twice
SETTLE_S = 0.3  # until workers that began together are out of step


class Neighbors(NamedTuple):
    """A loader, and which one."""

    num_workers: int
    niceness: int
    loader: Loader


def start_loaders(args: argparse.Namespace, bench: throughput.Bench) -> list[Neighbors]:
    """A loader for every number of processes and niceness; without keys, it takes no time."""
    fill = crops.TrainImages(bench.parts.splits.train, 0, crops.Augmentation())
    loaders = []
    for num_workers, niceness in itertools.product(args.num_workers, args.niceness):
        loader_module.NICENESS = niceness
        loader = Loader([fill], BATCH, args.image_size, num_workers, torch.device("cpu"))
        loaders.append(Neighbors(num_workers, niceness, loader))
    return loaders


def steps_of(bench: throughput.Bench, size: int) -> dict[str, Callable[[], None]]:
    """The two kinds of step."""
    state, context = bench.parts.state, bench.parts.context
    batch, small = throughput.synthetic_batch(bench, size), torch.randn(16, 16)

    def train() -> None:
        engine.advance(state, engine.train_step(state, [batch], context))

    def launch() -> None:
        for _ in range(2):
            end = time.thread_time() + LAUNCH_S
            while time.thread_time() < end:
                small.add(small)
            time.sleep(DEVICE_S)

    return {"train": train, "launch": launch}


def seconds_of(step: Callable[[], None], seconds: float) -> float:
    """Of one step: the mean of as many as take `seconds`."""
    step()
    count, start = 0, time.perf_counter()
    while not count or time.perf_counter() < start + seconds:
        step()
        count += 1
    return (time.perf_counter() - start) / count


def seconds_beside(
    loader: Loader, keys: Iterator[BatchKey], step: Callable[[], None], seconds: float
) -> tuple[float, float]:
    """Seconds of a step beside a loader at full load, and images/s that this delivers."""
    with throughput.full_load(loader, 0, keys) as num_batches:
        time.sleep(SETTLE_S)
        start, before = time.perf_counter(), int(num_batches[0])
        step_s = seconds_of(step, seconds)
        count = int(num_batches[0]) - before
        return step_s, BATCH * count / (time.perf_counter() - start)


def measure(
    args: argparse.Namespace, bench: throughput.Bench, loaders: Sequence[Neighbors]
) -> None:
    """Print a table."""
    print("| step | loader processes | niceness | times as long as alone | loader, images/s |")
    print("|---" * 5 + "|")
    for name, step in steps_of(bench, args.image_size).items():
        ratios, rates = np.zeros((2, len(loaders), args.rounds))
        seconds_of(step, 0)
        for number in range(args.rounds):
            alone_s = seconds_of(step, args.seconds)
            for place, neighbors in enumerate(loaders):
                keys = throughput.sample_keys(bench, args.image_size)
                step_s, rate = seconds_beside(neighbors.loader, keys, step, args.seconds)
                ratios[place, number], rates[place, number] = step_s / alone_s, rate
        for neighbors, own, given in zip(loaders, ratios, rates, strict=True):
            p10, median, p90 = np.percentile(own, (10, 50, 90))
            print(
                f"| {name} | {neighbors.num_workers} | {neighbors.niceness} "
                f"| {median:.3f} ({p10:.2f}-{p90:.2f}) | {np.median(given):.0f} |",
                flush=True,
            )


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        prog="neighbors.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, cores = parser.add_argument, limits.num_cores()
    add("--data_dir", type=Path, required=True, metavar="DIR", help="a packed data set")
    counts = sorted({max(1, cores - 1), cores, cores + 1})
    add("--num_workers", type=int, nargs="+", default=counts, metavar="N", help="[%(default)s]")
    add(
        "--niceness", type=int, nargs="+", default=[0, 5, 10, 19], metavar="N", help="[%(default)s]"
    )
    add("--image_size", type=int, default=128, metavar="N", help="px [%(default)s]")
    add("--rounds", type=int, default=9, metavar="N", help="[%(default)s]")
    add("--seconds", type=float, default=2.0, metavar="X", help="of a measurement [%(default)s]")
    args = parser.parse_args(argv)
    if min(*args.num_workers, args.rounds, 1) < 1:
        parser.error("--num_workers and --rounds: must be at least 1")
    if not all(0 <= niceness <= 19 for niceness in args.niceness):
        parser.error("--niceness: must be from 0 to 19")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 2 if something must be changed."""
    args = parse_args(argv)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # bench.py measures the step of a GPU
    torch.set_num_threads(1)
    fixed = {"total_batch_size": BATCH, "device_batch_size": BATCH, "num_workers": 0, "max_lr": 0.1}
    try:
        cfg = TrainConfig(data_dir=str(args.data_dir), image_size=args.image_size, **fixed)
        bench = throughput.set_up(cfg, args.seconds)
        loaders = start_loaders(args, bench)
        # So that no measurement waits for the disk.
        throughput.read(bench, bench.parts.splits.train, bench.sample, 60)
        print(
            f"{limits.cpu_name()}, {limits.num_cores()} cores, load {os.getloadavg()[0]:.1f}, "
            f"torch {torch.__version__}, {bench.parts.precision.name}; {args.image_size} px, "
            f"batch {BATCH}, {args.rounds} rounds\n"
        )
        measure(args, bench, loaders)
    except (ValueError, OSError) as error:
        print(f"neighbors.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
