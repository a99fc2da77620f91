"""The device that computes: its precision, its determinism, and how its numbers are read."""

import ctypes
import os
import shlex
import shutil
from dataclasses import dataclass

import torch
from torch import Tensor

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h
LARGEST_INT = 2**31 - 1


@dataclass(frozen=True)
class Precision:
    """How the device computes: where, and in which dtype."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    @property
    def name(self) -> str:
        return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[self.dtype]


def choose_precision(amp: str, device: torch.device) -> Precision:
    """The dtype of `--amp`; auto takes bf16 where the hardware supports it.

    Ampere and newer GPUs and CPUs with AMX or AVX512-BF16 do; T4 and V100 only have fp16.
    """
    if amp == "auto":
        if device.type == "cuda":
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            amp = "bf16" if has_bf16 else "fp16"
        else:
            features = torch.cpu.get_capabilities()
            has_bf16 = features.get("amx_bf16") or features.get("avx512_bf16")
            amp = "bf16" if has_bf16 else "fp32"
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    return Precision(device, dtypes[amp])


def is_emulated(precision: Precision) -> bool:
    """Whether a GPU without bf16 is to compute in bf16, which torch then emulates in software."""
    return (
        precision.device.type == "cuda"
        and precision.dtype == torch.bfloat16
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    )


def check_compiler(device: torch.device) -> None:
    """Raise ValueError naming option and remedy if torch.compile would find no compiler.

    For a CPU it writes C++, for a GPU Triton compiles its launchers in C; slim images have neither,
    and torch reports that half a minute later in a page-long traceback.
    """
    variable, usual = ("CC", ("gcc", "clang")) if device.type == "cuda" else ("CXX", ("g++",))
    named = shlex.split(os.environ.get(variable, ""))[:1]
    if not any(map(shutil.which, named or usual)):
        wanted = f"{variable}={named[0]} is missing" if named else f"no {' or '.join(usual)} here"
        raise ValueError(
            f"--compile needs a compiler ({wanted}): apt-get install g++ (or conda install gxx) or "
            "leave --compile out"
        )


def set_up_device(device: torch.device, deterministic: bool) -> None:
    """Let cuDNN pick its fastest kernels, or make every kernel deterministic."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch's notes on randomness
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = device.type == "cuda" and not deterministic
    if device.type == "cpu":
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Have the C library reuse the memory that a step frees, instead of returning it to the kernel.

    By default every large tensor is mapped anew, and the kernel fills it with zeros, page by page,
    which takes up to a sixth of a ResNet50's step (benchmarks/README.md). Does nothing where the C
    library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        # No mappings, rather than a high threshold for them, which older versions refuse.
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, LARGEST_INT)


class LateCounter:
    """Reads a device number one step or a few late, so that no step waits for the device."""

    def __init__(self, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._host = torch.zeros((), dtype=torch.int64, pin_memory=on_gpu)
        self._copied = torch.cuda.Event() if on_gpu else None
        self._last = 0

    def read(self, number: Tensor) -> int:
        """The newest value that has arrived; starts the next copy. On a CPU: the value itself."""
        if self._copied is None:
            return int(number)
        if self._copied.query():
            self._last = int(self._host)
            self._host.copy_(number, non_blocking=True)
            self._copied.record()
        return self._last
