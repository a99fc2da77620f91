"""What a model looked at: Grad-CAM by hand (Selvaraju et al. 2016, arXiv:1610.02391).

    logits, features = grad_cam.forward(model, images)
    heat = grad_cam.heat(model.fc, features[0], label)          # (h, w), 0 and up
    grad_cam.overlay(crop, heat, side=448).save("heat.png")

The heat is the last stage's feature maps, each weighted by the mean gradient of the class's logit
over the map's positions. Between those maps and the logits this network has only a mean and a
linear layer, so the gradient is known without a backward pass: the class's row of the linear layer
divided by the number of positions, the same at all of them (section 3.1 of the paper).

Needs torch, numpy and Pillow only. Shape letters: B batch, C channels, h and w the last stage's
height and width (7 at 224 px), S side of the crop in pixels, K classes.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

# From cold to hot, RGB: five points of matplotlib's "inferno", whose lightness only rises.
COLORS = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
OPACITY = 0.7  # where it is hottest


def forward(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, K) of normalized images (B, 3, S, S), and the features (B, C, h, w) behind them.

    model: its last two children are the mean over the positions and the linear layer.
    """
    *stages, avgpool, fc = model.children()
    features = nn.Sequential(*stages)(images)
    return fc(avgpool(features).flatten(1)), features


def heat(fc: nn.Linear, features: Tensor, label: int) -> Tensor:
    """Grad-CAM of a class on one picture's features (C, h, w): (h, w), 0 and up.

    Zero where nothing supports the class; a contribution to its logit, not a probability.
    """
    num_positions = features[0].numel()
    weights = fc.weight[label] / num_positions  # the gradient at every position, thus its mean
    return torch.einsum("c,chw->hw", weights, features).relu()


def overlay(crop: np.ndarray, heat_map: Tensor, side: int) -> Image.Image:
    """A square crop, uint8 (S, S, 3), enlarged to `side` pixels, with the heat map (h, w) laid over
    it.

    The coldest places show the picture alone, the hottest the brightest color.
    """
    size = (side, side)
    cubic = Image.Resampling.BICUBIC
    picture = np.asarray(Image.fromarray(crop).resize(size, cubic))
    relative = (heat_map / heat_map.max().clamp_min(1e-12)).float().numpy()
    values = np.asarray(Image.fromarray(relative).resize(size, cubic)).clip(0, 1)[..., None]
    points = np.linspace(0, 1, len(COLORS))
    channels = zip(*COLORS, strict=True)
    colors = np.concatenate([np.interp(values, points, levels) for levels in channels], axis=-1)
    mixed = picture + (colors - picture) * (OPACITY * values)
    return Image.fromarray(np.rint(mixed).astype(np.uint8))
