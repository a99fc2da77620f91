"""Splits of a data set, and how their images become training and evaluation batches.

A split is a pack (packed_images.py) or a folder with a folder per class; both give encoded pictures
by number, from which a crop decodes what it needs. Which image comes when, and its crop, are pure
functions (sampling.py); the work is done in other processes (feeding.py).
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn import functional

import augment
import dataset_paths
import packed_images
import sampling
import transforms
from dataset_paths import is_picture
from jpeg import WholePicture
from packed_images import PackedImages
from slots import Slot

# Which of an image's random numbers are for what. New ones go to the end, so that the old stay.
FLIP = transforms.CROP_DRAWS
TRIVIAL = slice(FLIP + 1, FLIP + 1 + augment.TRIVIAL_DRAWS)
ERASING = slice(TRIVIAL.stop, TRIVIAL.stop + augment.ERASING_DRAWS)
CHUNK = 32  # pictures that are open at once: encoded, so a few megabytes
# A shrunken crop needs anti-aliasing. Below this factor OpenCV's plain bilinear loses little and
# takes a third of the time; 1.5 would give 6% more images a second and cost 0.9 dB.
ANTIALIAS_FROM = 1.25
MAX_REPLACEMENTS = 100  # images tried in place of one that cannot be decoded, before black


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
        """Nothing: to find a file on the disk is to read it."""

    @property
    def sha256(self) -> str:
        return packed_images.content_hash(self.classes, self.paths)


Split = ImageFolder | PackedImages


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


def open_dataset(data_dir: Path) -> tuple[Split, Split]:
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
    return train, val


def fingerprint(split: Split) -> dict[str, object]:
    """What identifies a split: counts, a sha256 over classes and names in order, and how its pixels
    were changed, which those of a folder and of a pack of originals were not."""
    is_tiled = isinstance(split, PackedImages) and split.store == packed_images.TILES
    return {
        "num_images": len(split),
        "num_classes": len(split.classes),
        "sha256": split.sha256,
    } | ({"tiles": split.settings} if is_tiled else {})


class Augmentation(NamedTuple):
    """min_crop_scale: part of the area that a crop takes at least; random_erasing: probability."""

    min_crop_scale: float = 0.08
    flip: bool = True
    trivial_augment: bool = False
    random_erasing: float = 0.0


class TrainImages:
    """Fills slots with randomly cropped training images; flips are drawn, and left to the device.

    An image that cannot be decoded is replaced by the next one that can, always the same.
    """

    def __init__(self, split: Split, seed: int, augmentation: Augmentation) -> None:
        self._split, self._seed, self._augmentation = split, seed, augmentation

    def __call__(self, slot: Slot) -> None:
        cv2.setNumThreads(0)  # threads of its own would stand in the other workers' way
        key, images = slot.key, slot.images
        draws = sampling.uniforms(self._seed, key.epoch, key.indices, ERASING.stop)
        slot.flips[:] = (draws[:, FLIP] < 0.5) & self._augmentation.flip
        slot.labels[:] = self._split.labels[key.indices]
        self._split.will_need(key.indices)
        for start in range(0, len(images), CHUNK):
            chunk = slice(start, start + CHUNK)
            failed = self._fill(images[chunk], key.indices[chunk], draws[chunk], slot)
            for place in failed:
                self._replace(slot, start + place, draws[start + place])
        if probability := self._augmentation.random_erasing:
            boxes = augment.erasing_boxes(draws[:, ERASING], key.image_size, probability)
            augment.erase(images, boxes)

    def _fill(
        self, images: np.ndarray, indices: np.ndarray, draws: np.ndarray, slot: Slot
    ) -> list[int]:
        """Put crops of these pictures into `images`; returns the places of those that failed."""
        pictures, failed = [], []
        for place, index in enumerate(indices.tolist()):
            try:
                pictures.append(self._split.open(index))
            except Exception as error:  # whatever is damaged, it may not stop a run
                pictures.append(None)
                failed.append(place)
                complain(slot, self._split, index, error)
        sizes = np.array([picture.size if picture else (1, 1) for picture in pictures])
        crop_draws, min_crop_scale = draws[:, :FLIP], self._augmentation.min_crop_scale
        boxes = transforms.crop_boxes(crop_draws, sizes, min_crop_scale)
        boxes, shrinks = (array.tolist() for array in reduce_boxes(boxes, images.shape[1]))
        for place, picture in enumerate(pictures):
            try:
                if picture is None:
                    continue
                resize(picture.crop(*boxes[place], shrinks[place]), images[place])
                if self._augmentation.trivial_augment:
                    images[place] = augment.trivial_augment(images[place], draws[place, TRIVIAL])
            except Exception as error:
                failed.append(place)
                complain(slot, self._split, int(indices[place]), error)
        return failed

    def _replace(self, slot: Slot, place: int, draws: np.ndarray) -> None:
        """Put the next image that can be decoded; black if there is none for long."""
        slot.images[place] = 0
        index = int(slot.key.indices[place])
        for number in range(index + 1, index + 1 + MAX_REPLACEMENTS):
            number %= len(self._split)
            if not self._fill(slot.images[place][None], np.array([number]), draws[None], slot):
                slot.labels[place] = self._split.labels[number]
                return


class EvalImages:
    """Fills slots with centre crops; an image that cannot be decoded is black, and counts."""

    def __init__(self, split: Split, resize_size: int) -> None:
        self._split, self._resize_size = split, resize_size

    def __call__(self, slot: Slot) -> None:
        key, images = slot.key, slot.images
        slot.flips[:] = False
        slot.labels[:] = self._split.labels[key.indices]
        self._split.will_need(key.indices)
        for place, index in enumerate(key.indices.tolist()):
            try:
                image = Image.fromarray(self._split.open(index).pixels())
                images[place] = transforms.eval_crop(image, self._resize_size, key.image_size)
            except Exception as error:
                images[place] = 0
                complain(slot, self._split, index, error)


def complain(slot: Slot, split: Split, index: int, error: Exception) -> None:
    """Name an image that cannot be decoded; Pillow raises a dozen types for damaged data."""
    reason = re.sub(r"<_io\.BytesIO object at \w+>", "file", str(error))
    slot.add_fault(f"{split.name(index)}: {type(error).__name__}: {reason}")


def reduce_boxes(boxes: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rectangles (B, 4) of crops, and by what each is to be shrunk in decoding: 1, 2 or 4, (B,).

    A crop of twice the size or more is decoded at half of it, which saves a quarter of its time and
    leaves 42 dB; its edges move inwards to even pixels, since others would lie between two.
    """
    boxes, shrinks = boxes.copy(), np.ones(len(boxes), dtype=np.int64)
    for shrink in (2, 4):
        first = -(-boxes[:, :2] // shrink) * shrink
        last = boxes[:, 2:] // shrink * shrink
        fits = (last - first).min(axis=1) >= shrink * size
        boxes[fits, :2], boxes[fits, 2:], shrinks[fits] = first[fits], last[fits], shrink
    return boxes, shrinks


def resize(pixels: np.ndarray, out: np.ndarray) -> None:
    """Bilinear, anti-aliased where it shrinks: uint8 (H, W, 3) into `out`, uint8 (S, S, 3)."""
    size = len(out)
    if max(pixels.shape[:2]) <= ANTIALIAS_FROM * size:
        cv2.resize(pixels, (size, size), dst=out, interpolation=cv2.INTER_LINEAR)
        return
    # In this form torch sees channels_last, and its vectorised path is 2 times as fast.
    batch = torch.from_numpy(np.ascontiguousarray(pixels))[None].permute(0, 3, 1, 2)
    resized = functional.interpolate(batch, (size, size), mode="bilinear", antialias=True)
    out[:] = resized[0].permute(1, 2, 0).numpy()
