"""Damage a copy of a pack again and again; print the outcome as JSON.

usage: fuzz_pack.py PACK ROUNDS
"""

import json
import sys
from pathlib import Path

import numpy as np

from resnet50.data.pack import DamagedPackError, PackedImages


def fuzz(path: str, rounds: int) -> None:
    """Damage a copy again and again; prints the outcome as JSON."""
    pack, data = PackedImages(Path(path)), Path(path).read_bytes()
    reference = [levels_of(pack, i) for i in range(len(pack))]
    starts = pack._index["offset"].tolist()
    records = (starts[0], starts[-1] + int(pack._index["size"][-1]))
    rng = np.random.default_rng(0)
    counts = {"refused": 0, "one image hit": 0, "no image hit": 0}
    with open(f"{path}.fuzz", "w+b") as copy:
        for _ in range(rounds):
            # A third each: header and JSON, records, index.
            low, high = ((0, 4096), records, (records[1], len(data)))[rng.integers(3)]
            at, length = int(rng.integers(low, high)), int(rng.integers(1, 9))
            damaged = bytearray(data)
            damaged[at : at + length] = rng.bytes(min(length, len(data) - at))
            copy.seek(0)
            copy.write(damaged)
            copy.flush()
            changed = {i for i in range(at, at + length) if data[i : i + 1] != damaged[i : i + 1]}
            counts[outcome(Path(copy.name), reference, starts, records, changed)] += 1
    print(json.dumps(counts))


def levels_of(pack: PackedImages, index: int) -> list[np.ndarray]:
    """The pixels of an image in all its sizes."""
    picture = pack.open(index)
    return [picture.level(number).pixels() for number in range(len(picture.sizes))]


def outcome(path: Path, reference: list, starts: list[int], records: tuple, changed: set) -> str:
    try:
        pack = PackedImages(path)
    except DamagedPackError:
        assert changed, "an undamaged file was refused"
        return "refused"
    except ValueError as error:
        assert "has format" in str(error)
        return "refused"
    inside = [at for at in changed if records[0] <= at < records[1]]
    hit = {int(np.searchsorted(starts, at, side="right")) - 1 for at in inside}
    for i, pixels in enumerate(reference):
        fault = pack.find_fault(i)
        assert (fault is not None) == (i in hit), f"image {i}: {fault}, damaged {hit}"
        try:
            ours = levels_of(pack, i)
        except Exception as error:
            assert i in hit, error
            continue
        assert i in hit or all(map(np.array_equal, ours, pixels))
    return "one image hit" if hit else "no image hit"


fuzz(sys.argv[1], int(sys.argv[2]))
