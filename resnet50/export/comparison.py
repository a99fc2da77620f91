"""Whether exported files give the model's results, compared on pictures of a split, and how fast.

Every file gets the same pictures as the model in PyTorch, which comes first in each list here.

Shape letters: B batch, S side of the pictures in pixels, K classes.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import dataset_paths
from resnet50.data import crops, splits
from resnet50.data.batch import normalize
from resnet50.data.loader import Loader
from resnet50.data.sampling import BatchKey
from resnet50.data.splits import Split
from resnet50.inference.pretrained import Pretrained

MAX_DIFFERENCE = 1e-4  # of the logits of fp32 files: the same sums in another order give 1e-5
NOISE_BATCHES = (1, 3)  # one picture alone, and a number that nobody exports for
HEADER = "| model | MB | ms an image | speed | images/s | top-1 % | agrees % | logits differ by |"
CALIBRATION_BATCH = 8  # pictures at once: every activation of them is held
ROUNDS_A_BATCH = 4  # rounds of single pictures for each one of whole batches, which take longer


@dataclass
class Variant:
    """The model in one format, and what was found out about it.

    predict: normalized images float32 (B, 3, S, S), contiguous -> logits (B, K); path: its file,
    None in PyTorch; is_exact: whether its logits must be the model's; is_checked: whether it must
    agree with it at all. difference: largest of a logit; agreement, top1: percent of the pictures,
    None without any; latency_ms: of one picture; images_per_s: in batches.
    """

    name: str
    predict: Callable[[Tensor], Tensor]
    path: Path | None = None
    is_exact: bool = True
    is_checked: bool = True
    difference: float = 0.0
    agreement: float | None = None
    top1: float | None = None
    latency_ms: float = 0.0
    images_per_s: float = 0.0
    counts: dict[str, int] = field(default_factory=lambda: {"agree": 0, "correct": 0})


def check_comparable(loaded: Pretrained, other: Pretrained) -> None:
    """Raise ValueError unless both models take the same pictures and have equally many classes."""
    for what, ours, theirs in (
        ("classes", loaded.model.fc.out_features, other.model.fc.out_features),
        ("pixels a side", loaded.image_size, other.image_size),
        ("pixels before the crop", loaded.resize_size, other.resize_size),
        ("as interpolation", loaded.interpolation, other.interpolation),
        ("as mean", loaded.mean, other.mean),
        ("as std", loaded.std, other.std),
    ):
        if ours != theirs:
            raise ValueError(f"--compare {other.name} has {theirs} {what}, --weights has {ours}")


def compared(other: Pretrained, predict: Callable[[Tensor], Tensor]) -> Variant:
    """Another model for the table, which need not agree with the first one."""
    return Variant(other.name, predict, is_exact=False, is_checked=False)


def spread(split: Split, num_images: int) -> np.ndarray:
    """Numbers of that many images, int64, as evenly over the classes as the split is; 0: all."""
    order = np.argsort(split.labels, kind="stable")
    if 0 < num_images < len(order):
        order = order[np.arange(num_images) * len(order) // num_images]
    return order


def batches(
    split: Split,
    indices: np.ndarray,
    loaded: Pretrained,
    batch_size: int,
    note_bad: Callable[[str], None],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images normalized, float32 (B, 3, S, S), contiguous, cut as in evaluation; labels int64 (B,).

    note_bad: called with the name of each picture that cannot be decoded, which is black then.
    """
    size = loaded.image_size
    starts = range(0, len(indices), batch_size)
    keys = [BatchKey(-1, indices[start : start + batch_size], size) for start in starts]
    fill = crops.EvalImages(split, loaded.resize_size, loaded.interpolation)
    feeder = Loader([fill], batch_size, size, 0, torch.device("cpu"))
    try:
        for batch in feeder.batches(0, keys):
            for name in batch.bad_images:
                note_bad(name)
            images = normalize(batch.images, mean=loaded.mean, std=loaded.std)
            yield images.contiguous(), batch.labels
    finally:
        feeder.close()


def warn_bad(name: str) -> None:
    """Say which picture cannot be decoded."""
    print(f"warning: cannot be decoded, replaced by black: {name}", file=sys.stderr)


def has_train(data_dir: Path) -> bool:
    """Whether there is a train split; if not, say what int8 is calibrated on instead."""
    try:
        dataset_paths.split_path(data_dir, "train")
    except ValueError:
        what = f"warning: no train split in {data_dir}"
        print(f"{what}: int8 is calibrated on the pictures it is checked on", file=sys.stderr)
        return False
    return True


def calibration_images(
    loaded: Pretrained, data_dir: Path, checked_on: str, num_images: int
) -> Iterator[Tensor]:
    """Pictures of the train split, else of the one that is checked on: float32 (B, 3, S, S)."""
    name = "train" if has_train(data_dir) else checked_on
    split = splits.open_split(data_dir, name, loaded.upright)
    indices = spread(split, num_images)
    print(f"calibrating int8 on {len(indices)} pictures of {split.root}")
    for images, _ in batches(split, indices, loaded, CALIBRATION_BATCH, warn_bad):
        yield images


def noise(image_size: int, batch_size: int) -> Tensor:
    """Random numbers in place of normalized pictures, always the same: float32 (B, 3, S, S)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch_size, 3, image_size, image_size, generator=generator)


def compare_on_noise(variants: Sequence[Variant], image_size: int) -> None:
    """Note the largest difference of a logit from the first variant's, on batches of odd sizes.

    Only for those that must have none: int8 was not calibrated for noise.
    """
    for images in (noise(image_size, batch_size) for batch_size in NOISE_BATCHES):
        expected = variants[0].predict(images)
        for variant in variants[1:]:
            if variant.is_exact:
                note_difference(variant, variant.predict(images), expected)


def note_difference(variant: Variant, logits: Tensor, expected: Tensor) -> None:
    """Keep the largest; what is not finite, or of another shape, differs infinitely."""
    difference = torch.inf
    if logits.shape == expected.shape and logits.isfinite().all():
        difference = float((logits - expected).abs().max())
    variant.difference = max(variant.difference, difference)


def compare_on_pictures(
    variants: Sequence[Variant], pictures: Iterable[tuple[Tensor, Tensor]]
) -> int:
    """Note differences, agreement with the first variant and top-1; returns how many pictures."""
    num_images = 0
    for images, labels in pictures:
        num_images += len(images)
        expected = variants[0].predict(images)
        for variant in variants:
            logits = expected if variant is variants[0] else variant.predict(images)
            note_difference(variant, logits, expected)
            if logits.shape == expected.shape:
                found = logits.argmax(dim=1)
                variant.counts["agree"] += int((found == expected.argmax(dim=1)).sum())
                variant.counts["correct"] += int((found == labels).sum())
    for variant in variants:
        variant.agreement = 100 * variant.counts["agree"] / num_images
        variant.top1 = 100 * variant.counts["correct"] / num_images
    return num_images


def problems(variants: Sequence[Variant], min_agreement: float) -> list[str]:
    """What is wrong with which file; min_agreement: percent of pictures for inexact ones."""
    found = []
    for variant in (variant for variant in variants[1:] if variant.is_checked):
        name = variant.path.name
        if variant.is_exact and not variant.difference <= MAX_DIFFERENCE:
            found.append(
                f"{name}: its logits differ from the model's in PyTorch by up to "
                f"{variant.difference:.2g}, more than {MAX_DIFFERENCE:g}"
            )
        elif not variant.is_exact and not (variant.agreement or 0) >= min_agreement:
            found.append(
                f"{name}: it agrees with fp32 on {variant.agreement or 0:.1f}% of the pictures, "
                f"--min_agreement is {min_agreement:g}"
            )
    return found


def measure(variants: Sequence[Variant], image_size: int, batch_size: int, num_rounds: int) -> None:
    """Note the median time of one picture and of batches, all variants in turn in every round, so
    that other load on the machine affects them alike."""
    single, many = noise(image_size, 1), noise(image_size, batch_size)
    for variant, seconds in zip(variants, time_in_turn(variants, single, num_rounds), strict=True):
        variant.latency_ms = 1000 * seconds
    num_rounds = math.ceil(num_rounds / ROUNDS_A_BATCH)
    for variant, seconds in zip(variants, time_in_turn(variants, many, num_rounds), strict=True):
        variant.images_per_s = batch_size / seconds


def time_in_turn(variants: Sequence[Variant], images: Tensor, num_rounds: int) -> list[float]:
    """Median seconds of a prediction for each variant; each is first called once untimed, since the
    caches hold another one's data."""
    seconds: list[list[float]] = [[] for _ in variants]
    for _ in range(num_rounds):
        for variant, own in zip(variants, seconds, strict=True):
            variant.predict(images)
            start = time.perf_counter()
            variant.predict(images)
            own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in seconds]


def row_of(variant: Variant, first: Variant) -> dict[str, object]:
    """A line of the table; speed: how many times as fast as the model in PyTorch, on one image."""
    return {
        "model": variant.name,
        "mb": variant.path.stat().st_size / 1e6 if variant.path else None,
        "latency_ms": variant.latency_ms,
        "speed": first.latency_ms / variant.latency_ms,
        "images_per_s": variant.images_per_s,
        "top1": variant.top1,
        "agreement": variant.agreement,
        "max_difference": variant.difference,
    }


def as_table(rows: Sequence[dict]) -> str:
    """Markdown of the rows; a dash for what was not measured."""
    formats = {
        "mb": ".1f",
        "latency_ms": ".2f",
        "speed": ".2f",
        "images_per_s": ".1f",
        "top1": ".2f",
        "agreement": ".2f",
        "max_difference": ".1e",
    }
    lines = [HEADER, "|---" * (1 + len(formats)) + "|"]
    for row in rows:
        cells = [
            "-" if row[key] is None else format(row[key], spec) for key, spec in formats.items()
        ]
        lines.append(f"| {' | '.join([str(row['model']), *cells])} |")
    return "\n".join(lines)
