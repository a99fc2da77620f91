"""The pictures in the formats that other projects' loaders read, for loader_rivals.py.

Plain JPEG files for DALI, one .tar for webdataset, FFCV's own format by its own writer. As this is
imported in their Pythons too, it needs nothing but the standard library until it is called.
"""

import io
import random
import shutil
import tarfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

QUALITY = 90


def jpeg_files(files: Sequence[str], long_side: int, cache: Path) -> list[str]:
    """Plain JPEG files of the pictures, no larger than long_side; written by Pillow."""
    folder, unfinished = cache / f"{long_side}.files", cache / f"{long_side}.files.partial"
    names = [f"{number}.jpg" for number in range(len(files))]
    if not folder.exists():
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        targets = [unfinished / name for name in names]
        with ProcessPoolExecutor() as pool:
            list(pool.map(partial(write_jpeg, long_side), files, targets, chunksize=32))
        unfinished.rename(folder)
    return [str(folder / name) for name in names]


def write_jpeg(long_side: int, source: str, target: Path) -> None:
    """Write a picture as an ordinary JPEG of at most long_side pixels a side."""
    from PIL import Image  # where this runs there is Pillow; where DALI runs there need not be

    with Image.open(source) as opened:
        image = opened.convert("RGB")
    if (scale := long_side / max(image.size)) < 1:
        size = [max(1, round(side * scale)) for side in image.size]
        image = image.resize(size, Image.Resampling.LANCZOS)
    image.save(target, quality=QUALITY, subsampling="4:2:0")


def tar_file(files: Sequence[str], labels: Sequence[int], cache: Path) -> str:
    """One .tar of the original files, as they are, and their labels: NNNNN.jpg and NNNNN.cls.

    In random order, as webdataset's shards are made: they are read from front to back.
    """
    path, unfinished = cache / "original.tar", cache / "original.tar.partial"
    if not path.exists():
        pairs = list(zip(files, labels, strict=True))
        random.Random(0).shuffle(pairs)
        with tarfile.open(unfinished, "w") as tar:
            for number, (file, label) in enumerate(pairs):
                add_member(tar, f"{number:05}.jpg", Path(file).read_bytes())
                add_member(tar, f"{number:05}.cls", str(label).encode())
        unfinished.rename(path)
    return str(path)


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


class Pictures(list):
    """(file, label) pairs, read when FFCV's writer asks for them."""

    def __getitem__(self, index: int) -> tuple[object, int]:
        from PIL import Image

        file, label = super().__getitem__(index)
        with Image.open(file) as image:
            return image.convert("RGB"), label


def write_beton(path: str, files: list[str], labels: list[int], long_side: int) -> None:
    """Write FFCV's file as its ImageNet recipe does, but all in JPEG."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    image = RGBImageField(write_mode="jpg", max_resolution=long_side, jpeg_quality=QUALITY)
    writer = DatasetWriter(path, {"image": image, "label": IntField()})
    writer.from_indexed_dataset(Pictures(zip(files, labels, strict=True)))
