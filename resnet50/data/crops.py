"""How the images of a split become training and evaluation batches.

A crop's rectangle and its augmentation are a pure function of random numbers, and those of (seed,
epoch, index) (sampling.py). The work is done in worker processes (loader.py).

Shape letters: B batch, H and W height and width in pixels, S side of a square crop.
"""

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image

from resnet50.data import augment, sampling, tiles, transforms
from resnet50.data.batch import Slot
from resnet50.data.jpeg import WholePicture
from resnet50.data.pack import PackedImages
from resnet50.data.sampling import BatchKey
from resnet50.data.splits import Split
from resnet50.data.tiles import TiledPicture

MIN_RATIO, MAX_RATIO = 3 / 4, 4 / 3
CROP_ATTEMPTS = 10
CROP_DRAWS = 2 * CROP_ATTEMPTS + 2  # uniform numbers that `crop_boxes` uses up for one picture
# What each of an image's random numbers is for. New ones go at the end, so that no other moves.
FLIP = CROP_DRAWS
TRIVIAL = slice(FLIP + 1, FLIP + 1 + augment.TRIVIAL_DRAWS)
ERASING = slice(TRIVIAL.stop, TRIVIAL.stop + augment.ERASING_DRAWS)
# Pictures that are open at once, encoded. The more they are, the less numpy's calls cost each.
MIN_CHUNK, MAX_CHUNK, CHUNK_BYTES = 32, 128, 16 << 20
# A shrunken crop needs anti-aliasing. Below this factor OpenCV's plain bilinear loses little and
# takes half the time; 1.5 would cost 0.9 dB of PSNR.
ANTIALIAS_FROM = 1.25
MAX_REPLACEMENTS = 100  # images tried in place of one that cannot be decoded, before black


class Augmentation(NamedTuple):
    """min_crop_scale: smallest share of the area for a crop; random_erasing: probability."""

    min_crop_scale: float = 0.08
    flip: bool = True
    trivial_augment: bool = False
    random_erasing: float = 0.0
    alternate_flips: bool = False


class TrainImages:
    """Fills slots with randomly cropped training images; flips are drawn here, done on the device.

    An image that cannot be decoded is replaced by the next one that can, always the same.
    """

    def __init__(self, split: Split, seed: int, augmentation: Augmentation) -> None:
        self._split, self._seed, self._augmentation = split, seed, augmentation
        is_pack = isinstance(split, PackedImages)
        fitting = CHUNK_BYTES // split.mean_bytes if is_pack else 0
        self._chunk = min(max(MIN_CHUNK, fitting), MAX_CHUNK)
        # Before the first of them is resized; more would hold more memory and gain nothing. A
        # folder's files may be large: one by one.
        self._decoded_at_once = self._chunk // 8 if is_pack else 1

    @torch.inference_mode()  # so that autograd records nothing
    def __call__(self, slot: Slot) -> None:
        cv2.setNumThreads(0)  # OpenCV's own threads would compete with the other workers
        key, images = slot.key, slot.images
        # All random numbers of the batch at once, by a hash: a generator per image would cost more
        # than its crop. Methods that are off get theirs, too, so that turning one on changes no
        # other's.
        draws = sampling.uniforms(self._seed, key.epoch, key.indices, ERASING.stop)
        # Drawn here but applied on the device, where it costs nothing.
        slot.flips[:] = self._flips(key, draws) & self._augmentation.flip
        slot.labels[:] = self._split.labels[key.indices]
        # The disk reads all of them while we decode the first.
        self._split.will_need(key.indices, key.image_size)
        for start in range(0, len(images), self._chunk):
            chunk = slice(start, start + self._chunk)
            failed = self._fill(images[chunk], key.indices[chunk], draws[chunk], slot)
            for place in failed:
                self._replace(slot, start + place, draws[start + place])
        if probability := self._augmentation.random_erasing:
            boxes = augment.erasing_boxes(draws[:, ERASING], key.image_size, probability)
            augment.erase(images, boxes)

    def _flips(self, key: BatchKey, draws: np.ndarray) -> np.ndarray:
        """Which images are mirrored, bool (B,)."""
        if not self._augmentation.alternate_flips:
            return draws[:, FLIP] < 0.5
        # As drawn for the first epoch, and from then on alternately: no image comes twice running
        # in the same way, which repeated draws do half of the time.
        first = sampling.uniforms(self._seed, 0, key.indices, FLIP + 1)[:, FLIP] < 0.5
        return first ^ bool(key.epoch % 2)

    def _fill(
        self, images: np.ndarray, indices: np.ndarray, draws: np.ndarray, slot: Slot
    ) -> list[int]:
        """Put crops of these pictures into `images`; returns the places of those that failed.

        What is not decoding is done for all pictures at once, or for one after the other: code that
        has just run takes half as long, and decoding drives it out of the processor's caches.
        """
        side, is_trivial = images.shape[1], self._augmentation.trivial_augment
        numbers = indices.tolist()

        def try_each(work: Callable[[int, Any], Any], items: dict[int, Any]) -> dict[int, Any]:
            """What `work` makes of a place and what is there, without those where it fails."""
            done = {}
            for place, item in items.items():
                try:
                    done[place] = work(place, item)
                except Exception as error:
                    # A damaged image must not stop a run; --max_bad_images does, and names them.
                    note_undecodable(slot, self._split, numbers[place], error)
            return done

        def finish(place: int, pixels: np.ndarray) -> None:
            resize(pixels, images[place])
            if is_trivial:
                images[place] = augment.trivial_augment(images[place], draws[place, TRIVIAL])

        pictures = try_each(
            lambda _, number: self._split.open(number, side), dict(enumerate(numbers))
        )
        # A picture's size is in its header, and a crop's rectangle depends on nothing else: it is
        # known before a pixel is decoded.
        sizes = stacked(
            [pictures[i].sizes if i in pictures else [(1, 1)] for i in range(len(numbers))]
        )
        boxes = crop_boxes(draws[:, :FLIP], sizes[:, 0], self._augmentation.min_crop_scale)
        boxes, levels = pick_levels(boxes, sizes, side)
        boxes, shrinks = reduce_boxes(boxes, side)
        levels = levels.tolist()
        # Of all, before the first is read.
        for place, picture in pictures.items():
            picture.will_need(levels[place])
        sources = try_each(lambda place, picture: picture.level(levels[place]), pictures)
        places = list(sources)
        decoders = crop_decoders(list(sources.values()), boxes[places], shrinks[places])
        done: set[int] = set()
        for start in range(0, len(places), self._decoded_at_once):
            some = slice(start, start + self._decoded_at_once)
            waiting = dict(zip(places[some], decoders[some], strict=True))
            done |= try_each(finish, try_each(lambda _, decode: decode(), waiting)).keys()
        return [place for place in range(len(numbers)) if place not in done]

    def _replace(self, slot: Slot, place: int, draws: np.ndarray) -> None:
        """Put the next image that can be decoded; black if none is found soon."""
        # By number, not at random: the batch stays a function of (seed, epoch, index).
        slot.images[place] = 0
        index = int(slot.key.indices[place])
        for number in range(index + 1, index + 1 + MAX_REPLACEMENTS):
            number %= len(self._split)
            if not self._fill(slot.images[place][None], np.array([number]), draws[None], slot):
                slot.labels[place] = self._split.labels[number]
                return


class EvalImages:
    """Fills slots with center crops; an image that cannot be decoded is black, but still counts."""

    def __init__(self, split: Split, resize_size: int, interpolation: str = "bilinear") -> None:
        self._split, self._resize_size = split, resize_size
        self._interpolation = interpolation

    def __call__(self, slot: Slot) -> None:
        key, images = slot.key, slot.images
        slot.flips[:] = False
        slot.labels[:] = self._split.labels[key.indices]
        self._split.will_need(key.indices)
        for place, index in enumerate(key.indices.tolist()):
            try:
                # With Pillow, as everyone evaluates, so that results compare with published ones.
                image = Image.fromarray(self._split.open(index).pixels())
                images[place] = transforms.eval_crop(
                    image, self._resize_size, key.image_size, self._interpolation
                )
            except Exception as error:
                images[place] = 0
                note_undecodable(slot, self._split, index, error)


def note_undecodable(slot: Slot, split: Split, index: int, error: Exception) -> None:
    """Name an image that cannot be decoded; Pillow raises a dozen types for damaged data."""
    reason = re.sub(r"<_io\.BytesIO object at \w+>", "file", str(error))
    slot.add_fault(f"{split.name(index)}: {type(error).__name__}: {reason}")


def crop_boxes(draws: np.ndarray, sizes: np.ndarray, min_scale: float) -> np.ndarray:
    """Random rectangles, torchvision's RandomResizedCrop for a whole batch at once.

    draws: (B, CROP_DRAWS) uniform in [0, 1); sizes: (B, 2) int widths and heights.
    Returns (B, 4) int64: left, top, right, bottom. A rectangle has between min_scale and 1 of the
    picture's area and an aspect ratio between 3/4 and 4/3; the first of ten attempts that fits is
    taken, else the largest centered rectangle of an allowed ratio.
    """
    widths, heights = sizes[:, :1].astype(np.float64), sizes[:, 1:].astype(np.float64)
    area = widths * heights * (min_scale + (1 - min_scale) * draws[:, :CROP_ATTEMPTS])
    log_min, log_max = math.log(MIN_RATIO), math.log(MAX_RATIO)
    ratio = np.exp(log_min + (log_max - log_min) * draws[:, CROP_ATTEMPTS : 2 * CROP_ATTEMPTS])
    crop_w, crop_h = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (crop_w > 0) & (crop_h > 0) & (crop_w <= widths) & (crop_h <= heights)

    rows, first = np.arange(len(draws)), fits.argmax(axis=1)
    widths, heights = widths[:, 0], heights[:, 0]
    found = fits[rows, first]
    width = np.where(found, crop_w[rows, first], np.minimum(widths, np.rint(heights * MAX_RATIO)))
    height = np.where(found, crop_h[rows, first], np.minimum(heights, np.rint(widths / MIN_RATIO)))
    left = np.floor(draws[:, -2] * (widths - width + 1))
    top = np.floor(draws[:, -1] * (heights - height + 1))
    left = np.where(found, left, (widths - width) // 2)
    top = np.where(found, top, (heights - height) // 2)
    return np.stack([left, top, left + width, top + height], axis=1).astype(np.int64)


def stacked(sizes: Sequence[Sequence[tuple[int, int]]]) -> np.ndarray:
    """Widths and heights of all that is stored of each picture, largest first, as (B, L, 2) int64,
    with zeros where there is nothing."""
    most = max(map(len, sizes))
    padded = [[*of_one, *[(0, 0)] * (most - len(of_one))] for of_one in sizes]
    return np.array(padded, dtype=np.int64)


def pick_levels(
    boxes: np.ndarray, sizes: np.ndarray, image_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where each crop is cut from: rectangles (B, 4) there, and the numbers of the levels, (B,).

    boxes: (B, 4), drawn on the full pictures; sizes: as `stacked` gives them. The smallest level is
    taken whose part of the rectangle has at least image_size pixels on both sides: then nothing
    that the crop shows is missing, and the least is decoded. Edges fall on whole pixels of the
    level, outwards. All in integers, a function of box and sizes alone, so that a batch is the same
    whoever makes it.
    """
    picked, levels = boxes.copy(), np.zeros(len(boxes), dtype=np.int64)
    full = sizes[:, 0]
    for level in range(1, sizes.shape[1]):
        first = boxes[:, :2] * sizes[:, level] // full
        last = -(-boxes[:, 2:] * sizes[:, level] // full)
        fits = (last - first).min(axis=1) >= image_size
        picked[fits] = np.concatenate([first, last], axis=1)[fits]
        levels[fits] = level
    return picked, levels


def reduce_boxes(boxes: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rectangles (B, 4) of crops, and the factor to shrink each by in decoding: 1, 2 or 4, (B,).

    A crop of at least twice the size is decoded at half of it, which saves a quarter of the time
    and keeps a PSNR of 42 dB; its edges move inwards to even pixels, the ones that halving keeps.
    """
    boxes, shrinks = boxes.copy(), np.ones(len(boxes), dtype=np.int64)
    for shrink in (2, 4):
        first = (boxes[:, :2] + shrink - 1) // shrink * shrink
        last = boxes[:, 2:] // shrink * shrink
        fits = (last - first).min(axis=1) >= shrink * size
        boxes[fits, :2] = first[fits]
        boxes[fits, 2:] = last[fits]
        shrinks[fits] = shrink
    return boxes, shrinks


def crop_decoders(
    pictures: Sequence[TiledPicture | WholePicture], boxes: np.ndarray, shrinks: np.ndarray
) -> list[Callable[[], np.ndarray]]:
    """Functions that decode a crop of each picture. boxes, shrinks: as `reduce_boxes` gives them.

    The pictures are of one split, all tiled or all whole.
    """
    if pictures and isinstance(pictures[0], TiledPicture):
        return [one.pixels for one in tiles.cut(pictures, boxes, shrinks)]
    crops = zip(pictures, boxes.tolist(), shrinks.tolist(), strict=True)
    return [partial(picture.crop, *box, shrink) for picture, box, shrink in crops]


def resize(pixels: np.ndarray, out: np.ndarray) -> None:
    """Bilinear, anti-aliased where it shrinks: uint8 (H, W, 3) into `out`, uint8 (S, S, 3)."""
    size = len(out)
    # Enlarging, or shrinking by little: no pixel is left out, so nothing can alias.
    if max(pixels.shape[:2]) <= ANTIALIAS_FROM * size:
        cv2.resize(pixels, (size, size), dst=out, interpolation=cv2.INTER_LINEAR)
        return
    # In this form torch sees channels_last, and its vectorized path is 2 times as fast. This is
    # functional.interpolate without its Python, and without a copy of the result; a private name,
    # but the one that interpolate calls, and test_crops.py compares the pixels.
    source, target = (
        torch.from_numpy(array.reshape(1, *array.shape)).permute(0, 3, 1, 2)
        for array in (np.ascontiguousarray(pixels), out)
    )
    torch._C._nn._upsample_bilinear2d_aa(source, (size, size), False, None, None, out=target)
