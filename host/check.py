"""What a host can train with: driver, GPUs, memory; and which build of PyTorch it needs.

    python3 -m host.check
    python3 -m host.check --cpu
    python3 -m host.check --print_index     # where pip finds that build: nothing for PyPI, `any`
                                            # where no GPU is seen, `cpu` where none may be used

Runs before there is an environment: standard library, Python 3.10. Exit codes: 0 fit, 2 change
something.
"""

import argparse
import platform
import resource
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from host import gpus as host_gpus
from host.gpus import NO_GPU, Gpu, driver_remedy
from resnet50.config.command_line import Parser, print_error
from resnet50.system import limits

# PyTorch 2.14 on PyPI is built for CUDA 13, and again for CUDA 12.6 on its own index: RELEASE.md's
# support matrix, github.com/pytorch/pytorch/issues/190355. Drivers: docs.nvidia.com/deploy/
# cuda-compatibility, "Minor Version Compatibility".
CUDA_13, CUDA_13_DRIVER, CUDA_13_COMPUTE = "", 580, 7.5
CUDA_12, CUDA_12_DRIVER, CUDA_12_COMPUTE = "https://download.pytorch.org/whl/cu126", 525, (5.0, 9.0)
ARM_COMPUTE = 8.0  # github.com/pytorch/pytorch/issues/182849: 8.0, 9.0, 10.0, 11.0, 12.0
GLIBC = (2, 28)  # the manylinux tag of PyTorch's wheels
MIN_MEMORY_GB, CORES_PER_GPU, MIN_FILES = 12, 4, 1024
# What --print_index prints where every build will do.
NO_GPU_SEEN, NO_GPU_USED = "any", "cpu"


def torch_index(gpus: Sequence[Gpu]) -> str:
    """Package index with their build; empty is PyPI. Raises ValueError if none fits."""
    driver = min((gpu.driver_branch for gpu in gpus), default=CUDA_13_DRIVER)
    known = [gpu.compute for gpu in gpus if gpu.compute]
    if not known:  # a CPU, which runs every build, or GPUs of which only the driver is known
        oldest = newest = CUDA_13_COMPUTE
    else:
        oldest, newest = min(known), max(known)
        check_age(gpus[0].name, oldest)
    if driver >= CUDA_13_DRIVER and oldest >= CUDA_13_COMPUTE:
        return CUDA_13
    if driver < CUDA_12_DRIVER or newest > CUDA_12_COMPUTE[1]:
        needed = CUDA_12_DRIVER if newest <= CUDA_12_COMPUTE[1] else CUDA_13_DRIVER
        raise ValueError(
            f"the NVIDIA driver {gpus[0].driver} is too old for the pinned PyTorch, which needs "
            f"{needed} or newer for {gpus[0].name}: {driver_remedy(newest)}"
        )
    return CUDA_12


def check_age(name: str, compute: float) -> None:
    """Raise ValueError for a GPU that is older than all builds."""
    is_arm = platform.machine() == "aarch64"
    least = ARM_COMPUTE if is_arm else CUDA_12_COMPUTE[0]
    if compute < least:
        raise ValueError(
            f"{name} is too old: it has compute capability {compute}, the pinned PyTorch needs "
            f"{least}{' on arm64' if is_arm else ''}: take a g4dn, g5 or g6 instance"
        )


def describe(gpus: Sequence[Gpu]) -> str:
    """One line for the log."""
    if not gpus:
        return "no GPU"
    first = gpus[0]
    memory = f"{first.memory_mib / 1024:.0f} GiB, " if first.memory_mib else ""
    return f"{len(gpus)} x {first.name}, {memory}driver {first.driver}"


def operating_system() -> str:
    """PRETTY_NAME of /etc/os-release."""
    path = Path("/etc/os-release")
    for line in path.read_text().splitlines() if path.exists() else []:
        name, _, value = line.partition("=")
        if name == "PRETTY_NAME":
            return value.strip('"')
    return platform.system()


def check(gpus: Sequence[Gpu], cpu: bool) -> list[str]:
    """Warnings. Raises ValueError for what makes training impossible."""
    library, version = platform.libc_ver()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if library != "glibc" or numbers < GLIBC:
        raise ValueError(
            f"this system has {library or 'another C library'} {version}; PyTorch needs glibc "
            f"{GLIBC[0]}.{GLIBC[1]} or newer: take Ubuntu 22.04 or 24.04"
        )
    if not gpus and not cpu:
        raise ValueError(f"this host has no GPU: {NO_GPU}")
    warnings = []
    cores, memory_gb = limits.num_cores(), limits.total_memory() / 1e9
    if cores < CORES_PER_GPU * len(gpus):
        warnings.append(
            f"{cores} CPU cores for {len(gpus)} GPUs: data loading may be the limit; see bench.py"
        )
    if memory_gb < MIN_MEMORY_GB:
        warnings.append(f"{memory_gb:.0f} GB of memory: use fewer --num_workers if it runs out")
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < MIN_FILES:
        warnings.append("the limit of open files is low: ulimit -n 65536")
    return warnings


def print_index(args: argparse.Namespace) -> None:
    """Print where PyTorch's build for this host is, and warnings beside it."""
    try:
        gpus, warnings = host_gpus.read()
        index = torch_index(gpus) if gpus else NO_GPU_SEEN
    except (ValueError, OSError) as error:
        if not args.or_cpu:
            raise
        index, warnings = NO_GPU_USED, [f"{error}. Continuing on the CPU"]
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(index)


def print_host(args: argparse.Namespace) -> None:
    """Print what there is, and what may be too little. Raises ValueError as `check` does."""
    gpus, warnings = ([], []) if args.cpu else host_gpus.read()
    index = torch_index(gpus)
    cores, memory_gb = limits.num_cores(), limits.total_memory() / 1e9
    print(f"{operating_system()}, {cores} CPU cores, {memory_gb:.0f} GB of memory")
    if not args.quiet:
        free_gb = shutil.disk_usage(Path()).free / 1e9
        print(f"{free_gb:.0f} GB free on the disk of {Path().absolute()}")
    what = "training on the CPU" if args.cpu else describe(gpus)
    print(what + (f"; PyTorch from {index}" if index else ""))
    for warning in [*([] if args.quiet else warnings), *check(gpus, args.cpu)]:
        print(f"warning: {warning}")


def main(argv: Sequence[str] | None = None) -> int:
    """Check; 0 if the host is fit, 2 if something must be changed."""
    parser = Parser("host/check.py", __doc__)
    add = parser.add_argument
    add("--cpu", action="store_true", help="train on the CPU, whatever GPUs there are")
    add("--quiet", action="store_true", help="leave out what changes from day to day")
    add("--print_index", action="store_true", help="print only where to get PyTorch from")
    add("--or_cpu", action="store_true", help="with it: if no GPU can be used, warn and go on")
    args = parser.parse_args(argv)
    try:
        if args.print_index and args.cpu:
            print(NO_GPU_USED)
        elif args.print_index:
            print_index(args)
        else:
            print_host(args)
    except (ValueError, OSError) as error:
        return print_error("host/check.py", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
