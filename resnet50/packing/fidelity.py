"""How close a crop comes to the same rectangle of its original, cut out by Pillow."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

LEAST_ERROR = 0.01  # mean square; equal pictures would be infinitely good, and this is 68 dB
WINDOW, SIGMA = 11, 1.5  # pixels, of SSIM's usual Gaussian window


def pillow_crop(
    original: Image.Image,
    box: Sequence[int],
    size: Sequence[int],
    side: int,
    resample: Image.Resampling = Image.Resampling.BILINEAR,
    is_cut: bool = False,
) -> np.ndarray:
    """A rectangle of the original as uint8 (side, side, 3), anti-aliased.

    box: left, top, right, bottom on a picture of this size, which may be smaller than the original;
    is_cut: cut it out first, to whole pixels. Else its outermost pixels are mixed with those around
    it, which shows where a few pixels are enlarged.
    """
    factors = [original.size[0] / size[0], original.size[1] / size[1]] * 2
    scaled = [min(x * f, most) for x, f, most in zip(box, factors, original.size * 2, strict=True)]
    if is_cut:
        left, top = (math.floor(edge) for edge in scaled[:2])
        original = original.crop((left, top, *(math.ceil(edge) for edge in scaled[2:])))
        scaled = [edge - first for edge, first in zip(scaled, (left, top) * 2, strict=True)]
    return np.asarray(original.resize((side, side), resample, box=scaled))


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two pictures, uint8 of one shape, in dB."""
    error = np.square(one.astype(np.float32) - other).mean(dtype=np.float64)
    return float(10 * np.log10(255**2 / max(error, LEAST_ERROR)))


def ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Structural similarity of the luma of two pictures, uint8 (S, S, 3) (Wang et al. 2004)."""
    x, y = (cv2.cvtColor(a, cv2.COLOR_RGB2GRAY).astype(np.float64) for a in (one, other))
    edge = WINDOW // 2
    blur = lambda image: cv2.GaussianBlur(image, (WINDOW, WINDOW), SIGMA)[edge:-edge, edge:-edge]
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((likeness / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())
