"""--device_batch_size auto: the largest micro-batch that fits into the device's memory.

Tried in a process of its own, before this one touches the device: an allocation that fails leaves
memory in pieces, and on a CPU the kernel may kill whoever asks for too much. Composer has the like
as device_train_microbatch_size="auto", which changes batches in the middle of a run; here it is
settled before the first step, recorded, and fixed for the run's life.
"""

import dataclasses
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection

import torch

import distributed
import engine
import interruption
import schedule
from config import TrainConfig
from distributed import Ranks
from interruption import Interrupted, Interruption
from settings import AUTO
from slots import Batch
from trainer import build_state

POLL_S = 0.2
TRYING, FITS, FAILED = "trying", "fits", "failed"  # what the child reports
INTERRUPTED = -1  # in place of a size, among ranks


def candidates(images_per_rank: int) -> list[int]:
    """Micro-batches that divide a rank's part of a step, each at most half of the one before.

    One image alone is none: batch norm has no variance of it.
    """
    sizes = [images_per_rank]
    while smaller := [n for n in range(2, sizes[-1] // 2 + 1) if images_per_rank % n == 0]:
        sizes.append(smaller[-1])
    return sizes


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device or the host had no more memory: torch tells it in a dozen ways."""
    words = ("out of memory", "alloc", "could not create a primitive", "could not create a memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        word in str(error).lower() for word in words
    )


def take_step(cfg: TrainConfig, device: torch.device, batch_sizes: Sequence[int]) -> None:
    """Train on black pictures of the largest size; all of the memory that a run needs is in use."""
    ranks = Ranks(device=device)
    plan = schedule.Plan(cfg.total_batch_size, cfg.epochs, cfg.total_batch_size, 1, 1, 1)
    state = build_state(dataclasses.replace(cfg, max_lr=1e-9), ranks, 1000, plan)
    precision = engine.choose_precision(cfg.amp, device)
    # Where there are several ranks, DistributedDataParallel keeps every gradient once more.
    copies = [torch.zeros_like(parameter) for parameter in state.model.parameters()]
    for batch_size in batch_sizes:
        shape = (batch_size, cfg.image_size, cfg.image_size, 3)
        batch = Batch(
            torch.zeros(shape, dtype=torch.uint8, device=device),
            torch.zeros(batch_size, dtype=torch.int64, device=device),
            torch.zeros(batch_size, dtype=torch.bool, device=device),
            [],
        )
        sums = engine.train_step(state, state.model, [batch], cfg, precision, ranks)
    assert int(sums[engine.COUNT]) == batch_sizes[-1] and copies  # waits for the device


def try_sizes(
    reports: Connection, parent_pid: int, cfg: TrainConfig, device: torch.device, sizes: list[int]
) -> None:
    """The child: report every size before it is tried, and the first one that fits."""
    interruption.ignore_signals()
    interruption.die_with_parent(parent_pid)
    for size in sizes:
        reports.send((TRYING, size))
        try:
            take_step(cfg, device, (2, size))  # the small one first: it allocates the momentum
        except Exception as error:
            if not is_out_of_memory(error):
                reports.send((FAILED, f"{type(error).__name__}: {error}"))
                return
            del error  # its traceback holds the tensors
            if device.type == "cuda":
                torch.cuda.empty_cache()
        else:
            reports.send((FITS, size))
            return


def next_report(reports: Connection, stop: Interruption) -> tuple[str, object]:
    """What the child says next. Raises EOFError when it has ended, and Interrupted."""
    while not reports.poll(POLL_S):
        if stop.requested:
            raise Interrupted
    try:
        return reports.recv()
    except EOFError:
        # torchrun signals the whole process group, and a child that is still importing dies of it.
        time.sleep(POLL_S)
        if stop.requested:
            raise Interrupted from None
        raise


def largest_that_fits(
    cfg: TrainConfig, device: torch.device, sizes: Sequence[int], stop: Interruption
) -> int:
    """The first of the falling sizes that fits, 0 if none does. Raises Interrupted."""
    spawn, sizes, kind, what = multiprocessing.get_context("spawn"), list(sizes), TRYING, 0
    while sizes and kind == TRYING:
        reports, far_end = spawn.Pipe(duplex=False)
        arguments = (far_end, os.getpid(), cfg, device, sizes)
        child = spawn.Process(target=try_sizes, args=arguments, daemon=True)
        with interruption.children_without_sigusr1():
            child.start()
        far_end.close()
        left = len(sizes)
        try:
            while kind == TRYING:
                kind, what = next_report(reports, stop)
                sizes = [size for size in sizes if kind == TRYING and size < what]
        except EOFError:  # nothing fits, or it was killed, as Linux does when memory runs out
            if len(sizes) == left:
                kind, what = FAILED, "the process that tries sizes ended before the first one"
        finally:
            child.kill()
            child.join()
    if kind == FAILED:
        raise RuntimeError(f"--device_batch_size auto: {what}")
    return what if kind == FITS else 0


def settle(
    cfg: TrainConfig, ranks: Ranks, stop: Interruption, say: Callable[[str], None]
) -> TrainConfig:
    """The settings with a number for --device_batch_size auto, the same on all ranks.

    Raises ValueError if nothing fits, and Interrupted.
    """
    if cfg.device_batch_size != AUTO:
        return cfg
    sizes = candidates(cfg.total_batch_size // ranks.world_size)
    say(f"device batch size: trying {sizes[0]} images of {cfg.image_size} px and halves of it")
    try:
        fitting = largest_that_fits(cfg, ranks.device, sizes, stop)
    except Interrupted:
        fitting = INTERRUPTED  # the other ranks wait for a number
    fitting = distributed.least_before_connecting(fitting, ranks)
    if fitting == INTERRUPTED:
        raise Interrupted
    if not fitting:
        raise ValueError(
            f"--device_batch_size auto: not even {sizes[-1]} images of {cfg.image_size} px fit "
            "into the memory: take a smaller --image_size"
        )
    say(f"device batch size: {fitting} fit")
    return dataclasses.replace(cfg, device_batch_size=fitting)


def settle_alone(cfg: TrainConfig) -> TrainConfig:
    """`settle` for a command of one process that Ctrl-C ends by KeyboardInterrupt: afterwards it
    does, in a background job too, where it would be ignored."""
    try:
        return settle(
            cfg, distributed.read_ranks(), Interruption(), partial(print, file=sys.stderr)
        )
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
