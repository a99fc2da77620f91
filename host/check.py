"""What a host can train with: driver, GPUs, memory; and which build of PyTorch it needs.

    python3 -m host.check
    python3 -m host.check --cpu
    python3 -m host.check --print_index          # where pip finds that build; nothing for PyPI

Runs before there is an environment: standard library, Python 3.10. Exit codes: 0 fit, 2 change
something.
"""

import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from resnet50.config.command_line import Parser, print_error

# PyTorch 2.14 on PyPI is built for CUDA 13, and again for CUDA 12.6 on its own index: RELEASE.md's
# support matrix, github.com/pytorch/pytorch/issues/190355. Drivers: docs.nvidia.com/deploy/
# cuda-compatibility, "Minor Version Compatibility".
CUDA_13, CUDA_13_DRIVER, CUDA_13_COMPUTE = "", 580, 7.5
CUDA_12, CUDA_12_DRIVER, CUDA_12_COMPUTE = "https://download.pytorch.org/whl/cu126", 525, (5.0, 9.0)
GLIBC = (2, 28)  # the manylinux tag of PyTorch's wheels
PCI_DEVICES, NVIDIA_VENDOR = Path("/sys/bus/pci/devices"), "0x10de"
MIN_MEMORY_GB, CORES_PER_GPU, MIN_FILES = 12, 4, 1024
QUERY = (
    "nvidia-smi",
    "--query-gpu=name,driver_version,compute_cap,memory.total",
    "--format=csv,noheader,nounits",
)
DRIVER_REMEDY = (
    "start the host from a Deep Learning Base AMI (Ubuntu), which has one, or install it and "
    "reboot: sudo apt-get install nvidia-driver-580-server"
)


@dataclass(frozen=True)
class Gpu:
    """One line of nvidia-smi."""

    name: str
    driver: str
    compute: float  # compute capability: 7.5 is Turing (T4), 8.0 A100, 8.6 A10G, 8.9 L4, 9.0 H100
    memory_mib: int

    @property
    def driver_branch(self) -> int:
        """The first part of its version: 580 of 580.95.05."""
        return int(self.driver.partition(".")[0])


def read_gpus() -> list[Gpu]:
    """The GPUs that the driver knows. Raises ValueError if there is a GPU without a driver."""
    if shutil.which(QUERY[0]):
        listed = subprocess.run(QUERY, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if listed.returncode == 0:
            return parse_gpus(listed.stdout)
        said = (listed.stderr or listed.stdout).strip().splitlines()
        raise ValueError(
            f"nvidia-smi fails ({said[0] if said else listed.returncode}): {DRIVER_REMEDY}"
        )
    if has_nvidia_card():
        raise ValueError(f"there is an NVIDIA GPU and no driver for it: {DRIVER_REMEDY}")
    return []


def parse_gpus(listed: str) -> list[Gpu]:
    """GPUs out of nvidia-smi's CSV."""
    gpus = []
    for line in filter(None, map(str.strip, listed.splitlines())):
        name, driver, compute, memory = (field.strip() for field in line.rsplit(",", 3))
        gpus.append(Gpu(name, driver, float(compute), int(memory)))
    return gpus


def has_nvidia_card() -> bool:
    """Whether the PCI bus has one that computes or displays, by its class 0x03...."""
    for vendor in PCI_DEVICES.glob("*/vendor"):
        is_display = vendor.with_name("class").read_text().startswith("0x03")
        if is_display and vendor.read_text().strip() == NVIDIA_VENDOR:
            return True
    return False


def torch_index(gpus: Sequence[Gpu]) -> str:
    """Package index with their build; empty is PyPI. Raises ValueError if none fits."""
    if not gpus:
        return CUDA_13  # it runs on a CPU too
    driver = min(gpu.driver_branch for gpu in gpus)
    oldest, newest = min(gpu.compute for gpu in gpus), max(gpu.compute for gpu in gpus)
    if driver >= CUDA_13_DRIVER and oldest >= CUDA_13_COMPUTE:
        return CUDA_13
    if oldest < CUDA_12_COMPUTE[0]:
        raise ValueError(
            f"{gpus[0].name} is too old: it has compute capability {oldest}, the pinned PyTorch "
            f"needs {CUDA_12_COMPUTE[0]}: take a g4dn, g5 or g6 instance"
        )
    if driver < CUDA_12_DRIVER or newest > CUDA_12_COMPUTE[1]:
        needed = CUDA_12_DRIVER if newest <= CUDA_12_COMPUTE[1] else CUDA_13_DRIVER
        raise ValueError(
            f"the NVIDIA driver {gpus[0].driver} is too old for the pinned PyTorch, which needs "
            f"{needed} or newer for {gpus[0].name}: {DRIVER_REMEDY}"
        )
    return CUDA_12


def describe(gpus: Sequence[Gpu]) -> str:
    """One line for the log."""
    if not gpus:
        return "no GPU"
    first = gpus[0]
    memory = f"{first.memory_mib / 1024:.0f} GiB"
    return f"{len(gpus)} x {first.name}, {memory}, driver {first.driver}"


def memory_gb() -> float:
    """All memory of the host."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


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
        raise ValueError(
            "this host has no GPU: take a g4dn, g5 or g6 instance, or add --cpu for small data"
        )
    warnings = []
    cores = len(os.sched_getaffinity(0))
    if cores < CORES_PER_GPU * len(gpus):
        warnings.append(
            f"{cores} CPU cores for {len(gpus)} GPUs: data loading may be the limit; see bench.py"
        )
    if memory_gb() < MIN_MEMORY_GB:
        warnings.append(f"{memory_gb():.0f} GB of memory: use fewer --num_workers if it runs out")
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < MIN_FILES:
        warnings.append("the limit of open files is low: ulimit -n 65536")
    return warnings


def main(argv: Sequence[str] | None = None) -> int:
    """Check; 0 if the host is fit, 2 if something must be changed."""
    parser = Parser("host/check.py", __doc__)
    add = parser.add_argument
    add("--cpu", action="store_true", help="train on the CPU if there is no GPU")
    add("--quiet", action="store_true", help="leave out what changes from day to day")
    add("--print_index", action="store_true", help="print only where to get PyTorch from")
    args = parser.parse_args(argv)
    try:
        gpus = [] if args.cpu and not shutil.which(QUERY[0]) else read_gpus()
        index = torch_index(gpus)
        if args.print_index:
            print(index)
            return 0
        free_gb, cores = shutil.disk_usage(Path()).free / 1e9, len(os.sched_getaffinity(0))
        print(f"{operating_system()}, {cores} CPU cores, {memory_gb():.0f} GB of memory")
        if not args.quiet:
            print(f"{free_gb:.0f} GB free on the disk of {Path().absolute()}")
        print(describe(gpus) + (f"; PyTorch from {index}" if index else ""))
        for warning in check(gpus, args.cpu):
            print(f"warning: {warning}")
    except (ValueError, OSError) as error:
        return print_error("host/check.py", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
