"""Small folders of images made in code, and a picture that a loader waits for."""

import os
from pathlib import Path

import numpy as np
from PIL import Image
from support.commands import wait_for

from resnet50.data import sampling

CLASSES = ("ant", "bee", "cat")
TRAIN_PER_CLASS, VAL_PER_CLASS = 22, 7  # 66 and 21: neither is a multiple of the batch of 16
STEPS_PER_EPOCH = len(CLASSES) * TRAIN_PER_CLASS // 16


def make_picture(seed: int, label: int) -> Image.Image:
    """A picture with coarse structure, whose colors hint at its class; from 36 to 75 px a side."""
    rng = np.random.default_rng(seed)
    width, height = rng.integers(36, 76, size=2)
    coarse = rng.integers(0, 200, size=(5, 5, 3), dtype=np.uint8)
    coarse[..., label] |= 0xC0
    return Image.fromarray(coarse).resize((int(width), int(height)), Image.Resampling.BICUBIC)


def make_folder(
    root: Path, train_per_class: int, val_per_class: int, val_name: str = "val"
) -> Path:
    """train/CLASS/*.jpg and val/CLASS/*.jpg."""
    seed = 0
    for split, count in (("train", train_per_class), (val_name, val_per_class)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                seed += 1
                make_picture(seed, label).save(root / split / name / f"{i:03d}.jpg", quality=90)
    return root


class Gate:
    """A picture that is not there yet: a loader that reads it waits until it is opened."""

    def __init__(self, picture: Path) -> None:
        self._picture, self._contents = picture, picture.read_bytes()
        picture.unlink()
        os.mkfifo(picture)
        self._pipe: int | None = None

    def wait_for_reader(self) -> None:
        def is_read() -> bool:
            try:
                self._pipe = os.open(self._picture, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:  # ENXIO: nobody reads
                return False
            return True

        wait_for(is_read, what=f"a reader of {self._picture}")

    def open(self) -> None:
        """Give the picture to the reader that waits, and put it in place for later readers."""
        beside = self._picture.with_name("beside.tmp")
        beside.write_bytes(self._contents)
        beside.rename(self._picture)
        os.write(self._pipe, self._contents)
        os.close(self._pipe)


def training_gate(data_dir: Path, step: int, seed: int = 0) -> Gate:
    """A gate among the images of this step (the first is 0) of tiny_flags' run.

    It is the one needed last in the next epoch, so that no loader that reads ahead needs it too: a
    pipe gives its contents to one reader only.
    """
    epoch, batch = divmod(step, STEPS_PER_EPOCH)
    num_images = len(CLASSES) * TRAIN_PER_CLASS
    order, after = (sampling.epoch_order(seed, e, num_images).tolist() for e in (epoch, epoch + 1))
    label, number = divmod(
        max(order[16 * batch : 16 * batch + 16], key=after.index), TRAIN_PER_CLASS
    )
    return Gate(data_dir / "train" / CLASSES[label] / f"{number:03d}.jpg")


def validation_gate(data_dir: Path) -> Gate:
    return Gate(data_dir / "val" / CLASSES[0] / "000.jpg")
