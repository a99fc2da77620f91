"""Pictures to pixels: reading as RGB, and the evaluation transform.

Needs Pillow and numpy only: packing comes before torch, and the demo page uses the very same code.
"""

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

# Channel means and deviations of ImageNet's training images, as everyone uses them (torchvision's
# references/classification/presets.py), for values 0-1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_SIDES_RATIO = 100  # pictures longer than that are resized in part
WIDEST_FILTER = 3  # Lanczos's support, in pixels of the smaller size


class GrayRange(NamedTuple):
    """The smallest and largest value of a picture with more than 8 bits, and how it is read.

    bits: how many its values are assumed to use; 0: they range from 0, or from -1, to 1.
    """

    low: float
    high: float
    bits: int

    def __str__(self) -> str:
        first = "0" if self.low >= 0 else "-1" if self.bits == 0 else f"-{2 ** (self.bits - 1)}"
        how = f"values from {first} to 1" if self.bits == 0 else f"{self.bits}-bit"
        how += " with a sign" if self.low < 0 and self.bits else ""
        return f"gray of {self.low:g} to {self.high:g}: read as {how}"


def is_deep_gray(mode: str) -> bool:
    """Whether a Pillow mode is gray of 16 or 32 bits, or of floating-point numbers."""
    return mode[0] == "I" or mode == "F"


def gray_range(values: np.ndarray) -> GrayRange:
    """How to read gray values, integers or floats, decided by the values of this picture.

    No file says how many of its 16 or 32 bits are in use. So the values are assumed to use the
    smallest even number of bits, 8 at least, that holds them all: 8-bit values stay as they are, of
    10, 12 and 14 bits the upper 8 are kept, and no picture turns black. A dark picture may thus
    become brighter than bright ones; to fix the range for a whole data set, convert it to 8 bits
    first. With negative values, the range is centered on zero. If all floats are within -1 and 1,
    that is their range.
    """
    values = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if values.dtype.kind == "f" and low >= -1 and high <= 1:
        return GrayRange(low, high, 0)
    is_signed = low < 0
    bits = int(max(high, -low - 1)).bit_length() + is_signed
    return GrayRange(low, high, max(8, bits + bits % 2))


def deep_gray(values: np.ndarray) -> np.ndarray:
    """Gray values (H, W) of any range as uint8, by `gray_range`. Infinities become the picture's
    lowest and highest value; NaN becomes black, or its lowest value if that is negative."""
    low, high, bits = gray_range(values)
    values = np.nan_to_num(values.astype(np.float64), nan=min(low, 0), posinf=high, neginf=low)
    if bits == 0:
        gray = np.rint((values + 1) * 127.5 if low < 0 else values * 255)
    else:
        offset = 2.0 ** (bits - 1) if low < 0 else 0.0
        gray = np.floor((values + offset) * 2.0 ** (8 - bits))
    return gray.clip(0, 255).astype(np.uint8)


def to_rgb(image: Image.Image, is_legacy: bool = False) -> Image.Image:
    """Any picture as 8-bit RGB, decoded, oriented as in the file.

    Gray of more than 8 bits is read by `deep_gray` (Pillow's own conversion clips it to white),
    CMYK and palettes are converted, transparency is dropped. is_legacy: gray as
    `orientation.LEGACY` has it. Raises what Pillow raises on damaged data.
    """
    with warnings.catch_warnings():
        # About metadata, not pixels; ImageNet alone causes dozens (Pillow issue 3352).
        warnings.simplefilter("ignore")
        if is_legacy and image.mode[0] == "I":
            gray = np.asarray(image).astype(np.int64) >> 8
            image = Image.fromarray(gray.clip(0, 255).astype(np.uint8), "L")
        elif is_deep_gray(image.mode) and not is_legacy:
            image = Image.fromarray(deep_gray(np.asarray(image)), "L")
        return image.convert("RGB")


def eval_crop(
    image: Image.Image, resize_size: int, size: int, interpolation: str = "bilinear"
) -> np.ndarray:
    """Resize the shorter side, cut the center: uint8 (S, S, 3).

    interpolation: Pillow's name in small letters. Equal to torchvision's Resize(resize_size) and
    CenterCrop(size) on the same picture.
    """
    image = to_rgb(image)
    width, height = image.size
    if width <= height:
        width, height = resize_size, int(resize_size * height / width)
    else:
        width, height = int(resize_size * width / height), resize_size
    resampling = Image.Resampling[interpolation.upper()]
    left, top = round((width - size) / 2), round((height - size) / 2)
    box = (left, top, left + size, top + size)
    if max(width, height) > MAX_SIDES_RATIO * min(width, height):
        return np.asarray(resize_part(image, (width, height), box, resampling))
    if (width, height) != image.size:
        image = image.resize((width, height), resampling)
    return np.asarray(image.crop(box))


def resize_part(
    image: Image.Image,
    size: tuple[int, int],
    box: Sequence[int],
    resampling: Image.Resampling = Image.Resampling.BILINEAR,
) -> Image.Image:
    """`image.resize(size).crop(box)` for the box only: a strip of 1 x 20,000 px would take 4 GB.

    Pixels may differ by 1 of 255 from that: Pillow takes the box in single precision.
    """
    # First cut out the box's pixels and their neighbors: small coordinates are precise.
    scales = [before / after for before, after in zip(image.size, size, strict=True)]
    margins = [math.ceil(WIDEST_FILTER * max(scale, 1)) + 1 for scale in scales]
    first = [max(0, math.floor(box[i] * scales[i]) - margins[i]) for i in (0, 1)]
    last = [min(image.size[i], math.ceil(box[i + 2] * scales[i]) + margins[i]) for i in (0, 1)]
    part = image.crop((*first, *last))
    edges = [edge * scales[i % 2] - first[i % 2] for i, edge in enumerate(box)]
    within = [min(max(edge, 0), part.size[i % 2]) for i, edge in enumerate(edges)]
    return part.resize((box[2] - box[0], box[3] - box[1]), resampling, within)
