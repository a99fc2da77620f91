"""Which levels training images get: smaller copies, from which small crops are cut (--levels)."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from resnet50.data.pack import ORIGINAL, Record
from resnet50.packing import encode, output_folder
from resnet50.packing.encode import LEAST_SHRINKING, Encoding, SplitJob

SMALLEST, LARGEST = 32, 8192  # pixels
BLOCK = 8  # pixels of a JPEG that are encoded together, in rows and columns


def parse(text: str) -> tuple[int, ...]:
    """The value of --levels. Raises argparse.ArgumentTypeError."""
    words = [] if text == "none" else text.split(",")
    if not all(word.isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"{text}: must be like 250 or 320,200, or none")
    return tuple(map(int, words))


def problem(levels: Sequence[int], store: str, long_side: int) -> str:
    """Why there cannot be such levels of images that are stored so; "" if there can."""
    option = f"--levels {','.join(map(str, levels))}"
    if levels and store == ORIGINAL:
        return f"{option} needs images stored as tiles, and original files are stored: leave it out"
    if not all(SMALLEST <= level <= LARGEST for level in levels):
        return f"{option}: must be from {SMALLEST} to {LARGEST}, or none"
    if sorted(set(levels), reverse=True) != list(levels):
        return f"{option}: must be descending, as in 320,200"
    most = int(long_side / LEAST_SHRINKING)
    if levels and long_side and levels[0] > most:
        why = f"--long_side {long_side} / {LEAST_SHRINKING}"
        return f"{option}: must be at most {most}, which is {why}"
    return ""


def default(long_side: int, short_side: int) -> tuple[int, ...]:
    """One level of half the size that images are stored at, in 35% more bytes; of images stored at
    500 px it serves most crops of up to 112 px (benchmarks/README.md)."""
    # A limit to the short side is taken as one of pictures of 4:3. In whole blocks of a JPEG: the
    # 250 rows of an upright picture would be encoded as 256.
    level = (long_side or short_side * 4 // 3 or Encoding.long_side) // 2 // BLOCK * BLOCK
    return (level,) if level >= SMALLEST else ()


def settle(job: SplitJob, sample: Sequence[Record], is_asked: bool, out: Path) -> SplitJob:
    """The training job, without levels if the pictures of a sample are too small for them.

    is_asked: by --levels; if not, a split that is packed already without levels stays as it is.
    Raises ValueError naming a level that was asked for and is too large.
    """
    encoding = job.encoding
    if not encoding.levels:
        return job
    plain = replace(encoding, levels=())
    sides = [max(record.width, record.height) for record in sample]
    largest = max(sides, default=0)
    too_large = [level for level in encoding.levels if not encode.gets_level(largest, level)]
    if too_large and is_asked:
        raise ValueError(
            f"--levels {too_large[0]}: must be {LEAST_SHRINKING} times smaller than the images, "
            f"and the largest of {len(sides)} has {largest} pixels a side"
        )
    is_packed = output_folder.finished_way(out, job.split) == plain.settings()
    return replace(job, encoding=plain) if too_large or (is_packed and not is_asked) else job
