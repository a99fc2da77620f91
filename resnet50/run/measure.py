"""Before a run with a budget: how long its parts take on this host.

A model, a loader and an optimizer like the run's take steps and are thrown away, in a process of
their own: nothing of it reaches the run but the numbers, so that its bits are those of the settings
that were made from them, and the next process finds the device as if nothing had been. Every rank
measures its own device, all at the same time, since they share the host's cores and disk.
"""

import dataclasses
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from resnet50.config.fields import AUTO
from resnet50.config.train_config import TrainConfig
from resnet50.data import sampling
from resnet50.data.batch import Batch
from resnet50.data.loader import choose_num_workers
from resnet50.data.sampling import BatchKey
from resnet50.data.splits import Split, Splits, open_dataset
from resnet50.records import checkpoint
from resnet50.system import limits, processes
from resnet50.system.interruption import Interruption
from resnet50.training import batch_fit, build, engine, throughput
from resnet50.training.build import EVAL, TRAIN
from resnet50.training.distributed import Ranks
from resnet50.training.host_times import HostTimes, sizes_to_measure
from resnet50.training.plan import ONE_SIZE, epoch_sizes, eval_keys, make_plan, train_keys
from resnet50.training.throughput import Bench

DONE, MISTAKE, FAILED = "done", "mistake", "failed"  # what the child reports
WARM_IMAGES = 1024  # of a split that stays in memory: read once, then measured
LEAST_S = 0.5  # of a measurement


def measure(
    cfg: TrainConfig, ranks: Ranks, splits: Splits, seconds: float, stop: Interruption
) -> HostTimes:
    """What this rank finds in about so many seconds, or in as many as a few steps take.

    Raises ValueError if the user must change something, such as the size of a batch that does not
    fit into memory, and Interrupted.
    """
    deadline_s = time.monotonic() + seconds
    # A fork starts at once and has the lists of a million files; a GPU that this process may have
    # asked for its number can only be used in a process of its own.
    is_forked = ranks.device.type == "cpu"
    context = multiprocessing.get_context("fork" if is_forked else "spawn")
    reports, far_end = context.Pipe(duplex=False)
    words = (far_end, os.getpid(), cfg, ranks, splits if is_forked else None, deadline_s)
    child = context.Process(target=work, args=words)  # no daemon: it has loader processes
    with processes.children_without_sigusr1():
        child.start()
    far_end.close()  # otherwise reading would not end when the child does
    try:
        kind, what = batch_fit.next_report(reports, stop)
    except EOFError:
        raise RuntimeError(
            "the process that measures for the budget ended without a word"
        ) from None
    finally:
        child.kill()
        child.join()
    if kind == MISTAKE:
        raise ValueError(what)
    if kind == FAILED:
        raise RuntimeError(f"measuring for the budget: {what}")
    return HostTimes.from_json(what)


def work(
    reports: Connection,
    parent_pid: int,
    cfg: TrainConfig,
    ranks: Ranks,
    splits: Splits | None,
    deadline_s: float,
) -> None:
    """The child: measure, and report once. deadline_s: on the monotonic clock."""
    processes.ignore_signals()
    processes.die_with_parent(parent_pid)
    try:
        splits = splits or open_dataset(Path(cfg.data_dir), cfg.upright)
        reports.send((DONE, times_of(cfg, ranks, splits, deadline_s).to_json()))
    except ValueError as error:
        reports.send((MISTAKE, str(error)))
    except Exception as error:
        reports.send((FAILED, f"{type(error).__name__}: {error}"))


def times_of(cfg: TrainConfig, ranks: Ranks, splits: Splits, deadline_s: float) -> HostTimes:
    """Set up what a rank trains with, measure, and tear it down."""
    start_s = time.monotonic()
    alone = dataclasses.replace(ranks, rank=0, world_size=1)
    # A rank's share of each step. The rates do not matter; --max_lr auto has none yet.
    share = dataclasses.replace(
        cfg,
        total_batch_size=cfg.total_batch_size // ranks.world_size,
        **({"max_lr": 1e-9, "min_lr": 0.0} if cfg.max_lr == AUTO else {}),
    )
    bench = Bench(
        parts=build.set_up(share, alone, splits),
        val_set=splits.val,
        num_workers=choose_num_workers(
            cfg.num_workers, ranks.local_world_size, ranks.device.type == "cuda"
        ),
        sample=sampling.epoch_order(cfg.seed, 0, len(splits.train)),
        seconds=LEAST_S,
    )
    with closing(bench.parts.loader):
        sizes = sizes_to_measure(epoch_sizes(cfg))
        with throughput.memory_advice(share, sizes[0]):
            first_s = first_step_s(bench, sizes[0])
            set_up_s = time.monotonic() - start_s
            step_s = measured_steps(bench, sizes, first_s, deadline_s)
        evaluation_s = measured_evaluation(bench, deadline_s, step_s[sizes[0]] / sizes[0] ** 2)
        save_s = measured_save(bench, Path(cfg.run_dir)) if ranks.is_main else 0.0
    return HostTimes(step_s, evaluation_s / ranks.world_size, save_s, set_up_s)


def first_step_s(bench: Bench, size: int) -> float:
    """Take one micro-batch's step: memory is allocated, kernels are chosen; returns the seconds of
    a second one."""
    batch = throughput.synthetic_batch(bench, size)
    for _ in range(2):
        start_s = time.monotonic()
        train(bench, [batch])
        bench.parts.state.epoch_sums.tolist()  # waits for the device
    return time.monotonic() - start_s


def train(bench: Bench, micro_batches: list[Batch]) -> None:
    """A step as train.py takes it, at the same rate again and again."""
    state = bench.parts.state
    state.epoch_sums += engine.train_step(state, micro_batches, bench.parts.context)


def measured_steps(
    bench: Bench, sizes: list[int], micro_s: float, deadline_s: float
) -> dict[int, float]:
    """Seconds of a step with its loading, by size, for the sizes that there is time for.

    micro_s: of a step of one micro-batch at the first size, the largest.
    """
    parts, step_s = bench.parts, {}
    for number, size in enumerate(sizes):
        left_s = deadline_s - time.monotonic()
        if step_s and left_s < LEAST_S:
            break
        # Each takes twice its time, the first half to warm up; the evaluation is one more.
        bench.seconds = max(left_s, LEAST_S) / (2 * (len(sizes) - number) + 2)
        per_step = parts.plan.num_micro_batches
        if micro_s * per_step > bench.seconds:
            per_step = 1  # a CPU may take minutes for a step: its micro-batches are alike
        keys = keys_of(bench, size, number)
        with throughput.stream(bench, TRAIN, keys) as batches:
            rate = throughput.measure(bench, batches, per_step, partial(train, bench))
        step_s[size] = parts.cfg.total_batch_size / rate.fastest
    return step_s


def keys_of(bench: Bench, size: int, number: int) -> Iterator[BatchKey]:
    """Micro-batches of the run's images at a size, endlessly.

    If the split fits into memory, few images again and again, since all epochs but the first read
    them from there. Else other images for every measurement, which come from the disk.
    """
    cfg, split = bench.parts.cfg, bench.parts.splits.train
    sample = bench.sample
    count = min(max(WARM_IMAGES, cfg.total_batch_size), len(sample))
    places = split.extents(sample[:count])
    num_bytes = sum(num_bytes for _, _, num_bytes in places) / len(places) * len(split)
    if num_bytes <= limits.available_memory():
        sample = sample[:count]
    else:
        sample = np.roll(sample, -number * len(sample) // 8)
    evaluation = {"eval_image_size": cfg.eval_crop, "eval_resize_size": cfg.eval_resize}
    one_size = dataclasses.replace(cfg, **(ONE_SIZE | evaluation | {"image_size": size}))
    plan = make_plan(one_size, len(sample))
    for key in train_keys(one_size, plan, 0, 0, throughput.ENDLESS):
        yield key._replace(indices=sample[key.indices])


def measured_evaluation(bench: Bench, deadline_s: float, pixel_s: float) -> float:
    """Seconds that one rank would take to evaluate the whole validation split.

    pixel_s: seconds of a training step over the area of its crops, which tells enough if there is
    no time left: a forward pass is a third of a step's work.
    """
    cfg, val_set = bench.parts.cfg, bench.val_set
    left_s = deadline_s - time.monotonic()
    if left_s < LEAST_S:
        return pixel_s * cfg.eval_crop**2 / cfg.total_batch_size / 3 * len(val_set)
    bench.seconds = left_s / 3
    model = bench.parts.state.eval_model.eval()
    predict = partial(engine.predict, model, precision=bench.parts.precision)

    @torch.inference_mode()
    def evaluate(batches: list[Batch]) -> None:
        for batch in batches:
            predict(batch)

    with throughput.stream(bench, EVAL, eval_keys_of(cfg, val_set)) as batches:
        return len(val_set) / throughput.measure(bench, batches, 1, evaluate).images_per_s


def eval_keys_of(cfg: TrainConfig, val_set: Split) -> Iterator[BatchKey]:
    """The evaluation's batches, endlessly."""
    for _ in range(throughput.ENDLESS):
        yield from eval_keys(len(val_set), cfg.device_batch_size, cfg.eval_crop)


def measured_save(bench: Bench, folder: Path) -> float:
    """Seconds that a checkpoint takes to reach the run's disk; the file has no name, and so is gone
    whatever happens. 0 if there is no place for it, which is for the run to report."""
    state = bench.parts.state
    ema = None if state.ema is None else state.ema.module.state_dict()
    contents = {
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "ema": ema,
    }
    start_s = time.monotonic()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            checkpoint.write_to(file, contents)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        return 0.0
    return time.monotonic() - start_s
