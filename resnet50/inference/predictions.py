"""A model's predictions for every image of a split, and the files that hold them."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from resnet50.data.sampling import BatchKey
from resnet50.training import distributed
from resnet50.training.distributed import Ranks

TOP = 5
# What the two tables begin with.
TABLE_BEGIN, SUBMISSION_BEGIN = b"image,class1,", b"ImageId,PredictionString\n"
ANY_BYTES = "surrogateescape"  # how Python decodes file names that are not UTF-8


class Predictions(NamedTuple):
    """top: int64 (N, up to 5), the likeliest class first; confidences: float32, 0-1, likewise."""

    top: np.ndarray
    confidences: np.ndarray


class Collector:
    """Keeps the likeliest classes of this rank's images on the device until all ranks are done."""

    def __init__(
        self, num_images: int, num_classes: int, keys: Sequence[BatchKey], device: torch.device
    ) -> None:
        self._keys = iter(keys)
        shape = (num_images, min(TOP, num_classes))
        self._top = torch.zeros(shape, dtype=torch.int64, device=device)
        self._confidences = torch.zeros(shape, device=device)

    def note(self, logits: Tensor) -> None:
        """Take the logits (B, K) of the next batch of this rank."""
        indices = torch.from_numpy(next(self._keys).indices).to(logits.device)
        likeliest = logits.softmax(1).topk(self._top.shape[1], dim=1)
        self._top[indices], self._confidences[indices] = likeliest.indices, likeliest.values

    def gathered(self, ranks: Ranks) -> Predictions:
        """For all images; every rank must call it. Each image is one rank's, and zero on others."""
        summed = (
            distributed.sum_over_ranks(part, ranks) for part in (self._top, self._confidences)
        )
        return Predictions(*(part.cpu().numpy() for part in summed))


def write_csv(
    path: Path, names: Sequence[str], classes: Sequence[str], predictions: Predictions
) -> None:
    """A row for every image: its name, and each class with its confidence, 0-1.

    names: of the images, in their order; classes: of the model's logits. A file name that is not
    UTF-8 keeps its bytes.
    """
    width = predictions.top.shape[1]
    header = [f"{what}{n + 1}" for n in range(width) for what in ("class", "confidence")]
    with open(path, "w", newline="", encoding="utf-8", errors=ANY_BYTES) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", *header])
        for name, top, confidences in zip(names, *predictions, strict=True):
            pairs = zip(top.tolist(), confidences.tolist(), strict=True)
            found = [cell for number, sure in pairs for cell in (classes[number], f"{sure:.4f}")]
            writer.writerow([name, *found])


def write_submission(
    path: Path,
    names: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    wnids: Sequence[str],
    predictions: Predictions,
) -> None:
    """Kaggle's imagenet-object-localization-challenge: five classes, each with a box.

    The box is the whole picture (a classifier knows no better): left, top, right, bottom in pixels.
    sizes: width and height of each picture.
    """
    with open(path, "w", newline="", encoding="utf-8", errors=ANY_BYTES) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["ImageId", "PredictionString"])
        for name, (width, height), top in zip(names, sizes, predictions.top, strict=True):
            boxes = [f"{wnids[number]} 0 0 {width} {height}" for number in top.tolist()]
            writer.writerow([Path(name).stem, " ".join(boxes)])
