"""What train.py's loop costs over a bare loop of the same step.

    python benchmarks/loop_overhead.py
    python benchmarks/loop_overhead.py --tiny --image_size 32 --batch_size 8 --steps 100

Both loops train a ResNet50 with SGD and OneCycleLR on the same batches, which are in memory: no
data wait, no log lines, no checkpoint, no evaluation. They take turns, and the ratio is the median
over the rounds of the ratio of their median steps. train.py's loop adds the agreement between
ranks, the counting of hits, the check for a loss that is not finite, and the bookkeeping for the
display. All of that takes the same time with any model, so the step of a tiny model shows it more
clearly, in milliseconds.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

sys.path.insert(0, str(Path(__file__).parent.parent))

import contextlib
import itertools

import train
from resnet50.config.train_config import TrainConfig
from resnet50.data.batch import Batch, normalize
from resnet50.records.checkpoint_writer import CheckpointWriter
from resnet50.records.log import RunLog
from resnet50.records.results import Results
from resnet50.run import start
from resnet50.run.heartbeat import Heartbeat
from resnet50.system import interruption
from resnet50.training import build, distributed
from resnet50.training.device import LateCounter, choose_precision
from resnet50.training.plan import TrainKeys, make_plan


class FinishedError(Exception):
    """Ends train.py's loop where the bare loop ends."""


def timed(batch: Batch, steps: int, times: list[float]) -> Iterator[Batch]:
    """The same batch again and again; notes when each is asked for, then ends the loop."""
    for _ in range(steps + 1):
        times.append(time.perf_counter())
        yield batch
    raise FinishedError


def make_run(cfg: TrainConfig, folder: Path) -> start.Run:
    """A run of train.py without data on disk."""
    ranks, results = distributed.read_ranks(), Results()
    cfg = replace(cfg, run_dir=str(folder))
    plan = make_plan(cfg, 10**6)
    state = build.build_state(cfg, ranks, 1000, plan)
    parts = build.Parts(
        cfg=cfg,
        ranks=ranks,
        plan=plan,
        precision=choose_precision(cfg.amp, ranks.device),
        splits=None,
        loader=None,
        keys=TrainKeys(cfg, plan, 0, 0),
        batches=iter(()),
        state=state,
        network=state.model,
    )
    return start.Run(
        parts=parts,
        provenance={},
        results=results,
        log=RunLog(cfg, plan, results, is_main=True, attempt=""),
        interruption=interruption.Interruption(),
        writer=CheckpointWriter(folder, 2),
        heartbeat=Heartbeat(folder, is_main=True),
        non_finite=LateCounter(ranks.device),
        saved_step=-1,
        save_due_s=float("inf"),
    )


def time_ours(run: start.Run, batch: Batch, steps: int) -> float:
    """Median seconds from one batch to the next in train.py's loop."""
    times: list[float] = []
    run.parts.batches = timed(batch, steps, times)
    with contextlib.suppress(FinishedError):
        train.train(run)
    return statistics.median(b - a for a, b in itertools.pairwise(times))


def time_bare(run: start.Run, batch: Batch, steps: int) -> float:
    """Median seconds of the step that a tutorial would write."""
    state, times = run.parts.state, []
    scheduler = OneCycleLR(state.optimizer, run.parts.cfg.max_lr, total_steps=10**6)
    state.model.train()
    for _ in range(steps + 1):
        times.append(time.perf_counter())
        inputs = normalize(batch.images, batch.flips)
        with run.parts.precision.autocast():
            logits = state.model(inputs)
        loss = functional.cross_entropy(logits.float(), batch.labels)
        loss.backward()
        state.optimizer.step()
        scheduler.step()
        state.optimizer.zero_grad()
    return statistics.median(b - a for a, b in itertools.pairwise(times))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the seconds of both loops and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("image_size", 64), ("batch_size", 32), ("steps", 6), ("rounds", 15)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N")
    parser.add_argument("--tiny", action="store_true", help="the tests' model, not a ResNet50")
    args = parser.parse_args(argv)
    cfg = TrainConfig(
        layers=(1, 1, 1, 1) if args.tiny else (3, 4, 6, 3),
        width=8 if args.tiny else 64,
        image_size=args.image_size,
        total_batch_size=args.batch_size,
        device_batch_size=args.batch_size,
        log_every_steps=10**9,
        run_dir="unused",
    )
    device = distributed.read_ranks().device
    shape = (args.batch_size, args.image_size, args.image_size, 3)
    batch = Batch(
        torch.randint(256, shape, dtype=torch.uint8, device=device),
        torch.randint(1000, shape[:1], device=device),
        torch.rand(shape[:1], device=device) < 0.5,
        [],
    )
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(cfg, Path(folder))
        time_bare(run, batch, 3)  # warm-up
        pairs = []
        for _ in range(args.rounds):
            ours = time_ours(run, batch, args.steps)
            bare = time_bare(run, batch, args.steps)
            pairs.append((ours, bare))
    ratio = statistics.median(ours / bare for ours, bare in pairs)
    difference_ms = 1000 * statistics.median(ours - bare for ours, bare in pairs)
    print(
        f"train.py {1000 * statistics.median(o for o, _ in pairs):.2f} ms, "
        f"bare loop {1000 * statistics.median(b for _, b in pairs):.2f} ms a step, "
        f"difference {difference_ms:.2f} ms, ratio {ratio:.4f} (from "
        f"{min(o / b for o, b in pairs):.4f} to {max(o / b for o, b in pairs):.4f} in "
        f"{args.rounds} rounds); {run.parts.precision.name}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
