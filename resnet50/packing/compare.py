"""Whether a packed data set holds what its source does: labels, and the pixels that training sees.

For `prepare_data.py --compare`. Names and labels of all images are compared with the source's. Of
200 images of each split, spread over the classes, crops cut and resized as in training are compared
with what Pillow makes of the same rectangles of the originals: none of this project's reading,
cutting and resizing is in both. What JPEG itself loses is no fault: a picture is judged by what
Pillow keeps of it at the same size and quality.
"""

import io
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from resnet50.data import by_pillow, crops, orientation, pack, sampling, transforms
from resnet50.data.jpeg import WholePicture
from resnet50.data.pack import TILES, PackedImages
from resnet50.data.tiles import FULL_TILES, LEVEL_TILES, TiledPicture
from resnet50.data.unused import printable
from resnet50.packing import encode, fidelity
from resnet50.packing.data_set import Picture

NUM_IMAGES = 200  # of a split
SIDES = (224, 112)  # of crops in pixels; at half the size, more of them are decoded at half size
MIN_CROP_SCALE = crops.Augmentation().min_crop_scale
SEED = 0
SHOWN_CLASSES = 3
# A crop is not its original's if it is this much worse (dB) than one of what Pillow stores at the
# same size and quality, of which no more than ENOUGH counts: of photographs, none was worse by more
# than 2 dB; of white noise, by 5, since ways of resizing differ there.
MARGIN, ENOUGH = 6.0, 33.0
# What may have happened to a whole picture.
CHANGES: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "have red and blue swapped": lambda image: Image.merge("RGB", image.split()[::-1]),
    "are mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "are upside down": lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "are turned by 90 degrees": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "are turned by 180 degrees": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "are turned by 270 degrees": lambda image: image.transpose(Image.Transpose.ROTATE_270),
}
UNLIKE = "are unlike their originals"


class Stored(NamedTuple):
    """One of the sizes in which a picture is stored, and the name of that size.

    quality, subsampling: of its JPEG; None: it is the original file.
    """

    name: str
    picture: TiledPicture | WholePicture
    quality: int | None = None
    subsampling: str | None = None


class Crop(NamedTuple):
    """A crop of an image, stored in this size, beside the same rectangle of its original.

    pixels, original: uint8 (S, S, 3); psnr, ssim: of the two; by_pillow: the PSNR of a crop of what
    Pillow alone stores; fault: what is wrong, "" if nothing is.
    """

    name: str
    stored: str
    pixels: np.ndarray
    original: np.ndarray
    psnr: float
    ssim: float
    by_pillow: float
    fault: str

    @property
    def side(self) -> int:
        return len(self.pixels)


class Compared(NamedTuple):
    """Of a split: crops, what is wrong, a line each, and what was not compared."""

    crops: list[Crop]
    findings: list[str]
    remarks: list[str]


def stored_pictures(images: PackedImages, index: int) -> list[Stored]:
    """An image in every size that the pack has of it, the largest first."""
    picture, settings = images.open(index), images.settings
    if images.store != TILES:
        return [Stored("original", picture)]
    found = [Stored("full size", picture.level(0), settings["quality"], FULL_TILES.subsampling)]
    for number, size in enumerate(picture.sizes[1:], 1):
        how = picture.level(number), settings["level_quality"], LEVEL_TILES.subsampling
        found.append(Stored(f"level {max(size)}", *how))
    return found


def label_findings(
    images: PackedImages, pictures: Sequence[Picture], classes: Sequence[str]
) -> list[str]:
    """What is wrong with classes, numbers of images, names and labels, of all images."""
    found = []
    if images.classes != tuple(classes):
        there, wanted = (", ".join(names[:SHOWN_CLASSES]) for names in (images.classes, classes))
        found.append(
            f"{len(images.classes):,} classes ({there}, ...), in the source {len(classes):,} "
            f"({wanted}, ...)"
        )
    counts = Counter(images.classes[label] for label in images.labels.tolist())
    wanted = Counter(classes[picture.label] for picture in pictures)
    differing = [name for name in sorted(counts | wanted) if counts[name] != wanted[name]]
    if differing:
        shown = ", ".join(
            f"{name} has {counts[name]:,}, in the source {wanted[name]:,}"
            for name in differing[:SHOWN_CLASSES]
        )
        found.append(f"{len(differing):,} classes have other numbers of images: {shown}")
    if images.sha256 != pack.content_hash(
        classes, (os.fsencode(picture.name) for picture in pictures)
    ):
        return [*found, "its images are not those of the source, or not in the same order"]
    # The same names in the same order: image k is picture k.
    labels = np.array([picture.label for picture in pictures])
    if len(wrong := np.flatnonzero(images.labels != labels)):
        first = pictures[wrong[0]]
        other = images.classes[images.labels[wrong[0]]]
        such = f"such as {printable(first.name)}: {other}"
        found.append(f"{len(wrong):,} images have a wrong label, {such}")
    return found


def sample(images: PackedImages) -> np.ndarray:
    """Numbers of the images whose pixels are compared, int64: one of each class, then another."""
    order = sampling.epoch_order(SEED, 0, len(images))
    labels = images.labels[order]
    # How many of its class come before an image: after sorting by class, its place in its class.
    by_class = np.argsort(labels, kind="stable")
    first = np.searchsorted(labels[by_class], labels[by_class])
    rank = np.empty_like(order)
    rank[by_class] = np.arange(len(order)) - first
    return order[np.argsort(rank, kind="stable")][:NUM_IMAGES]


def compare_pixels(
    images: PackedImages,
    pictures: Sequence[Picture],
    classes: Sequence[str],
    read: Callable[[object], bytes],
) -> Compared:
    """Compare images of a sample with the source's pictures of the same names.

    read: a picture's member -> its bytes.
    """
    indices = sample(images)
    names = [images.name(index).removeprefix(f"{images.root}:") for index in indices.tolist()]
    wanted = set(names)
    by_name = {picture.name: picture for picture in pictures if picture.name in wanted}
    draws = sampling.uniforms(SEED, 0, indices, crops.FLIP)
    made, faults, unread = [], defaultdict(list), []
    for number in tqdm(range(len(indices)), desc="comparing", disable=None, leave=False):
        index, name = int(indices[number]), names[number]
        picture = by_name.get(name)
        if picture is None:
            faults["are not in the source"].append(name)
            continue
        if images.classes[images.labels[index]] != classes[picture.label]:
            faults["have another class than in the source"].append(name)
        data = read(picture.member)
        try:
            original = read_original(data, images.upright)
        except Exception as error:  # Pillow raises a dozen types
            unread.append(f"{name}: {error}")
            continue
        try:
            stored = stored_pictures(images, index)
            made += make_crops(name, stored, original, draws[number], sides_of(images))
        except Exception as error:
            faults["cannot be decoded"].append(f"{name}: {error}")
            continue
        sizes = [tuple(which.picture.size) for which in stored]
        if sizes != (right := right_sizes(images, original.size)):
            what = f"{name}: {shown(sizes)}, not {shown(right)}"
            faults["have other sizes than packing gives them"].append(what)
    findings = [*lines(faults, len(indices)), *crop_findings(made)]
    remarks = lines({"were not compared, since Pillow cannot read them": unread}, len(indices))
    return Compared(made, findings if made else [*findings, "no crop was compared"], remarks)


def lines(images: Mapping[str, Sequence[str]], total: int) -> list[str]:
    """A line for all images that have something in common, with the first of them."""
    return [
        f"{len(those)} of {total} images {what}, such as {printable(those[0])}"
        for what, those in images.items()
        if those
    ]


def right_sizes(images: PackedImages, original: tuple[int, int]) -> list[tuple[int, int]]:
    """Width and height of all that packing makes of an original of this size, largest first."""
    settings = images.settings
    limits = (settings.get(f"{which}_side", 0) for which in ("long", "short"))
    full = encode.shrunk_size(original, *limits)
    levels = [level for level in settings.get("levels", ()) if encode.gets_level(max(full), level)]
    return [full, *(encode.shrunk_size(original, level, 0) for level in levels)]


def shown(sizes: Sequence[tuple[int, int]]) -> str:
    return " and ".join(f"{width}x{height}" for width, height in sizes)


def read_original(data: bytes, upright: str) -> Image.Image:
    """A source's picture by Pillow alone, in RGB, as upright as the pack's are."""
    image = by_pillow.load(data)
    if upright == orientation.YES:
        image = ImageOps.exif_transpose(image)
    return transforms.to_rgb(image, upright == orientation.LEGACY)


def sides_of(images: PackedImages) -> Sequence[int]:
    """Sides of the crops: the usual ones that the pictures are not too small for, and one that is
    cut from the smallest level."""
    largest = images.largest_side or SIDES[0]
    smallest = min([largest, *images.settings.get("levels", ())])
    sides = {*SIDES, min(SIDES[-1], smallest // 2)}
    return sorted((side for side in sides if side <= largest), reverse=True)


def make_crops(
    name: str,
    stored: Sequence[Stored],
    original: Image.Image,
    draws: np.ndarray,
    sides: Sequence[int],
) -> Iterator[Crop]:
    """Crops of one image in all its sizes that have the pixels for them."""
    full_size = stored[0].picture.size
    box = crops.crop_boxes(draws[None], np.array([full_size]), MIN_CROP_SCALE)[0]
    for which in stored:
        size = which.picture.size
        own_box = box_within(box, full_size, size)
        again = stored_by_pillow(original, which)
        for side in sides:
            if size != full_size and min(own_box[2:] - own_box[:2]) < side:
                continue
            boxes, shrinks = crops.reduce_boxes(own_box[None], side)
            reduced = boxes[0].tolist()
            pixels = np.empty((side, side, 3), np.uint8)
            crops.resize(which.picture.crop(*reduced, int(shrinks[0])), pixels)
            right = fidelity.pillow_crop(original, reduced, size, side, is_cut=True)
            psnr, ssim = fidelity.psnr(pixels, right), fidelity.ssim(pixels, right)
            other = fidelity.pillow_crop(again, reduced, size, side, is_cut=True)
            pillow_psnr = fidelity.psnr(other, right)
            least = min(pillow_psnr, ENOUGH) - MARGIN
            fault = "" if psnr >= least else fault_of(pixels, again, reduced, size, least)
            yield Crop(name, which.name, pixels, right, psnr, ssim, pillow_psnr, fault)


def box_within(box: np.ndarray, full_size: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """A rectangle of the full-size picture, int64 (4,), on one of another size."""
    size, full_size = np.array(size), np.array(full_size)
    return np.concatenate([box[:2] * size // full_size, -(-box[2:] * size // full_size)])


def fault_of(
    pixels: np.ndarray, right: Image.Image, box: Sequence[int], size: Sequence[int], least: float
) -> str:
    """What has happened to a picture whose crop has these pixels, if anything explains them.

    right: what it should be; box: of the crop on a picture of this size; least: PSNR of a match.
    """
    for what, change in CHANGES.items():
        changed = fidelity.pillow_crop(change(right), box, size, len(pixels), is_cut=True)
        if fidelity.psnr(pixels, changed) >= least:
            return what
    return UNLIKE


def stored_by_pillow(original: Image.Image, stored: Stored) -> Image.Image:
    """What Pillow alone keeps of an original at the same size and quality."""
    if stored.quality is None:
        return original
    file = io.BytesIO()
    smaller = original.resize(stored.picture.size, Image.Resampling.LANCZOS)
    smaller.save(file, "JPEG", quality=stored.quality, subsampling=stored.subsampling)
    return Image.open(file)


def crop_findings(made: Sequence[Crop]) -> list[str]:
    """What is wrong with crops, a line for every kind of fault in every size."""
    kinds = defaultdict(list)
    for crop in made:
        if crop.fault:
            kinds[crop.stored, crop.fault].append(crop)
    totals = Counter(crop.stored for crop in made)
    found = []
    for (stored, what), those in kinds.items():
        first = those[0]
        how = f"{first.psnr:.1f} dB, {first.by_pillow:.1f} if Pillow alone stores it"
        such = f"such as {printable(first.name)} at {first.side} px: {how}"
        found.append(f"{len(those)} of {totals[stored]} crops ({stored}) {what}, {such}")
    return found
