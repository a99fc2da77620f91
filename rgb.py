"""Any picture as 8-bit RGB, the same wherever pixels are made."""

import warnings

import numpy as np
from PIL import Image


def to_rgb(image: Image.Image) -> Image.Image:
    """Any picture as 8-bit RGB, decoded.

    16-bit grey is scaled down (Pillow's own conversion clips it to white), CMYK and palettes are
    converted, transparency is dropped, EXIF orientation is ignored as torchvision ignores it.
    Raises what Pillow raises on damaged data.
    """
    with warnings.catch_warnings():
        # Both are about metadata, not pixels; ImageNet alone causes dozens (Pillow issue 3352).
        warnings.filterwarnings("ignore", message=".*EXIF", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*Palette images", category=UserWarning)
        if image.mode.startswith("I"):
            grey = np.asarray(image).astype(np.int64) >> 8
            image = Image.fromarray(grey.clip(0, 255).astype(np.uint8), "L")
        return image.convert("RGB")
