"""Structured pruning: every block keeps its most important inner channels, and the rest is gone.

A block's sum with its shortcut keeps all its channels; between a block's three convolutions, every
stage keeps the same share of them. So the result is an ordinary ResNet with a smaller `base_width`,
which every other part of this project, and timm, can build, and which is faster without any sparse
kernels. It must be fine-tuned for a while: `train.py --init_from`.

Shape letters: C channels.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from model import BASE_WIDTH, Bottleneck, ResNet, architecture_of
from resnet50.inference.pretrained import Pretrained

CHANNEL_MULTIPLE = 4  # of a stage's inner channels, if it has that many: GPUs are fast with it


def multiply_adds(model: nn.Module, image_size: int) -> int:
    """Multiply-adds of one picture, side in pixels; a ResNet50 at 224 px: 4.09 billion."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, 3, image_size, image_size))
    return counter.get_total_flops() // 2


def describe(model: nn.Module, image_size: int) -> str:
    """Its size, in words."""
    millions = multiply_adds(model, image_size) / 1e6
    weights = sum(tensor.numel() for tensor in model.parameters()) / 1e6
    return f"{millions:,.1f} M multiply-adds at {image_size} px, {weights:.2f} M weights"


def prune(loaded: Pretrained, share: float) -> ResNet:
    """The same network with narrower blocks and at most `share` (0-1) of the multiply-adds.

    Raises ValueError if there is none.
    """
    architecture = architecture_of(loaded.model.state_dict())
    base_width = largest_base_width(architecture, loaded.variant, loaded.image_size, share)
    return with_base_width(loaded.model, base_width, loaded.variant)


def largest_base_width(
    architecture: dict[str, object], variant: Mapping[str, bool], image_size: int, share: float
) -> int:
    """The largest base_width with at most `share` (0-1) of the multiply-adds.

    architecture: as `architecture_of` gives it; variant: ResNet's other arguments. Raises
    ValueError if even the smallest has more.
    """
    width, now = architecture["width"], architecture["base_width"]
    step = max(CHANNEL_MULTIPLE, BASE_WIDTH // width)
    with torch.device("meta"):  # shapes only
        full = multiply_adds(ResNet(**architecture, **variant).eval(), image_size)
        for base_width in range(now - now % step, 0, -step):
            smaller = ResNet(**architecture | {"base_width": base_width}, **variant)
            if multiply_adds(smaller.eval(), image_size) <= share * full:
                return base_width
    raise ValueError(f"blocks cannot be narrow enough for {100 * share:g}% of the multiply-adds")


def with_base_width(model: ResNet, base_width: int, variant: Mapping[str, bool]) -> ResNet:
    """A network of that base_width with the most important inner channels of this one."""
    architecture = architecture_of(model.state_dict()) | {"base_width": base_width}
    smaller = ResNet(**architecture, **variant)
    kept = dict(model.state_dict())
    for name, block in model.named_modules():
        if isinstance(block, Bottleneck):
            inner_width = smaller.get_submodule(name).conv1.out_channels
            kept |= narrower(block, inner_width, f"{name}.")
    smaller.load_state_dict(kept)
    return smaller.eval()


def narrower(block: Bottleneck, inner_width: int, prefix: str) -> dict[str, Tensor]:
    """The tensors of a block that change, under their keys."""
    first = most_important(block.bn1, block.conv2, inner_width)
    second = most_important(block.bn2, block.conv3, inner_width)
    tensors = {
        "conv1.weight": block.conv1.weight[first],
        "conv2.weight": block.conv2.weight[second][:, first],
        "conv3.weight": block.conv3.weight[:, second],
    }
    for name, norm, channels in (("bn1", block.bn1, first), ("bn2", block.bn2, second)):
        for key, tensor in norm.state_dict().items():
            tensors[f"{name}.{key}"] = tensor[channels] if tensor.dim() else tensor
    return {prefix + key: tensor for key, tensor in tensors.items()}


def most_important(norm: nn.BatchNorm2d, after: nn.Conv2d, count: int) -> Tensor:
    """The channels that contribute most to the next sum, int64 (count,), in their old order.

    The contribution is the scale that the batch norm gives a channel (Liu et al. 2017,
    arXiv:1708.06519) times the magnitude of the next weights (Li et al. 2017, arXiv:1608.08710).
    """
    importance = norm.weight.abs() * after.weight.square().sum(dim=(0, 2, 3)).sqrt()
    return importance.argsort(descending=True)[:count].sort().values
