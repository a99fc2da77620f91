"""What classes are called: ImageNet-1K's ids and words, and names for classes without any.

imagenet_classes.csv beside this file has the columns wnid, name and val_images: an id of WordNet,
its words, and the numbers of the 50 validation images of that class. Its rows, sorted by id, are in
the order of everyone's labels.
"""

import csv
import functools
import os
from collections.abc import Sequence
from pathlib import Path

IMAGENET_CLASSES = Path(__file__).with_name("imagenet_classes.csv")


@functools.cache
def _imagenet_rows() -> list[dict[str, str]]:
    with open(IMAGENET_CLASSES, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def imagenet_names() -> dict[str, str]:
    """ImageNet-1K's classes in the order of their ids, wnid -> words."""
    return {row["wnid"]: row["name"] for row in _imagenet_rows()}


def imagenet_val_labels() -> dict[str, str]:
    """WNID of each of ImageNet's 50,000 validation images; keys are ILSVRC2012_val_00000001 etc."""
    return {
        f"ILSVRC2012_val_{int(number):08d}": row["wnid"]
        for row in _imagenet_rows()
        for number in row["val_images"].split()
    }


def check_spelling(names: Sequence[str], where: object) -> None:
    """Raise ValueError for the name of a class that is not UTF-8: it is written to UTF-8 files.

    where: the folder that holds the class folders.
    """
    for name in names:
        encoded = os.fsencode(name)
        try:
            encoded.decode("utf-8")
        except UnicodeDecodeError:
            shown = encoded.decode("utf-8", "backslashreplace")
            raise ValueError(
                f"{where}: the name of class {shown} is not UTF-8: rename it (for files of older "
                "Windows systems: convmv -r -f cp1252 -t utf8 --notest FOLDER)"
            ) from None


def readable(names: Sequence[str]) -> list[str]:
    """WordNet ids as words, other names unchanged; classes with the same name get numbers."""
    words = imagenet_names()
    found = [words.get(name, name) for name in names]
    return [
        name if found.count(name) == 1 else f"{name} ({number})"
        for number, name in enumerate(found)
    ]


def default_names(num_classes: int) -> list[str]:
    """ImageNet's for a thousand classes, numbers for others."""
    if num_classes == 1000:
        return list(imagenet_names())
    return [f"class {number}" for number in range(num_classes)]
