"""host/check.py: which PyTorch a GPU and its driver get, and what it says when none fits."""

import os
import subprocess
from pathlib import Path

import pytest
from support.commands import host_words

from host import check

CU126 = "https://download.pytorch.org/whl/cu126"


def gpus(*lines: str) -> list[check.Gpu]:
    return check.parse_gpus("\n".join(lines))


@pytest.mark.parametrize(
    "line, index",
    [
        ("Tesla T4, 580.95.05, 7.5, 15360", ""),
        ("Tesla T4, 570.133.20, 7.5, 15360", CU126),
        ("Tesla V100-SXM2-16GB, 580.95.05, 7.0, 16384", CU126),
        ("NVIDIA A10G, 580.95.05, 8.6, 23028", ""),
        ("NVIDIA A10G, 535.183.01, 8.6, 23028", CU126),
        ("NVIDIA L4, 590.10, 8.9, 23034", ""),
        ("NVIDIA L4, 525.60.13, 8.9, 23034", CU126),
        ("NVIDIA A100-SXM4-40GB, 580.95.05, 8.0, 40960", ""),
        ("NVIDIA H100 80GB HBM3, 550.54.15, 9.0, 81559", CU126),
        ("NVIDIA B200, 580.95.05, 10.0, 183359", ""),
    ],
)
def test_the_build_follows_driver_and_gpu(line, index):
    assert check.torch_index(gpus(line, line)) == index


@pytest.mark.parametrize(
    "line, texts",
    [
        ("Tesla T4, 470.256.02, 7.5, 15360", ["470.256.02 is too old", "525 or newer", "AMI"]),
        ("NVIDIA B200, 570.133.20, 10.0, 183359", ["580 or newer for NVIDIA B200"]),
        ("Tesla K80, 470.256.02, 3.7, 11441", ["Tesla K80 is too old", "g4dn, g5 or g6"]),
    ],
)
def test_what_no_build_fits_is_named_with_a_remedy(line, texts):
    with pytest.raises(ValueError) as refusal:
        check.torch_index(gpus(line))
    for text in texts:
        assert text in str(refusal.value)


def test_the_weakest_of_several_gpus_decides():
    mixed = gpus("Tesla V100, 580.95.05, 7.0, 16384", "NVIDIA A100, 580.95.05, 8.0, 40960")
    assert check.torch_index(mixed) == CU126


def call(folder: Path, script: str, *flags: str) -> subprocess.CompletedProcess:
    """Run it with a stand-in for nvidia-smi."""
    smi = folder / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\n{script}\n")
    smi.chmod(0o755)
    return subprocess.run(
        host_words("check", *flags),
        env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )


def test_a_good_host_is_described(tmp_path):
    result = call(tmp_path, "echo 'NVIDIA A10G, 580.95.05, 8.6, 23028'")
    assert result.returncode == 0, result.stderr
    assert "1 x NVIDIA A10G, 22 GiB, driver 580.95.05" in result.stdout
    only = call(tmp_path, "echo 'NVIDIA A10G, 535.183.01, 8.6, 23028'", "--print_index")
    assert only.stdout == f"{CU126}\n"


def test_a_driver_that_does_not_answer_is_named(tmp_path):
    said = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    result = call(tmp_path, f'echo "{said}"; exit 9')
    assert result.returncode == 2 and said in result.stderr and "AMI" in result.stderr


def test_a_gpu_without_a_driver_is_seen_on_the_bus(tmp_path, monkeypatch):
    device = tmp_path / "0000:00:1e.0"
    device.mkdir()
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030200\n")
    monkeypatch.setattr(check, "PCI_DEVICES", tmp_path)
    monkeypatch.setattr(check.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="no driver for it"):
        check.read_gpus()
    (device / "vendor").write_text("0x1d0f\n")
    assert check.read_gpus() == []


def test_without_a_gpu_only_cpu_goes_on(tmp_path):
    refused = call(tmp_path, "exit 0")
    assert refused.returncode == 2 and "no GPU" in refused.stderr and "--cpu" in refused.stderr
    assert call(tmp_path, "exit 0", "--cpu").returncode == 0
