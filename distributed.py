"""Ranks: who am I, how do we agree, and who may write.

The only reader of RANK, LOCAL_RANK and WORLD_SIZE. One process is world size 1, not another
branch. NCCL carries CUDA tensors, gloo CPU tensors: gradients take the first way on a GPU, the
small numbers that ranks agree on every step take the second, so that no step waits for the device.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

# A rank that waits longer than this for the others gives up, and torchrun stops the job. Must
# exceed the longest thing that one rank does alone: reading a directory of 1.3 M files.
TIMEOUT = timedelta(minutes=10)


CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    device: torch.device = CPU

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def launched_by_torchrun() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def read_ranks() -> Ranks:
    """What torchrun told this process; alone without torchrun. Starts nothing, touches no GPU."""
    number = {
        name: int(os.environ.get(name, default))
        for name, default in (
            ("RANK", "0"),
            ("LOCAL_RANK", "0"),
            ("WORLD_SIZE", "1"),
            ("LOCAL_WORLD_SIZE", "1"),
        )
    }
    num_gpus = torch.cuda.device_count()
    device = torch.device("cuda", number["LOCAL_RANK"]) if num_gpus else torch.device("cpu")
    if num_gpus and number["LOCAL_WORLD_SIZE"] > num_gpus:
        raise ValueError(
            f"{number['LOCAL_WORLD_SIZE']} ranks for {num_gpus} GPUs: "
            f"torchrun --nproc_per_node={num_gpus}"
        )
    return Ranks(
        number["RANK"],
        number["LOCAL_RANK"],
        number["WORLD_SIZE"],
        number["LOCAL_WORLD_SIZE"],
        device,
    )


def unused_gpus(ranks: Ranks) -> int:
    """GPUs of this host that no rank uses."""
    return max(0, torch.cuda.device_count() - ranks.local_world_size)


def connect(ranks: Ranks, timeout: timedelta = TIMEOUT) -> None:
    """Join the process group; nothing for a single rank. timeout: of every wait for the others."""
    if ranks.device.type == "cuda":
        torch.cuda.set_device(ranks.device)
    if ranks.world_size > 1:
        backend = "cpu:gloo,cuda:nccl" if ranks.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timeout)


def least_before_connecting(number: int, ranks: Ranks) -> int:
    """The smallest of all ranks' numbers, by way of torchrun's own store.

    For what must be agreed on before the loader processes are forked, and so before `connect`.
    """
    if ranks.world_size == 1:
        return number
    store, _, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
    store.set(f"least/{ranks.rank}", str(number))
    return min(int(store.get(f"least/{rank}")) for rank in range(ranks.world_size))


def disconnect() -> None:
    """Leave the process group, if it was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def replicate(model: nn.Module, ranks: Ranks) -> nn.Module:
    """The model in DistributedDataParallel; the model itself when there is one rank.

    Buffers are not broadcast every step: batch-norm statistics come from rank 0's first micro-batch
    and go round before they are used (`broadcast_buffers`).
    """
    if ranks.world_size == 1:
        return model
    device_ids = [ranks.local_rank] if ranks.device.type == "cuda" else None
    return DistributedDataParallel(
        model, device_ids=device_ids, broadcast_buffers=False, gradient_as_bucket_view=True
    )


def sum_over_ranks(numbers: Tensor, ranks: Ranks) -> Tensor:
    """Elementwise sum over all ranks, as a new tensor; every rank must call it."""
    total = numbers.clone()
    if ranks.world_size > 1:
        dist.all_reduce(total)
    return total


def agree(numbers: Sequence[int], ranks: Ranks) -> list[int]:
    """Sums of small host numbers over all ranks, by way of gloo; every rank must call it."""
    if ranks.world_size == 1:
        return list(numbers)
    return sum_over_ranks(torch.tensor(numbers, dtype=torch.int64), ranks).tolist()


def gather_names(names: set[str], ranks: Ranks) -> set[str]:
    """The union of every rank's names; every rank must call it."""
    if ranks.world_size == 1:
        return names
    gathered: list[set[str]] = [set()] * ranks.world_size
    dist.all_gather_object(gathered, names)
    return set().union(*gathered)


def broadcast_buffers(modules: Iterable[nn.Module], ranks: Ranks) -> None:
    """Give every rank the buffers of rank 0; every rank must call it."""
    if ranks.world_size > 1:
        for module in modules:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)
