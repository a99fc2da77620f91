"""A picture of a pack of version 2 (pack.py): smaller copies of it lie before it in its record.

A small crop's time goes into pixels that it then averages away, and a copy of half the size has a
quarter of them. crops.py picks the size that a crop is cut from.
"""

import os
import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from resnet50.data.tiles import LEVEL_TILES, TiledPicture, TileHeader, tile_grid

STORED = struct.Struct("<2H2I")  # of each size: width, height, bytes of its tiles, their crc32


class Tiles(NamedTuple):
    """A picture as `tiles.encode_tiles` gives it, with its size in pixels."""

    width: int
    height: int
    tiles: bytes
    lengths: np.ndarray


def to_table(pictures: Sequence[Tiles]) -> bytes:
    """What the table of a record says after the name. pictures: the smallest first."""
    table = struct.pack("<H", len(pictures))
    for width, height, tiles, _ in pictures:
        table += STORED.pack(width, height, len(tiles), zlib.crc32(tiles))
    return table + b"".join(picture.lengths.astype("<u2").tobytes() for picture in pictures)


class LeveledPicture:
    """A picture that is stored in several sizes. size: (width, height) of the full one, in pixels;
    sizes: of all of them, largest first.

    file: descriptor of the pack; offset: of the record; table: all of the record before the tiles.
    A size's number is its place in `sizes`: 0 is the full one.

    smallest: its tiles; if that is empty, they are read from the file when they are used, as the
    others are. headers: of the smaller pictures, and of the full one.
    """

    def __init__(
        self,
        file: int,
        offset: int,
        table: memoryview,
        smallest: memoryview,
        headers: tuple[TileHeader, TileHeader],
    ) -> None:
        self._file, self._table, self._smallest = file, table, smallest
        self._level_header, self._full_header = headers
        at = 2 + int.from_bytes(table[:2], "little")
        self._lengths_at = at + 2 + STORED.size * int.from_bytes(table[at : at + 2], "little")
        self._payload_offset = offset + len(table)
        self._stored = list(STORED.iter_unpack(table[at + 2 : self._lengths_at]))
        self.sizes = [(width, height) for width, height, _, _ in reversed(self._stored)]
        self.size = self.sizes[0]

    def _place(self, number: int) -> tuple[int, int]:
        """Offset and bytes in the file of the tiles of a size."""
        before = self._stored[: len(self._stored) - 1 - number]
        offset = self._payload_offset + sum(num_bytes for _, _, num_bytes, _ in before)
        return offset, self._stored[len(before)][2]

    def _payload(self, number: int) -> memoryview:
        """The tiles of a size."""
        if number == len(self._stored) - 1 and self._smallest:
            return self._smallest
        offset, num_bytes = self._place(number)
        return memoryview(os.pread(self._file, num_bytes, offset))

    def will_need(self, number: int) -> None:
        """Have the kernel fetch a size from the disk, without waiting."""
        if number < len(self._stored) - 1 or not self._smallest:
            offset, num_bytes = self._place(number)
            os.posix_fadvise(self._file, offset, num_bytes, os.POSIX_FADV_WILLNEED)

    def level(self, number: int) -> TiledPicture:
        """The picture in one of its sizes, by its place in `sizes`."""
        at = self._lengths_at  # the tables of the smaller sizes come first
        for size in self.sizes[:number:-1]:
            rows, columns = tile_grid(*size, LEVEL_TILES)
            at += 2 * rows * columns
        header = self._level_header if number else self._full_header
        rows, columns = tile_grid(*self.sizes[number], header.tiling)
        lengths = np.frombuffer(self._table, "<u2", rows * columns, at).reshape(rows, columns)
        return TiledPicture(header, self._payload(number), lengths, self.sizes[number])

    def crop(self, *box_and_shrink: int) -> np.ndarray:
        """`TiledPicture.crop` of the full picture."""
        return self.level(0).crop(*box_and_shrink)

    def pixels(self) -> np.ndarray:
        """All pixels of the full picture, uint8 (H, W, 3)."""
        return self.level(0).pixels()

    def _called(self, number: int) -> str:
        """A size's name at the beginning of a message; the full picture has none."""
        width, height = self.sizes[number]
        return f"its level of {width}x{height} pixels: " if number else ""

    def find_damage(self) -> str | None:
        """Compare all sizes with their checksums; what is wrong with the first that differs."""
        for number in range(len(self.sizes)):
            if zlib.crc32(self._payload(number)) != self._stored[-1 - number][3]:
                return f"{self._called(number)}its payload fails its checksum"
        return None

    def find_fault(self) -> str | None:
        """Check and decode all sizes; what is wrong with the first that is damaged, or None."""
        if damage := self.find_damage():
            return damage
        for number, (width, height) in enumerate(self.sizes):
            shape = self.level(number).pixels().shape
            if shape != (height, width, 3):
                return f"{self._called(number)}it decodes to {shape}"
        return None
