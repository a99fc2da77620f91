"""Convolutions whose output has few pixels, trained on a CPU as the matrix products that they are.

A CPU's convolution kernels are made for pictures of many pixels. A ResNet50's last stages have 8x8
to 1x1 for crops of 32 to 128 px, and there oneDNN's gradient of the weights is slow: for 128 images
of 1x1 pixels, a 3x3 convolution from 512 to 512 channels took 65 ms forward and backward, 59 of
them for that, and 18 ms as a product of the input's patches with the weights (two cores, EPYC of
Zen 3, fp32). benchmarks/cpu_step.py compares whole steps.
"""

from torch import Tensor, nn
from torch.nn import functional

# Kernel pixels x output pixels up to which products are faster, or as fast: 1x1 with up to 8x8
# pixels, 3x3 with up to 2x2. Beyond, copying the patches costs more than is gained.
MAX_PATCH_PIXELS = 64


class MatrixConv2d(nn.Conv2d):
    """nn.Conv2d of an odd kernel, padded by its half, without bias; the same up to rounding.

    Evaluations use nn.Conv2d's own forward, so that evaluate.py has the bits of training's.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H / stride, W / stride), rounded up, in channels_last order."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        height, width = (1 + (side - 1) // stride for side in x.shape[2:])
        if not self.training or kernel**2 * height * width > MAX_PATCH_PIXELS:
            return super().forward(x)
        # Patches of the input: (B, H / stride, W / stride, kernel * kernel * C).
        if kernel == 1:
            patches = x[..., ::stride, ::stride].permute(0, 2, 3, 1)  # a view
        else:
            padded = functional.pad(x, (self.padding[0],) * 4)
            patches = padded.unfold(2, kernel, stride).unfold(3, kernel, stride)
            # Channels last, as in memory: they are then copied in runs of all channels.
            patches = patches.permute(0, 2, 3, 4, 5, 1).flatten(3)
        weights = self.weight.permute(0, 2, 3, 1).flatten(1)
        return functional.linear(patches, weights).permute(0, 3, 1, 2)


def use_matrix_products(model: nn.Module) -> None:
    """Make the plain convolutions of a ResNet MatrixConv2d, with their weights as they are."""
    for module in model.modules():
        if type(module) is nn.Conv2d:  # not those that blur first
            module.__class__ = MatrixConv2d  # only forward differs
