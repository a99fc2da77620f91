"""A data set that was found: its classes and splits in order, whatever it was found in.

sources.py recognizes it; encode.py and writer.py make its packs.
"""

import csv
import hashlib
import io
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from resnet50.data import class_folders
from resnet50.data.unused import Unused, printable
from resnet50.packing.archives import Member
from resnet50.packing.csv_splits import ANY_BYTES, CSV_HEADER
from resnet50.packing.tree import ByClass


class Picture(NamedTuple):
    """One picture of a split."""

    name: str  # CLASS/FILE; unique in its split
    label: int
    member: Member


@dataclass(frozen=True)
class Source:
    """A recognized data set; classes are sorted, pictures by (label, name) as in data/splits.py.

    unused: files there that are not used; tables: files that the labels were read from; archives:
    files that hold the pictures, none if the pictures are files themselves.
    """

    layout: str
    classes: tuple[str, ...]
    splits: Mapping[str, list[Picture]]  # train and val
    unused: Unused = field(default_factory=Unused)
    tables: tuple[Path, ...] = ()
    archives: tuple[Path, ...] = ()
    remarks: tuple[str, ...] = ()


def make_source(
    layout: str,
    source: Path,
    train: ByClass,
    val: ByClass,
    train_where: str = "train",
    val_where: str = "val",
) -> Source:
    """Put both splits in order. Raises ValueError if their classes differ."""
    if what := class_folders.difference(sorted(train), sorted(val), train_where, val_where):
        raise ValueError(f"{source}: {what}")
    classes = tuple(sorted(train))
    splits = {"train": _pictures(source, classes, train), "val": _pictures(source, classes, val)}
    return Source(layout, classes, splits)


def _pictures(source: Path, classes: Sequence[str], by_class: ByClass) -> list[Picture]:
    """A split in order; where file names repeat in a class, all are named by their whole path."""
    for file_name in (posixpath.basename, lambda path: path.replace("/", "__")):
        pictures = [
            Picture(f"{name}/{file_name(member.path)}", label, member)
            for label, name in enumerate(classes)
            for member in by_class[name]
        ]
        if len({picture.name for picture in pictures}) == len(pictures):
            return sorted(pictures, key=attrgetter("label", "name"))
    raise ValueError(f"{source}: the paths of two pictures differ only in / and __; rename one")


def split_off(layout: str, source: Path, by_class: ByClass, val_pct: float) -> Source:
    """Take a validation split out of each class."""
    train, val = {}, {}
    for name, pictures in by_class.items():
        if len(pictures) < 2:
            what = f"{source}: class {printable(name)} has a single picture"
            raise ValueError(f"{what}, so none to validate with; add some or remove the class")
        paths = [f"{name}/{posixpath.basename(member.path)}" for member in pictures]
        ranks = [hashlib.sha256(path.encode("utf-8", ANY_BYTES)).digest() for path in paths]
        ranked = [member for _, member in sorted(zip(ranks, pictures, strict=True))]
        count = min(max(round(len(ranked) * val_pct / 100), 1), len(ranked) - 1)
        train[name], val[name] = ranked[count:], ranked[:count]
    return make_source(layout, source, train, val)


def merged(parts: Iterable[ByClass]) -> ByClass:
    """The pictures of several folders, class by class."""
    together: ByClass = defaultdict(list)
    for by_class in parts:
        for name, members in by_class.items():
            together[name] += members
    return together


def write_annotations(source: Source, folder: Path) -> None:
    """Write train.csv and val.csv, which `recognize` understands unless an archive was the source.

    Paths are absolute, or relative to `folder` if they are in it, or those inside the archive.
    """
    root = f"{folder.absolute()}/"
    for split, pictures in source.splits.items():
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(CSV_HEADER)
        for _, label, member in pictures:
            path = member.file.removeprefix(root) if member.size < 0 else member.path
            writer.writerow((path, source.classes[label]))
        (folder / f"{split}.csv").write_bytes(text.getvalue().encode("utf-8", ANY_BYTES))
