"""Which logit of foreign weights each class folder means: usually by its place in text order."""

from collections.abc import Sequence


def are_numbers(names: Sequence[str]) -> bool:
    """Whether all class folders are numbers, such as ImageNetV2's 0 to 999."""
    return bool(names) and all(name.isascii() and name.isdecimal() for name in names)


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
