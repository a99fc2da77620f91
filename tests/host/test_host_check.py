"""host/check.py and host/gpus.py: which PyTorch a GPU and its driver get, and what they say of a
GPU that cannot be used."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from support.commands import host_words

from host import check, gpus

CU126 = "https://download.pytorch.org/whl/cu126"


def parsed(*lines: str) -> list[gpus.Gpu]:
    found, others = gpus.parse("\n".join(lines))
    assert not others
    return found


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
        ("NVIDIA GB10, 580.95.05, 12.1, [N/A]", ""),
    ],
)
def test_the_build_follows_driver_and_gpu(line, index, monkeypatch):
    monkeypatch.setattr(check.platform, "machine", lambda: "x86_64")
    assert check.torch_index(parsed(line, line)) == index


@pytest.mark.parametrize(
    "line, machine, texts",
    [
        (
            "Tesla T4, 470.256.02, 7.5, 1",
            "",
            ["470.256.02 is too old", "525 or newer", "AMI"],
        ),
        ("Tesla K80, 470.256.02, 3.7, 11441", "", ["Tesla K80 is too old", "g4dn, g5 or g6"]),
        ("NVIDIA B200, 570.133.20, 10.0, 1", "", ["580 or newer for NVIDIA B200", "-server-open"]),
        ("NVIDIA T4G, 580.95.05, 7.5, 1", "aarch64", ["T4G is too old", "needs 8.0 on arm64"]),
    ],
)
def test_what_no_build_fits_is_named_with_a_remedy(line, machine, texts, monkeypatch):
    monkeypatch.setattr(check.platform, "machine", lambda: machine)
    with pytest.raises(ValueError) as refusal:
        check.torch_index(parsed(line))
    for text in texts:
        assert text in str(refusal.value)
    assert ("-open" in str(refusal.value)) == ("B200" in line)


def test_the_weakest_of_several_gpus_decides():
    mixed = parsed("Tesla V100, 580.95.05, 7.0, 16384", "NVIDIA A100, 580.95.05, 8.0, 40960")
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


A10G = "NVIDIA A10G, 580.95.05, 8.6, 23028"
INFOROM = "WARNING: infoROM is corrupted at gpu 0000:00:1E.0"
LOST = "Unable to determine the device handle for GPU0000:00:1F.0: GPU is lost."
MISMATCH = "Failed to initialize NVML: Driver/library version mismatch"
FAILED = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
FIELD = 'Field "compute_cap" is not a valid field to query.'


@pytest.mark.parametrize("script", [f"echo '{A10G}'; echo '{INFOROM}' >&2; exit 14",
                                    f"echo '{LOST}'; echo '{A10G}'; exit 15"])  # fmt: skip
def test_the_rows_that_there_are_count_and_the_rest_is_a_warning(tmp_path, script):
    result = call(tmp_path, script)
    assert result.returncode == 0, result.stderr
    assert "1 x NVIDIA A10G, 22 GiB" in result.stdout
    assert "warning: nvidia-smi says: " in result.stdout
    only = call(tmp_path, script, "--print_index")
    assert only.stdout == "\n" and "warning: nvidia-smi says: " in only.stderr


@pytest.mark.parametrize(
    "code, said, has_card, remedy",
    [
        (9, FAILED, True, "nvidia-driver-580-server (for Blackwell, on g7e and p6: nvidia-"),
        (9, FAILED, False, "there is no NVIDIA GPU on the PCI bus: take a g4dn"),
        (6, "No devices were found", True, "-server-open"),
        (15, LOST, True, "reboot this host"),
        (18, MISMATCH, True, "reboot this host"),
        (2, FIELD, True, "the driver is too old"),
        (0, "what?", True, "AMI"),
    ],
)
def test_a_driver_that_fails_is_named_with_what_helps(code, said, has_card, remedy, monkeypatch):
    monkeypatch.setattr(gpus.shutil, "which", lambda name: name)
    monkeypatch.setattr(gpus, "ask_driver", lambda: (code, f"{said}\n"))
    monkeypatch.setattr(gpus, "num_cards", lambda: int(has_card))
    with pytest.raises(ValueError) as refusal:
        gpus.read()
    assert said in str(refusal.value) and remedy in str(refusal.value)


def test_a_driver_that_hangs_is_not_waited_for(tmp_path, monkeypatch, capsys):
    """Even if the hanging program cannot be ended: then a process in the driver holds the pipe."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nsleep 5 & wait\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(gpus, "TIMEOUT_S", 0.3)
    start = time.monotonic()
    assert check.main([]) == 2
    assert time.monotonic() - start < 3
    assert "does not answer within" in (said := capsys.readouterr().err) and "reboot" in said


def test_cpu_never_asks_the_driver(tmp_path):
    script = f'touch {tmp_path}/asked; echo "{FAILED}"; exit 9'
    for flags in (["--cpu"], ["--cpu", "--quiet"], ["--cpu", "--print_index"]):
        result = call(tmp_path, script, *flags)
        assert result.returncode == 0 and not (tmp_path / "asked").exists()
    assert result.stdout == "cpu\n"
    assert call(tmp_path, script).returncode == 2
    # The demo trains on the CPU then, and says so.
    result = call(tmp_path, script, "--print_index", "--or_cpu")
    assert result.returncode == 0 and result.stdout == "cpu\n"
    assert FAILED in result.stderr and "Continuing on the CPU" in result.stderr


@pytest.fixture
def card(tmp_path, monkeypatch) -> Path:
    """A host with an NVIDIA card and no nvidia-smi; its folder in /proc is not there."""
    device = tmp_path / "0000:00:1e.0"
    device.mkdir()
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030200\n")
    monkeypatch.setattr(gpus, "PCI_DEVICES", tmp_path)
    monkeypatch.setattr(gpus, "DRIVER", tmp_path / "proc")
    monkeypatch.setattr(gpus.shutil, "which", lambda name: None)
    return device


def test_a_gpu_without_a_driver_is_seen_on_the_bus(card):
    with pytest.raises(ValueError, match="no driver for it"):
        gpus.read()
    (card / "vendor").write_text("0x1d0f\n")
    assert gpus.read() == ([], [])


@pytest.mark.parametrize("kind", ["Kernel Module ", "Open Kernel Module for x86_64"])
def test_in_a_container_without_nvidia_smi_proc_names_gpu_and_driver(card, tmp_path, kind):
    """The capability `compute` alone brings no tools."""
    gpu = tmp_path / "proc" / "gpus" / "0000:00:1e.0"
    gpu.mkdir(parents=True)
    version = f"NVRM version: NVIDIA UNIX {kind}  550.54.15  Release Build\nGCC version:  12.3.0\n"
    (tmp_path / "proc" / "version").write_text(version)
    found, warnings = gpus.read()  # as many as there are cards
    assert [(gpu.name, gpu.driver) for gpu in found] == [("NVIDIA GPU", "550.54.15")]
    (gpu / "information").write_text("Model: \t\t NVIDIA A10G\nIRQ:   \t\t 48\n")
    found, warnings = gpus.read()
    assert (found, warnings) == ([gpus.Gpu("NVIDIA A10G", "550.54.15", 0, 0)], [])
    assert check.torch_index(found) == CU126
    assert check.describe(found) == "1 x NVIDIA A10G, driver 550.54.15"


def test_without_a_gpu_only_cpu_goes_on(tmp_path):
    refused = call(tmp_path, "exit 0")
    assert refused.returncode == 2 and "no GPU" in refused.stderr and "--cpu" in refused.stderr
    assert call(tmp_path, "exit 0", "--cpu").returncode == 0
    assert call(tmp_path, "exit 0", "--print_index").stdout == "any\n"
