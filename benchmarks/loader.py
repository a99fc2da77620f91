"""Images a second of this project's loader on one core, beside what users would pick instead.

    python benchmarks/loader.py
    python benchmarks/loader.py --image_sizes 224 --min_crop_scales 0.08 --rounds 10
    python benchmarks/loader.py --ffcv_python ~/ffcv/bin/python --dali_python ~/dali/bin/python
    python benchmarks/loader.py --num_workers 2

Without --data_dir it makes the photo corpus (photo_corpus.py, 170 MB to download). It stores the
pictures in the ways compared, once, in --work_dir (1 GB), and measures from there: one process at a
time, one core, one thread, everything in the page cache, batches of 50.

* base: what everybody begins with, ImageFolder with Pillow, RandomResizedCrop, flip, ToTensor,
  Normalize and torch.stack, on the files as they came.
* ours: what a worker of train.py does for a batch, uint8 in its place in shared memory. Whether to
  flip is drawn; the flip itself and the normalisation are the device's.
* FFCV 1.0.2 on files of JPEGs that its own writer made of the same pictures, and DALI on the CPU on
  plain JPEG files; uint8, flipped. They run in their own Python, since hardly one environment holds
  everything (--ffcv_python, --dali_python):
      apt install libopencv-dev libturbojpeg0-dev pkg-config && pip install ffcv==1.0.2 torchvision
      pip install nvidia-dali-cuda130==2.4.0

The candidates take turns in every round, in random sequence, with the same pictures. Ratios are of
speeds in the same round: their median, and the 10th and 90th percentile. So they bear a machine
whose speed changes by a quarter within seconds.

With --num_workers 2 it measures instead what two worker processes deliver over one, in whole
batches, as the training step gets them on a CPU.
"""

import argparse
import hashlib
import itertools
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import PIL
import simplejpeg
import torch
import torchvision
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

import data
import feeding
import jpeg
import packing
import sampling
import transforms
from layouts import Picture
from loader_rivals import Rival, RivalError
from packed_images import PackedImages
from packing import Encoding

BATCH = 50  # images
STORES = {
    "original": Encoding(store="original"),
    "long side 500 q90": Encoding(long_side=500),
    "long side 400 q90": Encoding(long_side=400),
    "short side 256 q90": Encoding(long_side=0, short_side=256),
}
RIVAL_STORES = {
    "ffcv": ("long side 500 q90", "long side 400 q90"),
    "dali": ("original", "long side 500 q90"),
}
NAMES = {"base": "ImageFolder, Pillow, float", "ours": "ours", "ffcv": "FFCV", "dali": "DALI, CPU"}
TWO_WORKERS_STORE = "long side 500 q90"
LEAD_IN = 4  # batches until workers that begin together are out of step
IDLE_S = 0.3  # after which the workers that have just been measured have filled all their slots


class Candidate(NamedTuple):
    """run: makes the images of a round, returns the seconds; num_bytes: of a stored image."""

    family: str
    store: str
    num_bytes: float
    run: Callable[[int], float]


@dataclass
class Corpus:
    """The pictures in every form that is measured, made where they are not there yet.

    order: numbers of pictures, whole rounds of them.
    """

    folder: data.ImageFolder
    cache: Path
    order: np.ndarray
    rivals: dict[str, Rival] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        return [self.folder.name(i) for i in range(len(self.folder))]

    def indices(self, number: int, num_images: int) -> np.ndarray:
        """(batches, BATCH) pictures of a round."""
        start = number * num_images % len(self.order)
        return self.order[start : start + num_images].reshape(-1, BATCH)

    def pack(self, store: str) -> PackedImages:
        """The pictures as prepare_data.py would pack them."""
        path, folder = self.cache / f"{store}.pack", self.folder
        if not path.exists():
            names = [os.fsdecode(name) for name in folder.paths]
            pictures = [
                Picture(name, label, str(folder.root / name))
                for name, label in zip(names, folder.labels.tolist(), strict=True)
            ]
            cores = packing.num_cores()
            notes = packing.pack_split(
                "train", pictures, folder.classes, read_file, STORES[store], path, cores
            )
            if bad := [note for note in notes if note.kind == "bad"]:
                path.unlink()
                raise ValueError(f"--data_dir: {bad[0].name}: {bad[0].text}; remove it")
        return PackedImages(path)

    def jpegs(self, store: str) -> list[str]:
        """The pictures as plain JPEG files of the size and quality of a store."""
        if store == "original":
            return self.files
        folder = self.cache / f"{store}.files"
        paths = [folder / f"{number}.jpg" for number in range(len(self.folder))]
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            with ProcessPoolExecutor() as pool:
                targets = [partial / path.name for path in paths]
                stores = itertools.repeat(store)
                list(pool.map(write_jpeg, self.files, targets, stores, chunksize=32))
            partial.rename(folder)
        return [str(path) for path in paths]

    def beton(self, store: str) -> Path:
        """The pictures as FFCV's writer stores them, at the long side of a store."""
        path = self.cache / f"{store}.beton"
        if not path.exists():
            self.rivals["ffcv"].ask(
                "write", path=f"{path}.partial", files=self.files,
                labels=self.folder.labels.tolist(), long_side=STORES[store].long_side,
            )  # fmt: skip
            os.replace(f"{path}.partial", path)
        return path


def read_file(path: str) -> bytes:
    return Path(path).read_bytes()


def write_jpeg(source: str, target: Path, store: str) -> None:
    pixels = packing.shrink(jpeg.WholePicture(read_file(source)).pixels(), STORES[store])
    quality = STORES[store].quality
    Image.fromarray(pixels).save(target, quality=quality, subsampling="4:2:0")


def open_corpus(args: argparse.Namespace) -> Corpus:
    """Find or make the pictures. Raises ValueError naming what is wrong with them."""
    data_dir = args.data_dir or args.work_dir / "photo"
    if args.data_dir is None and not data_dir.exists():
        script, cache = Path(__file__).with_name("photo_corpus.py"), args.work_dir / "debs"
        command = [sys.executable, script, "--out", data_dir, "--cache", cache]
        if subprocess.run(command).returncode != 0:
            raise ValueError("photo_corpus.py made no pictures: name a folder with --data_dir")
    folder = data.open_split(data_dir, "train")
    if not isinstance(folder, data.ImageFolder):
        raise ValueError(f"--data_dir {data_dir}: a pack; name a folder with the original files")
    chosen = np.linspace(0, len(folder), min(len(folder), args.num_images), endpoint=False)
    chosen = chosen.astype(np.int64)
    folder = replace(folder, paths=folder.paths[chosen], labels=folder.labels[chosen])
    if len(folder) < args.images_per_round:
        raise ValueError(
            f"--images_per_round {args.images_per_round}: there are {len(folder)} pictures"
        )
    key = hashlib.sha256(f"{folder.root.resolve()} {folder.sha256}".encode()).hexdigest()[:12]
    cache = args.work_dir / f"stores-{key}"
    cache.mkdir(parents=True, exist_ok=True)
    order = sampling.epoch_order(0, 0, len(folder))
    return Corpus(folder, cache, order[: len(order) // args.images_per_round * args.images_per_round])


def base(corpus: Corpus, args: argparse.Namespace, size: int, scale: float) -> Candidate:
    """The usual loader, as the tutorials write it."""
    steps = torchvision.transforms
    dataset = torchvision.datasets.ImageFolder(
        corpus.folder.root,
        steps.Compose(
            [
                steps.RandomResizedCrop(size, scale=(scale, 1.0)),
                steps.RandomHorizontalFlip(),
                steps.ToTensor(),
                steps.Normalize(transforms.IMAGENET_MEAN, transforms.IMAGENET_STD),
            ]
        ),
    )
    dataset.samples = list(zip(corpus.files, corpus.folder.labels.tolist(), strict=True))

    def run(number: int) -> float:
        start = time.perf_counter()
        for indices in corpus.indices(number, args.images_per_round).tolist():
            torch.stack([dataset[i][0] for i in indices])
        return time.perf_counter() - start

    return Candidate("base", "original", mean_bytes(corpus.files), run)


def ours(
    corpus: Corpus, args: argparse.Namespace, size: int, scale: float, store: str
) -> Candidate:
    """What a worker process does, in this one. store: "" for the folder."""
    split = corpus.pack(store) if store else corpus.folder
    fill = data.TrainImages(split, 0, scale, True)
    slot = feeding.Slot(0, np.zeros(1, feeding.slot_dtype(BATCH, size))[0])

    def run(number: int) -> float:
        start = time.perf_counter()
        for indices in corpus.indices(number, args.images_per_round):
            slot.set_key(sampling.BatchKey(number, indices, size))
            fill(slot)
        return time.perf_counter() - start

    num_bytes = split.root.stat().st_size / len(split) if store else mean_bytes(corpus.files)
    return Candidate("ours", store or "original", num_bytes, run)
