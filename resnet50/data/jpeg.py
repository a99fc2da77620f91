"""Encoded pictures: decode only what a crop needs.

Decoding a JPEG is 60 to 75% entropy decoding (benchmarks/README.md, "The input pipeline"), so it
pays to skip the bytes that a crop does not use:

* A JPEG as it came (`WholePicture`) is decoded from its top to the crop's bottom: its header is
  patched to say that it ends there.
* A JPEG made for it consists of tiles, and those under a crop are decoded (tiles.py).

Anything that is not a plain JPEG, or is damaged, goes to Pillow, which decodes it or raises.
"""

import math
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import simplejpeg

from resnet50.data import by_pillow, orientation

EDGE = 16  # rows below the crop that its last rows' chroma is interpolated from
START_OF_SCAN, END_OF_IMAGE, APP1 = 0xDA, 0xD9, 0xE1
END_MARKER = bytes((0xFF, END_OF_IMAGE))
# Inside the coded data, 0xFF is followed by 0x00, or is a restart marker.
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
EXIF_NAME, XMP_NAME = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"  # what an APP1 begins with
# Baseline and extended sequential. Progressive files have their pixels spread over many scans.
SEQUENTIAL_FRAMES = (0xC0, 0xC1)


class Frame(NamedTuple):
    """What a JPEG's frame header (SOF) says, and where. offset: of its two bytes of height."""

    width: int
    height: int
    offset: int
    is_sequential: bool
    num_components: int


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """A JPEG's segments up to its first scan: marker, start and end of what follows its length.

    Yields nothing if `data` does not begin like a JPEG; stops where it is damaged.
    """
    at = 2
    while data[:2] == b"\xff\xd8" and at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # may pad the space before a marker
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        yield marker, at + 4, end
        if marker == START_OF_SCAN:
            return
        at = end


def find_frame(data: bytes) -> Frame | None:
    """The frame header of a JPEG; None if `data` does not begin like one."""
    for marker, start, _ in segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and start + 6 <= len(data):
            height, width, num_components = struct.unpack_from(">HHB", data, start + 1)
            return Frame(width, height, start + 1, marker in SEQUENTIAL_FRAMES, num_components)
    return None


def orientation_of(data: bytes) -> int:
    """EXIF's orientation of a JPEG, 1 to 8, from its EXIF segment, or else from XMP."""
    in_exif = None
    in_xmp = orientation.UPRIGHT
    for marker, start, end in segments(data):
        if marker != APP1:
            continue
        segment = data[start:end]
        if segment.startswith(EXIF_NAME):
            in_exif = in_exif or orientation.of_exif(segment[len(EXIF_NAME) :])
        elif segment.startswith(XMP_NAME):
            in_xmp = orientation.of_xmp(segment)
    return in_exif or in_xmp


def with_end(data: bytes, frame: Frame) -> bytes:
    """A JPEG with its end marker added if only that is missing, as some cameras and programs leave
    it out; unchanged if pixels are missing."""
    ended = data + END_MARKER
    colors = "CMYK" if frame.num_components == 4 else "RGB"
    try:
        if not has_all_scans(ended, frame):
            return data
        simplejpeg.decode_jpeg(ended, colors, strict=True)
    except (ValueError, IndexError, struct.error):  # the coded data ended early: truncated
        return data
    return ended


def has_all_scans(data: bytes, frame: Frame) -> bool:
    """Whether every coefficient of every component is complete to its last bit.

    Progressive files spread them over many scans, and libjpeg does not report missing last ones.
    """
    ids = data[frame.offset + 5 : frame.offset + 5 + 3 * frame.num_components : 3]
    missing = {(component, number) for component in ids for number in range(64)}
    scan = next((part for part in segments(data) if part[0] == START_OF_SCAN), None)
    while scan is not None:
        _, start, end = scan
        first, last, bits = struct.unpack_from("3B", data, end - 3)
        if bits & 0x0F == 0:
            components = data[start + 1 : start + 1 + 2 * data[start] : 2]
            missing -= {(part, number) for part in components for number in range(first, last + 1)}
        scan = next_scan(data, end)
    return not missing


def next_scan(data: bytes, at: int) -> tuple[int, int, int] | None:
    """The start of scan after coded data that begin at `at`, as `segments` has it."""
    while (found := MARKER.search(data, at)) and found[0] != END_MARKER:
        start = found.end() + 2
        at = found.end() + int.from_bytes(data[found.end() : start])
        if found[0][1] == START_OF_SCAN:
            return START_OF_SCAN, start, at
    return None


class OneSize:
    """A picture that is stored in one size: what crops.py asks of one that may have several."""

    size: tuple[int, int]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Widths and heights of all that is stored of it, largest first."""
        return [self.size]

    def level(self, number: int) -> "OneSize":
        """The picture in one of its sizes."""
        return self

    def will_need(self, number: int) -> None:
        """Have the kernel fetch a size: it is in memory already."""


class WholePicture(OneSize):
    """A picture as it came, in any format that Pillow reads. size: (width, height) in pixels.

    upright: one of data/orientation.py's ways, not AUTO; if it is YES, the size and all
    rectangles are those of the turned one. Raises what Pillow raises if it is not a picture.
    """

    def __init__(self, data: bytes, upright: str = orientation.NO) -> None:
        frame = find_frame(data)
        self._is_legacy = upright == orientation.LEGACY
        if not self._is_legacy:
            is_cut = frame is not None and data.rfind(END_MARKER, frame.offset) < 0
            data = with_end(data, frame) if is_cut else data
        # A file that was cut short goes to Pillow: it refuses what libjpeg would fill with gray.
        is_plain = (
            frame is not None
            and frame.num_components in (1, 3)
            and frame.width * frame.height > 0
            and data.rfind(END_MARKER, frame.offset) > 0
        )
        self._data = data
        self._frame = frame if is_plain else None
        open_picture = by_pillow.open_picture if self._is_legacy else by_pillow.open_any_png
        image = None if is_plain else open_picture(data)
        self._orientation = orientation.UPRIGHT
        if upright == orientation.YES:
            in_jpeg = orientation_of(data)
            is_jpeg = frame is not None
            self._orientation = in_jpeg if is_jpeg else by_pillow.orientation_of(image, data)
        stored_size = (frame.width, frame.height) if is_plain else image.size
        self.size = orientation.turned_size(stored_size, self._orientation)

    def crop(self, left: int, top: int, right: int, bottom: int, shrink: int = 1) -> np.ndarray:
        """The pixels of a rectangle, uint8 (H, W, 3).

        shrink: 1, 2 or 4, a divisor of all edges: the result may be smaller by that factor.
        """
        box = left, top, right, bottom
        left, top, right, bottom = orientation.stored_box(box, self.size, self._orientation)
        if any(edge % shrink for edge in (left, top, right, bottom)):
            shrink = 1  # counted from the other side, edges would fall between pixels
        pixels, shrink = self._pixels(bottom, shrink)
        pixels = pixels[top // shrink : bottom // shrink, left // shrink : right // shrink]
        return orientation.turned(pixels, self._orientation)

    def pixels(self) -> np.ndarray:
        """All pixels, uint8 (H, W, 3)."""
        return self.crop(0, 0, *self.size)

    def _pixels(self, bottom: int, shrink: int) -> tuple[np.ndarray, int]:
        """Stored pixels from the top to at least `bottom`, and the factor they were shrunk by.

        Not shrunk, they are the same as Pillow's, bit for bit.
        """
        data, frame = self._data, self._frame
        if frame is None:
            return by_pillow.decode(data, self._is_legacy), 1
        height = frame.height
        if frame.is_sequential and bottom + EDGE < height:
            height = bottom + EDGE
            data = bytearray(data)
            struct.pack_into(">H", data, frame.offset, height)
        try:
            return decode(data, frame.width, height, shrink, strict=False), shrink
        except ValueError:  # Pillow has the last word on damaged and unusual files
            return by_pillow.decode(self._data, self._is_legacy), 1


def decode(
    data: bytes | bytearray | memoryview, width: int, height: int, shrink: int, strict: bool
) -> np.ndarray:
    """A JPEG of this size to uint8 (H, W, 3), at 1/shrink of its size. Raises ValueError.

    strict: refuse what libjpeg only warns about.
    """
    if shrink == 1:
        return simplejpeg.decode_jpeg(data, "RGB", strict=strict)
    height, width = math.ceil(height / shrink), math.ceil(width / shrink)
    pixels = simplejpeg.decode_jpeg(
        data, "RGB", min_height=height, min_width=width, min_factor=shrink, strict=strict
    )
    assert pixels.shape == (height, width, 3), f"{pixels.shape} for {height} x {width}"
    return pixels
