"""Pictures of any format through Pillow, without its warnings and errors about their metadata."""

import io
import struct
import warnings

import numpy as np
from PIL import Image

from resnet50.data import orientation
from resnet50.data.transforms import to_rgb

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Texts and color profiles, which Pillow unpacks; it refuses the picture if they are large.
PNG_METADATA = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
# Where a PNG may give its orientation; without any of these, Pillow need not look for it.
PNG_ORIENTATION = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")


def open_picture(data: bytes) -> Image.Image:
    """A picture whose header is read; `load` decodes it. No warnings about metadata are printed.

    Raises what Pillow raises if it is not a picture, or has more than 179 million pixels: a file
    of a few kilobytes could fill the memory.
    """
    with warnings.catch_warnings():
        # At half that many pixels, Pillow prints a warning with a line of its source.
        warnings.simplefilter("ignore")
        return Image.open(io.BytesIO(data))


def loses_bits(image: Image.Image, data: bytes) -> bool:
    """Whether Pillow keeps only the upper 8 of 16 bits: of PNG's color, and of gray with alpha."""
    # A PNG begins with its signature, a length, IHDR, width and height, and the number of bits.
    return image.format == "PNG" and image.mode in ("LA", "RGB", "RGBA") and data[24] == 16


def load(data: bytes) -> Image.Image:
    """A picture in its own mode, decoded; PNG metadata may have any size."""
    try:
        image = open_picture(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()  # texts may follow the pixels
    except ValueError:
        if not data.startswith(PNG_SIGNATURE):
            raise
        image = open_picture(without_metadata(data))
        image.load()
    return image


def open_any_png(data: bytes) -> Image.Image:
    """`open_picture`, for a PNG whatever its metadata."""
    try:
        return open_picture(data)
    except ValueError:
        if not data.startswith(PNG_SIGNATURE):
            raise
        return open_picture(without_metadata(data))


def decode(data: bytes, is_legacy: bool = False) -> np.ndarray:
    """All pixels, uint8 (H, W, 3); is_legacy: as `orientation.LEGACY` says."""
    # A copy, since torch warns of Pillow's own memory, which must not be written.
    return np.array(to_rgb(open_picture(data) if is_legacy else load(data), is_legacy))


def without_metadata(png: bytes) -> bytes:
    """A PNG without its texts and its color profile, neither of which changes a pixel here."""
    parts = [PNG_SIGNATURE]
    at = len(PNG_SIGNATURE)
    while at + 12 <= len(png):  # length, kind, that many bytes, checksum
        length, kind = struct.unpack_from(">I4s", png, at)
        if kind not in PNG_METADATA:
            parts.append(png[at : at + 12 + length])
        at += 12 + length
    return b"".join(parts)


def orientation_of(image: Image.Image, data: bytes) -> int:
    """EXIF's orientation of an open picture, 1 to 8, as `ImageOps.exif_transpose` takes it.

    1 for TIFF, which Pillow turns when it decodes.
    """
    is_plain_png = image.format == "PNG" and not any(mark in data for mark in PNG_ORIENTATION)
    if image.format == "TIFF" or is_plain_png:
        return orientation.UPRIGHT
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = image.getexif().get(orientation.ORIENTATION_TAG)
    except Exception:  # damaged EXIF is common, and the pixels are intact
        return orientation.UPRIGHT
    return value if value in range(1, 9) else orientation.UPRIGHT
