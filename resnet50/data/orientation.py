"""Which way up the pictures of a data set are read.

A camera that was held sideways stores its picture sideways, and says in the EXIF data how to turn
it. ImageNet is always trained and evaluated without turning (torchvision and timm ignore EXIF), so
results are comparable only if its pictures stay as stored. For your own photographs that is wrong:
half of a phone's pictures would be sideways here, and upright on the page that shows the model.

YES     upright: turned as the file says
NO      as stored in the file
LEGACY  as packs and runs from before this setting were read: as stored, 16-bit gray by its upper
        byte (now see `transforms.deep_gray`), only files of the nine extensions listed then, and
        without later fixes to the reading of files
AUTO    NO for data sets with published results (`of_classes`), else YES

Pillow turns TIFF files by itself, so they are always upright.
"""

import re
import struct
from collections.abc import Sequence

import numpy as np

import dataset_paths

AUTO, YES, NO, LEGACY = "auto", "yes", "no", "legacy"
UPRIGHT = 1  # EXIF's orientations are 1, nothing to do, to 8
ORIENTATION_TAG = 0x0112
INTEGERS = {1: "B", 3: "H", 4: "I"}  # types of a TIFF field: BYTE, SHORT, LONG
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
# What makes a stored picture upright, in this order: rows and columns change places; columns, then
# rows, are reversed.
TRANSPOSED = (5, 6, 7, 8)
COLUMNS_REVERSED = (2, 3, 6, 7)
ROWS_REVERSED = (3, 4, 7, 8)
Box = tuple[int, int, int, int]  # left, top, right, bottom


def of_classes(classes: Sequence[str]) -> str:
    """What AUTO means for a data set with these class folders.

    NO if they are WordNet ids, those of a known data set, or the numbers 0 to 999, as in
    ImageNetV2.
    """
    is_published = (
        dataset_paths.are_wnids(classes)
        or dataset_paths.known_dataset(classes) is not None
        or (len(classes) == 1000 and set(classes) == {str(number) for number in range(1000)})
    )
    return NO if is_published else YES


def of_exif(exif: bytes) -> int | None:
    """The orientation, 1 to 8, in EXIF data (a TIFF header and what it points to); None if it
    is missing or the data are damaged, which is common and does not affect the pixels."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return None
    try:
        (at,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
            if tag == ORIENTATION_TAG and kind in INTEGERS:
                (value,) = struct.unpack_from(order + INTEGERS[kind], exif, entry + 8)
                return value if 1 <= value <= 8 else UPRIGHT
    except struct.error:
        return None
    return None


def of_xmp(xmp: bytes) -> int:
    """The orientation, 1 to 8, in an XMP packet; 1 without one."""
    found = XMP_ORIENTATION.search(xmp)
    return int(found[1]) if found else UPRIGHT


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Width and height of a stored picture once it is upright, or of an upright one as stored."""
    return (size[1], size[0]) if orientation in TRANSPOSED else size


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels (H, W, 3) made upright, (H, W, 3) or (W, H, 3)."""
    if orientation == UPRIGHT:
        return pixels
    if orientation in TRANSPOSED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in COLUMNS_REVERSED:
        pixels = pixels[:, ::-1]
    if orientation in ROWS_REVERSED:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def stored_box(box: Box, size: tuple[int, int], orientation: int) -> Box:
    """Where a rectangle of the upright picture, of this size, is in the stored one."""
    left, top, right, bottom = box
    if orientation in ROWS_REVERSED:
        top, bottom = size[1] - bottom, size[1] - top
    if orientation in COLUMNS_REVERSED:
        left, right = size[0] - right, size[0] - left
    return (top, left, bottom, right) if orientation in TRANSPOSED else (left, top, right, bottom)
