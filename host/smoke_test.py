"""Whether the environment works: every GPU multiplies, and several of them can talk to each other.

    python -m host.smoke_test

Exit codes: 0 it works, 2 it does not, with the reason.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torchvision

from resnet50.config.command_line import print_error

SIDE = 512
TIMEOUT = timedelta(seconds=120)


def multiplies(device: torch.device) -> None:
    """Raises ValueError if a product of ones comes out wrong."""
    ones = torch.ones(SIDE, SIDE, device=device)
    if not torch.equal((ones @ ones).cpu(), torch.full((SIDE, SIDE), float(SIDE))):
        raise ValueError(f"a product on {device} is wrong")


def all_reduce(rank: int, world_size: int, store: str) -> None:
    """One rank of a sum over all GPUs, by NCCL as in training."""
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl",
        f"file://{store}",
        timeout=TIMEOUT,
        rank=rank,
        world_size=world_size,
        device_id=device,
    )
    ranks = torch.tensor(rank, device=device)
    dist.all_reduce(ranks)
    dist.destroy_process_group()
    if ranks.item() != world_size * (world_size - 1) // 2:
        raise ValueError(f"the sum over {world_size} GPUs is wrong")


def main(argv: Sequence[str] | None = None) -> int:
    """Try everything; prints one line about what there is."""
    num_gpus = torch.cuda.device_count()
    has_driver = Path("/proc/driver/nvidia/version").exists()
    try:
        if has_driver and not num_gpus and "CUDA_VISIBLE_DEVICES" not in os.environ:
            raise ValueError("it sees no GPU, but the host has an NVIDIA driver: see nvidia-smi")
        for device in range(num_gpus):
            multiplies(torch.device("cuda", device))
        multiplies(torch.device("cpu"))
        if num_gpus > 1:
            with tempfile.TemporaryDirectory() as folder:
                words = (num_gpus, str(Path(folder, "store")))
                torch.multiprocessing.spawn(all_reduce, words, nprocs=num_gpus)
    except (RuntimeError, ValueError, torch.multiprocessing.ProcessException) as error:
        return print_error("host/smoke_test.py", f"PyTorch does not work here: {error}")
    gpus = f"{num_gpus} x {torch.cuda.get_device_name()}" if num_gpus else "no GPU"
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {gpus}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
