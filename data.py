"""Images to batches. Order and augmentation are pure functions, so no loader has state to save.

    order of an epoch   = function of (seed, epoch)
    crop and flip       = function of (seed, epoch, index)

Any number of ranks and loader processes therefore gives the same pixels, and a resume starts at a
batch number instead of replaying. Takes rank and world size as integers and starts no process
group.
"""

import atexit
import functools
import hashlib
import io
import multiprocessing
import os
import re
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import dataset_paths
import interruption
import transforms
from transforms import Batch

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
NUM_DRAWS = transforms.CROP_DRAWS + 1  # the last one is the flip
# A loader that gives nothing for so long hangs; a cold network volume may take a minute.
LOADER_TIMEOUT_S = 600


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

    def read(self, index: int) -> Image.Image:
        """Open an image; its pixels are decoded later."""
        return Image.open(io.BytesIO(Path(self.name(index)).read_bytes()))


class BatchKey(NamedTuple):
    """Which images make a micro-batch. epoch: -1 for evaluation; indices: (B,) int64."""

    epoch: int
    indices: np.ndarray


def open_split(data_dir: Path, split: str) -> ImageFolder:
    """List a split. Raises ValueError naming the folder and the remedy if it is not as expected."""
    root = dataset_paths.split_dir(data_dir, split)
    with os.scandir(root) as entries:
        names = [(entry.name, entry.is_dir()) for entry in entries if entry.name[0] != "."]
    classes = tuple(sorted(name for name, is_dir in names if is_dir))
    loose = [name for name, is_dir in names if not is_dir and name.lower().endswith(EXTENSIONS)]
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
        files = sorted(f for f in os.listdir(root / name) if f.lower().endswith(EXTENSIONS))
        if not files:
            raise ValueError(f"{root / name} has no images: fill that class or remove its folder")
        paths += [os.fsencode(f"{name}/{file}") for file in files]
        labels += [label] * len(files)
    return ImageFolder(root, classes, np.array(paths), np.array(labels, dtype=np.int64))


def open_dataset(data_dir: Path) -> tuple[ImageFolder, ImageFolder]:
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


def fingerprint(split: ImageFolder) -> dict[str, object]:
    """What identifies a split: counts, and a sha256 over classes and paths in order."""
    digest = hashlib.sha256("\0".join(split.classes).encode())
    for path in split.paths:
        digest.update(path + b"\0")
    return {
        "num_images": len(split),
        "num_classes": len(split.classes),
        "sha256": digest.hexdigest(),
    }


def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """Permutation of all images, int64 (num_images,).

    Sorts 64-bit random numbers instead of asking numpy to shuffle: the raw Philox stream is fixed
    by its paper (Salmon et al. 2011), numpy's shuffling may change between versions (NEP 19).
    """
    keys = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(num_images)
    return np.argsort(keys, kind="stable")


def _mix(numbers: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele et al. 2014): every bit of a uint64 depends on every bit."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def uniforms(seed: int, epoch: int, indices: np.ndarray, num_draws: int) -> np.ndarray:
    """Counter hash of (seed, epoch, index, draw): float64 (B, num_draws), uniform in [0, 1).

    One hash for a whole batch; a generator an image would cost more than its crop.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    state = np.full(1, seed, dtype=np.uint64)
    for number in (np.full(1, epoch, dtype=np.uint64), indices.astype(np.uint64)):
        state = _mix(_mix(state + golden) ^ number)
    counters = np.arange(1, num_draws + 1, dtype=np.uint64) * golden
    return (_mix(state[:, None] + counters) >> np.uint64(11)) * 2.0**-53


def train_keys(
    num_images: int,
    seed: int,
    total_batch_size: int,
    device_batch_size: int,
    first_step: int,
    last_step: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[BatchKey]:
    """A rank's micro-batches for the steps from first_step up to and without last_step.

    Micro-batch m of a step belongs to rank m % world_size, whatever the number of ranks.
    """
    steps_per_epoch = num_images // total_batch_size
    order, order_epoch = None, -1
    for step in range(first_step, last_step):
        epoch, batch = divmod(step, steps_per_epoch)
        if epoch != order_epoch:
            order, order_epoch = epoch_order(seed, epoch, num_images), epoch
        first = batch * total_batch_size
        for start in range(
            first + rank * device_batch_size,
            first + total_batch_size,
            world_size * device_batch_size,
        ):
            yield BatchKey(epoch, order[start : start + device_batch_size])


def eval_keys(
    num_images: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> list[BatchKey]:
    """A rank's evaluation batches: every image in exactly one batch of exactly one rank.

    Whole batches go round the ranks, so that an image's result does not depend on their number.
    """
    return [
        BatchKey(-1, np.arange(start, min(start + batch_size, num_images)))
        for start in range(rank * batch_size, num_images, world_size * batch_size)
    ]


class TrainImages(Dataset):
    """BatchKey -> Batch of randomly cropped and flipped training images."""

    def __init__(
        self, split: ImageFolder, seed: int, image_size: int, min_crop_scale: float, flip: bool
    ) -> None:
        self.split, self.seed = split, seed
        self.image_size, self.min_crop_scale, self.flip = image_size, min_crop_scale, flip

    def __getitem__(self, key: BatchKey) -> Batch:
        draws = uniforms(self.seed, key.epoch, key.indices, NUM_DRAWS)
        images = np.empty((len(key.indices), self.image_size, self.image_size, 3), dtype=np.uint8)
        labels = np.empty(len(key.indices), dtype=np.int64)
        bad_images: list[str] = []
        for i, index in enumerate(key.indices):
            index = int(index)
            while (crop := self._crop(index, draws[i : i + 1], bad_images)) is None:
                if len(bad_images) > len(self.split):
                    raise ValueError(f"no image in {self.split.root} can be decoded")
                index = (index + 1) % len(self.split)  # the replacement is the next one, always
            images[i], labels[i] = crop, self.split.labels[index]
        flips = (draws[:, -1] < 0.5) & self.flip
        return Batch(*map(torch.from_numpy, (images, labels, flips)), bad_images)

    def _crop(self, index: int, draws: np.ndarray, bad_images: list[str]) -> np.ndarray | None:
        def cut(image: Image.Image) -> np.ndarray:
            sizes = np.array([image.size])
            box = transforms.crop_boxes(
                draws[:, : transforms.CROP_DRAWS], sizes, self.min_crop_scale
            )
            return transforms.train_crop(image, box[0], self.image_size)

        return _decode(self.split, index, cut, bad_images)


class EvalImages(Dataset):
    """BatchKey -> Batch of centre crops; an image that cannot be decoded is black, and counts."""

    def __init__(self, split: ImageFolder, resize_size: int, crop_size: int) -> None:
        self.split, self.resize_size, self.crop_size = split, resize_size, crop_size

    def __getitem__(self, key: BatchKey) -> Batch:
        images = np.zeros((len(key.indices), self.crop_size, self.crop_size, 3), dtype=np.uint8)
        bad_images: list[str] = []
        cut = functools.partial(
            transforms.eval_crop, resize_size=self.resize_size, size=self.crop_size
        )
        for i, index in enumerate(key.indices):
            crop = _decode(self.split, int(index), cut, bad_images)
            if crop is not None:
                images[i] = crop
        labels = self.split.labels[key.indices]
        flips = np.zeros(len(labels), dtype=bool)
        return Batch(*map(torch.from_numpy, (images, labels, flips)), bad_images)


def _decode(
    split: ImageFolder,
    index: int,
    cut: Callable[[Image.Image], np.ndarray],
    bad_images: list[str],
) -> np.ndarray | None:
    """Read, decode and cut one image; None, and its name in bad_images, if that fails."""
    try:
        return cut(split.read(index))
    except Exception as error:  # Pillow raises a dozen types for damaged data; none may stop a run
        reason = re.sub(r"<_io\.BytesIO object at \w+>", "file", str(error))
        bad_images.append(f"{split.name(index)}: {type(error).__name__}: {reason}")
        return None


def start_loader(images: Dataset, keys: Iterable[BatchKey], num_workers: int) -> Iterator[Batch]:
    """Batches for the keys, in their order; loader processes are forked here and now.

    Call it before CUDA, the process group and any thread of ours exist.
    """
    parent_pid = os.getpid()
    atexit.register(_end_loaders)

    def start_worker(worker_id: int) -> None:
        interruption.ignore_signals()
        interruption.die_with_parent(parent_pid)

    with warnings.catch_warnings():
        # torch counts visible cores and warns; how many to use is the user's choice here.
        warnings.filterwarnings(
            "ignore", message=".*worker processes in total", category=UserWarning
        )
        return iter(
            DataLoader(
                images,
                batch_size=None,
                sampler=keys,
                num_workers=num_workers,
                worker_init_fn=start_worker if num_workers else None,
                multiprocessing_context="fork" if num_workers else None,
                collate_fn=_as_it_is,
                timeout=LOADER_TIMEOUT_S if num_workers else 0,
            )
        )


def _end_loaders() -> None:
    """At exit, before multiprocessing would ask them with SIGTERM, which they ignore, and wait."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would report them as crashed
    for process in multiprocessing.active_children():
        process.kill()


def _as_it_is(batch: Batch) -> Batch:
    return batch


def default_num_workers(local_world_size: int, on_gpu: bool) -> int:
    """Loader processes of a rank: its share of the cores; half where the model needs them too."""
    share = len(os.sched_getaffinity(0)) // local_world_size
    return max(1, share if on_gpu else share // 2)
