"""host/smoke_test.py: whatever fails is one line with the reason, and exit code 2."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from host import smoke_test


def raises(error: Exception):
    def call(*words: object, **more: object) -> None:
        raise error

    return call


def ends_by_a_signal(rank: int, world_size: int, store: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def two_gpus(patch: pytest.MonkeyPatch) -> None:
    """On paper: the processes that are to use them fail for real."""
    patch.setattr(torch.cuda, "device_count", lambda: 2)
    patch.setattr(smoke_test, "multiply", lambda device: None)


def no_gpu_for_the_driver(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.cuda, "device_count", lambda: 0)
    patch.setattr(smoke_test, "DRIVER", Path("/proc/version"))
    patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def without_torchvision(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "torchvision", None)


def of_no_cuda(patch: pytest.MonkeyPatch) -> None:
    no_gpu_for_the_driver(patch)
    patch.setattr(torch.version, "cuda", None)


def on_noexec(patch: pytest.MonkeyPatch) -> None:
    error = OSError("libtorch_cpu.so: failed to map segment from shared object")
    patch.setattr(smoke_test, "try_out", raises(error))


def with_a_wrong_product(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch, "equal", lambda *tensors: False)


def without_a_kernel(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch, "ones", raises(torch.AcceleratorError("CUDA error: no kernel image", 209)))


def with_a_killed_rank(patch: pytest.MonkeyPatch) -> None:
    two_gpus(patch)
    patch.setattr(smoke_test, "all_reduce", ends_by_a_signal)


@pytest.mark.parametrize(
    "fault, reason",
    [
        (without_torchvision, "torchvision"),
        (
            on_noexec,
            "failed to map segment from shared object (is its file system mounted noexec?)",
        ),
        (no_gpu_for_the_driver, "it sees no GPU, but this host has an NVIDIA driver"),
        (of_no_cuda, "is built without CUDA); --cpu trains without the GPUs"),
        (with_a_wrong_product, "a product on cpu is wrong"),
        (without_a_kernel, "CUDA error: no kernel image"),
        (two_gpus, "2 GPUs cannot work together: "),
        (with_a_killed_rank, " terminated with signal SIG"),
    ],
)
def test_what_does_not_work_is_one_line(fault, reason, monkeypatch, capfd):
    fault(monkeypatch)
    assert smoke_test.main([]) == 2
    err = capfd.readouterr().err.strip().splitlines()
    assert err[-1].startswith("host/smoke_test.py: error: PyTorch does not work here: ")
    assert reason in err[-1] and "Traceback" not in err[-1]


def test_without_the_gpus_it_works(monkeypatch, capsys):
    two_gpus(monkeypatch)
    assert smoke_test.main(["--cpu"]) == 0
    assert "no GPU" in capsys.readouterr().out
