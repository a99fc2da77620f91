"""Which data set a folder or an archive holds: its classes, splits and pictures.

    source = layouts.recognize(Path("imagenet-object-localization-challenge.zip"), work_dir)
    source.layout, len(source.classes), len(source.splits["train"])

Recognized by its content, not by a name; `UNDERSTOOD` lists what is known.
"""

import csv
import hashlib
import io
import posixpath
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import dataset_paths
from resnet50.data import class_names
from resnet50.data.class_names import IMAGENET_CLASSES, imagenet_val_labels
from resnet50.packing import archives
from resnet50.packing.archives import Member

UNDERSTOOD = """\
  a folder with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar
  a folder with train.csv and val.csv, whose first line is path,label
  and as folder, .zip, .tar or .tar.gz:
  Kaggle's imagenet-object-localization-challenge, Tiny-ImageNet-200, Imagenette, Imagewoof
  train/CLASS/* with val/CLASS/* or validation/CLASS/*
  CLASS/* of two classes or more, from which a validation split is taken"""
TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
CSV_HEADER = ("path", "label")
ANY_BYTES = "surrogateescape"  # how Python spells file names that are not UTF-8
ByClass = dict[str, list[Member]]


class Picture(NamedTuple):
    """One picture of a split."""

    name: str  # CLASS/FILE; unique in its split
    label: int
    member: Member


@dataclass(frozen=True)
class Source:
    """A recognized data set; classes are sorted, pictures by (label, name) as in data/splits.py."""

    layout: str
    classes: tuple[str, ...]
    splits: Mapping[str, list[Picture]]  # train and val


def recognize(source: Path, work_dir: Path, val_pct: float = 10.0) -> Source:
    """Find the pictures and labels of a data set.

    val_pct: share of each class that becomes the validation split where the source has none.
    Raises ValueError naming what was found and what is understood.
    """
    if not 0 < val_pct < 100:
        raise ValueError(f"--val_pct {val_pct}: must be more than 0 and less than 100")
    if _has_csv_splits(source):
        return _from_csv(source)
    tars = [name for name in (TRAIN_TAR, VAL_TAR) if (source / name).is_file()]
    if len(tars) == 2:
        return _from_imagenet_tars(source, work_dir)
    tree = _Tree(source, archives.list_members(source, work_dir))
    if (folders := tree.split_folders()) is not None:
        return _from_split_folders(tree, *folders)
    if tars or source.name in (TRAIN_TAR, VAL_TAR):
        raise ValueError(f"{source}: give the folder that holds both {TRAIN_TAR} and {VAL_TAR}")
    return _from_classes(tree, val_pct)


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


class _Tree:
    """The pictures of each folder, and each folder's subfolders that hold some; "" is the top."""

    def __init__(self, source: Path, members: Sequence[Member]) -> None:
        self.source, self.members = source, members
        self.pictures: ByClass = defaultdict(list)
        self.subfolders: dict[str, set[str]] = defaultdict(set)
        for member in members:
            if member.path.lower().endswith(dataset_paths.EXTENSIONS):
                self.pictures[member.path.rpartition("/")[0]].append(member)
        for folder in self.pictures:
            while folder:
                above, _, name = folder.rpartition("/")
                self.subfolders[above].add(name)
                folder = above

    def split_folders(self) -> tuple[str, str] | None:
        """The highest folder's train/ and val/; None if there is none, ValueError if several."""
        found = []
        for folder, names in self.subfolders.items():
            vals = [name for name in dataset_paths.VAL_NAMES if name in names]
            if vals and "train" in names:
                found.append((posixpath.join(folder, "train"), posixpath.join(folder, vals[0])))
        found.sort(key=lambda pair: pair[0].count("/"))
        if len(found) > 1 and found[0][0].count("/") == found[1][0].count("/"):
            what = f"{self.source} holds several data sets ({found[0][0]}, {found[1][0]})"
            raise ValueError(f"{what}: give the folder of one")
        return found[0] if found else None

    def classes(self, folder: str) -> ByClass:
        """Pictures by class: those directly in its folder, else in Tiny-ImageNet's CLASS/images."""
        found = {}
        for name in self.subfolders.get(folder, ()):
            place = posixpath.join(folder, name)
            found[name] = self.pictures.get(place) or self.pictures.get(f"{place}/images", [])
            if not found[name]:
                what = f"{self.source / place} has pictures only in its subfolders"
                raise ValueError(f"{what}: move them up into the class folder itself")
        return found


def _from_imagenet_tars(source: Path, work_dir: Path) -> Source:
    """The two archives of image-net.org: a tar for each class, and one flat tar."""
    train_tar, val_tar = source / TRAIN_TAR, source / VAL_TAR
    train = _Tree(train_tar, archives.list_members(train_tar, work_dir)).classes("")
    val = _Tree(val_tar, archives.list_members(val_tar, work_dir)).pictures[""]
    val_by_class = _label(val, imagenet_val_labels(), IMAGENET_CLASSES)
    return _make_source("imagenet-archives", source, train, val_by_class)


def _from_split_folders(tree: _Tree, train_dir: str, val_dir: str) -> Source:
    """train/CLASS/* with val/CLASS/*, or with a flat val/ and a file that labels it."""
    train, source = tree.classes(train_dir), tree.source
    if val_dir in tree.subfolders:
        tiny = next((m for m in tree.members if m.path == f"{val_dir}/val_annotations.txt"), None)
        if tiny is None or tree.subfolders[val_dir] != {"images"}:
            return _make_source("image-folder", source, train, tree.classes(val_dir))
        lines = archives.read(tiny).decode("utf-8-sig", ANY_BYTES).splitlines()
        fields = [line.split("\t") for line in lines if "\t" in line]
        labels = {file.rpartition(".")[0]: label for file, label, *_ in fields}
        val = _label(tree.pictures[f"{val_dir}/images"], labels, source / tiny.path)
        return _make_source("tiny-imagenet", source, train, val)
    labels, where = imagenet_val_labels(), IMAGENET_CLASSES
    kaggle = next((m for m in tree.members if m.path.endswith("LOC_val_solution.csv")), None)
    if kaggle is not None:
        where = source / kaggle.path
        rows = _rows(archives.read(kaggle), where, ("ImageId", "PredictionString"))
        # A prediction is "WNID x y w h" of each object in the picture, all of one class.
        labels = {image: prediction.partition(" ")[0] for _, (image, prediction) in rows}
    return _make_source("kaggle", source, train, _label(tree.pictures[val_dir], labels, where))


def _from_classes(tree: _Tree, val_pct: float) -> Source:
    """CLASS/* alone: the first val_pct of each class, by sha256 of CLASS/FILE, are validation's."""
    root = ""
    while len(names := tree.subfolders.get(root, ())) == 1:
        root = posixpath.join(root, *names)
    if posixpath.join(root, "train") in tree.subfolders or "train" in root.split("/"):
        what = f"{tree.source} has a train/ and no val/ or validation/ beside it"
        raise ValueError(f"{what}; rename the split to validate with, or give train/ to split it")
    if len(names) < 2:
        raise ValueError(_unknown(tree))
    train, val = {}, {}
    for name, pictures in tree.classes(root).items():
        if len(pictures) < 2:
            what = f"{tree.source}: class {name} has a single picture"
            raise ValueError(f"{what}, so none to validate with; add some or remove the class")
        paths = [f"{name}/{posixpath.basename(member.path)}" for member in pictures]
        ranks = [hashlib.sha256(path.encode("utf-8", ANY_BYTES)).digest() for path in paths]
        ranked = [member for _, member in sorted(zip(ranks, pictures, strict=True))]
        count = min(max(round(len(ranked) * val_pct / 100), 1), len(ranked) - 1)
        train[name], val[name] = ranked[count:], ranked[:count]
    return _make_source("flat-classes", tree.source, train, val)


def _label(members: Sequence[Member], labels: Mapping[str, str], where: Path) -> ByClass:
    """Flat pictures by class; labels: class by a file's name without its extension."""
    by_class: ByClass = defaultdict(list)
    for member in members:
        label = labels.get(posixpath.basename(member.path).rpartition(".")[0])
        if label is None:
            what = f"{member.file}: {member.path}: no class folder, and no label in {where}"
            raise ValueError(f"{what}; move it into a folder of its class or remove it")
        by_class[label].append(member)
    return by_class


def _make_source(layout: str, source: Path, train: ByClass, val: ByClass) -> Source:
    """Put both splits in order. Raises ValueError if their classes differ."""
    for split, own, other in (("train", train, val), ("val", val, train)):
        if only := own.keys() - other.keys():
            such = f"such as {min(only)}: {own[min(only)][0].path}"
            what = f"{source}: the splits' classes differ: {len(only)} only in {split}"
            raise ValueError(f"{what} ({such}); both need pictures of every class")
    classes = tuple(sorted(train))
    class_names.check_spelling(classes, source)
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


def _rows(data: bytes, where: Path, header: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and rows of a CSV file. Raises ValueError naming the line."""
    reader = csv.reader(io.StringIO(data.decode("utf-8-sig", ANY_BYTES), newline=""), strict=True)
    try:
        if next(reader, None) != list(header):
            raise csv.Error(f"must be {','.join(header)}")
        for row in filter(None, reader):  # without empty lines
            if len(row) != len(header):
                raise csv.Error(f"{len(row)} columns, not {len(header)}")
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{where} line {reader.line_num}: {error}") from error


def _has_csv_splits(source: Path) -> bool:
    """Whether it has train.csv and val.csv of our format. Raises ValueError if only one does."""
    ours = []
    for file in (source / "train.csv", source / "val.csv"):
        if file.is_file():
            with open(file, encoding="utf-8-sig", errors=ANY_BYTES) as lines:
                ours.append(lines.readline().rstrip("\n") == ",".join(CSV_HEADER))
    if any(ours) and ours != [True, True]:
        what = f"{source}: train.csv and val.csv must both begin with the line path,label"
        raise ValueError(f"{what}; write both, or remove them to use the folders")
    return any(ours)


def _from_csv(source: Path) -> Source:
    """What train.csv and val.csv list; the classes are those of train.csv or of classes.txt."""
    file = source / "classes.txt"
    named = set(file.read_text("utf-8-sig").split("\n")) - {""} if file.is_file() else None
    train = _csv_split(source / "train.csv", named)
    if named and (unused := named - train.keys()):
        raise ValueError(f"{file}: class {min(unused)} has no pictures in train.csv; remove it")
    return _make_source("csv", source, train, _csv_split(source / "val.csv", set(train)))


def _csv_split(file: Path, classes: set[str] | None) -> ByClass:
    """Listed pictures by class, any class if none are given. Raises ValueError naming a line."""
    by_class: ByClass = defaultdict(list)
    folder, seen, missing = str(file.parent.absolute()), set(), []
    for line, (path, label) in _rows(file.read_bytes(), file, CSV_HEADER):
        place = posixpath.join(folder, path)
        if (plain := posixpath.normpath(place)) in seen:
            raise ValueError(f"{file} line {line}: {path} is listed twice; remove one")
        if not label or "/" in label or (classes is not None and label not in classes):
            raise ValueError(f"{file} line {line}: {label!r} is none of the classes; correct it")
        if not posixpath.isfile(place):
            missing.append(f"{path} (line {line})")
        seen.add(plain)
        by_class[label].append(Member(posixpath.normpath(path), place))
    if missing:
        first = ", ".join(missing[:3])
        raise ValueError(f"{file}: {len(missing):,} listed files are not there: {first}")
    if not by_class:
        raise ValueError(f"{file}: lists no pictures")
    return by_class


def _unknown(tree: _Tree) -> str:
    """What to say about a source that has none of the known layouts."""
    entries = sorted({member.path.partition("/")[0] for member in tree.members})
    shown = ", ".join([*entries[:8], "..."] if len(entries) > 8 else entries) or "nothing"
    found = f"{len(tree.members):,} files, at the top {shown}"
    return f"{tree.source} has no layout that is understood: {found}. It may be\n{UNDERSTOOD}"
