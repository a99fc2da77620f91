"""Pictures as JPEGs in tiles: of a crop, only the tiles under it are decoded.

A JPEG made by `encode_tiles` has a restart marker after every few MCUs, so it splits into tiles, of
32x16 pixels in a full picture, that can be decoded alone. The tiles under a crop are spliced after
a header that gives their size: a smaller, valid, baseline JPEG.
"""

import io
import math
import struct
from collections.abc import Sequence
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image

from resnet50.data.jpeg import END_OF_IMAGE, START_OF_SCAN, OneSize, decode, find_frame

FIRST_RESTART = 0xD0
RESTARTS = np.arange(FIRST_RESTART, FIRST_RESTART + 8, dtype=np.uint8)


class Tiling(NamedTuple):
    """How pictures are cut into tiles. width, height: of a tile, in pixels; mcus: in a tile."""

    subsampling: str
    width: int
    height: int
    mcus: int


FULL_TILES = Tiling("4:2:0", 32, 16, 2)
# A crop from a smaller copy has about as many pixels as are asked for, and 4:2:0 keeps the color of
# a quarter of them: that would cost 2 to 4 dB of PSNR at 88 to 128 px (benchmarks/README.md).
LEVEL_TILES = Tiling("4:4:4", 32, 8, 4)


def tile_grid(width: int, height: int, tiling: Tiling = FULL_TILES) -> tuple[int, int]:
    """Rows and columns of the tiles that cover a picture of this size."""
    return math.ceil(height / tiling.height), math.ceil(width / tiling.width)


def encode_tiles(
    pixels: np.ndarray, quality: int, tiling: Tiling = FULL_TILES
) -> tuple[bytes, bytes, np.ndarray]:
    """Encode uint8 (H, W, 3) in tiles: the header, the tiles one after the other, their lengths.

    lengths: uint16 (rows, columns) of `tile_grid`, bytes of each tile with the marker after it.
    The header is the same for all pictures of a quality, but for the size in its frame header.
    """
    height, width = pixels.shape[:2]
    rows, columns = tile_grid(width, height, tiling)
    if width % tiling.width:
        missing = columns * tiling.width - width
        pixels = np.pad(pixels, ((0, 0), (0, missing), (0, 0)), mode="edge")
    file = io.BytesIO()
    Image.fromarray(pixels).save(
        file,
        "JPEG",
        quality=quality,
        subsampling=tiling.subsampling,
        restart_marker_blocks=tiling.mcus,
    )
    data = file.getvalue()
    start = _scan_start(data)
    stream = np.frombuffer(data, np.uint8, offset=start)
    # Inside the coded data 0xFF is always followed by 0x00: what looks like a marker is one.
    ends = np.flatnonzero((stream[:-1] == 0xFF) & (stream[1:] & 0xF8 == FIRST_RESTART)) + 2
    lengths = np.diff(ends, prepend=0, append=len(stream)).astype(np.uint16)
    assert lengths.size == rows * columns, f"{lengths.size} tiles for {rows} x {columns}"
    return data[:start], data[start:], lengths.reshape(rows, columns)


def _scan_start(data: bytes) -> int:
    """Where a JPEG's coded data begin."""
    at = 2
    while data[at + 1] != START_OF_SCAN:
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return at + 2 + int.from_bytes(data[at + 2 : at + 4])


class TileHeader:
    """The header that all pictures of a file share, ready to be given a size."""

    def __init__(self, data: bytes, tiling: Tiling = FULL_TILES) -> None:
        frame = find_frame(data)
        if frame is None or _scan_start(data) != len(data):
            raise ValueError("not the header of a JPEG")
        self.tiling = tiling
        self._before, self._after = data[: frame.offset], data[frame.offset + 4 :]
        self.num_bytes = len(data)

    def sized(self, width: int, height: int) -> bytes:
        """The header of a JPEG of this size in pixels."""
        return self._before + struct.pack(">HH", height, width) + self._after


class TiledPicture(OneSize):
    """A picture made by `encode_tiles`. size: (width, height) in pixels, without the padding.

    lengths: as `encode_tiles` gives them, in any shape; their sum is the length of `tiles`.
    """

    def __init__(
        self, header: TileHeader, tiles: memoryview, lengths: np.ndarray, size: tuple[int, int]
    ) -> None:
        self.header, self.tiles, self.lengths, self.size = header, tiles, lengths, size

    def crop(self, left: int, top: int, right: int, bottom: int, shrink: int = 1) -> np.ndarray:
        """The pixels of a rectangle, as `Cut.pixels` gives them."""
        return cut([self], np.array([[left, top, right, bottom]]), np.array([shrink]))[0].pixels()

    def pixels(self) -> np.ndarray:
        """All pixels, uint8 (H, W, 3)."""
        return self.crop(0, 0, *self.size)


class Cut(NamedTuple):
    """A crop that is not decoded yet. data: the tiles under it, as a JPEG; None if they are not
    what their table says; width, height: of that JPEG; box: of the crop in it, when shrunk."""

    data: memoryview | None
    width: int
    height: int
    shrink: int
    box: list[int]

    def pixels(self) -> np.ndarray:
        """uint8 ((bottom - top) / shrink, (right - left) / shrink, 3) of the crop's rectangle.

        For 85% of a full picture's rectangles (4:2:0) the pixels equal those of all of it; the
        others differ only in the outermost pixels, whose chroma is interpolated from these tiles
        alone (by 0.003/255 on average). Raises ValueError if the tiles are damaged.
        """
        if self.data is None:
            raise ValueError("its tiles have other lengths than its table says")
        pixels = decode(self.data, self.width, self.height, self.shrink, strict=True)
        left, top, right, bottom = self.box
        return pixels[top:bottom, left:right]


def cut(pictures: Sequence[TiledPicture], boxes: np.ndarray, shrinks: np.ndarray) -> list[Cut]:
    """Crops, one of each picture. boxes: int64 (B, 4), rectangles in them; shrinks: (B,), 1, 2 or
    4, each a divisor of all edges of its rectangle."""
    headers = [picture.header for picture in pictures]
    tilings = np.array([(header.tiling.width, header.tiling.height) for header in headers])
    first, last = boxes[:, :2] // tilings, -(-boxes[:, 2:] // tilings)
    datas = _splice(pictures, tilings, first, last)
    sizes = (last - first) * tilings
    inside = (boxes - np.tile(first * tilings, 2)) // shrinks[:, None]
    rest = zip(datas, sizes.tolist(), shrinks.tolist(), inside.tolist(), strict=True)
    return [Cut(data, *size, shrink, box) for data, size, shrink, box in rest]


class _Tables(NamedTuple):
    """The tables of all pictures of a batch as one: their tiles are numbered through.

    begins: (B,), number of a picture's first tile; ends[i]: bytes of all tiles before tile i;
    grids: (B, 2), columns and rows of tiles; is_intact: (B,), whether the table fits the picture.
    """

    begins: np.ndarray
    ends: np.ndarray
    grids: np.ndarray
    is_intact: np.ndarray


def _read_tables(pictures: Sequence[TiledPicture], tilings: np.ndarray) -> _Tables:
    """tilings: width and height of each picture's tiles, int64 (B, 2)."""
    counts = np.array([picture.lengths.size for picture in pictures])
    begins = counts.cumsum() - counts
    ends = np.zeros(counts.sum() + 1, np.int64)
    lengths = np.concatenate([picture.lengths for picture in pictures], axis=None)
    lengths.cumsum(dtype=np.int64, out=ends[1:])
    grids = -(-np.array([picture.size for picture in pictures]) // tilings)
    num_bytes = np.array([len(picture.tiles) for picture in pictures])
    is_intact = grids.prod(axis=1) == counts
    is_intact &= ends[begins + counts] - ends[begins] == num_bytes
    is_intact &= (grids * tilings < 1 << 16).all(axis=1)  # as a frame header can say
    return _Tables(begins, ends, grids, is_intact)


def _splice(
    pictures: Sequence[TiledPicture], tilings: np.ndarray, first: np.ndarray, last: np.ndarray
) -> list[memoryview | None]:
    """For each picture, a JPEG of its tiles from `first` up to, but not including, `last`; None if
    they are not as its table says. tilings: width and height of the tiles; arrays: (B, 2), int64.

    For all pictures at once: numpy's calls for one at a time, between the decoding of two, would
    take three times as long.
    """
    tables = _read_tables(pictures, tilings)
    # Of a picture that is not intact no row is taken, only its header, which is dropped below. From
    # here on arrays are per row of a crop's tiles, which are side by side: one slice of bytes.
    columns, rows = ((last - first) * tables.is_intact[:, None]).T
    of_row = np.arange(len(pictures)).repeat(rows)
    starts = tables.begins + first[:, 1] * tables.grids[:, 0] + first[:, 0]
    starts = starts[of_row] + _count_up(rows) * tables.grids[of_row, 0]
    num_tiles = columns[of_row]
    origins = tables.ends[tables.begins[of_row]]
    from_bytes = tables.ends[starts] - origins
    to_bytes = tables.ends[starts + num_tiles] - origins
    slices = zip(from_bytes.tolist(), to_bytes.tolist(), strict=True)
    sizes = (np.stack([columns, rows], axis=1) * tilings).tolist()
    parts: list[bytes | memoryview] = []
    for picture, num_rows, size in zip(pictures, rows.tolist(), sizes, strict=True):
        parts.append(picture.header.sized(*size))
        parts += [picture.tiles[start:stop] for start, stop in islice(slices, num_rows)]
    data = bytearray().join(parts)

    # Where each tile of these rows ends now: after the headers and the rows before it.
    headers = np.array([picture.header.num_bytes for picture in pictures]).cumsum()
    row_begins = np.append(0, (to_bytes - from_bytes).cumsum())
    tiles = starts.repeat(num_tiles) + _count_up(num_tiles)
    moved = row_begins[:-1] + headers[of_row] - tables.ends[starts]
    tile_ends = tables.ends[tiles + 1] + moved.repeat(num_tiles)
    stops = row_begins[rows.cumsum()] + headers
    _write_markers(np.frombuffer(data, np.uint8), tile_ends, _count_up(rows * columns), stops)
    view, stops = memoryview(data), stops.tolist()
    found = zip(pairwise([0, *stops]), tables.is_intact.tolist(), strict=True)
    return [view[start:stop] if is_intact else None for (start, stop), is_intact in found]


def _write_markers(
    stream: np.ndarray, tile_ends: np.ndarray, tile_numbers: np.ndarray, stops: np.ndarray
) -> None:
    """Number the tiles of each JPEG anew, and end it at its stop. A tile's marker is its last byte;
    markers count from 0 to 7 and start over."""
    stream[tile_ends - 1] = RESTARTS[tile_numbers % 8]
    stream[stops - 1] = END_OF_IMAGE


def _count_up(counts: np.ndarray) -> np.ndarray:
    """range(count) for each of the counts, one after the other, int64."""
    return np.arange(counts.sum()) - (counts.cumsum() - counts).repeat(counts)
