"""--device_batch_size auto: the largest micro-batch that fits into the device's memory.

Sizes are tried in a separate process, before this one touches the device: a failed allocation
leaves memory fragmented, and on a CPU the kernel may kill a process that asks for too much.
Composer's device_train_microbatch_size="auto" changes the micro-batch in the middle of a run; here
it is determined before the first step, recorded, and fixed for the whole run.
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
from torch import Tensor

from resnet50.config.fields import AUTO
from resnet50.config.train_config import TrainConfig
from resnet50.data.batch import Batch
from resnet50.system import processes
from resnet50.system.interruption import Interrupted, Interruption
from resnet50.training import distributed, engine
from resnet50.training.build import build_state
from resnet50.training.device import choose_precision
from resnet50.training.distributed import Ranks
from resnet50.training.engine import StepContext
from resnet50.training.plan import make_plan

POLL_S = 0.2
TRYING, FITS, FAILED = "trying", "fits", "failed"  # what the child reports
INTERRUPTED = -1  # sent to the other ranks in place of a size


def candidates(images_per_rank: int) -> list[int]:
    """Micro-batches that divide a rank's share of a step, each at most half of the one before.

    A single image is not a candidate: batch norm has no variance for it.
    """
    sizes = [images_per_rank]
    while smaller := [n for n in range(2, sizes[-1] // 2 + 1) if images_per_rank % n == 0]:
        sizes.append(smaller[-1])
    return sizes


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device or the host ran out of memory, which torch reports in a dozen ways."""
    words = ("out of memory", "alloc", "could not create a primitive", "could not create a memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        word in str(error).lower() for word in words
    )


class MemoryNoted:
    """A prediction that records running out of memory in `lack` instead of raising.

    Its rank then keeps taking part in collectives, and all ranks can end together.
    """

    def __init__(self, predict: Callable[[Batch], Tensor], num_classes: int) -> None:
        self._predict = predict
        self._num_classes = num_classes
        self.lack = ""

    def __call__(self, batch: Batch) -> Tensor:
        """Logits (B, K); zeros if there was not enough memory."""
        try:
            return self._predict(batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self.lack = str(error)
        return torch.zeros(len(batch.labels), self._num_classes, device=batch.labels.device)


def take_step(cfg: TrainConfig, device: torch.device, batch_sizes: Sequence[int]) -> None:
    """Train on black pictures of the largest size, with all the memory in use that a run needs."""
    ranks = Ranks(device=device)
    cfg = dataclasses.replace(cfg, max_lr=1e-9, device_batch_size=cfg.total_batch_size, num_steps=0)
    plan = make_plan(cfg, cfg.total_batch_size)  # one step per epoch
    state = build_state(cfg, ranks, 1000, plan)
    context = StepContext(cfg, choose_precision(cfg.amp, device), ranks, state.model)
    # With several ranks, DistributedDataParallel keeps a second copy of every gradient.
    copies = [torch.zeros_like(parameter) for parameter in state.model.parameters()]
    for batch_size in batch_sizes:
        shape = (batch_size, cfg.image_size, cfg.image_size, 3)
        batch = Batch(
            torch.zeros(shape, dtype=torch.uint8, device=device),
            torch.zeros(batch_size, dtype=torch.int64, device=device),
            torch.zeros(batch_size, dtype=torch.bool, device=device),
            [],
        )
        sums = engine.train_step(state, [batch], context)
    assert int(sums[engine.COUNT]) == batch_sizes[-1] and copies  # waits for the device


def try_sizes(
    reports: Connection, parent_pid: int, cfg: TrainConfig, device: torch.device, sizes: list[int]
) -> None:
    """The child: report every size before it is tried, and the first one that fits."""
    processes.ignore_signals()
    processes.die_with_parent(parent_pid)
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
        # torchrun signals the whole process group, which kills a child that is still importing.
        time.sleep(POLL_S)
        if stop.requested:
            raise Interrupted from None
        raise


def largest_that_fits(
    cfg: TrainConfig, device: torch.device, sizes: Sequence[int], stop: Interruption
) -> int:
    """The first of the decreasing sizes that fits, 0 if none does. Raises Interrupted.

    Linux may kill a child that asks for too much memory: the next child starts at the next size.
    """
    remaining = list(sizes)
    while remaining:
        fitting, last_tried = try_in_child(cfg, device, remaining, stop)
        if fitting:
            return fitting
        if not last_tried:
            what = "the process that tries sizes ended before the first one"
            raise RuntimeError(f"--device_batch_size auto: {what}")
        remaining = [size for size in remaining if size < last_tried]
    return 0


def try_in_child(
    cfg: TrainConfig, device: torch.device, sizes: list[int], stop: Interruption
) -> tuple[int, int]:
    """What one child finds: the first size that fits, 0 if it ended without one, and the last size
    that it tried, 0 if it tried none.

    Raises RuntimeError for any error but lack of memory, and Interrupted.
    """
    spawn = multiprocessing.get_context("spawn")
    reports, far_end = spawn.Pipe(duplex=False)
    arguments = (far_end, os.getpid(), cfg, device, sizes)
    child = spawn.Process(target=try_sizes, args=arguments, daemon=True)
    with processes.children_without_sigusr1():
        child.start()
    far_end.close()  # otherwise reading would not end when the child does
    last_tried = 0
    try:
        while True:
            kind, what = next_report(reports, stop)
            if kind == FITS:
                return what, what
            if kind == FAILED:
                raise RuntimeError(f"--device_batch_size auto: {what}")
            last_tried = what
    except EOFError:
        return 0, last_tried
    finally:
        child.kill()
        child.join()


def fit_batch_size(
    cfg: TrainConfig, ranks: Ranks, stop: Interruption, say: Callable[[str], None]
) -> TrainConfig:
    """The settings with a number for --device_batch_size auto, the same on all ranks.

    Raises ValueError if nothing fits, and Interrupted.
    """
    if cfg.device_batch_size != AUTO:
        return cfg
    sizes = candidates(cfg.total_batch_size // ranks.world_size)
    say(f"device batch size: trying {sizes[0]} images of {cfg.image_size} px, then smaller sizes")
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
            "into memory: use a smaller --image_size"
        )
    say(f"device batch size: {fitting} fit")
    return dataclasses.replace(cfg, device_batch_size=fitting)


def fit_batch_size_alone(cfg: TrainConfig) -> TrainConfig:
    """`fit_batch_size` for a single-process command: afterwards, Ctrl-C raises KeyboardInterrupt
    again, even in a background job, where the shell has it ignored."""
    try:
        return fit_batch_size(
            cfg, distributed.read_ranks(), Interruption(), partial(print, file=sys.stderr)
        )
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
