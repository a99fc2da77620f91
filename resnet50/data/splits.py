"""The splits of a data set: a pack (pack.py), or a folder with a folder per class.

Both give encoded pictures by number, from which a crop decodes what it needs (crops.py).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np

import dataset_paths
from dataset_paths import is_picture
from resnet50.data import class_names, orientation, pack
from resnet50.data.jpeg import WholePicture
from resnet50.data.pack import PackedImages


@dataclass(frozen=True)
class ImageFolder:
    """One split: a folder with a folder per class.

    paths: (N,) bytes, relative to root, sorted; labels: (N,) int64. Both are arrays, not lists,
    since loader processes would copy a list page by page as they touch its reference counts.
    upright: how they are read (data/orientation.py).
    """

    root: Path
    classes: tuple[str, ...]
    paths: np.ndarray
    labels: np.ndarray
    upright: str = orientation.NO

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """Path of an image, for messages."""
        return str(self.root / os.fsdecode(self.paths[index]))

    def open(self, index: int) -> WholePicture:
        """Read an image; its pixels are decoded later."""
        return WholePicture(Path(self.name(index)).read_bytes(), self.upright)

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


def open_split(data_dir: Path, split: str, upright: str = orientation.AUTO) -> Split:
    """Open a pack, or list a folder.

    upright: how it is to be read (data/orientation.py). Raises ValueError naming the split and the
    remedy if it is not as expected.
    """
    found = _open(data_dir, split)
    return _read_so(found, settle([found], upright))


def settle(splits: Sequence[Split], asked: str) -> str:
    """Which way up splits are read that belong together: YES, NO or LEGACY.

    asked: one of these, or AUTO: as the first pack says, else by the classes. Raises ValueError if
    a pack's tiles, whose pixels stand, were made in another way.
    """
    packs = [split for split in splits if isinstance(split, PackedImages)]
    tiled = [split for split in packs if split.store == pack.TILES]
    if asked != orientation.AUTO:
        way = asked
    elif packs:
        way = (tiled or packs)[0].upright
    else:
        way = orientation.of_classes(splits[0].classes)
    for split in tiled:
        is_turned = split.upright == orientation.YES
        if is_turned != (way == orientation.YES):
            now, needed = ("upright", "no") if is_turned else ("as they lay in their files", "yes")
            other = tiled[0].root if asked == orientation.AUTO else f"--upright {asked}"
            raise ValueError(
                f"{split.root} holds its pictures {now}, which does not go with {other}: pack the "
                f"data again with prepare_data.py --upright {needed}, or take them as they are "
                f"with --upright {'yes' if is_turned else 'no'}"
            )
    return way


def _read_so(split: Split, way: str) -> Split:
    """The split, to be read this way."""
    if isinstance(split, ImageFolder):
        return replace(split, upright=way)
    split.upright = way
    return split


def _open(data_dir: Path, split: str) -> Split:
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
    class_names.check_spelling(classes, root)
    paths, labels = [], []
    for label, name in enumerate(classes):
        files = sorted(f for f in os.listdir(root / name) if is_picture(f))
        if not files:
            raise ValueError(f"{root / name} has no images: fill that class or remove its folder")
        paths += [os.fsencode(f"{name}/{file}") for file in files]
        labels += [label] * len(files)
    return ImageFolder(root, classes, np.array(paths), np.array(labels, dtype=np.int64))


def relabeled(split: Split, labels: Sequence[int]) -> Split:
    """The split with other labels: labels[k] for class k, and the classes in their order."""
    named = zip(labels, split.classes, strict=True)
    classes = tuple(name for _, name in sorted(named, key=itemgetter(0)))
    changed = np.array(labels, dtype=np.int64)[split.labels]
    if isinstance(split, ImageFolder):
        return replace(split, classes=classes, labels=changed)
    split.classes, split.labels = classes, changed
    return split


def open_pictures(folder: Path) -> ImageFolder:
    """Pictures without classes, in this folder or in any below it, sorted; label 0 for all.

    They are read upright, as the page shows them: no data set's figures are compared here.
    """
    if not folder.is_dir():
        raise ValueError(f"--images {folder}: no such folder")
    files = sorted(
        os.fsencode(path.relative_to(folder)) for path in folder.rglob("*") if is_picture(path.name)
    )
    if not files:
        raise ValueError(f"--images {folder} has no pictures")
    labels = np.zeros(len(files), dtype=np.int64)
    return ImageFolder(folder, (), np.array(files), labels, orientation.YES)


def open_dataset(data_dir: Path, upright: str = orientation.AUTO) -> Splits:
    """Both splits, checked to have the same classes, and read the same way up.

    upright: one of data/orientation.py's ways. Raises ValueError naming what differs.
    """
    if not data_dir.is_dir():
        raise ValueError(f"--data_dir {data_dir}: no such folder")
    train, val = _open(data_dir, "train"), _open(data_dir, "val")
    only_train = sorted(set(train.classes) - set(val.classes))
    only_val = sorted(set(val.classes) - set(train.classes))
    if only_train or only_val:
        parts = [
            f"{len(only)} only in {split.root} (such as {only[0]})"
            for only, split in ((only_train, train), (only_val, val))
            if only
        ]
        raise ValueError(f"--data_dir {data_dir}: the splits' classes differ: {', '.join(parts)}")
    way = settle([train, val], upright)
    return Splits(_read_so(train, way), _read_so(val, way))


def fingerprint(split: Split) -> dict[str, object]:
    """What identifies a split: counts, a sha256 over classes and names in order, which way up it is
    read, and how its pixels were changed (not at all in a folder or in a pack of originals)."""
    is_tiled = isinstance(split, PackedImages) and split.store == pack.TILES
    # Checkpoints of before have no such key: theirs is the way that adds none.
    way = {"upright": split.upright} if split.upright != orientation.LEGACY else {}
    return {
        "num_images": len(split),
        "num_classes": len(split.classes),
        "sha256": split.sha256,
        **way,
    } | ({"tiles": split.settings} if is_tiled else {})
