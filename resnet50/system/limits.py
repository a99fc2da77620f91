"""What this process may use of the machine: cores and memory, within the limits of its cgroups.

In a container, /proc and the set of cores show the whole machine. A quota of CPU time and a limit
of memory show only in the files of its cgroups, of version 1 or 2 (docs.kernel.org/admin-guide,
cgroup-v1 and cgroup-v2). Standard library, Python 3.10.
"""

import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
MEMINFO = Path("/proc/meminfo")
# Of version 2 and of version 1: the limit, what is used, and memory.stat's name for cached files,
# which count as used but can be dropped.
MEMORY_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def num_cores() -> int:
    """Cores to keep busy: those that this process may run on, or fewer if its time is limited."""
    cores = float(len(os.sched_getaffinity(0)))
    for folder in folders("cpu"):
        cores = min(cores, cpu_quota(folder))
    return max(1, math.ceil(cores))


def cpu_name() -> str:
    """What /proc/cpuinfo calls the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def total_memory() -> int:
    """Bytes of memory that all processes here may use together."""
    return min([counts(MEMINFO)["MemTotal:"] * 1024, *(limit for limit, _ in memory_limits())])


def available_memory() -> int:
    """Bytes that can still be used."""
    # MemAvailable, not MemFree: the page cache can be reclaimed.
    free = counts(MEMINFO)["MemAvailable:"] * 1024
    return min([free, *(limit - used for limit, used in memory_limits())])


def memory_limits() -> Iterator[tuple[int, int]]:
    """Bytes that each cgroup with a limit allows, and how many of them cannot be dropped."""
    for folder in folders("memory"):
        for limit, used, cached in MEMORY_FILES:
            allowed = read(folder / limit)
            if allowed.isdigit():  # not "max"
                dropped = counts(folder / "memory.stat").get(cached, 0)
                yield int(allowed), int(read(folder / used)) - dropped


def cpu_quota(folder: Path) -> float:
    """Cores' worth of time that a cgroup may use; infinite without a limit."""
    quota, _, period = read(folder / "cpu.max").partition(" ")  # "max 100000", "50000 100000"
    if not quota:
        quota, period = read(folder / "cpu.cfs_quota_us"), read(folder / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdigit() else math.inf  # not "max", "-1" or ""


def folders(controller: str) -> Iterator[Path]:
    """Folders of this process's cgroup and those above it, all of whose limits count.

    A container may see less than the path that /proc names: what is not there has no limits.
    """
    for line in read(OWN_CGROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = CGROUPS / controller if controllers else CGROUPS  # no names: version 2
        parts = [part for part in path.split("/") if part]
        yield from (top.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))


def read(path: Path) -> str:
    """A small file's text; empty if there is none."""
    return path.read_text().strip() if path.exists() else ""


def counts(path: Path) -> dict[str, int]:
    """The first number after each name, one a line, as /proc/meminfo and memory.stat have them."""
    lines = (line.split() for line in read(path).splitlines())
    return {words[0]: int(words[1]) for words in lines}
