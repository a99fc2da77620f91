"""One file that holds the images of a split, made for random crops. Written by prepare_data.py.

    header      64 bytes, little-endian `<8s4I4Q2I`: magic b"RN50PACK", version, bytes and crc32
                of the JSON, crc32 of the index, offset of the records, offset of the index, number
                of images, bytes of the file, 0, crc32 of the 60 bytes before
    JSON        UTF-8: "split"; "classes": their names in label order; "store": "tiles" or
                "original"; "sha256" over classes and names (`content_hash`); "settings" the images
                were made with, such as "upright" (data/orientation.py); for tiles "jpeg_header",
                in base64
    records     one per image: u16 length of its name, the name (CLASS/FILE), for tiles a table of
                u16 lengths, then the payload
    index       32 bytes per image, `<Q2I2H3I`: offset and bytes of its record, label, width,
                height, bytes of the record before the payload, crc32 of these, crc32 of the payload

With the store "original" a payload is the image's original file, which its reader turns
upright; width and height are then those of the turned picture if "upright" is "yes". With "tiles"
it is the coded data of a baseline 4:2:0 JPEG with a restart marker after every 2 MCUs:
ceil(height / 16) rows of ceil(width / 32) tiles, each as long as the table says, including the
marker after it. With "jpeg_header" before it, and height and padded width (a multiple of 32) as
big-endian u16 in its frame header, it is a file that any viewer opens. For parts of it, see
`tiles.TiledPicture`.

That is version 1. Version 2 has levels: beside a picture lie smaller copies of it, from which small
crops are cut. It differs from version 1 with tiles in this:

    JSON        "settings" has "levels", the long sides of the copies; "level_header" is the header
                that they share, as "jpeg_header" is the one of the full pictures
    records     after the name: u16 number of pictures stored of the image; for each of them, the
                smallest first, `<2H2I`: width, height, bytes of its tiles, crc32 of these; for each
                of them its table of u16 lengths; for each of them its tiles
    index       the last number is not a crc32, but the bytes of the record up to the end of the
                smallest picture, all that a small crop reads

The last picture of a record is the full one, whose size is in the index too. The others are 4:4:4
with a restart marker after every 4 MCUs: ceil(height / 8) rows of ceil(width / 32) tiles. A pack
without levels is still written as version 1, and version 1 is read for ever.

Opening checks header, JSON and index; every use of an image checks its table; `find_damage` checks
the payloads, and `find_fault` decodes them too. So a damaged payload can change its own image's
pixels and no other's.
"""

import base64
import hashlib
import json
import math
import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from resnet50.data import levels, orientation
from resnet50.data.jpeg import WholePicture
from resnet50.data.levels import LeveledPicture, Tiles
from resnet50.data.tiles import LEVEL_TILES, TiledPicture, TileHeader, tile_grid

SUFFIX = ".pack"
MAGIC, PLAIN, LEVELED = b"RN50PACK", 1, 2  # the last two are versions
HEADER = struct.Struct("<8s4I4Q2I")
BLOCK = 4096  # the records begin at a multiple of it
INDEX = np.dtype(
    [
        ("offset", "<u8"),
        ("size", "<u4"),
        ("label", "<u4"),
        ("width", "<u2"),
        ("height", "<u2"),
        ("table_size", "<u4"),
        ("table_crc", "<u4"),
        ("payload_crc", "<u4"),
    ]
)
# Of version 2. head_size: bytes of the record up to the end of its smallest picture.
LEVELED_INDEX = np.dtype([*INDEX.descr[:-1], ("head_size", "<u4")])
TILES, ORIGINAL = "tiles", "original"


class DamagedPackError(ValueError):
    """A file or an image in it is not what was written. Names the file, the place, the remedy."""


class Header(NamedTuple):
    """The numbers of a header, in their order."""

    version: int
    json_bytes: int
    json_crc: int
    index_crc: int
    records_offset: int
    index_offset: int
    num_images: int
    file_bytes: int


def read_header(data: bytes, where: object) -> Header:
    """What the first HEADER.size bytes of a pack say. where: its path or URL, for messages.

    Raises DamagedPackError if they are not a header, ValueError if it is of a newer version.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise damaged(where, "it does not begin like a pack")
    if len(data) != HEADER.size or zlib.crc32(data[:-4]).to_bytes(4, "little") != data[-4:]:
        raise damaged(where, "its header fails its checksum")
    header = Header(*HEADER.unpack(data)[1:9])
    if header.version not in (PLAIN, LEVELED):
        raise ValueError(
            f"{where} has format {header.version}, and this program reads {PLAIN} and {LEVELED}: "
            "it was made by a newer version, so update this clone (git pull)"
        )
    return header


def damaged(where: object, what: str) -> DamagedPackError:
    """The error for a file that is not what was written."""
    return DamagedPackError(
        f"{where}: {what}. It is damaged: copy it again, or remove it and pack again "
        "(prepare_data.py)"
    )


def content_hash(classes: Iterable[str], names: Iterable[bytes]) -> str:
    """sha256 over class names and image names in order, the same for a folder and its pack."""
    digest = hashlib.sha256("\0".join(classes).encode())
    for name in names:
        digest.update(name + b"\0")
    return digest.hexdigest()


class PackedImages:
    """A pack opened for reading, by any number of processes forked from this one.

    classes: names in label order; labels: (N,) uint32; sizes: (N, 2) widths and heights in pixels;
    offsets: (N,) uint64, where the records begin; upright: how originals are read, at first as they
    were packed (data/orientation.py).
    Raises DamagedPackError if header, JSON or index are not as they were written.
    """

    def __init__(self, path: Path) -> None:
        self.root = path
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        # Images are read in random order: read-ahead would only load a network volume.
        os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_RANDOM)
        about, self._index = self._read_index()
        try:
            self.classes = tuple(about["classes"])
            self.store, self.sha256 = about["store"], about["sha256"]
            self.settings = about["settings"]
            self.upright = self.settings.get("upright", orientation.LEGACY)
            is_tiled = self.store == TILES
            header = TileHeader(base64.b64decode(about["jpeg_header"])) if is_tiled else None
            self.has_levels = self._index.dtype == LEVELED_INDEX
            if self.has_levels:
                level_header = base64.b64decode(about["level_header"])
                self._level_header = TileHeader(level_header, LEVEL_TILES)
                self._smallest_level = min(self.settings["levels"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(f"its JSON cannot be interpreted ({error!r})") from error
        self._tile_header = header
        self.labels, self.offsets = self._index["label"], self._index["offset"]
        self.sizes = np.stack([self._index["width"], self._index["height"]], axis=1)
        if len(self) and self.labels.max() >= len(self.classes):
            raise self._damaged("its index has labels beyond its classes")

    @property
    def mean_bytes(self) -> int:
        """Mean bytes of a record; 1 if there are none."""
        return int(self._index["size"].mean()) if len(self) else 1

    @property
    def largest_side(self) -> int:
        """Pixels that pictures were shrunk to, of the shorter side if it was limited; 0: none."""
        if self.store != TILES:
            return 0
        return self.settings.get("short_side") or self.settings.get("long_side") or 0

    def _read_index(self) -> tuple[dict, np.ndarray]:
        file_bytes = os.fstat(self._file).st_size
        header = read_header(os.pread(self._file, HEADER.size, 0), self.root)
        if file_bytes != header.file_bytes:
            written = f"{header.file_bytes:,} were written"
            raise self._damaged(f"it has {file_bytes:,} bytes, {written}")
        text = os.pread(self._file, header.json_bytes, HEADER.size)
        if zlib.crc32(text) != header.json_crc:
            raise self._damaged("its JSON fails its checksum")
        index_offset = header.index_offset
        raw = _pread_all(self._file, header.num_images * INDEX.itemsize, index_offset)
        if zlib.crc32(raw) != header.index_crc:
            raise self._damaged(f"its index at {index_offset:,} fails its checksum")
        index = np.frombuffer(raw, INDEX if header.version == PLAIN else LEVELED_INDEX)
        ends = index["offset"] + index["size"]
        first = header.records_offset
        if len(index) and (index["offset"].min() < first or ends.max() > index_offset):
            raise self._damaged("its index points outside its records")
        return json.loads(text), index

    def __len__(self) -> int:
        return len(self._index)

    def _damaged(self, what: str) -> DamagedPackError:
        return damaged(self.root, what)

    def _expects_level(self, image_size: int | None) -> bool:
        """Whether crops of this size are worth reading the smallest level before they are drawn.

        It decides what is read when, and no pixel.
        """
        # With two thirds of a level's long side, about a quarter of the crops is cut from it.
        return self.has_levels and bool(image_size) and 3 * image_size <= 2 * self._smallest_level

    def _read(
        self, index: int, image_size: int | None = None
    ) -> tuple[memoryview, memoryview, tuple[int, int], int]:
        """An image's table (its name and all lengths), payload, width and height, and offset.

        With levels, the payload is that of the smallest alone, or empty if few crops need it.
        """
        offset, size, _, width, height, table_size, table_crc, last = self._index[index].item()
        if self.has_levels:
            size = last if self._expects_level(image_size) else table_size
        record = memoryview(os.pread(self._file, size, offset))
        table, payload = record[:table_size], record[table_size:]
        if len(record) < size or zlib.crc32(table) != table_crc:
            raise self._damaged(f"the record of image {index} at {offset:,} fails its checksum")
        return table, payload, (width, height), offset

    def name(self, index: int) -> str:
        """Name of an image for messages, FILE.pack:CLASS/FILE; its number if that is damaged."""
        try:
            table, _, _, _ = self._read(index)
        except DamagedPackError:
            return f"{self.root}:image {index}"
        length = int.from_bytes(table[:2], "little")
        return f"{self.root}:{os.fsdecode(bytes(table[2 : 2 + length]))}"

    def open(
        self, index: int, image_size: int | None = None
    ) -> TiledPicture | WholePicture | LeveledPicture:
        """Read an image, in one access to the disk; its pixels are decoded later.

        image_size: of the crop that is wanted, None for all of it. Of an image with levels, the
        smallest is read if that may do, and another one when it is used.
        """
        table, payload, (width, height), offset = self._read(index, image_size)
        if self.has_levels:
            headers = self._level_header, self._tile_header
            return LeveledPicture(self._file, offset, table, payload, headers)
        if self._tile_header is None:
            return WholePicture(bytes(payload), self.upright)
        rows, columns = tile_grid(width, height)
        lengths = np.frombuffer(table[-2 * rows * columns :], "<u2").reshape(rows, columns)
        return TiledPicture(self._tile_header, payload, lengths, (width, height))

    def extents(self, indices: np.ndarray) -> list[tuple[Path, int, int]]:
        """File, offset and bytes of images on the disk."""
        entries = self._index[indices]
        places = zip(entries["offset"].tolist(), entries["size"].tolist(), strict=True)
        return [(self.root, offset, size) for offset, size in places]

    def will_need(self, indices: np.ndarray, image_size: int | None = None) -> None:
        """Have the kernel fetch these images from the disk, all at once, without waiting.

        image_size: of the crops that are wanted, None for all of the images. Of images with levels
        only the smallest are fetched if these may do, see `LeveledPicture.will_need`.
        """
        is_small = self._expects_level(image_size)
        is_large = self.has_levels and bool(image_size) and not is_small
        for offset, size, *_, table_size, _, last in self._index[indices].tolist():
            if is_large and last < size:  # without the smallest picture in between
                self._fetch(offset, table_size)
                self._fetch(offset + last, size - last)
            else:
                self._fetch(offset, last if is_small else size)

    def _fetch(self, offset: int, size: int) -> None:
        os.posix_fadvise(self._file, offset, size, os.POSIX_FADV_WILLNEED)

    def find_damage(self, index: int) -> str | None:
        """Compare an image's bytes with their checksums, undecoded; what is wrong, or None."""
        try:
            if self.has_levels:
                return self.open(index).find_damage()
            _, payload, _, _ = self._read(index)
        except DamagedPackError:
            return "its record fails its checksum"
        is_whole = zlib.crc32(payload) == self._index["payload_crc"][index]
        return None if is_whole else "its payload fails its checksum"

    def find_fault(self, index: int) -> str | None:
        """Check and decode a whole image; what is wrong with it, or None."""
        try:
            if self.has_levels:
                return self.open(index).find_fault()
            if damage := self.find_damage(index):
                return damage
            width, height = self.sizes[index].tolist()
            shape = self.open(index).pixels().shape
        except Exception as error:  # Pillow raises a dozen types
            return f"{type(error).__name__}: {error}"
        return None if shape == (height, width, 3) else f"it decodes to {shape}"


def _pread_all(file: int, num_bytes: int, offset: int) -> bytes:
    """Call pread, which may return parts, until all is read; less only at the end of the file."""
    data = bytearray()
    while len(data) < num_bytes:
        part = os.pread(file, num_bytes - len(data), offset + len(data))
        if not part:
            break
        data += part
    return bytes(data)


class Record(NamedTuple):
    """An image ready to be written. table: name and all lengths; payload: a file, or tiles;
    head_size: in version 2, bytes up to the end of its smallest picture."""

    label: int
    width: int
    height: int
    table: bytes
    payload: bytes
    head_size: int | None = None

    def index_entry(self, offset: int) -> np.ndarray:
        """Its entry in the index if its record begins at `offset`: INDEX, shape ()."""
        size = len(self.table) + len(self.payload)
        sizes = self.width, self.height, len(self.table)
        last = zlib.crc32(self.payload) if self.head_size is None else self.head_size
        return np.array((offset, size, self.label, *sizes, zlib.crc32(self.table), last), INDEX)


def _name_field(name: str) -> bytes:
    encoded = os.fsencode(name)
    return struct.pack("<H", len(encoded)) + encoded


def original_record(name: str, label: int, size: tuple[int, int], data: bytes) -> Record:
    """size: (width, height) in pixels of the picture in the file `data`."""
    return Record(label, *size, _name_field(name), data)


def tiled_record(name: str, label: int, full: Tiles) -> Record:
    """A record of version 1."""
    table = _name_field(name) + full.lengths.astype("<u2").tobytes()
    return Record(label, full.width, full.height, table, full.tiles)


def leveled_record(name: str, label: int, pictures: Sequence[Tiles]) -> Record:
    """A record of version 2. pictures: the smallest first, the full one last."""
    table = _name_field(name) + levels.to_table(pictures)
    payload = b"".join(picture.tiles for picture in pictures)
    head_size = len(table) + len(pictures[0].tiles)
    return Record(label, pictures[-1].width, pictures[-1].height, table, payload, head_size)


def records_offset(about: dict) -> int:
    """Where the records of a file begin whose JSON says `about`."""
    return math.ceil((HEADER.size + len(_to_json(about))) / BLOCK) * BLOCK


def seal(file: BinaryIO, about: dict, index: np.ndarray) -> None:
    """Write index, JSON and header around the records, which are in the file already.

    about: the JSON, as long as it was when `records_offset` was called.
    """
    text, raw = _to_json(about), index.tobytes()
    index_offset = file.seek(0, os.SEEK_END)
    file.write(raw)
    header = HEADER.pack(
        MAGIC,
        LEVELED if "level_header" in about else PLAIN,
        len(text),
        zlib.crc32(text),
        zlib.crc32(raw),
        records_offset(about),
        index_offset,
        len(index),
        index_offset + len(raw),
        0,
        0,
    )[:-4]
    file.seek(0)
    file.write(header + zlib.crc32(header).to_bytes(4, "little") + text)


def _to_json(about: dict) -> bytes:
    return json.dumps(about, ensure_ascii=False, sort_keys=True).encode()
