"""The splits of a data set: a pack (pack.py), or a folder with a folder per class.

Both give encoded pictures by number, from which a crop decodes what it needs (crops.py).
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

import dataset_paths
from dataset_paths import is_picture
from resnet50.data import pack
from resnet50.data.jpeg import WholePicture
from resnet50.data.pack import PackedImages


@dataclass(frozen=True)
class ImageFolder:
    """One split: a folder with a folder per class.

    paths: (N,) bytes, relative to root, sorted; labels: (N,) int64. Both are arrays, not lists,
    since loader processes would copy a list page by page as they touch its reference counts.
    """

    root: Path
    classes: tuple[str, ...]
    paths: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """Path of an image, for messages."""
        return str(self.root / os.fsdecode(self.paths[index]))

    def open(self, index: int) -> WholePicture:
        """Read an image; its pixels are decoded later."""
        return WholePicture(Path(self.name(index)).read_bytes())

    def extents(self, indices: np.ndarray) -> list[tuple[Path, int, int]]:
        """File, offset and bytes of images on the disk."""
        paths = [Path(self.name(index)) for index in indices.tolist()]
        return [(path, 0, path.stat().st_size) for path in paths]

    def will_need(self, indices: np.ndarray) -> None:
        """Does nothing: finding where a file is on the disk takes as long as reading it."""

    @property
    def largest_side(self) -> int:
        """Pixels that pictures were shrunk to: 0, since a folder's were not shrunk."""
        return 0

    @property
    def sha256(self) -> str:
        return pack.content_hash(self.classes, self.paths)


Split = ImageFolder | PackedImages


class Splits(NamedTuple):
    """A data set for training. val is None only in bench.py, if there is no validation split."""

    train: Split
    val: Split | None


def open_split(data_dir: Path, split: str) -> Split:
    """Open a pack, or list a folder.

    Raises ValueError naming it and the remedy if it is not as expected.
    """
    root = dataset_paths.split_path(data_dir, split)
    if root.is_file():
        return PackedImages(root)
    with os.scandir(root) as entries:
        names = [(entry.name, entry.is_dir()) for entry in entries if entry.name[0] != "."]
    classes = tuple(sorted(name for name, is_dir in names if is_dir))
    loose = [name for name, is_dir in names if not is_dir and is_picture(name)]
    if loose and not classes:
        raise ValueError(
            f"{root} is flat: {len(loose)} images such as {loose[0]} and no class folders. "
            f"Move each to {root}/CLASS/ (ImageNet's classes are in LOC_val_solution.csv and in "
            "the devkit); training on it as it is would score 0.1%"
        )
    if not classes:
        raise ValueError(f"{root} has no class folders")
    paths, labels = [], []
    for label, name in enumerate(classes):
        files = sorted(f for f in os.listdir(root / name) if is_picture(f))
        if not files:
            raise ValueError(f"{root / name} has no images: fill that class or remove its folder")
        paths += [os.fsencode(f"{name}/{file}") for file in files]
        labels += [label] * len(files)
    return ImageFolder(root, classes, np.array(paths), np.array(labels, dtype=np.int64))


def open_pictures(folder: Path) -> ImageFolder:
    """Pictures without classes, in this folder or in any below it, sorted; label 0 for all."""
    if not folder.is_dir():
        raise ValueError(f"--images {folder}: no such folder")
    files = sorted(
        os.fsencode(path.relative_to(folder)) for path in folder.rglob("*") if is_picture(path.name)
    )
    if not files:
        raise ValueError(f"--images {folder} has no pictures")
    return ImageFolder(folder, (), np.array(files), np.zeros(len(files), dtype=np.int64))


def open_dataset(data_dir: Path) -> Splits:
    """Both splits, checked to have the same classes. Raises ValueError naming what differs."""
    if not data_dir.is_dir():
        raise ValueError(f"--data_dir {data_dir}: no such folder")
    train, val = open_split(data_dir, "train"), open_split(data_dir, "val")
    only_train = sorted(set(train.classes) - set(val.classes))
    only_val = sorted(set(val.classes) - set(train.classes))
    if only_train or only_val:
        parts = [
            f"{len(only)} only in {split.root} (such as {only[0]})"
            for only, split in ((only_train, train), (only_val, val))
            if only
        ]
        raise ValueError(f"--data_dir {data_dir}: the splits' classes differ: {', '.join(parts)}")
    return Splits(train, val)


def fingerprint(split: Split) -> dict[str, object]:
    """What identifies a split: counts, a sha256 over classes and names in order, and how its pixels
    were changed (not at all in a folder or in a pack of originals)."""
    is_tiled = isinstance(split, PackedImages) and split.store == pack.TILES
    return {
        "num_images": len(split),
        "num_classes": len(split.classes),
        "sha256": split.sha256,
    } | ({"tiles": split.settings} if is_tiled else {})
