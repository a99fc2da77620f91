"""Splits listed in tables: our train.csv and val.csv of path,label, others of filename,label."""

import csv
import io
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from resnet50.data.unused import printable
from resnet50.packing import archives
from resnet50.packing.archives import Member
from resnet50.packing.tree import ByClass, Tree

CSV_HEADER = ("path", "label")
OTHERS_HEADER = ("filename", "label")  # mini-ImageNet's (Ravi and Larochelle 2017), and Kaggle's
ANY_BYTES = "surrogateescape"  # how Python decodes file names that are not UTF-8
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def rows(data: bytes, where: Path, header: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and rows of a CSV file. Raises ValueError naming the line."""
    text = io.StringIO(data.decode("utf-8-sig", ANY_BYTES), newline="")
    reader = csv.reader(text, strict=True, skipinitialspace=True)
    try:
        first = next(reader, None)
        if first is None or [field.strip().lower() for field in first] != [
            name.lower() for name in header
        ]:
            raise csv.Error(f"must be {','.join(header)}")
        for row in filter(None, reader):  # without empty lines
            if len(row) != len(header):
                raise csv.Error(f"{len(row)} columns, not {len(header)}")
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{where} line {reader.line_num}: {error}") from error


def are_there(source: Path) -> bool:
    """Whether our train.csv and val.csv are there. Raises ValueError if only one is, or if they
    are nearly ours."""
    ours = []
    for file in (source / "train.csv", source / "val.csv"):
        if not file.is_file():
            continue
        with open(file, "rb") as lines:
            first = lines.readline(1000)
        if first.startswith(UTF_16):
            raise ValueError(f"{file}: is UTF-16: save it as UTF-8 (iconv -f utf-16 -t utf-8)")
        text = first.decode("utf-8-sig", ANY_BYTES).strip()
        fields = [field.strip().strip('"').lower() for field in text.split(",")]
        ours.append(fields == list(CSV_HEADER))
        if not ours[-1] and {*CSV_HEADER} <= {
            word.strip().strip('"').lower() for word in re.split("[;,\t]", text)
        }:
            what = f"{file}: its first line is {printable(text)!r}"
            raise ValueError(f"{what}, but must be path,label: these two columns, with a comma")
    if any(ours) and ours != [True, True]:
        what = f"{source}: train.csv and val.csv must both begin with the line path,label"
        raise ValueError(f"{what}; write both, or remove them to use the folders")
    return any(ours)


def read(source: Path) -> tuple[ByClass, ByClass, list[Path]]:
    """Training and validation pictures by class, and the tables read; the classes are those
    of train.csv or of classes.txt. Raises ValueError naming file and line."""
    train_file, val_file, file = (source / f"{n}" for n in ("train.csv", "val.csv", "classes.txt"))
    named = None
    files = [train_file, val_file]
    if file.is_file():
        text = file.read_bytes().decode("utf-8-sig", ANY_BYTES)
        named = {line.rstrip("\r") for line in text.split("\n")} - {""}
        files.append(file)
    train = _split(train_file, named, file)
    if named and (unused := named - train.keys()):
        what = f"{file}: class {printable(min(unused))} has no pictures in train.csv; remove it"
        raise ValueError(f"{what}. If there is a classes.txt, it lists the classes")
    return train, _split(val_file, set(train), train_file), files


def check_label(label: str, where: str) -> None:
    """Raise ValueError if a label cannot be a class. where: file and line."""
    if not label:
        raise ValueError(f"{where}: '' is not one of the classes: the label is empty; fill it in")
    if printable(label) != label:
        what = f"{where}: the label {printable(label)} is not UTF-8"
        raise ValueError(f"{what}: save the file as UTF-8 (iconv -f latin1 -t utf-8)")
    if "/" in label or "\0" in label:
        what = f"{where}: the label {label!r} holds a /, which would be a folder in a name"
        raise ValueError(f"{what}: spell it differently, such as {label.replace('/', '-')!r}")


def _split(file: Path, classes: set[str] | None, said_by: Path) -> ByClass:
    """Listed pictures by class, any class if none are given. Raises ValueError naming a line."""
    by_class: ByClass = defaultdict(list)
    folder = str(file.parent.absolute())
    seen = set()
    missing = []
    for line, (path, label) in rows(file.read_bytes(), file, CSV_HEADER):
        place = posixpath.join(folder, path)
        if (plain := posixpath.normpath(place)) in seen:
            raise ValueError(f"{file} line {line}: {path} is listed twice; remove one")
        check_label(label, f"{file} line {line}")
        if classes is not None and label not in classes:
            what = f"{file} line {line}: {label!r} is not one of the classes"
            if said_by.suffix == ".txt":
                raise ValueError(
                    f"{what} that {said_by} lists; correct the label or that list, or remove the "
                    "list if it belongs to something else: without it the labels are the classes"
                )
            raise ValueError(f"{what} of {said_by.name}; correct it")
        if not posixpath.isfile(place):
            missing.append(f"{path} (line {line})")
        seen.add(plain)
        by_class[label].append(Member(posixpath.normpath(path), place))
    if missing:
        first = ", ".join(printable(name) for name in missing[:3])
        raise ValueError(f"{file}: {len(missing):,} listed files are missing: {first}")
    if not by_class:
        raise ValueError(f"{file}: lists no pictures")
    return by_class


def others_tables(tree: Tree) -> dict[str, ByClass] | None:
    """Pictures by class and split, listed in tables of filename,label, as in mini-ImageNet.

    The tables are train.csv, val.csv and perhaps test.csv, the pictures are beside them or in
    images/. None if there are no such tables. Raises ValueError naming table and line.
    """
    tables = {}
    for member in [m for members in tree.others.values() for m in members]:
        folder, _, name = member.path.rpartition("/")
        if name in ("train.csv", "val.csv", "test.csv"):
            data = archives.read(member)
            text = data[:1000].decode("utf-8-sig", ANY_BYTES).split("\n")[0]
            fields = tuple(word.strip().strip('"').lower() for word in text.split(","))
            if fields == OTHERS_HEADER:
                tables.setdefault(folder, {})[name.removesuffix(".csv")] = (member, data)
    if not tables:
        return None
    folder = min(tables, key=lambda name: name.count("/"))
    if not {"train", "val"} <= tables[folder].keys():
        return None
    return {
        split: _listed(tree, folder, *tables[folder][split])
        for split in ("train", "val", "test")
        if split in tables[folder]
    }


def _listed(tree: Tree, folder: str, table: Member, data: bytes) -> ByClass:
    by_class: ByClass = defaultdict(list)
    places = (folder, posixpath.join(folder, "images"))
    there = {
        posixpath.relpath(member.path, place or "."): member
        for place in places
        for member in tree.below(place)
    }
    where = tree.where(table.path)
    for line, (name, label) in rows(data, where, OTHERS_HEADER):
        check_label(label, f"{where} line {line}")
        if name not in there:
            raise ValueError(f"{where} line {line}: {printable(name)} is missing")
        by_class[label].append(there[name])
    return by_class
