"""Whether the environment works: every GPU multiplies, and several of them can talk to each other.

    python -m host.smoke_test
    python -m host.smoke_test --cpu          # whether it works without the GPUs

Exit codes: 0 it works, 2 it does not, with the reason.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from resnet50.config.command_line import Parser, print_error

SIDE = 512
TIMEOUT = timedelta(seconds=120)
DRIVER = Path("/proc/driver/nvidia/version")
WITHOUT = "--cpu trains without the GPUs"


def multiply(device: str) -> None:
    """Raises ValueError if a product of ones comes out wrong."""
    import torch

    ones = torch.ones(SIDE, SIDE, device=device)
    if not torch.equal((ones @ ones).cpu(), torch.full((SIDE, SIDE), float(SIDE))):
        raise ValueError(f"a product on {device} is wrong")


def all_reduce(rank: int, world_size: int, store: str) -> None:
    """One rank of a sum over all GPUs, by NCCL as in training."""
    import torch
    import torch.distributed as dist

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


def sum_over(num_gpus: int) -> None:
    """Let the GPUs add up a number. Raises ValueError if one of their processes fails."""
    from torch import multiprocessing

    failures = multiprocessing.ProcessRaisedException, multiprocessing.ProcessExitedException
    with tempfile.TemporaryDirectory() as folder:
        try:
            words = (num_gpus, str(Path(folder, "store")))
            multiprocessing.spawn(all_reduce, words, nprocs=num_gpus)
        except failures as error:
            reason = str(error).strip().splitlines()[-1]  # above it is the process's traceback
            raise ValueError(f"{num_gpus} GPUs cannot work together: {reason}") from error


def try_out(cpu: bool) -> str:
    """Use everything once; one line about what there is.

    Raises ImportError, OSError, RuntimeError or ValueError for what does not work.
    """
    import torch
    import torchvision

    num_gpus = 0 if cpu else torch.cuda.device_count()
    is_hidden = cpu or "CUDA_VISIBLE_DEVICES" in os.environ
    if DRIVER.exists() and not num_gpus and not is_hidden:
        build = "" if torch.version.cuda else f" ({torch.__version__} is built without CUDA)"
        raise ValueError(f"it sees no GPU, but this host has an NVIDIA driver{build}; {WITHOUT}")
    multiply("cpu")
    try:
        for number in range(num_gpus):
            multiply(f"cuda:{number}")
        if num_gpus > 1:
            sum_over(num_gpus)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{error}; {WITHOUT}") from error
    gpus = f"{num_gpus} x {torch.cuda.get_device_name()}" if num_gpus else "no GPU"
    return f"torch {torch.__version__}, torchvision {torchvision.__version__}, {gpus}"


def main(argv: Sequence[str] | None = None) -> int:
    """Try everything; prints one line about what there is."""
    parser = Parser("host/smoke_test.py", __doc__)
    parser.add_argument("--cpu", action="store_true", help="leave out the GPUs")
    args = parser.parse_args(argv)
    try:
        print(try_out(args.cpu))
    # Libraries that cannot be loaded are an ImportError or, from torch itself, an OSError.
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip() or type(error).__name__
        if "failed to map segment" in reason:
            reason += " (is its file system mounted noexec?)"
        return print_error("host/smoke_test.py", f"PyTorch does not work here: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
