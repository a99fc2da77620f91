"""The device that computes: its precision, its determinism, and how its numbers are read."""

import os
from dataclasses import dataclass

import torch
from torch import Tensor


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


def set_up_device(device: torch.device, deterministic: bool) -> None:
    """Let cuDNN pick its fastest kernels, or make every kernel deterministic."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch's notes on randomness
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = device.type == "cuda" and not deterministic


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
