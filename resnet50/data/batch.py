"""A batch in memory shared by several processes, and its copy on the device."""

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from resnet50.data.sampling import BatchKey
from resnet50.data.transforms import IMAGENET_MEAN, IMAGENET_STD

FAULT_BYTES = 512  # of text about an image that cannot be decoded
MAX_SLOT_BYTES = int(1.9 * 2**30)  # a numpy dtype counts bytes in a C int


class Batch(NamedTuple):
    """A micro-batch on the device.

    images: uint8 (B, S, S, 3); labels: int64 (B,); flips: bool (B,), still to be applied;
    bad_images: files that could not be decoded, each with the reason.
    """

    images: Tensor
    labels: Tensor
    flips: Tensor
    bad_images: list[str]


def slot_dtype(batch_size: int, image_size: int) -> np.dtype:
    """Layout of a slot for up to batch_size images of up to image_size pixels a side.

    Raises ValueError if that is more than numpy can address in one field.
    """
    num_bytes = batch_size * (image_size**2 * 3 + FAULT_BYTES)
    if num_bytes > MAX_SLOT_BYTES:
        raise ValueError(
            f"--device_batch_size {batch_size} of {image_size} px makes batches of "
            f"{num_bytes / 2**30:.1f} GiB, the limit is 1.9: use a smaller one"
        )
    fields = [
        ("epoch", "i8"),
        ("num_images", "i8"),
        ("image_size", "i8"),
        ("num_faults", "i8"),
        ("indices", "i8", batch_size),
        ("labels", "i8", batch_size),
        ("flips", "?", batch_size),
        ("faults", f"S{FAULT_BYTES}", batch_size),
        ("pixels", "u1", batch_size * image_size**2 * 3),
    ]
    return np.dtype(fields, align=True)


class Slot:
    """A batch in shared memory: its key, and the images, labels and flips that a worker puts in."""

    def __init__(self, number: int, record: np.void) -> None:
        self.number, self._record = number, record
        self.is_filled = False

    def set_key(self, key: BatchKey) -> None:
        """Say which batch goes here; the previous one is gone."""
        record = self._record
        count = len(key.indices)
        record["epoch"], record["image_size"] = key.epoch, key.image_size
        record["num_images"] = count
        record["num_faults"] = 0
        record["indices"][:count] = key.indices
        self.is_filled = False

    @property
    def key(self) -> BatchKey:
        """What `set_key` was given."""
        record = self._record
        indices = record["indices"][: record["num_images"]]
        return BatchKey(int(record["epoch"]), indices, int(record["image_size"]))

    @property
    def images(self) -> np.ndarray:
        """uint8 (B, S, S, 3), to be written into."""
        count, size = int(self._record["num_images"]), int(self._record["image_size"])
        return self._record["pixels"][: count * size**2 * 3].reshape(count, size, size, 3)

    @property
    def labels(self) -> np.ndarray:
        """int64 (B,), to be written into."""
        return self._record["labels"][: self._record["num_images"]]

    @property
    def flips(self) -> np.ndarray:
        """bool (B,), to be written into."""
        return self._record["flips"][: self._record["num_images"]]

    def add_fault(self, text: str) -> None:
        """Note an image that cannot be decoded; there is room for one note per image."""
        number = self._record["num_faults"]
        if number < len(self._record["faults"]):
            self._record["faults"][number] = text.encode(errors="replace")[:FAULT_BYTES]
            self._record["num_faults"] += 1

    def to(self, device: torch.device) -> Batch:
        """The batch on the device; on a GPU without waiting for the copies to end."""
        copies = [
            torch.from_numpy(array).to(device, non_blocking=True, copy=True)
            for array in (self.images, self.labels, self.flips)
        ]
        faults = self._record["faults"][: self._record["num_faults"]].tolist()
        return Batch(*copies, [text.decode(errors="replace") for text in faults])


def normalize(
    images: Tensor,
    flips: Tensor | None = None,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Tensor:
    """Turn pixels into the model's input, on whatever device they are.

    images: uint8 (B, H, W, 3); flips: bool (B,), pictures to mirror; mean, std: of each channel,
    for values 0-1.
    Returns float32 (B, 3, H, W) in channels_last memory order, about -2.1 to 2.6.
    """
    pixels = images.permute(0, 3, 1, 2)  # NHWC bytes are channels_last already: no copy
    if flips is not None:
        pixels = torch.where(flips[:, None, None, None], pixels.flip(3), pixels)
    center, scale = _mean_and_scale(images.device, mean, std)
    return (pixels - center).mul_(scale)


@functools.cache
def _mean_and_scale(
    device: torch.device, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """What to subtract and multiply by, (1, 3, 1, 1); cached, since each copy waits for the GPU."""
    center, spread = (torch.tensor(values, device=device) * 255 for values in (mean, std))
    return center.view(1, 3, 1, 1), spread.reciprocal().view(1, 3, 1, 1)
