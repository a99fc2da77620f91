"""Encode the pictures of a split in parallel and write its pack, so that a kill costs seconds.

Pictures are encoded by many processes and written by one (writer.py), in their order: the file
has the same bytes whatever their number.
"""

import base64
import functools
import hashlib
import json
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from resnet50.data import by_pillow, jpeg, orientation, transforms
from resnet50.data import pack as packed_images
from resnet50.data.levels import Tiles
from resnet50.data.pack import ORIGINAL, TILES, PackedImages, Record
from resnet50.data.tiles import FULL_TILES, LEVEL_TILES, Tiling, encode_tiles
from resnet50.packing.data_set import Picture
from resnet50.packing.writer import Chunk, Note, PackWriter
from resnet50.system import processes

CHUNK = 32  # pictures per task
TASKS_AHEAD = 4  # per process: encoded pictures wait in memory for their turn to be written
JPEG_NAMES = (".jpg", ".jpeg")
GIT_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
SHOWN_REASONS = 3
SAMPLE = 64  # pictures encoded to estimate the size of the file
# 2 less would cost crops of 112 and 128 px 0.5 dB, and none less 3% of the pack's bytes.
LEVEL_QUALITY_LESS = 1
LARGEST_TILED = 65_500 // 32 * 32  # libjpeg's limit, in whole tiles
LEAST_SHRINKING = 1.25  # a level that is nearly as large as its picture would save nothing


@dataclass(frozen=True)
class Encoding:
    """How images are stored: in tiles, shrunk to long_side and short_side pixels (0: as they are)
    at a JPEG quality, or as original files.

    upright: YES or NO of data/orientation.py. Tiles are made of turned pixels; original files are
    turned when they are read. levels: long sides of smaller copies beside tiles, descending."""

    store: str = TILES
    long_side: int = 500
    short_side: int = 0
    quality: int = 90
    upright: str = orientation.YES
    levels: tuple[int, ...] = ()

    @property
    def level_quality(self) -> int:
        """JPEG quality of the smaller copies, for crops as close to the originals as from the full
        pictures (benchmarks/README.md)."""
        return max(1, self.quality - LEVEL_QUALITY_LESS)

    def settings(self) -> dict[str, object]:
        """What the pack records of it; sizes and quality do not apply to original files.

        Without levels it is what it was before there were any, so that such packs are the same."""
        if self.store == ORIGINAL:
            return {"store": ORIGINAL, "upright": self.upright}
        settings = asdict(self) | {"levels": list(self.levels)}
        if not self.levels:
            del settings["levels"]
            return settings
        return settings | {"level_quality": self.level_quality}


@dataclass(frozen=True)
class SplitJob:
    """All that is needed to pack a split. read: a picture's member -> its bytes."""

    split: str
    pictures: Sequence[Picture]
    classes: Sequence[str]
    read: Callable[[object], bytes]
    encoding: Encoding
    mark: Callable[[int], bytes] | None = None  # snapshot.marker's, to notice changed files


def encode(picture: Picture, data: bytes, encoding: Encoding) -> tuple[Record, Note | None]:
    """A picture's bytes to its record. Raises what Pillow raises if they cannot be decoded."""
    pixels = jpeg.WholePicture(data, encoding.upright).pixels()
    note = None
    if what := unusual(picture.name, data):
        how = "kept" if encoding.store == ORIGINAL else "made a plain JPEG"
        note = Note("repaired", picture.name, f"{what}: {how}")
    is_tiled = encoding.store == TILES
    full = shrink(pixels, encoding.long_side, encoding.short_side) if is_tiled else pixels
    height, width = full.shape[:2]
    if max(width, height) > (LARGEST_TILED if is_tiled else np.iinfo(np.uint16).max):
        raise ValueError(f"{width}x{height} pixels are more than a pack can record")
    name, label = picture.name, picture.label
    if not is_tiled:
        return packed_images.original_record(name, label, (width, height), data), note
    tiles = encode_size(full, encoding.quality, FULL_TILES)
    if not encoding.levels:
        return packed_images.tiled_record(name, label, tiles), note
    smaller = [
        encode_level(pixels, level, encoding)
        for level in reversed(encoding.levels)
        if gets_level(max(width, height), level)
    ]
    return packed_images.leveled_record(name, label, [*smaller, tiles]), note


def gets_level(side: int, level: int) -> bool:
    """Whether a picture that is stored with this long side gets a copy with that one."""
    return side >= LEAST_SHRINKING * level


def encode_level(pixels: np.ndarray, long_side: int, encoding: Encoding) -> Tiles:
    """A smaller copy, made from the original: the JPEG of the full picture has lost detail."""
    # Bicubic takes 3% fewer bytes than Lanczos, and crops are as close to the original's.
    smaller = shrink(pixels, long_side, resample=Image.Resampling.BICUBIC)
    return encode_size(smaller, encoding.level_quality, LEVEL_TILES)


def encode_size(pixels: np.ndarray, quality: int, tiling: Tiling) -> Tiles:
    """A picture, or a smaller copy of it, in tiles."""
    height, width = pixels.shape[:2]
    _, tiles, lengths = encode_tiles(pixels, quality, tiling)
    return Tiles(width, height, tiles, lengths)


def unusual(name: str, data: bytes) -> str:
    """What is odd about a picture: not a JPEG despite its name, a JPEG other than gray or YCbCr or
    without its end; gray of more than 8 bits, and how it was read; "" if nothing is."""
    frame = jpeg.find_frame(data)
    if frame is not None:
        if data.rfind(jpeg.END_MARKER, frame.offset) < 0:
            return "a JPEG without its end marker"
        return "" if frame.num_components in (1, 3) else "a JPEG in CMYK"
    image = by_pillow.load(data)
    is_liar = name.lower().endswith(JPEG_NAMES)
    found = [f"a {image.format}, not a JPEG"] if is_liar else []
    if transforms.is_deep_gray(image.mode):
        found.append(str(transforms.gray_range(np.asarray(image))))
    if by_pillow.loses_bits(image, data):
        found.append("16 bits a channel, of which the upper 8 are read")
    return "; ".join(found)


def shrunk_size(size: tuple[int, int], long_side: int, short_side: int) -> tuple[int, int]:
    """Width and height within these limits (0: none), of the same shape; never enlarged."""
    width, height = size
    scale = min(
        1.0,
        long_side / max(width, height) if long_side else 1.0,
        short_side / min(width, height) if short_side else 1.0,
    )
    return max(1, round(width * scale)), max(1, round(height * scale))


def shrink(
    pixels: np.ndarray,
    long_side: int,
    short_side: int = 0,
    resample: Image.Resampling = Image.Resampling.LANCZOS,
) -> np.ndarray:
    """Pixels (H, W, 3) with sides no longer than these (0: any), anti-aliased; never enlarged."""
    height, width = pixels.shape[:2]
    size = shrunk_size((width, height), long_side, short_side)
    if size == (width, height):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, resample))


def encode_chunk(
    pictures: Sequence[Picture], read: Callable[[object], bytes], encoding: Encoding
) -> Chunk:
    """Read and encode pictures; a bad one is noted and left out."""
    records = []
    notes = []
    dropped = []
    for position, picture in enumerate(pictures):
        try:
            data = read(picture.member)
        except PermissionError as error:
            dropped.append(position)
            notes.append(Note("bad", picture.name, f"cannot be read: {error.strerror}"))
            continue
        except OSError as error:
            what = f"{error.filename or picture.name}: {error.strerror}"
            raise ValueError(f"{what}; the same command resumes once that is fixed") from error
        try:
            record, note = encode(picture, data, encoding)
        except Exception as error:  # Pillow raises a dozen types for damaged data
            dropped.append(position)
            notes.append(Note("bad", picture.name, describe(error, data)))
            continue
        records.append(record)
        notes += [note] if note else []
    return Chunk(len(pictures), records, notes, dropped)


def describe(error: Exception, data: bytes = b"") -> str:
    """Why a picture cannot be decoded, and how to get it if that is known."""
    if data.startswith(GIT_LFS_POINTER):
        return "a git-lfs pointer, not the picture: `git lfs pull` gets it"
    if data[:200].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not a picture: download it again"
    if not data:
        return f"{type(error).__name__}: it is empty"
    text = "it is not a picture" if isinstance(error, PIL.UnidentifiedImageError) else str(error)
    return f"{type(error).__name__}: {text}"


def worker_pool(num_workers: int) -> ProcessPoolExecutor:
    """Processes that ignore signals, which this one handles, and that die with it."""
    return ProcessPoolExecutor(
        num_workers,
        multiprocessing.get_context("fork"),
        initializer=_start_worker,
        initargs=(os.getpid(),),
    )


def _start_worker(parent_pid: int) -> None:
    processes.ignore_signals()
    processes.die_with_parent(parent_pid)


def in_order(
    pool: ProcessPoolExecutor, tasks: Iterable[tuple], work: Callable, num_ahead: int
) -> Iterator[object]:
    """Results of work(*task) in the order of the tasks, computing no further ahead than asked."""
    waiting: deque[Future] = deque()
    for task in tasks:
        waiting.append(pool.submit(work, *task))
        if len(waiting) >= num_ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def fingerprint(job: SplitJob, about: dict) -> str:
    """Of all that shapes a pack's bytes: a start with another one cannot resume it."""
    encoding = asdict(job.encoding)
    if not job.encoding.levels:  # as before there were any, so that an interrupted start goes on
        del encoding["levels"]
    digest = hashlib.sha256(json.dumps([about, encoding, PIL.__version__]).encode())
    for picture in job.pictures:
        digest.update(repr(picture).encode(errors="surrogateescape"))
    return digest.hexdigest()


def pack_split(
    job: SplitJob,
    path: Path,
    num_workers: int,
    on_progress: Callable[[int], None] = lambda num_done: None,
) -> list[Note]:
    """Pack a split into `path`; returns notes about its pictures.

    on_progress: called with the number of pictures done so far, first with those of an earlier
    start; if it raises, the work ends and can be resumed.
    Raises ValueError if a class has no image left, OSError if the disk is full.
    """
    pictures, classes, encoding = job.pictures, job.classes, job.encoding
    about = {
        "split": job.split,
        "classes": list(classes),
        "store": encoding.store,
        "settings": encoding.settings(),
    }
    if encoding.store == TILES:
        about["jpeg_header"] = header_text(encoding.quality, FULL_TILES)
    if encoding.levels:
        about["level_header"] = header_text(encoding.level_quality, LEVEL_TILES)
    writer = PackWriter(path, about, fingerprint(job, about), job.mark)
    if writer.anew:
        print(f"{job.split}: packing it again: {writer.anew}", file=sys.stderr)
    on_progress(writer.num_done)
    tasks = (
        (pictures[start : start + CHUNK], job.read, encoding)
        for start in range(writer.num_done, len(pictures), CHUNK)
    )
    with worker_pool(num_workers) as pool:
        try:
            for chunk in in_order(pool, tasks, encode_chunk, TASKS_AHEAD * num_workers):
                writer.append(chunk)
                on_progress(writer.num_done)
        except BaseException as error:
            pool.shutdown(cancel_futures=True)
            if not isinstance(error, OSError):  # the disk would fail again
                writer.commit()
            raise
    dropped = set(writer.dropped)
    kept = [picture for i, picture in enumerate(pictures) if i not in dropped]
    empty = set(range(len(classes))) - {picture.label for picture in kept}
    if empty:
        raise ValueError(no_image(job, classes[min(empty)], writer.notes))
    names = (os.fsencode(picture.name) for picture in kept)
    writer.finish(packed_images.content_hash(classes, names))
    return writer.notes


def header_text(quality: int, tiling: Tiling) -> str:
    """The header that all pictures of a quality share, as the pack's JSON has it."""
    header = encode_tiles(np.zeros((16, 32, 3), np.uint8), quality, tiling)[0]
    return base64.b64encode(header).decode()


def no_image(job: SplitJob, name: str, notes: Sequence[Note]) -> str:
    """The message for a class without usable pictures, with the first reasons."""
    bad = [note for note in notes if note.kind == "bad" and note.name.startswith(f"{name}/")]
    reasons = "; ".join(f"{note.name}: {note.text}" for note in bad[:SHOWN_REASONS])
    more = f"; and {len(bad) - SHOWN_REASONS} more" if len(bad) > SHOWN_REASONS else ""
    return (
        f"{job.split}: class {name} has no image that can be decoded ({reasons}{more}). Repair its "
        "files, or take the class out of all splits; the same command then packs this split again"
    )


def sample(job: SplitJob) -> list[Record]:
    """The records of a few pictures spread over the split."""
    pictures = job.pictures[:: max(1, len(job.pictures) // SAMPLE)]
    return encode_chunk(pictures, job.read, job.encoding).records


def estimate_bytes(records: Sequence[Record], num_pictures: int) -> int:
    """About how large a pack will be, from a sample of its records."""
    sizes = [len(record.table) + len(record.payload) for record in records]
    return round(sum(sizes) / max(1, len(sizes)) * num_pictures)


def find_faults(path: Path, start: int, stop: int) -> list[str]:
    """What is wrong with the images of a pack from start to stop, each with its name."""
    pack = _opened(path)
    faults = ((index, pack.find_fault(index)) for index in range(start, stop))
    return [f"{pack.name(index)}: {fault}" for index, fault in faults if fault]


_opened = functools.lru_cache(maxsize=1)(PackedImages)  # once in every process
