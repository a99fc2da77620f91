"""JPEGs of every kind, and their pixels as Pillow has them."""

import functools
import io

import numpy as np
from PIL import Image
from support.pictures import make_picture

from resnet50.data import transforms

KINDS = {
    "4:2:0": {"subsampling": "4:2:0"},
    "4:2:2": {"subsampling": "4:2:2"},
    "4:4:4": {"subsampling": "4:4:4"},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_blocks": 3},
    "gray": {},
}


@functools.cache
def picture(seed: int) -> Image.Image:
    """Noise on coarse structure, so that a wrong pixel shows; up to 300x225."""
    image = make_picture(seed, seed % 3)
    image = image.resize((image.width * 3 + seed % 7, image.height * 3), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(seed).integers(-25, 26, size=(image.height, image.width, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def encoded(seed: int, kind: str, quality: int = 92) -> bytes:
    image, file = picture(seed), io.BytesIO()
    if kind == "gray":
        image = image.convert("L")
    image.save(file, "JPEG", quality=quality, **KINDS[kind])
    return file.getvalue()


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(transforms.to_rgb(Image.open(io.BytesIO(data))))
