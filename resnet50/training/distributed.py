"""Ranks: who am I, how do we agree, and who may write.

The only reader of RANK, LOCAL_RANK and WORLD_SIZE. One process is world size 1, not a separate
code path. NCCL carries CUDA tensors, gloo CPU tensors: on a GPU, gradients go over NCCL; the small
numbers that ranks agree on every step go over gloo, so that no step waits for the device.
"""

import gc
import itertools
import json
import os
import socket
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

# A rank that waits longer than this for the others gives up, and torchrun stops the job. Must
# exceed the longest thing that one rank does alone: reading a directory of 1.3 M files.
TIMEOUT = timedelta(minutes=10)

_exchange_numbers = itertools.count()  # all ranks exchange equally often

CPU = torch.device("cpu")

VARIABLES = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
LEFT_OVER = (
    "Left over from another program? `unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE`, or start "
    "with torchrun"
)
ANSWER_S = 10.0


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


class PeerError(ValueError):
    """Another rank cannot start; the text names it and says why."""


def launched_by_torchrun() -> bool:
    """Whether this process is a rank; an empty variable, as left by scripts, does not count."""
    return bool(os.environ.get("RANK") and os.environ.get("WORLD_SIZE"))


def read_ranks(use_gpus: bool = True) -> Ranks:
    """The ranks according to torchrun; one without it. Starts nothing, touches no GPU.

    use_gpus: if there are any. Raises ValueError for variables left over from another program.
    """
    number = read_variables()
    num_gpus = torch.cuda.device_count() if use_gpus else 0
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


def read_variables() -> dict[str, int]:
    """RANK and the like. Raises ValueError if they cannot belong to a running rank."""
    texts = {name: os.environ.get(name) or default for name, default in VARIABLES.items()}
    shown = " ".join(f"{name}={os.environ[name]}" for name in VARIABLES if os.environ.get(name))
    try:
        number = {name: int(text) for name, text in texts.items()}
    except ValueError:
        raise ValueError(f"{shown}: not numbers. {LEFT_OVER}") from None
    for rank, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if not 0 <= number[rank] < number[size]:
            raise ValueError(f"{shown}: {rank} must be from 0 to {size} - 1. {LEFT_OVER}")
    if number["WORLD_SIZE"] > 1:
        check_rendezvous(shown)
    return number


def check_rendezvous(shown: str) -> None:
    """Raise ValueError if the variables name several ranks that cannot meet.

    shown: those variables. Without this check, ranks would wait for each other for ten minutes.
    """
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
    if not address or not port.isdigit():
        raise ValueError(f"{shown} without MASTER_ADDR and MASTER_PORT. {LEFT_OVER}")
    # torchrun hosts the store at which its ranks meet, and opens it before it starts them.
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        try:
            socket.create_connection((address, int(port)), timeout=ANSWER_S).close()
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"{shown}, and no torchrun answers at {address}:{port} ({error}). {LEFT_OVER}"
            ) from None
    elif os.environ.get("RANK", "0") == "0":
        # As in Kubeflow's pods: each is a rank without torchrun, and the others may start later.
        print(
            f"{shown}: waiting for the other ranks at {address}:{port}. If there are none: "
            f"{LEFT_OVER}",
            file=sys.stderr,
            flush=True,
        )


def unused_gpus(ranks: Ranks) -> int:
    """GPUs of this host that no rank uses."""
    if ranks.device.type == "cpu":  # any GPUs are unused because of --device cpu
        return 0
    return max(0, torch.cuda.device_count() - ranks.local_world_size)


def connect(ranks: Ranks, timeout: timedelta = TIMEOUT) -> None:
    """Join the process group if there are several ranks. timeout: of every wait for the others."""
    if ranks.device.type == "cuda":
        torch.cuda.set_device(ranks.device)
    if ranks.world_size > 1:
        exchange_before_connecting("", ranks)  # in the group, all would wait for one that gave up
        backend = "cpu:gloo,cuda:nccl" if ranks.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timeout)


def exchange_before_connecting(word: str, ranks: Ranks, problem: str = "") -> list[str]:
    """Every rank's word, through torchrun's own store; every rank must call this equally often.

    For what must be agreed on before the loader processes are forked, and so before `connect`.
    Raises PeerError if another rank has a problem, and RuntimeError naming ranks that are missing.
    """
    if ranks.world_size == 1:
        return [word]
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
    except dist.DistError as error:
        raise RuntimeError(f"rank {ranks.rank} cannot reach torchrun's store: {error}") from error
    # Restarts by torchrun share one store.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    prefix = f"exchange/{attempt}/{next(_exchange_numbers)}"
    keys = [f"{prefix}/{rank}" for rank in range(ranks.world_size)]
    if problem:
        problem = f"rank {ranks.rank} on {socket.gethostname()}: {problem}"
    store.set(keys[ranks.rank], json.dumps([word, problem]))
    try:
        words, problems = zip(*(json.loads(store.get(key)) for key in keys), strict=True)
    except dist.DistError as error:
        away = [rank for rank, key in enumerate(keys) if not store.check([key])]
        raise RuntimeError(f"waited {TIMEOUT} for ranks {away}: {error}") from error
    if any(problems):
        # All ranks end now, and torchrun takes its store with it: first, all must have read.
        store.set(f"{keys[ranks.rank]}/read", "")
        with suppress(dist.DistError):
            store.wait([f"{key}/read" for key in keys])
        raise PeerError(next(filter(None, problems)))
    return list(words)


def report_problem(error: Exception, ranks: Ranks) -> None:
    """Tell the ranks that wait for this one before `connect` why it ends."""
    if not isinstance(error, PeerError) and not dist.is_initialized():
        with suppress(PeerError, RuntimeError):
            exchange_before_connecting("", ranks, str(error))


def least_before_connecting(number: int, ranks: Ranks) -> int:
    """The smallest of all ranks' numbers; every rank must call it."""
    return min(int(word) for word in exchange_before_connecting(str(number), ranks))


def disconnect() -> None:
    """Leave the process group, if it was joined; callers must have let go of the wrapped model.

    When the group was destroyed while a model in DistributedDataParallel was alive, gloo ended 8 of
    58 bare two-process scripts with SIGABRT after they had done their work.
    """
    if dist.is_initialized():
        gc.collect()  # such a model is part of reference cycles
        dist.destroy_process_group()


def replicate(model: nn.Module, ranks: Ranks) -> nn.Module:
    """The model in DistributedDataParallel; the model itself when there is one rank.

    Buffers are not broadcast every step: batch-norm statistics come from rank 0's first micro-batch
    and are sent to the others before they are used (`broadcast_buffers`). They are broadcast once,
    here, so that all ranks start with rank 0's, the only ones that count.
    """
    if ranks.world_size == 1:
        return model
    device_ids = [ranks.local_rank] if ranks.device.type == "cuda" else None
    return DistributedDataParallel(
        model, device_ids=device_ids, forward_sync_buffers=False, gradient_as_bucket_view=True
    )


def sum_over_ranks(numbers: Tensor, ranks: Ranks) -> Tensor:
    """Elementwise sum over all ranks, as a new tensor; every rank must call it."""
    total = numbers.clone()
    if ranks.world_size > 1:
        dist.all_reduce(total)
    return total


def agree(numbers: Sequence[int], ranks: Ranks) -> list[int]:
    """Sums of small CPU numbers over all ranks, through gloo; every rank must call it."""
    if ranks.world_size == 1:
        return list(numbers)
    return sum_over_ranks(torch.tensor(numbers, dtype=torch.int64), ranks).tolist()


def gather_names(names: set[str], ranks: Ranks) -> set[str]:
    """The union of every rank's names; every rank must call it."""
    return set().union(*gather(names, ranks))


def gather(value: object, ranks: Ranks) -> list:
    """Every rank's small value, rank 0's first; every rank must call it."""
    if ranks.world_size == 1:
        return [value]
    gathered = [None] * ranks.world_size
    dist.all_gather_object(gathered, value)
    return gathered


def broadcast_buffers(modules: Iterable[nn.Module], ranks: Ranks) -> None:
    """Give every rank the buffers of rank 0; every rank must call it."""
    if ranks.world_size > 1:
        for module in modules:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)
