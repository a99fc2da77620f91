"""Pictures to pixels: reading as RGB, and the evaluation transform.

Needs Pillow and numpy only: packing comes before torch, and the demo page uses the very same code.
"""

import warnings

import numpy as np
from PIL import Image

# Channel means and deviations of ImageNet's training images, as everyone uses them (torchvision's
# references/classification/presets.py), for values 0-1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
