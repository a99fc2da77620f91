"""A parquet file's rows, and the class folder that each label becomes."""

import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import dataset_paths
from resnet50.packing import hugging_face

MAX_NAME_BYTES = 240  # of a file or folder: 255 on most disks, less what `.NAME.partial` adds


@dataclass(frozen=True)
class Table:
    """One parquet file. image, label: names of its columns; names: of its labels, if it has any.

    paths: what image.path says of each row, "" if nothing; labels: of each row.
    """

    path: Path
    split: str
    image: str
    has_paths: bool
    names: Sequence[str]
    paths: Sequence[str]
    labels: Sequence[int | str | None]


def class_names_of(tables: Sequence[Table]) -> list[list[str]]:
    """Class of every row of every table; "" for those without a label, as of test splits."""
    # Where some names end in WNIDs, these give the meaning of the labels in all files.
    wnids = {
        label: wnid
        for table in tables
        for path, label in zip(table.paths, table.labels, strict=True)
        if (wnid := wnid_of(path))
    }
    width = num_digits(tables)
    check_labels(tables)
    classes = []
    for table in tables:
        rows = zip(table.paths, table.labels, strict=True)
        folders = folders_of(table.names)
        classes.append(
            [
                wnid_of(path) or wnids.get(label) or class_of(label, folders, width)
                for path, label in rows
            ]
        )
    return classes


def num_digits(tables: Sequence[Table]) -> int:
    """Of the largest label without a name: with as many, folders sort as the numbers do."""
    numbers = [
        label
        for table in tables
        for label in table.labels
        if isinstance(label, int) and label >= len(table.names)
    ]
    return len(str(max(numbers, default=0)))


def check_labels(tables: Sequence[Table]) -> None:
    """Raise ValueError for labels that mean nothing, that cannot be a folder's name, and for two
    that would share a folder."""
    label_of: dict[str, str] = {}
    for table in tables:
        texts = (label for label in {*table.names, *table.labels} if isinstance(label, str))
        if odd := next((text for text in texts if not fits_a_disk(folder_name(text))), ""):
            raise ValueError(
                f"{table.path}: the label {odd[:40]!r}... is too long for a folder's name: shorten "
                "it"
            )
        for row, label in enumerate(table.labels):
            if isinstance(label, int) and label < -1:
                raise ValueError(f"{table.path}: row {row} has the label {label}: correct it")
        for label in filter(lambda label: isinstance(label, str), dict.fromkeys(table.labels)):
            other = label_of.setdefault(folder_name(label), label)
            if other != label:
                raise ValueError(
                    f"{table.path}: the labels {other!r} and {label!r} would share the folder "
                    f"{folder_name(label)}: rename one of them"
                )


def folders_of(names: Sequence[str]) -> list[str]:
    """A folder for each class name; with its number where a name repeats, as ImageNet's crane."""
    folders = list(map(folder_name, names))
    times, width = Counter(folders), len(str(len(folders) - 1))
    return [
        folder if times[folder] == 1 else f"{folder}_{number:0{width}d}"
        for number, folder in enumerate(folders)
    ]


def folder_name(label: str) -> str:
    """A label as the name of a folder."""
    name = label.replace("/", "-").replace("\0", "")
    return f"_{name}" if dataset_paths.is_hidden(name) else name


def fits_a_disk(name: str) -> bool:
    """Whether a disk takes this as the name of a file or folder, and it is not a hidden one."""
    num_bytes = len(name.encode(errors="surrogatepass"))
    return "\0" not in name and num_bytes <= MAX_NAME_BYTES and not dataset_paths.is_hidden(name)


def wnid_of(path: str) -> str:
    """The class in a name of ImageNet's, as Hugging Face writes them; "" if there is none."""
    name = posixpath.basename(path)
    match = hugging_face.TRAIN_NAME.fullmatch(name) or hugging_face.VAL_NAME.fullmatch(name)
    return match[1] if match else ""


def class_of(label: int | str | None, folders: Sequence[str], width: int) -> str:
    """The folder of a label; "" for no label, which -1 means too."""
    if label is None or label == -1 or label == "":
        return ""
    if isinstance(label, int):
        return folders[label] if label < len(folders) else f"{label:0{width}d}"
    return folder_name(str(label))
