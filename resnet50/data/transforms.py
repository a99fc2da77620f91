"""Pictures to pixels: reading as RGB, the crop rectangle, the evaluation transform.

Needs Pillow and numpy only: packing comes before torch, and the demo page uses the very same code.

Shape letters: B batch, H and W height and width in pixels, S side of a square crop.
"""

import math
import warnings

import numpy as np
from PIL import Image

# Channel means and deviations of ImageNet's training images, as everyone uses them (torchvision's
# references/classification/presets.py), for values 0-1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MIN_RATIO, MAX_RATIO = 3 / 4, 4 / 3
CROP_ATTEMPTS = 10
CROP_DRAWS = 2 * CROP_ATTEMPTS + 2  # uniform numbers that `crop_boxes` uses up for one picture


def to_rgb(image: Image.Image) -> Image.Image:
    """Any picture as 8-bit RGB, decoded.

    16-bit gray is scaled down (Pillow's own conversion clips it to white), CMYK and palettes are
    converted, transparency is dropped, EXIF orientation is ignored as torchvision ignores it.
    Raises what Pillow raises on damaged data.
    """
    with warnings.catch_warnings():
        # Both are about metadata, not pixels; ImageNet alone causes dozens (Pillow issue 3352).
        warnings.filterwarnings("ignore", message=".*EXIF", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*Palette images", category=UserWarning)
        if image.mode.startswith("I"):
            gray = np.asarray(image).astype(np.int64) >> 8
            image = Image.fromarray(gray.clip(0, 255).astype(np.uint8), "L")
        return image.convert("RGB")


def crop_boxes(draws: np.ndarray, sizes: np.ndarray, min_scale: float) -> np.ndarray:
    """Random rectangles, torchvision's RandomResizedCrop for a whole batch at once.

    draws: (B, CROP_DRAWS) uniform in [0, 1); sizes: (B, 2) int widths and heights.
    Returns (B, 4) int64: left, top, right, bottom. A rectangle has between min_scale and 1 of the
    picture's area and an aspect ratio between 3/4 and 4/3; the first of ten attempts that fits is
    taken, else the largest centered rectangle of an allowed ratio.
    """
    widths, heights = sizes[:, :1].astype(np.float64), sizes[:, 1:].astype(np.float64)
    area = widths * heights * (min_scale + (1 - min_scale) * draws[:, :CROP_ATTEMPTS])
    log_min, log_max = math.log(MIN_RATIO), math.log(MAX_RATIO)
    ratio = np.exp(log_min + (log_max - log_min) * draws[:, CROP_ATTEMPTS : 2 * CROP_ATTEMPTS])
    crop_w, crop_h = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (crop_w > 0) & (crop_h > 0) & (crop_w <= widths) & (crop_h <= heights)

    rows, first = np.arange(len(draws)), fits.argmax(axis=1)
    widths, heights = widths[:, 0], heights[:, 0]
    found = fits[rows, first]
    width = np.where(found, crop_w[rows, first], np.minimum(widths, np.rint(heights * MAX_RATIO)))
    height = np.where(found, crop_h[rows, first], np.minimum(heights, np.rint(widths / MIN_RATIO)))
    left = np.floor(draws[:, -2] * (widths - width + 1))
    top = np.floor(draws[:, -1] * (heights - height + 1))
    left = np.where(found, left, (widths - width) // 2)
    top = np.where(found, top, (heights - height) // 2)
    return np.stack([left, top, left + width, top + height], axis=1).astype(np.int64)


def eval_crop(image: Image.Image, resize_size: int, size: int) -> np.ndarray:
    """Resize the shorter side, cut the center: uint8 (S, S, 3).

    Equal to torchvision's Resize(resize_size) and CenterCrop(size) on the same picture.
    """
    image = to_rgb(image)
    width, height = image.size
    if width <= height:
        width, height = resize_size, int(resize_size * height / width)
    else:
        width, height = int(resize_size * width / height), resize_size
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))
