"""Training images/s of a ResNet50 at 224 px on one GPU: what is known, by whom, with what software.

The results of MLPerf training are in published_times.csv, as read out of their logs: MXNet and
DALI, another stack than ours. `derived`: the rate is not logged, but follows from the time and the
epochs, evaluation included. The open division's run has none: it waited for its loader. Rates that
we found elsewhere, or measured ourselves, are below. Nothing is assumed: a GPU without a figure is
not here.
"""

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

PUBLISHED = Path(__file__).with_name("published_times.csv")


class Rate(NamedTuple):
    """Training images/s of one GPU at 224 px, and who saw them with which software."""

    gpu: str
    images_per_s: float
    stack: str
    source: str


A100, H100 = "A100 SXM 80 GB", "H100 SXM"
OURS = "benchmarks/README.md: synthetic images, torch 2.11, bf16, an H100 of 80 GB"
OTHER_RATES = (
    Rate(
        A100,
        16_621 / 8,
        "PyTorch, AMP, DALI, 2021",
        "NVIDIA DeepLearningExamples, resnet50v1.5 README: 16,621 on 8 GPUs (one alone: 2,470)",
    ),
    Rate(
        "A10G",
        810,
        "PyTorch, fp16, channels_last, DALI",
        "a training log of 185 epochs on g5.xlarge (Sagar063, imagenet1kfull_g5x_1gpu_dali_nvme)",
    ),
    Rate(H100, 5522, "ours, --compile", OURS),
    Rate(H100, 3933, "ours", OURS),
)


@cache
def published() -> list[dict[str, str]]:
    """The rows of published_times.csv."""
    with PUBLISHED.open(newline="") as file:
        return list(csv.DictReader(file))


def rates_of(gpu: str) -> list[Rate]:
    """The known rates of a GPU, the fastest first."""
    found = [rate for rate in OTHER_RATES if rate.gpu == gpu]
    for row in published():
        if row["gpu"] == gpu and row["images_per_s"]:
            how = "from its time and epochs" if row["derived"] == "yes" else "as logged"
            source = f"MLPerf {row['round']}, {row['submitter']}, {row['gpus']} GPUs, {how}"
            found.append(Rate(gpu, float(row["images_per_s"]), row["stack"], source))
    return sorted(found, key=lambda rate: -rate.images_per_s)
