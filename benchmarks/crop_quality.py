"""How close the training crops come to those of the original pictures, and what others lose.

    python benchmarks/crop_quality.py
    python benchmarks/crop_quality.py --data_dir /data/imagenet --image_sizes 224

The reference is the original, decoded whole by Pillow, and Pillow's bilinear resize with
anti-aliasing of the same rectangle. A crop of ours is what train.py would see: from a pack, cut out
of the compressed bytes and resized in its own way. If a pack holds shrunken pictures, the rectangle
is drawn on these, and the reference's is the same one scaled up; so it is if the crop is cut from a
smaller level. Yardsticks:
Pillow's bicubic filter instead of its bilinear one, and what FFCV does (the whole JPEG decoded,
OpenCV's INTER_AREA) with pictures of the same size and quality.

PSNR in dB is the mean over the crops, with the 10th percentile; MAD the mean difference of two
values of 0 to 255; SSIM is of the luma, with the usual window (Gaussian, 11 pixels, sigma 1.5).

Without --data_dir it makes the photo corpus, as loader.py does, and uses the same stores.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from resnet50.data import batch, crops, sampling, splits
from resnet50.data.pack import PackedImages
from resnet50.packing import encode, fidelity
from resnet50.packing.data_set import Picture
from resnet50.packing.encode import Encoding, SplitJob
from resnet50.system import limits

ORIGINAL, LONG_500, LONG_400 = "original", "long side 500 q90", "long side 400 q90"
SHORT_256, FULL_95 = "short side 256 q90", "full size q95"
LEVEL_248 = f"{LONG_500}, level 248"  # as prepare_data.py packs by default
STORES = {
    ORIGINAL: Encoding(store="original"),
    FULL_95: Encoding(long_side=0, quality=95),
    LONG_500: Encoding(long_side=500),
    LEVEL_248: Encoding(long_side=500, levels=(248,)),
    LONG_400: Encoding(long_side=400),
    SHORT_256: Encoding(long_side=0, short_side=256),
}
BICUBIC, FFCV = "Pillow, bicubic", "FFCV's way"


@dataclass
class Corpus:
    """A folder of pictures, and where their other forms are kept."""

    folder: splits.ImageFolder
    cache: Path

    @property
    def files(self) -> list[str]:
        return [self.folder.name(i) for i in range(len(self.folder))]

    @property
    def labels(self) -> list[int]:
        return self.folder.labels.tolist()

    def pack(self, store: str) -> PackedImages:
        """The pictures as prepare_data.py packs them, made if they are not there yet."""
        path, folder = self.cache / f"{store}.pack", self.folder
        if not path.exists():
            pictures = [
                Picture(os.fsdecode(name), label, file)
                for name, label, file in zip(folder.paths, self.labels, self.files, strict=True)
            ]
            job = SplitJob("train", pictures, folder.classes, read_file, STORES[store])
            notes = encode.pack_split(job, path, limits.num_cores())
            if bad := [note for note in notes if note.kind == "bad"]:
                path.unlink()
                raise ValueError(f"--data_dir: {bad[0].name}: {bad[0].text}: remove that file")
        return PackedImages(path)


def read_file(path: str) -> bytes:
    return Path(path).read_bytes()


def add_corpus_options(parser: argparse.ArgumentParser) -> None:
    add, work_dir = parser.add_argument, Path(tempfile.gettempdir()) / "loader_benchmark"
    add("--data_dir", type=Path, metavar="DIR", help="has train/CLASS/FILE [the photo corpus]")
    add("--work_dir", type=Path, default=work_dir, metavar="DIR", help="[%(default)s]")
    add("--num_images", type=int, default=2000, metavar="N", help="of --data_dir [%(default)s]")
    add("--json", type=Path, metavar="FILE", help="write all figures there")


def open_corpus(args: argparse.Namespace) -> Corpus:
    """Find or make the pictures. Raises ValueError naming what is wrong with them."""
    data_dir = args.data_dir or args.work_dir / "photo"
    args.work_dir.mkdir(parents=True, exist_ok=True)
    if args.data_dir is None and not data_dir.exists():
        script, debs = Path(__file__).with_name("photo_corpus.py"), args.work_dir / "debs"
        command = [sys.executable, script, "--out", data_dir, "--cache", debs]
        if subprocess.run(command).returncode != 0:
            raise ValueError("photo_corpus.py made no pictures: name a folder with --data_dir")
    folder = splits.open_split(data_dir, "train")
    if not isinstance(folder, splits.ImageFolder):
        raise ValueError(f"--data_dir {data_dir}: holds a pack; name a folder of original files")
    num_images = min(len(folder), args.num_images)
    chosen = np.linspace(0, len(folder), num_images, endpoint=False).astype(np.int64)
    folder = replace(folder, paths=folder.paths[chosen], labels=folder.labels[chosen])
    key = hashlib.sha256(f"{folder.root.resolve()} {folder.sha256}".encode()).hexdigest()
    cache = args.work_dir / f"stores-{key[:12]}"
    cache.mkdir(exist_ok=True)
    return Corpus(folder, cache)


class Crop(NamedTuple):
    """pixels: uint8 (S, S, 3); box: left, top, right, bottom on a picture (width, height)."""

    pixels: np.ndarray
    box: Sequence[int]
    size: Sequence[int]


def our_crops(split: splits.Split, indices: np.ndarray, side: int, scale: float) -> list[Crop]:
    """What train.py sees of some images."""
    slot = batch.Slot(0, np.zeros(1, batch.slot_dtype(len(indices), side))[0])
    slot.set_key(sampling.BatchKey(0, indices, side))
    crops.TrainImages(split, 0, crops.Augmentation(scale, flip=False))(slot)
    sizes = crops.stacked([split.open(index).sizes for index in indices.tolist()])
    boxes = draw_boxes(indices, sizes[:, 0], scale)
    boxes, levels = crops.pick_levels(boxes, sizes, side)
    boxes, _ = crops.reduce_boxes(boxes, side)
    used = sizes[np.arange(len(sizes)), levels].tolist()
    return [Crop(*crop) for crop in zip(slot.images, boxes.tolist(), used, strict=True)]


def draw_boxes(indices: np.ndarray, sizes: Sequence, scale: float) -> np.ndarray:
    """The rectangles that crops.TrainImages draws, (N, 4)."""
    draws = sampling.uniforms(0, 0, indices, crops.FLIP)
    return crops.crop_boxes(draws, np.array(sizes), scale)


def ffcv_crops(
    originals: Sequence[Image.Image], indices: np.ndarray, long_side: int, side: int, scale: float
) -> list[Crop]:
    """What FFCV 1.0.2 would make of some images: its writer's and its decoder's steps."""
    pictures = [ffcv_stored(np.asarray(original), long_side) for original in originals]
    sizes = [(picture.shape[1], picture.shape[0]) for picture in pictures]
    found = []
    for picture, box, size in zip(pictures, draw_boxes(indices, sizes, scale), sizes, strict=True):
        left, top, right, bottom = box
        pixels = cv2.resize(
            picture[top:bottom, left:right], (side, side), interpolation=cv2.INTER_AREA
        )
        found.append(Crop(pixels, box, size))
    return found


def ffcv_stored(pixels: np.ndarray, long_side: int) -> np.ndarray:
    """A picture reduced, encoded and decoded."""
    if (scale := long_side / max(pixels.shape[:2])) < 1:
        size = int(scale * pixels.shape[1]), int(scale * pixels.shape[0])
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    # Channels are swapped twice: the encoder takes BGR, and the decoder gives it.
    encoded = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR)[:, :, ::-1].copy()


def reference(
    original: Image.Image, crop: Crop, resample: Image.Resampling = Image.Resampling.BILINEAR
) -> np.ndarray:
    """The rectangle of a crop, from the original, which may be larger than what it was drawn on."""
    return fidelity.pillow_crop(original, crop.box, crop.size, len(crop.pixels), resample)


def quality(crops: Sequence[np.ndarray], references: Sequence[np.ndarray]) -> dict[str, float]:
    """Figures of a pipeline."""
    pairs = list(zip(crops, references, strict=True))
    psnr = [fidelity.psnr(*pair) for pair in pairs]
    return {
        "psnr": float(np.mean(psnr)),
        "psnr_p10": float(np.percentile(psnr, 10)),
        "mad": float(np.mean([np.abs(a.astype(np.float64) - b).mean() for a, b in pairs])),
        "ssim": float(np.mean([fidelity.ssim(*pair) for pair in pairs])),
    }


def measure(corpus: Corpus, args: argparse.Namespace, side: int) -> list[dict]:
    """A row for every pipeline, crops of one size."""
    indices = sampling.epoch_order(0, 0, len(corpus.folder))[: args.num_crops]
    originals = [Image.open(corpus.folder.name(i)).convert("RGB") for i in indices.tolist()]
    scale, rows = args.min_crop_scale, []

    def add(pipeline: str, store: str, crops: Sequence[Crop]) -> None:
        references = [reference(o, crop) for o, crop in zip(originals, crops, strict=True)]
        figures = quality([crop.pixels for crop in crops], references)
        rows.append({"pipeline": pipeline, "store": store, **figures})

    for store in STORES:
        add("ours", store, our_crops(corpus.pack(store), indices, side, scale))
    boxes = draw_boxes(indices, [original.size for original in originals], scale)
    bicubic = []
    for original, box in zip(originals, boxes, strict=True):
        crop = Crop(np.empty((side, side, 3), np.uint8), box, original.size)
        pixels = reference(original, crop, Image.Resampling.BICUBIC)
        bicubic.append(crop._replace(pixels=pixels))
    add(BICUBIC, ORIGINAL, bicubic)
    for store in (LONG_500, LONG_400):
        long_side = STORES[store].long_side
        add(FFCV, store, ffcv_crops(originals, indices, long_side, side, scale))
    return rows


def print_table(rows: Sequence[dict]) -> None:
    """One Markdown table."""
    print("| pipeline | store | PSNR (p10) | MAD | SSIM |\n|---|---|---|---|---|")
    for row in rows:
        text = "| {pipeline} | {store} | {psnr:.1f} ({psnr_p10:.1f}) | {mad:.2f} | {ssim:.3f} |"
        print(text.format(**row))


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table for every image size; 2 if something must be changed."""
    parser = argparse.ArgumentParser(
        prog="crop_quality.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_corpus_options(parser)
    add = parser.add_argument
    add("--image_sizes", type=int, nargs="+", default=[224, 128], metavar="N", help="px")
    add("--min_crop_scale", type=float, default=0.08, metavar="X", help="[%(default)s]")
    add("--num_crops", type=int, default=200, metavar="N", help="[%(default)s]")
    args = parser.parse_args(argv)
    for name, least in (("image_sizes", 16), ("num_images", 1), ("num_crops", 1)):
        if np.min(getattr(args, name)) < least:
            parser.error(f"--{name}: must be at least {least}")
    if not 0 < args.min_crop_scale <= 1:
        parser.error(f"--min_crop_scale {args.min_crop_scale}: must lie between 0 and 1")
    try:
        corpus, tables = open_corpus(args), {}
        for side in args.image_sizes:
            tables[side] = measure(corpus, args, side)
            print(f"\n{side} px, {min(args.num_crops, len(corpus.folder))} crops\n")
            print_table(tables[side])
        if args.json:
            args.json.write_text(json.dumps(tables, indent=1) + "\n")
    except (ValueError, OSError) as error:
        print(f"crop_quality.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
