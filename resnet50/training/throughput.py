"""How fast this host's loader, model and disk are, alone and together, for bench.py."""

import math
import mmap
import multiprocessing
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import cycle, islice, repeat, takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import dataset_paths
from resnet50.config.train_config import TrainConfig
from resnet50.data import sampling
from resnet50.data.batch import Batch
from resnet50.data.loader import SPARE_SLOTS, Loader, choose_num_workers
from resnet50.data.sampling import BatchKey
from resnet50.data.splits import Split, Splits, open_dataset, open_split
from resnet50.system import limits, processes
from resnet50.training import build, distributed, engine
from resnet50.training.build import EVAL, TRAIN, Parts
from resnet50.training.plan import eval_keys, make_plan, train_keys

SAMPLE_IMAGES = 4096  # 300 MB of ImageNet: more than any processor's cache, and quickly read
NUM_CHUNKS = 5  # of a measurement, whose figure is their median
ENDLESS = 10**9  # steps
# Reads this fast, or not much slower than a second time, came from memory: the kernel had not
# dropped the pages (it cannot on tmpfs and some overlays, nor before they are written).
MEMORY_BYTES_PER_S, LEAST_SLOWDOWN = 3e9, 1.5


class Rate(NamedTuple):
    """images_per_s: median over chunks; wait_pct: percent of the time spent on getting batches;
    fastest: images/s of the fastest chunk, which other programs disturbed the least."""

    images_per_s: float
    wait_pct: float
    num_chunks: int
    fastest: float


@dataclass
class Bench:
    """What train.py would work with on this host, and how long to measure it.

    sample: (n,) int64, the images that the loader is measured on: the first of the run's order.
    """

    parts: Parts
    val_set: Split | None
    num_workers: int
    sample: np.ndarray
    seconds: float


def open_data(data_dir: Path, upright: str) -> Splits:
    """The training split, and the validation split if there is one, read as --upright says."""
    try:
        dataset_paths.split_path(data_dir, "val")
    except ValueError:
        return Splits(open_split(data_dir, "train", upright), None)
    return open_dataset(data_dir, upright)


def set_up(cfg: TrainConfig, seconds: float) -> Bench:
    """What train.py would set up, in its order: the loaders are forked before CUDA exists."""
    ranks = distributed.read_ranks()
    if ranks.world_size > 1:
        raise ValueError("bench.py measures one GPU: start it without torchrun")
    splits = open_data(Path(cfg.data_dir), cfg.upright)
    parts = build.set_up(cfg, ranks, splits._replace(val=splits.val or splits.train))
    order = sampling.epoch_order(cfg.seed, 0, len(splits.train))
    on_gpu = ranks.device.type == "cuda"
    return Bench(
        parts=parts,
        val_set=splits.val,
        num_workers=choose_num_workers(cfg.num_workers, ranks.local_world_size, on_gpu),
        sample=order[: max(SAMPLE_IMAGES, cfg.total_batch_size)],
        seconds=seconds,
    )


@contextmanager
def phase(text: str) -> Iterator[None]:
    """Say on stderr what is being measured, and at the end how long that took."""
    print(f"{text} ...", end=" ", file=sys.stderr, flush=True)
    start = time.perf_counter()
    try:
        yield
    finally:
        print(f"{time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)


@contextmanager
def stream(bench: Bench, number: int, keys: Generator[BatchKey]) -> Iterator[Iterator[Batch]]:
    """Batches from the workers for endless keys; at the end, those still pending are used up."""
    batches = bench.parts.loader.batches(number, keys)
    yield batches
    keys.close()
    deque(batches, maxlen=0)


def measure(
    bench: Bench, batches: Iterator[Batch], per_step: int, work: Callable[[list[Batch]], object]
) -> Rate:
    """Take per_step batches and work on them, again and again: for bench.seconds, at least once.

    First come, for at most as long, the batches that were ready before and the device's warm-up.
    """

    def chunk(max_steps: int, max_s: float) -> tuple[int, float, float]:
        """Images, seconds waited for batches, seconds; of whole steps, until the device is done."""
        num_images = 0
        wait_s = 0.0
        start = time.perf_counter()
        for _ in range(max_steps):
            asked = time.perf_counter()
            step = list(islice(batches, per_step))
            wait_s += time.perf_counter() - asked
            work(step)
            num_images += sum(len(batch.labels) for batch in step)
            if time.perf_counter() - start >= max_s:
                break
        if bench.parts.ranks.device.type == "cuda":
            torch.cuda.synchronize(bench.parts.ranks.device)
        return num_images, wait_s, time.perf_counter() - start

    num_ready = bench.num_workers + SPARE_SLOTS
    chunk(2 + math.ceil(num_ready / per_step), bench.seconds)
    chunks = []
    end = time.perf_counter() + bench.seconds
    while not chunks or time.perf_counter() < end:
        chunks.append(chunk(ENDLESS, bench.seconds / NUM_CHUNKS))
    images, waits_s, seconds = zip(*chunks, strict=True)
    rates = [count / spent_s for count, spent_s in zip(images, seconds, strict=True)]
    wait_pct = 100 * sum(waits_s) / sum(seconds)
    return Rate(statistics.median(rates), wait_pct, len(chunks), max(rates))


def sample_keys(bench: Bench, image_size: int) -> Generator[BatchKey]:
    """The run's micro-batches as if the sample were all its images: read once, then in memory."""
    cfg = replace(bench.parts.cfg, start_image_size=0, image_size=image_size, num_steps=0)
    plan = make_plan(cfg, len(bench.sample))
    for key in train_keys(cfg, plan, 0, 0, ENDLESS):
        yield key._replace(indices=bench.sample[key.indices])


def synthetic_batch(bench: Bench, size: int) -> Batch:
    """A micro-batch of noise in the device's memory."""
    count, device = bench.parts.cfg.device_batch_size, bench.parts.ranks.device
    return Batch(
        torch.randint(256, (count, size, size, 3), dtype=torch.uint8, device=device),
        torch.randint(len(bench.parts.splits.train.classes), (count,), device=device),
        torch.rand(count, device=device) < 0.5,
        [],
    )


@contextmanager
def full_load(loader: Loader, number: int, keys: Iterator[BatchKey]) -> Iterator[np.ndarray]:
    """Keep the processes of a loader at work on endless keys while the block runs.

    number: the stream. Yields the count of their batches, int64 (1,), shared with the process that
    counts. Raises RuntimeError if a loader process ended.

    They would idle as soon as every slot is full, so somebody must give the slots back at their
    pace. A thread here would fight for Python's lock with the step that is being measured, and a
    copy to a GPU would queue behind it; so a process does it, and drops the batches. It is forked
    while CUDA runs, which is safe as long as it uses only the pipes and numpy.
    """
    num_batches, is_over = np.frombuffer(mmap.mmap(-1, 16), np.int64).reshape(2, 1)
    parent_pid = os.getpid()

    def drain() -> None:
        processes.ignore_signals()
        processes.die_with_parent(parent_pid)
        wanted = takewhile(lambda key: not is_over[0], keys)
        for _ in loader.batches(number, wanted).drain():
            num_batches[0] += 1

    process = multiprocessing.get_context("fork").Process(target=drain, daemon=True)
    process.start()
    try:
        yield num_batches
    finally:
        # What was requested still arrives; then this process may use the slots again.
        is_over[0] = True
        process.join()
    if process.exitcode:
        raise RuntimeError("a loader process ended while the model was measured beside them")


def measure_neighbors(
    bench: Bench, size: int, work: Callable[[list[Batch]], object]
) -> dict[str, float | None]:
    """The model beside loader processes at full load, whose batches it does not wait for, and what
    those deliver meanwhile. None without such processes."""
    if not bench.num_workers:
        return {"beside_images_per_s": None, "neighbors_images_per_s": None}
    per_step, batch = bench.parts.plan.num_micro_batches, synthetic_batch(bench, size)
    keys, loader = sample_keys(bench, size), bench.parts.loader
    with (
        phase(f"{size} px, model beside the loader"),
        full_load(loader, TRAIN, keys) as num_batches,
    ):
        start, count_before = time.perf_counter(), int(num_batches[0])
        rate = measure(bench, repeat(batch), per_step, work)
        count, spent_s = int(num_batches[0]) - count_before, time.perf_counter() - start
    return {
        "beside_images_per_s": rate.images_per_s,
        "neighbors_images_per_s": count * bench.parts.cfg.device_batch_size / spent_s,
    }


def measure_size(bench: Bench, size: int) -> dict[str, object]:
    """Model alone and beside the loader, loader alone, and both, at one side of the crops in
    pixels."""
    parts, state, context = bench.parts, bench.parts.state, bench.parts.context
    per_step = parts.plan.num_micro_batches

    def train(micro_batches: list[Batch]) -> None:
        engine.advance(state, engine.train_step(state, micro_batches, context))

    def loaded(what: str, work: Callable[[list[Batch]], object]) -> Rate:
        keys = sample_keys(bench, size)
        with phase(f"{size} px, {what}"), stream(bench, TRAIN, keys) as batches:
            return measure(bench, batches, per_step, work)

    with phase(f"{size} px, model alone"):
        model = measure(bench, repeat(synthetic_batch(bench, size)), per_step, train)
    # Right after: what is compared should meet the same clock frequency and other programs.
    neighbors = measure_neighbors(bench, size, train)
    loader, both = loaded("loader alone", lambda step: None), loaded("both", train)
    return {
        "image_size": size,
        "loader_images_per_s": loader.images_per_s,
        "model_images_per_s": model.images_per_s,
        **neighbors,
        "both_images_per_s": both.images_per_s,
        "data_wait_pct": both.wait_pct,
        "num_chunks": [rate.num_chunks for rate in (loader, model, both)],
    }


@contextmanager
def memory_advice(cfg: TrainConfig, size: int) -> Iterator[None]:
    """Turn what torch raises for lack of memory into a ValueError with advice."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        smaller = max(1, cfg.device_batch_size // 2)
        raise ValueError(
            f"--device_batch_size {cfg.device_batch_size} at {size} px needs more memory than "
            f"there is: try {smaller}, with the same --total_batch_size"
        ) from None


def measure_evaluation(bench: Bench) -> float:
    """Images/s of train.py's evaluation: the first validation images, again and again."""
    cfg = bench.parts.cfg
    model = bench.parts.state.eval_model.eval()
    num_images = min(len(bench.val_set), SAMPLE_IMAGES)
    keys = eval_keys(num_images, cfg.device_batch_size, cfg.eval_crop)

    @torch.inference_mode()
    def evaluate(batches: list[Batch]) -> None:
        for batch in batches:
            engine.predict(model, batch, bench.parts.precision)

    endless = (key for key in cycle(keys))
    read(bench, bench.val_set, np.arange(num_images), bench.seconds)  # so as not to time the disk
    with phase("evaluation"), stream(bench, EVAL, endless) as batches:
        return measure(bench, batches, 1, evaluate).images_per_s


def drop_from_memory(places: Sequence[tuple[Path, int, int]]) -> None:
    """Have the kernel drop these parts of files from its cache; it only drops whole pages."""
    page = mmap.PAGESIZE
    for path, offset, size in places:
        start, end = offset // page * page, math.ceil((offset + size) / page) * page
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)


def read(bench: Bench, split: Split, images: np.ndarray, limit_s: float) -> tuple[int, float]:
    """Read images as the workers do, in as many threads; returns how many were read before time
    was up (at least one batch), and the seconds."""
    batches = np.array_split(images, math.ceil(len(images) / bench.parts.cfg.device_batch_size))
    start = time.perf_counter()

    def read_batch(number: int, indices: np.ndarray) -> int:
        """Read these images; returns their number, or 0 if time is up."""
        if number and time.perf_counter() > start + limit_s:
            return 0
        split.will_need(indices)
        for index in indices.tolist():
            with suppress(Exception):  # whatever Pillow raises for a damaged one
                # The full picture. Its smaller copies have been fetched too, more than small crops
                # read, so that the disk is at least as fast as measured.
                split.open(index).level(0)
        return len(indices)

    with ThreadPoolExecutor(max(1, bench.num_workers)) as readers:
        num_read = sum(readers.map(read_batch, range(len(batches)), batches))
    return num_read, time.perf_counter() - start


def measure_disk(bench: Bench) -> dict[str, object]:
    """Images/s and MB/s of the sample with none of it in memory; None if that is not possible.

    Leaves what it has read in memory, and in bench.sample, so that the disk does not slow down the
    next measurements.
    """
    split = bench.parts.splits.train
    places = split.extents(bench.sample)
    split_bytes = round(sum(num_bytes for _, _, num_bytes in places) / len(places) * len(split))
    drop_from_memory(places)
    with phase("disk"):
        num_images, cold_s = read(bench, split, bench.sample, bench.seconds)
        num_again, warm_s = read(bench, split, bench.sample[:num_images], cold_s)
    bench.sample = bench.sample[: max(num_images, bench.parts.cfg.total_batch_size)]
    num_bytes = sum(num_bytes for _, _, num_bytes in places[:num_images])
    slowdown = (cold_s / num_images) / (warm_s / max(num_again, 1))
    measured = num_bytes / cold_s < MEMORY_BYTES_PER_S and slowdown >= LEAST_SLOWDOWN
    available = limits.available_memory()
    return {
        "images_per_s": num_images / cold_s if measured else None,
        "mb_per_s": num_bytes / 1e6 / cold_s if measured else None,
        "num_images": num_images,
        "split_bytes": split_bytes,
        "available_bytes": available,
        "fits_in_memory": split_bytes <= available,
    }
