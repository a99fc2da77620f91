"""Damage to packs."""

import struct
import zlib
from pathlib import Path


def spoiled(path: Path, place: Path, change) -> Path:
    data = bytearray(path.read_bytes())
    changed = change(data)
    data = data if changed is None else changed
    place.write_bytes(data)
    return place


def put(offset: int, content: bytes):
    def change(data: bytearray) -> None:
        data[offset : offset + len(content)] = content

    return change


def put_version(data: bytearray) -> None:
    data[8:12] = struct.pack("<I", 9)
    data[60:64] = struct.pack("<I", zlib.crc32(data[:60]))
