"""The data sets: where they lie and what they must contain.

    python dataset_paths.py          # print the folder that `python train.py` would take

A data folder holds `train/CLASS/*` and `val/CLASS/*` (or `validation/CLASS/*`).
"""

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT_VARIABLE = "IMAGENET_DIR"
# The EBS volume of setup_and_train.sh first, then the clone's own data folder.
SEARCHED_DIRS = (
    Path("/mnt/imagenet/imagenet"),
    Path("/mnt/imagenet"),
    Path("data/imagenet"),
    Path("data"),
)
VAL_NAMES = ("val", "validation")


@dataclass(frozen=True)
class Dataset:
    """What a complete data set must have."""

    title: str
    num_classes: int
    num_train: int
    num_val: int


# Counts of ImageNet: torchvision's datasets/imagenet.py and image-net.org; of Fashion-MNIST: Xiao
# et al. 2017, arXiv:1708.07747.
DATASETS: Mapping[str, Dataset] = {
    "imagenet": Dataset("ImageNet-1K (ILSVRC 2012)", 1000, 1_281_167, 50_000),
    "fashion-mnist": Dataset("Fashion-MNIST", 10, 60_000, 10_000),
}

FASHION_MNIST_CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
)


def known_dataset(classes: Sequence[str]) -> Dataset | None:
    """The data set that has these class folders, if it is one of ours."""
    if len(classes) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in classes):
        return DATASETS["imagenet"]
    return DATASETS["fashion-mnist"] if set(classes) == set(FASHION_MNIST_CLASSES) else None


def shortfall(classes: Sequence[str], num_train: int, num_val: int) -> str:
    """What a known data set should have and has not; empty if nothing is amiss."""
    dataset = known_dataset(classes)
    if dataset is None or (num_train, num_val) == (dataset.num_train, dataset.num_val):
        return ""
    return (
        f"{dataset.title} has {dataset.num_train:,} training and {dataset.num_val:,} validation "
        f"images, here are {num_train:,} and {num_val:,}"
    )


def split_dir(data_dir: Path, split: str) -> Path:
    """Folder of a split; `val` may be called `validation`. Raises ValueError if there is none."""
    names = VAL_NAMES if split in VAL_NAMES else (split,)
    for name in names:
        if (data_dir / name).is_dir():
            return data_dir / name
    wanted = " or ".join(f"{name}/" for name in names)
    raise ValueError(f"--data_dir {data_dir}: no folder {wanted} in it, with one folder a class")


def find_data_dir() -> Path:
    """The first place that holds both splits: $IMAGENET_DIR, the mounted volume, ./data.

    Raises ValueError listing every place that was looked at.
    """
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    places = (Path(named),) if named else SEARCHED_DIRS
    for place in places:
        if (place / "train").is_dir() and any((place / name).is_dir() for name in VAL_NAMES):
            return place
    looked = ", ".join(str(place) for place in places)
    raise ValueError(
        f"no data found: no train/ and val/ in {looked}. Give train.py --data_dir DIR or set "
        f"{ENVIRONMENT_VARIABLE}; `python prepare_data.py fashion-mnist` makes a small one to try"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the data folder that would be used."""
    formatter = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=formatter).parse_args(argv)
    try:
        print(find_data_dir())
    except ValueError as error:
        print(f"dataset_paths.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
