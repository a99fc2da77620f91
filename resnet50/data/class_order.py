"""Which logit of foreign weights each class folder means: usually by its place in text order."""

import re
from collections.abc import Sequence

import dataset_paths
from resnet50.data.class_names import imagenet_names

NUM_IMAGENET = 1000


def are_numbers(names: Sequence[str]) -> bool:
    """Whether all class folders are numbers, such as ImageNetV2's 0 to 999."""
    return bool(names) and all(name.isascii() and name.isdecimal() for name in names)


def check_words(names: Sequence[str], where: object) -> None:
    """Raise ValueError for ImageNet's classes by words: their text order is not the weights'
    order, which is that of the WordNet ids."""
    if len(names) != NUM_IMAGENET or dataset_paths.are_wnids(names):
        return
    words = {plain(word) for name in imagenet_names().values() for word in name.split(", ")}
    known = [name for name in names if plain(name) in words]
    if 2 * len(known) > len(names):
        raise ValueError(
            f"{where} has folders named after ImageNet's classes, such as {known[0]}, whose text "
            "order is not that of the weights' classes. Rename each to its WordNet id, listed in "
            "resnet50/data/imagenet_classes.csv"
        )


def plain(name: str) -> str:
    """A name's letters and digits, in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def labels_of(names: Sequence[str], known: Sequence[str], where: object) -> list[int]:
    """The number of the logit of every class folder.

    names: of the folders, sorted as text, as many as there are logits; known: names of the
    weights' classes, empty if unknown; where: the folders' parent. Folders named like the classes
    are matched by name. Numbers from 0 are the numbers of the logits, though their text order is
    0, 1, 10. Raises ValueError for ambiguous numbers.
    """
    number_of = {name: number for number, name in enumerate(known)}
    if len(number_of) == len(known) and set(number_of) == set(names):
        return [number_of[name] for name in names]
    as_sorted = list(range(len(names)))
    if not are_numbers(names):
        check_words(names, where)
        return as_sorted
    numbers = [int(name) for name in names]
    if sorted(numbers) == as_sorted:
        return numbers
    first, last = min(numbers), max(numbers)
    what = f"{where} has class folders from {first} to {last}"
    if (first, last, len(set(numbers))) == (1, 1000, 1000):
        raise ValueError(
            f"{what}: the numbers of ImageNet's development kit, whose order is not that of the "
            "weights' classes. Rename each folder to its WordNet id, listed in meta.mat of the "
            "development kit"
        )
    if numbers != sorted(numbers):
        raise ValueError(
            f"{what}, and nothing says which class of the weights each one is. Rename the folders "
            f"to the weights' class numbers, 0 to {len(names) - 1}"
        )
    return as_sorted
