"""ResNet50 v1.5, written by hand, with torchvision's parameter names.

"v1.5" puts the stride of a downsampling bottleneck on its 3x3 convolution; the paper's v1 puts it
on the first 1x1, which throws three of four pixels away unseen (He et al. 2015, arXiv:1512.03385;
the change is Facebook's, github.com/facebookarchive/fb.resnet.torch, and worth about 0.5% top-1).

The state dict has torchvision's keys, order and shapes (320 tensors, 25,557,032 parameters at 1000
classes), so weights can be exchanged without conversion.

    model = ResNet(num_classes=1000)              # ResNet50
    load_weights(model, torch.load("weights.pt", weights_only=True))

Shape letters: B batch, C channels, H and W height and width in pixels, K classes.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

# What DistributedDataParallel and torch.compile put before every key of the model they wrap.
WRAPPER_PREFIXES = ("module.", "_orig_mod.")
BASE_WIDTH = 64  # of a ResNet50: its blocks are as wide inside as their stage


class Blur(nn.Module):
    """Blurs each channel with (1 2 1; 2 4 2; 1 2 1) / 16, zero-padded, so the shape is unchanged.

    Without it, subsampling by a stride causes aliasing: Zhang 2019, arXiv:1904.11486, who measured
    +0.5 to 1% top-1 for ResNets. ffcv-imagenet and Composer's recipes use it; Composer's method
    card says that blurring first costs little. The kernel is not a weight: a state dict is the same
    with and without it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        kernel = (row[:, None] * row).expand(channels, 1, 3, 3).contiguous()
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.kernel, padding=1, groups=len(self.kernel))


class BlurConv2d(nn.Conv2d):
    """A convolution with the same weights, applied to the blurred input."""

    def __init__(self, in_channels: int, *args: int, **kwargs: object) -> None:
        super().__init__(in_channels, *args, **kwargs)
        self.blur = Blur(in_channels)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.blur(x))


class BlurMaxPool2d(nn.Module):
    """A 3x3 max pool with stride 1, blurred, then every second pixel in both directions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.blur = Blur(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.blur(functional.max_pool2d(x, 3, stride=1, padding=1))[..., ::2, ::2]


class Bottleneck(nn.Module):
    """1x1 reduce, 3x3, 1x1 expand by four, plus the shortcut.

    (B, in_channels, H, W) -> (B, 4 * width, H / stride, W / stride); inner_width: channels of the
    3x3 convolution, `width` in a ResNet50; blurpool: blur before a stride; v1_strides: the stride
    is in the first convolution, as in the paper.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        inner_width: int,
        stride: int = 1,
        blurpool: bool = False,
        v1_strides: bool = False,
    ) -> None:
        super().__init__()
        out_channels = width * self.expansion
        strided_conv = BlurConv2d if blurpool and stride > 1 else nn.Conv2d
        first_conv, second_conv = nn.Conv2d, strided_conv
        first_stride = 1
        second_stride = stride
        if v1_strides:
            first_conv, second_conv = second_conv, first_conv
            first_stride, second_stride = second_stride, first_stride
        self.conv1 = first_conv(in_channels, inner_width, 1, first_stride, bias=False)
        self.bn1 = nn.BatchNorm2d(inner_width)
        self.conv2 = second_conv(inner_width, inner_width, 3, second_stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner_width)
        self.conv3 = nn.Conv2d(inner_width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        # Three modules, not one used three times: int8 export needs one observer per activation.
        self.relu1 = nn.ReLU(inplace=True)
        self.relu2 = nn.ReLU(inplace=True)
        self.relu3 = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                strided_conv(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return self.relu3(x + shortcut)


class ResNet(nn.Module):
    """Bottleneck ResNet; ResNet50 by default.

    layers: blocks in each of the four stages; (3, 4, 6, 3) is ResNet50, (1, 1, 1, 1) the tests'
    `tiny`. width: channels after the stem, a multiple of 8; the last stage has 32 * width
    channels. base_width: inner width of a stage's blocks, in 64ths of its width, as in torchvision
    and timm: 128 is Wide ResNet50-2, pruning leaves less than 64. zero_init_gamma: start each
    block as the identity by zeroing the gamma of its last batch norm (Goyal et al. 2017,
    arXiv:1706.02677, section 5.1). blurpool: blur before every strided convolution but the first
    one, which has only the picture's 3 channels, and after the maximum of the max pool; not that
    one without blur_max_pool, as in ffcv-imagenet. v1_strides: the paper's network, not v1.5.
    """

    def __init__(
        self,
        layers: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        num_classes: int = 1000,
        zero_init_gamma: bool = True,
        blurpool: bool = False,
        base_width: int = BASE_WIDTH,
        v1_strides: bool = False,
        blur_max_pool: bool = True,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        is_blurred = blurpool and blur_max_pool
        self.maxpool = BlurMaxPool2d(width) if is_blurred else nn.MaxPool2d(3, stride=2, padding=1)
        in_channels = width
        for i, num_blocks in enumerate(layers):
            stage_width = width * 2**i
            inner_width = stage_width * base_width // BASE_WIDTH
            strides = [1 if i == 0 else 2] + [1] * (num_blocks - 1)
            blocks = []
            for stride in strides:
                widths = in_channels, stage_width, inner_width
                blocks.append(Bottleneck(*widths, stride, blurpool, v1_strides))
                in_channels = stage_width * Bottleneck.expansion
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(in_channels, num_classes)
        self._initialize(zero_init_gamma)

    def _initialize(self, zero_init_gamma: bool) -> None:
        """Convolutions He-normal by fan-out, batch norms 1 and 0, the rest torch's default."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_gamma:
            for module in self.modules():
                if isinstance(module, Bottleneck):
                    nn.init.zeros_(module.bn3.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images (B, 3, H, W) float, H and W from 32 up -> logits (B, K)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))  # (B, width, H/4, W/4)
        x = self.layer1(x)  # (B, 4 width, H/4, W/4)
        x = self.layer2(x)  # (B, 8 width, H/8, W/8)
        x = self.layer3(x)  # (B, 16 width, H/16, W/16)
        x = self.layer4(x)  # (B, 32 width, H/32, W/32)
        return self.fc(torch.flatten(self.avgpool(x), 1))  # (B, K)


def strip_prefixes(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the keys of the bare model: `module.` and `_orig_mod.` removed."""

    def bare(key: str) -> str:
        while key.startswith(WRAPPER_PREFIXES):
            key = key.split(".", 1)[1]
        return key

    return {bare(key): tensor for key, tensor in state_dict.items()}


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load all tensors, strictly.

    Raises ValueError naming the first missing, unexpected or differently shaped tensors, before
    anything in the model has changed.
    """
    tensors, expected = strip_prefixes(state_dict), model.state_dict()
    problems = [f"missing {key}" for key in expected if key not in tensors]
    problems += [f"unexpected {key}" for key in tensors if key not in expected]
    problems += [
        f"{key} is {tuple(tensors[key].shape)}, the model's is {tuple(expected[key].shape)}"
        for key in expected
        if key in tensors and tensors[key].shape != expected[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"these weights are not this model's: {'; '.join(problems[:3])}{more}")
    model.load_state_dict(tensors)


def load_backbone(model: nn.Module, state_dict: Mapping[str, Tensor]) -> bool:
    """Load all tensors, but not the classifier's if it is for another number of classes.

    Returns whether the classifier was loaded too. Raises ValueError as `load_weights` does.
    """
    tensors = strip_prefixes(state_dict)
    head = {"fc.weight", "fc.bias"}
    own = model.state_dict()
    fits = all(key in tensors and tensors[key].shape == own[key].shape for key in head)
    load_weights(model, tensors if fits else tensors | {key: own[key] for key in head})
    return fits


def architecture_of(state_dict: Mapping[str, Tensor]) -> dict[str, object]:
    """The arguments of `ResNet` that a state dict was made with, inferred from its keys and shapes.

    Raises ValueError if it is not the state dict of such a network.
    """
    tensors = strip_prefixes(state_dict)
    if "conv1.weight" not in tensors or "fc.weight" not in tensors:
        raise ValueError("these weights are not a ResNet's: no tensor conv1.weight or fc.weight")
    width = inner_width = tensors["conv1.weight"].shape[0]
    if "layer1.0.conv1.weight" in tensors:
        inner_width = tensors["layer1.0.conv1.weight"].shape[0]
    blocks = {tuple(key.split(".")[:2]) for key in tensors if key.startswith("layer")}
    layers = tuple(sum(stage == f"layer{i}" for stage, _ in blocks) for i in range(1, 5))
    return {
        "layers": layers,
        "width": width,
        "base_width": BASE_WIDTH * inner_width // width,
        "num_classes": tensors["fc.weight"].shape[0],
    }
