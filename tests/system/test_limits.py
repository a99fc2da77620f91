"""resnet50/system/limits.py: what a container allows counts, not what its machine has."""

import os
from pathlib import Path

import pytest

from resnet50.system import limits

GIB = 1 << 30
CORES = len(os.sched_getaffinity(0))
MEMINFO = "MemTotal:       67108864 kB\nMemFree: 1 kB\nMemAvailable:   33554432 kB\n"
MACHINE = (CORES, 64 * GIB, 32 * GIB)


@pytest.mark.parametrize(
    "own, files, expected",
    [
        ("0::/\n", {}, MACHINE),
        ("", {}, MACHINE),
        ("0::/\n", {"cpu.max": "max 100000", "memory.max": "max"}, MACHINE),
        (
            "0::/\n",
            {
                "cpu.max": "50000 100000",
                "memory.max": f"{2 * GIB}",
                "memory.current": f"{GIB}",
                "memory.stat": f"anon 1\ninactive_file {GIB // 2}\n",
            },
            (1, 2 * GIB, 1.5 * GIB),
        ),
        (  # a unit's limits stand in its own folder and in its slice's
            "0::/a.slice/b.service\n",
            {
                "a.slice/cpu.max": "100000 100000",
                "a.slice/b.service/cpu.max": "max 100000",
                "a.slice/b.service/memory.max": f"{8 * GIB}",
                "a.slice/b.service/memory.current": f"{GIB}",
                "a.slice/memory.max": f"{4 * GIB}",
                "a.slice/memory.current": f"{3 * GIB}",
            },
            (1, 4 * GIB, GIB),
        ),
        (  # version 1, and a path of the host that the container does not see
            "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n0::/\n",
            {
                "cpu/cpu.cfs_quota_us": "50000",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": f"{2 * GIB}",
                "memory/memory.usage_in_bytes": f"{GIB}",
                "memory/memory.stat": f"inactive_file 7\ntotal_inactive_file {GIB // 4}\n",
            },
            (1, 2 * GIB, 1.25 * GIB),
        ),
        (  # version 1 without limits
            "4:memory:/\n1:cpu:/\n",
            {
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/memory.usage_in_bytes": f"{GIB}",
            },
            MACHINE,
        ),
    ],
)
def test_the_lowest_limit_counts(own, files, expected, tmp_path, monkeypatch):
    for name, text in {"own": own, "meminfo": MEMINFO, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name, path in (("CGROUPS", ""), ("OWN_CGROUPS", "own"), ("MEMINFO", "meminfo")):
        monkeypatch.setattr(limits, name, tmp_path / path)
    found = (limits.num_cores(), limits.total_memory(), limits.available_memory())
    assert found == expected


def test_this_machine_has_cores_and_memory():
    assert 1 <= limits.num_cores() <= CORES
    assert 0 < limits.available_memory() < limits.total_memory()
    assert Path("/proc/self/cgroup").exists()
