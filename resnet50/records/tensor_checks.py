"""Whether a file's tensors can be a network's weights: plain, finite numbers of floating point."""

from collections.abc import Mapping

import torch
from torch import Tensor

PRECISIONS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
COUNTERS = ("num_batches_tracked", "n_averaged")  # of batch norm, and of torch's AveragedModel


def is_number(tensor: Tensor | None) -> bool:
    """Whether it is a single number, as a counter is."""
    is_there = tensor is not None and tensor.dim() == 0 and not tensor.is_meta
    return is_there and tensor.layout == torch.strided and not tensor.is_quantized


def refuse_unusable(tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Raise ValueError naming the first tensor under this prefix that holds no plain values of
    floating point: such a tensor cannot even be compared with others."""
    for key, tensor in tensors.items():
        if not key.startswith(prefix) or key.endswith(COUNTERS):
            continue
        if tensor.is_meta:
            raise ValueError(f"{key} is on the meta device, without values: save a loaded model")
        if tensor.layout != torch.strided:
            raise ValueError(f"{key} is {tensor.layout}: save it with .to_dense()")
        if tensor.is_quantized or (tensor.is_floating_point() and tensor.dtype not in PRECISIONS):
            raise ValueError(f"{key} is {tensor.dtype}: give the weights before quantization")
        if tensor.dim() == 0 or tensor.numel() == 0:
            raise ValueError(
                f"{key} has the shape {tuple(tensor.shape)}: the file is damaged, or edited"
            )


def refuse_bad_numbers(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError naming the first of the network's tensors whose values cannot be right."""
    for key, tensor in tensors.items():
        if key.endswith(COUNTERS):
            continue
        if not tensor.is_floating_point():
            raise ValueError(f"{key} is {tensor.dtype}: give the weights before quantization")
        if not tensor.isfinite().all():
            raise ValueError(f"{key} has values that are not finite (NaN or infinity)")
        if key.endswith("running_var") and (tensor < 0).any():
            raise ValueError(f"{key} has negative variances: the file is damaged, or edited")
