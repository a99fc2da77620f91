"""Worker processes that fill batches in memory shared with the training process.

A batch stays in one `Slot` from the first pixel to the copy to the device: nothing is pickled or
collated in between, and the memory is allocated once (torch's DataLoader allocates it for every
batch: 130 to 200 us per image of 224 px, against 10 to 20 here). A worker fills a whole slot, then
the next free one. Slots are anonymous shared memory: a container's small /dev/shm does not matter.

Two pipes carry slot numbers, to the workers and back. All workers read the same pipe, and the
kernel gives each number to one of them, so there is no lock that a killed worker could take along.
"""

import atexit
import mmap
import multiprocessing
import multiprocessing.connection
import os
import resource
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch

from resnet50.data.batch import Batch, Slot, slot_dtype
from resnet50.data.sampling import BatchKey
from resnet50.system import limits, processes

# Batches of a stream that are ready or being filled, beyond one per worker.
SPARE_SLOTS = 2
# Workers that deliver nothing for this long are hung; a cold network volume may take a minute.
TIMEOUT_S = 600
NUMBER_BYTES = 2  # of a slot's number in a pipe
# Added to a worker's own, so that the process that launches the steps goes first. With as many
# workers as cores, and other programs that wanted 1.5 of 2 cores, a step took 1.48 times as long as
# alone at 0, 1.14 at 5, 1.08 at 10, and 1.00 at 19. More than 5 may starve the workers where others
# run: they kept 64%, 23%, and 7% of their rate at 5, 10, and 19 (benchmarks/neighbors.py). It only
# counts within a container or, if the kernel shares the cores by session, within the rank's
# (sched(7), autogroup).
NICENESS = 5


class Loader:
    """Workers and the slots of one or several streams of batches.

    fills: for every stream, a function that fills a slot for its key; none is called in this
    process unless num_workers is 0. Create it before CUDA, the process group and any thread exist,
    since the workers are forked here. Raises ValueError if this machine lacks the memory for it.
    """

    def __init__(
        self,
        fills: Sequence[Callable[[Slot], None]],
        batch_size: int,
        image_size: int,
        num_workers: int,
        device: torch.device,
    ) -> None:
        dtype = slot_dtype(batch_size, image_size)
        # One slot per worker is being filled; the spare ones are ready, so that no worker idles
        # while the training process takes a batch. Without workers nothing can be ready.
        self._depth = num_workers + SPARE_SLOTS if num_workers else 1
        num_slots = self._depth * len(fills)
        check_memory(num_slots * dtype.itemsize, num_workers)
        allow_open_files(num_workers)
        # Anonymous memory, mapped before the fork: all processes then see the same pages.
        self._memory = mmap.mmap(-1, num_slots * dtype.itemsize)
        records = np.frombuffer(self._memory, dtype)
        self._slots = [Slot(number, records[number]) for number in range(num_slots)]
        self._fills = fills
        self._device = device
        self._is_pinned = False
        self._tasks, self._results = os.pipe(), os.pipe()
        parent_pid = os.getpid()
        # Forked, not spawned: a worker shares the lists of 1.28 million files, and starts at once.
        fork = multiprocessing.get_context("fork")
        self._workers = [
            fork.Process(target=self._work, args=(parent_pid,), name="loader", daemon=True)
            for _ in range(num_workers)
        ]
        for worker in self._workers:
            worker.start()
        atexit.register(self.close)

    def batches(self, stream: int, keys: Iterable[BatchKey]) -> "Stream":
        """Batches of a stream for the keys, in their order; the workers begin at once.

        A stream's batches must be used up before it is given other keys.
        """
        first = stream * self._depth
        return Stream(self, self._slots[first : first + self._depth], keys)

    def close(self) -> None:
        """End the workers, at once: they hold nothing that could be lost."""
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.join()
        self._workers = []

    def _work(self, parent_pid: int) -> None:
        """What a worker does until it is killed."""
        processes.ignore_signals()
        processes.die_with_parent(parent_pid)
        os.nice(NICENESS)
        # The parent's end: if a worker kept it open, no read would ever see the end of the pipe.
        os.close(self._tasks[1])
        # One process per core is all the parallelism needed; threads would compete for the cores.
        torch.set_num_threads(1)
        while message := os.read(self._tasks[0], NUMBER_BYTES):
            self._fill(self._slots[int.from_bytes(message, "little")])
            os.write(self._results[1], message)

    def _fill(self, slot: Slot) -> None:
        self._fills[slot.number // self._depth](slot)

    def request(self, slot: Slot) -> None:
        """Have a slot filled for its key by whichever worker is free first."""
        if self._workers:
            os.write(self._tasks[1], slot.number.to_bytes(NUMBER_BYTES, "little"))

    def wait_for(self, slot: Slot) -> None:
        """Return when the slot is filled. Raises RuntimeError if a worker died or all hang."""
        if not self._workers:
            self._fill(slot)
            slot.is_filled = True
        while not slot.is_filled:
            # Waits for results and for deaths alike: otherwise this would wait forever for a worker
            # that the OOM killer has ended.
            workers = {worker.sentinel: worker for worker in self._workers}
            ready = multiprocessing.connection.wait([self._results[0], *workers], TIMEOUT_S)
            if not ready:
                raise RuntimeError(f"the loader processes delivered no batch for {TIMEOUT_S} s")
            if self._results[0] not in ready:
                dead = workers[ready[0]]
                dead.join()
                hint = ": killed, as Linux does when memory runs out" if dead.exitcode == -9 else ""
                raise RuntimeError(f"a loader process ended with code {dead.exitcode}{hint}")
            # All results that have arrived, in any order: batches keep the order of their keys,
            # since the caller waits for a particular slot.
            numbers = os.read(self._results[0], 1024 * NUMBER_BYTES)
            for at in range(0, len(numbers), NUMBER_BYTES):
                number = int.from_bytes(numbers[at : at + NUMBER_BYTES], "little")
                self._slots[number].is_filled = True

    def to_device(self, slot: Slot) -> tuple[Batch, torch.cuda.Event | None]:
        """A filled slot's batch on the device, and an event after which the slot may be reused."""
        if self._device.type != "cuda":
            return slot.to(self._device), None
        # Only now: CUDA had to wait until the workers were forked.
        if not self._is_pinned:
            self._pin()
        # The copy runs alongside the training step; until it has ended the slot must not change.
        batch, copied = slot.to(self._device), torch.cuda.Event()
        copied.record()
        return batch, copied

    def _pin(self) -> None:
        """Page-lock the slots, so that the GPU can copy from them asynchronously."""
        address = np.frombuffer(self._memory, np.uint8).ctypes.data
        error = torch.cuda.cudart().cudaHostRegister(address, len(self._memory), 0)
        if int(error) != 0:
            raise RuntimeError(f"cudaHostRegister of {len(self._memory):,} bytes: error {error}")
        self._is_pinned = True


class Stream:
    """Iterator over batches, each on the device, in the order of its keys."""

    def __init__(self, loader: Loader, slots: Sequence[Slot], keys: Iterable[BatchKey]) -> None:
        self._loader = loader
        self._free = deque(slots)
        self._keys = iter(keys)
        self._requested: deque[Slot] = deque()
        self._in_copy: deque[tuple[Slot, torch.cuda.Event]] = deque()
        self._request_all()

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Batch:
        self._reclaim()
        if not self._requested:
            raise StopIteration
        slot = self._requested.popleft()
        self._loader.wait_for(slot)
        batch, copied = self._loader.to_device(slot)
        self._in_copy.append((slot, copied))
        if copied is None:
            self._reclaim()
        return batch

    def drain(self) -> Iterator[None]:
        """Use the batches up without taking one to the device; yields after each."""
        while self._requested:
            slot = self._requested.popleft()
            self._loader.wait_for(slot)
            self._free.append(slot)
            self._request_all()
            yield

    def _reclaim(self) -> None:
        """Reuse slots whose copy has ended; wait for one if nothing else is requested."""
        while self._in_copy:
            # The oldest: copies end in the order in which they began.
            slot, copied = self._in_copy[0]
            if copied is not None and not copied.query():
                if self._requested:
                    break
                copied.synchronize()
            self._in_copy.popleft()
            self._free.append(slot)
        self._request_all()

    def _request_all(self) -> None:
        while self._free and (key := next(self._keys, None)) is not None:
            slot = self._free.popleft()
            slot.set_key(key)
            self._loader.request(slot)
            self._requested.append(slot)


def check_memory(num_bytes: int, num_workers: int) -> None:
    """Raise ValueError if there is too little memory for the batches."""
    available = limits.available_memory()
    if num_bytes > available:
        raise ValueError(
            f"--num_workers {num_workers} need {num_bytes / 2**30:.1f} GiB for batches, "
            f"{available / 2**30:.1f} GiB are free: use fewer, or a smaller --device_batch_size"
        )


def allow_open_files(num_workers: int) -> None:
    """Raise this process's own limit on open files as far as the workers' pipes require.

    Raises ValueError if the system does not allow it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(os.listdir("/proc/self/fd")) + 4 * num_workers + 64
    if soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise ValueError(
                f"--num_workers {num_workers} need {needed} open files, `ulimit -Hn` allows "
                f"{hard}: use fewer, or raise the limit"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def choose_num_workers(wanted: int, local_world_size: int, on_gpu: bool) -> int:
    """Loader processes of a rank; for -1 its share of the cores, half if the model needs cores.

    No core is set aside for the process that feeds a GPU: NICENESS gives it one when it wants it,
    and a loader process uses the rest of its time (benchmarks/README.md, "Neighbors").
    """
    share = limits.num_cores() // local_world_size
    return wanted if wanted >= 0 else max(1, share if on_gpu else share // 2)
