"""Augmentation of a batch of uint8 images from uniform numbers drawn by (seed, epoch, index).

Pure functions of the draws they are given: nothing here has a random generator. Both augmentations
match torchvision's, without importing it, which takes seconds in every loader process.

Shape letters: B batch, S side of a square image.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from resnet50.data.transforms import IMAGENET_MEAN

TRIVIAL_DRAWS = 3  # uniform numbers that `trivial_augment` uses up for one image
NUM_BINS = 31  # magnitudes of an operation, as torchvision and the paper have it

# The defaults of torchvision's RandomErasing; area is a share of the image's, ratio is height to
# width.
MIN_AREA, MAX_AREA = 0.02, 0.33
MIN_RATIO, MAX_RATIO = 0.3, 3.3
ERASING_ATTEMPTS = 10
ERASING_DRAWS = 1 + 2 * ERASING_ATTEMPTS + 2  # uniform numbers that `erasing_boxes` uses up

# The mean color in whole gray levels: what torchvision's value 0, put in after normalizing, is.
ERASED = np.rint(np.array(IMAGENET_MEAN) * 255).astype(np.uint8)


class Operation(NamedTuple):
    """One of TrivialAugment's operations.

    name: torchvision's; magnitudes: one for each bin, negated in half of the images if signed.
    """

    name: str
    apply: Callable[[Image.Image, float], Image.Image]
    magnitudes: Sequence[float] = (0.0,) * NUM_BINS
    signed: bool = False


def _linspace(first: float, last: float) -> list[float]:
    """Magnitudes in torch's float32: numpy's last bits differ, and so would some pixels.

    With AVX2, for example, a translation by 16 is 15.999999, which is truncated to 15 pixels.
    """
    return torch.linspace(first, last, NUM_BINS).tolist()


def _affine(
    name: str, matrix: Callable[[float], tuple[float, ...]], max_magnitude: float
) -> Operation:
    """Output pixel (x, y) is input pixel (ax + by + c, dx + ey + f), or black outside.

    matrix: magnitude -> a to f, as torchvision's affine computes them for these arguments.
    """

    def apply(image: Image.Image, magnitude: float) -> Image.Image:
        affine, nearest = Image.Transform.AFFINE, Image.Resampling.NEAREST
        return image.transform(image.size, affine, matrix(magnitude), nearest)

    return Operation(name, apply, _linspace(0, max_magnitude), signed=True)


def _enhance(name: str, enhancer: type) -> Operation:
    """Pillow's enhancement by a factor from 0.01 to 1.99, 1 being the image itself."""
    apply = lambda image, magnitude: enhancer(image).enhance(1 + magnitude)
    return Operation(name, apply, _linspace(0, 0.99), signed=True)


# In torchvision's order. Its shears keep the top row or the left column in place, not the center;
# translations are in pixels, rotations in degrees, posterisation in bits kept.
OPERATIONS = (
    Operation("Identity", lambda image, _: image),
    _affine("ShearX", lambda m: (1, m, 0, 0, 1, 0), 0.99),
    _affine("ShearY", lambda m: (1, 0, 0, m, 1, 0), 0.99),
    _affine("TranslateX", lambda m: (1, 0, -int(m), 0, 1, 0), 32),
    _affine("TranslateY", lambda m: (1, 0, 0, 0, 1, -int(m)), 32),
    Operation("Rotate", lambda image, m: image.rotate(m), _linspace(0, 135), signed=True),
    _enhance("Brightness", ImageEnhance.Brightness),
    _enhance("Color", ImageEnhance.Color),
    _enhance("Contrast", ImageEnhance.Contrast),
    _enhance("Sharpness", ImageEnhance.Sharpness),
    Operation("Posterize", ImageOps.posterize, [round(8 - i / 5) for i in range(NUM_BINS)]),
    Operation("Solarize", lambda image, m: ImageOps.solarize(image, 255 * m), _linspace(1, 0)),
    Operation("AutoContrast", lambda image, _: ImageOps.autocontrast(image)),
    Operation("Equalize", lambda image, _: ImageOps.equalize(image)),
)


def trivial_augment(image: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """One random operation of random strength: torchvision's TrivialAugmentWide, bit for bit.

    image: uint8 (S, S, 3), not changed; draws: (TRIVIAL_DRAWS,) uniform in [0, 1) for operation,
    magnitude and sign. Returns a new uint8 (S, S, 3), read-only. Equal to torchvision on Pillow
    images, its recipes' default backend; on tensors it rounds differently and takes three times as
    long.

    Flipping afterwards instead of before gives the same distribution: a mirrored operation is the
    same one or the one of opposite sign, and both signs are equally likely. The exception is
    ShearY: mirrored, it keeps the right column in place, not the left, which shifts the result.

    Mueller and Hutter 2021, arXiv:2103.10158. torchvision measured 76.49% to 76.81% top-1 for
    ResNet50 (pytorch/vision issue 3995, from memory).
    """
    operation = OPERATIONS[int(draws[0] * len(OPERATIONS))]
    magnitude = operation.magnitudes[int(draws[1] * NUM_BINS)]
    if operation.signed and draws[2] < 0.5:
        magnitude = -magnitude
    return np.asarray(operation.apply(Image.fromarray(image), magnitude))


def erasing_boxes(draws: np.ndarray, size: int, probability: float) -> np.ndarray:
    """Rectangles to erase, torchvision's RandomErasing for a whole batch at once.

    draws: (B, ERASING_DRAWS) uniform in [0, 1); size: side of the images in pixels; probability:
    that an image gets one, 0 to 1. Returns (B, 4) int64: left, top, right, bottom; zeros where
    nothing is erased. A rectangle has 2% to 33% of the area and a ratio between 0.3 and 3.3; the
    first of ten attempts that is smaller than the image on both sides is used, if there is one.

    Zhong et al. 2017, arXiv:1708.04896. torchvision measured 78.61% to 78.80% top-1 with
    probability 0.1 on ResNet50 (pytorch/vision issue 3995, from memory).
    """
    areas, ratios = np.split(draws[:, 1:-2], 2, axis=1)
    area = size * size * (MIN_AREA + (MAX_AREA - MIN_AREA) * areas)
    log_min, log_max = math.log(MIN_RATIO), math.log(MAX_RATIO)
    ratio = np.exp(log_min + (log_max - log_min) * ratios)
    heights, widths = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (heights < size) & (widths < size)

    rows, first = np.arange(len(draws)), fits.argmax(axis=1)
    width, height = widths[rows, first], heights[rows, first]
    left = np.floor(draws[:, -2] * (size - width + 1))
    top = np.floor(draws[:, -1] * (size - height + 1))
    boxes = np.stack([left, top, left + width, top + height], axis=1).astype(np.int64)
    boxes[~fits[rows, first] | (draws[:, 0] >= probability)] = 0
    return boxes


def erase(images: np.ndarray, boxes: np.ndarray) -> None:
    """Paint rectangles in the mean color, in place.

    images: uint8 (B, S, S, 3); boxes: (B, 4) left, top, right, bottom, empty to leave an image.
    Raises ValueError if their numbers differ.
    """
    for image, (left, top, right, bottom) in zip(images, boxes.tolist(), strict=True):
        image[top:bottom, left:right] = ERASED
