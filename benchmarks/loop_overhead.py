"""What train.py's loop costs over a bare loop of the same step.

    python benchmarks/loop_overhead.py
    python benchmarks/loop_overhead.py --tiny --image_size 32 --batch_size 8 --steps 100

Both loops train a ResNet50 with SGD and OneCycleLR on the same batches, which lie in memory: no
data wait, no log lines, no checkpoint, no evaluation. They take turns, and the ratio is the median
over the rounds of the ratio of their median steps. train.py's loop adds the agreement between
ranks, the counting of hits, the check for a loss that is not finite, and the books that the
display needs. All of that takes the same time whatever the model, so the step of a tiny model shows
it more sharply, in milliseconds.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

sys.path.insert(0, str(Path(__file__).parent.parent))

import contextlib
import itertools

import assembly
import distributed
import engine
import interruption
import schedule
import train
import trainer
import transforms
from checkpoint_writer import CheckpointWriter
from config import TrainConfig
from heartbeat import Heartbeat
from run_log import RunLog
from slots import Batch


class FinishedError(Exception):
    """Ends train.py's loop where the bare loop ends."""


def timed(batch: Batch, steps: int, times: list[float]) -> Iterator[Batch]:
    """The same batch again and again; notes when each is asked for, then ends the loop."""
    for _ in range(steps + 1):
        times.append(time.perf_counter())
        yield batch
    raise FinishedError


def make_run(cfg: TrainConfig, folder: Path) -> assembly.Run:
    """A run of train.py without data on disk."""
    ranks = distributed.read_ranks()
    plan = schedule.make_plan(10**6, 1, cfg.total_batch_size, cfg.device_batch_size, 1)
    log = RunLog(
        folder, plan, is_main=True, attempt="", title="", price_per_hour=0.0, log_every_s=1e9
    )
    state = trainer.build_state(cfg, ranks, 1000, plan)
    return assembly.Run(
        cfg=cfg,
        ranks=ranks,
        plan=plan,
        precision=engine.choose_precision(cfg.amp, ranks.device),
        state=state,
        network=state.model,
        batches=iter(()),
        feeder=None,
        train_set=None,
        val_set=None,
        origin={},
        log=log,
        interruption=interruption.Interruption(),
        non_finite=engine.LateCounter(ranks.device),
        writer=CheckpointWriter(folder, 2),
        heartbeat=Heartbeat(folder, is_main=True),
        save_due_s=float("inf"),
    )


def time_ours(run: assembly.Run, batch: Batch, steps: int) -> float:
    """Median seconds from one batch to the next in train.py's loop."""
    times: list[float] = []
    run.batches = timed(batch, steps, times)
    with contextlib.suppress(FinishedError):
        train.train(run)
    return statistics.median(b - a for a, b in itertools.pairwise(times))


def time_bare(run: assembly.Run, batch: Batch, steps: int) -> float:
    """Median seconds of the step that a tutorial would write."""
    state, times = run.state, []
    scheduler = OneCycleLR(state.optimizer, run.cfg.max_lr, total_steps=10**6)
    state.model.train()
    for _ in range(steps + 1):
        times.append(time.perf_counter())
        inputs = transforms.normalize(batch.images, batch.flips)
        with run.precision.autocast():
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
        image_size=args.image_size, total_batch_size=args.batch_size,
        device_batch_size=args.batch_size, log_every_steps=10**9, run_dir="unused",
    )  # fmt: skip
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
        f"{args.rounds} rounds); {run.precision.name}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
