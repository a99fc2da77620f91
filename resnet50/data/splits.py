"""The splits of a data set: a pack (pack.py), or a folder with a folder per class.

Both give encoded pictures by number, from which a crop decodes what it needs (crops.py).
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np

import dataset_paths
from dataset_paths import EXTENSIONS, is_picture
from resnet50.data import by_pillow, class_folders, folders, orientation, pack, remedies
from resnet50.data.folders import ImageFolder
from resnet50.data.pack import PackedImages
from resnet50.data.transforms import is_deep_gray
from resnet50.data.unused import Unused

Split = ImageFolder | PackedImages
NUM_SAMPLED = 16  # files of a folder that are looked into when a run starts


class Splits(NamedTuple):
    """A data set for training. val is None only in bench.py, if there is no validation split."""

    train: Split
    val: Split | None


def find_split(data_dir: Path, split: str) -> Path:
    """Pack or folder of a split. Raises ValueError if there is none, with a remedy for what is
    there."""
    if not data_dir.is_dir():
        raise ValueError(remedies.no_such_folder(data_dir))
    try:
        return dataset_paths.split_path(data_dir, split)
    except ValueError as error:
        raise ValueError(f"{error}{remedies.other_splits(data_dir)}") from error


def _if_packed(data_dir: Path, train: "Split", val: "Split") -> str:
    """The remedy for splits whose classes differ: prepare_data.py can read a val/ whose pictures
    are one folder too deep, and few-shot data sets."""
    too_deep = len(val.classes) == 1 and dataset_paths.are_wnids(train.classes)
    few_shot = not set(train.classes) & set(val.classes) and (data_dir / "test").is_dir()
    if isinstance(train, ImageFolder) and (too_deep or few_shot):
        return f". prepare_data.py may know these: {remedies.then_train(data_dir)}"
    return ""


def open_split(data_dir: Path, split: str, upright: str = orientation.AUTO) -> Split:
    """Open a pack, or list a folder.

    upright: how it is to be read (data/orientation.py). Raises ValueError naming the split and the
    remedy if it is not usable.
    """
    found = _open(data_dir, split, upright)
    return _read_so(found, settle([found], upright))


def settle(splits: Sequence[Split], asked: str) -> str:
    """Which way up the splits of one data set are read: YES, NO or LEGACY.

    asked: one of these, or AUTO: as the first pack says, else by the classes. Raises ValueError if
    a pack's tiles, which cannot be turned, were made in another way.
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
            now, needed = ("upright", "no") if is_turned else ("as stored in their files", "yes")
            other = tiled[0].root if asked == orientation.AUTO else f"--upright {asked}"
            raise ValueError(
                f"{split.root} holds its pictures {now}, which does not match {other}: pack the "
                f"data again with prepare_data.py --upright {needed}, or take them as they are "
                f"with --upright {'yes' if is_turned else 'no'}"
            )
    return way


def _read_so(split: Split, way: str) -> Split:
    """The same split, read this way up."""
    if isinstance(split, ImageFolder):
        return replace(split, upright=way)
    split.upright = way
    return split


def _open(data_dir: Path, split: str, upright: str) -> Split:
    root = find_split(data_dir, split)
    if root.is_file():
        return PackedImages(root)
    is_legacy = upright == orientation.LEGACY
    ends = dataset_paths.LEGACY_ENDS if is_legacy else dataset_paths.PICTURE_ENDS
    return folders.list_split(data_dir, root, ends)


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
    """Pictures without classes, in this folder or in any below it, links followed, sorted; label 0
    for all. A single picture is a folder of one.

    They are read upright, as the page shows them: no published figures are compared here.
    """
    if folder.is_file():
        if not is_picture(folder.name):
            raise ValueError(f"--images {folder} is not a picture: {', '.join(EXTENSIONS)} are")
        folder, names, passed = folder.parent, [os.fsencode(folder.name)], Unused()
    elif folder.is_dir():
        names, passed = folders.list_pictures(folder)
    else:
        raise ValueError(f"--images {folder}: no such file or folder")
    if not names:
        what = f"--images {folder} has no pictures"
        raise ValueError(f"{what}; {passed.line()}" if passed.line() else what)
    labels = np.zeros(len(names), dtype=np.int64)
    return ImageFolder(folder, (), np.array(names), labels, orientation.YES, passed)


def open_dataset(data_dir: Path, upright: str = orientation.AUTO) -> Splits:
    """Both splits, checked to have the same classes, and read the same way up.

    upright: one of data/orientation.py's ways. Raises ValueError naming what differs, and for
    a single class.
    """
    for split in ("train", "val"):  # a missing split is reported before faults of the other
        find_split(data_dir, split)
    train, val = (_open(data_dir, split, upright) for split in ("train", "val"))
    if what := class_folders.difference(train.classes, val.classes, train.root, val.root):
        raise ValueError(f"--data_dir {data_dir}: {what}{_if_packed(data_dir, train, val)}")
    class_folders.check_names(train.classes, train.root)
    class_folders.check_number(train.classes, train.root)
    for split in (train, val):
        if isinstance(split, ImageFolder) and dataset_paths.are_wnids(split.classes):
            class_folders.check_val_pictures(split.imagenet_val_names(), split.root)
    way = settle([train, val], upright)
    return Splits(_read_so(train, way), _read_so(val, way))


def unused_line(*splits: Split) -> str:
    """The unused files in the folders of images, in one line; "" if there are none."""
    listed = [split for split in splits if isinstance(split, ImageFolder)]
    return Unused().include(split.unused for split in listed).line()


def deep_gray_line(split: Split) -> str:
    """A warning if a folder has gray pictures of more than 8 bits, judged by a few of its files;
    "" otherwise. prepare_data.py looks at every picture."""
    if not isinstance(split, ImageFolder) or split.upright == orientation.LEGACY:
        return ""
    for index in np.unique(np.linspace(0, len(split) - 1, NUM_SAMPLED).astype(int)):
        path = Path(split.name(index))
        try:
            data = path.read_bytes()
            image = by_pillow.open_picture(data)
        except Exception:  # counted when it is decoded
            continue
        if by_pillow.loses_bits(image, data):
            return f"warning: {path} has 16 bits a channel, of which the upper 8 are read"
        if is_deep_gray(image.mode):
            return (
                f"warning: {path} has gray values of more than 8 bits; each such picture is scaled "
                "by the bits that its own values need (docs/recipes.md, Data)"
            )
    return ""


def passed_over(data_dir: Path, splits: Splits) -> list[str]:
    """Whole splits in data_dir that are not used: folders beside their packs, a second val."""
    said = []
    for split in filter(None, splits):
        names = dataset_paths.VAL_NAMES if split is splits.val else ("train",)
        others = [f"{name}/" for name in names if (data_dir / name).is_dir()]
        others = [name for name in others if data_dir / name.rstrip("/") != split.root]
        if others:
            said.append(
                f"{split.root.name} is used, and not {' and '.join(others)} beside it"
                + (
                    ": pack again if that has grown (prepare_data.py)"
                    if isinstance(split, PackedImages)
                    else ""
                )
            )
    return said


def fingerprint(split: Split) -> dict[str, object]:
    """What identifies a split: counts, a sha256 over classes and names in order, which way up it is
    read, and how its pixels were changed (not at all in a folder or in a pack of originals)."""
    is_tiled = isinstance(split, PackedImages) and split.store == pack.TILES
    # Older checkpoints have no such key, and LEGACY adds none.
    way = {"upright": split.upright} if split.upright != orientation.LEGACY else {}
    return {
        "num_images": len(split),
        "num_classes": len(split.classes),
        "sha256": split.sha256,
        **way,
    } | ({"tiles": split.settings} if is_tiled else {})
