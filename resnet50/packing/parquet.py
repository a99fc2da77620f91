"""Write the pictures of parquet files, as Hugging Face exports data sets, into class folders.

    python -m resnet50.packing.parquet FOLDER --out FOLDER2
    python prepare_data.py FOLDER2 --out data/NAME

FOLDER holds files such as data/train-00000-of-00257.parquet. FOLDER2 gets train/CLASS/* and
val/CLASS/*, and test/CLASS/* where there is a test split with labels. Files keep the names of the
column image.path. A class is the WNID in that name if ImageNet's are, else the label's name in
the file's metadata, else the label itself. After an interruption, the same command resumes.
"""

import argparse
import importlib
import json
import os
import posixpath
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

import dataset_paths
from resnet50.config.command_line import Parser, print_error
from resnet50.data import remedies
from resnet50.packing.parquet_table import Table, class_names_of, fits_a_disk, num_digits
from resnet50.system import files

PROGRAM = "resnet50.packing.parquet"
STATE = ".parquet.json"  # in FOLDER2: the files that are completely written out
DIGITS = "digits"  # in it: of the labels that have no names, and so of their folders
BATCH_ROWS = 64  # pictures in memory at once
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")
SPLIT_NAMES = {
    **dict.fromkeys(remedies.TRAIN_WORDS, "train"),
    **dict.fromkeys(remedies.VAL_WORDS, "val"),
    **dict.fromkeys(remedies.TEST_WORDS, "test"),
}
SIGNATURES = {
    b"\xff\xd8": ".jpg",
    b"\x89PNG": ".png",
    b"RIFF": ".webp",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}


def parquet_module() -> ModuleType:
    """pyarrow.parquet. Raises ValueError with the command that installs it."""
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        what = f"parquet files are read by pyarrow, which is not installed ({error})"
        raise ValueError(f"{what}: pip install pyarrow") from error


def find_files(source: Path) -> list[Path]:
    """The parquet files in a folder or below it, or the given one, sorted."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise ValueError(f"{source}: no such file or folder")
    found = sorted(path for path in source.rglob("*.parquet") if path.is_file())
    if not found:
        raise ValueError(f"{source}: no .parquet files in it")
    return found


def split_of(path: Path, source: Path) -> str:
    """train, val or test, by a file's name or a folder's: train-00000-of-00257.parquet,
    default/train/0000.parquet. A file given alone is train's, whatever its name. Raises ValueError
    if nothing says it."""
    relative = path.relative_to(source if source.is_dir() else source.parent)
    for part in reversed(relative.with_suffix("").parts):
        for word in re.findall(r"[a-z]+", part.lower()):
            if word in SPLIT_NAMES:
                return SPLIT_NAMES[word]
    if path == source:
        return "train"
    what = f"{path}: neither its name nor its folder's says which split it is"
    raise ValueError(f"{what}: call it train-{path.name} or validation-{path.name}")


def features_of(schema: Any) -> Mapping[str, Mapping]:
    """What the library `datasets` recorded about each column, {} if nothing."""
    metadata = schema.metadata or {}
    try:
        return json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError):
        return {}


def open_table(path: Path, source: Path, reader: ModuleType) -> Table:
    """Read all of a file but its pictures. Raises ValueError naming file and column."""
    try:
        file = reader.ParquetFile(path)
        schema = file.schema_arrow
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        what = f"{path}: not a complete parquet file ({str(error).splitlines()[0]})"
        raise ValueError(f"{what}; download it again") from error
    features = features_of(schema)
    names = schema.names
    image = column(
        path,
        "picture",
        names,
        lambda n: (features.get(n) or {}).get("_type") == "Image",
        ("image", "img", "picture"),
    )
    label = column(
        path,
        "label",
        names,
        lambda n: (features.get(n) or {}).get("_type") == "ClassLabel",
        LABEL_COLUMNS,
    )
    check_labels_type(path, label, schema.field(label).type)
    kind = schema.field(image).type
    fields = [kind.field(i).name for i in range(kind.num_fields)]
    if fields and "bytes" not in fields:
        raise ValueError(f"{path}: its column {image} has no bytes, so it holds no pictures")
    if not fields and "binary" not in str(kind):
        raise ValueError(f"{path}: its column {image} is {kind}, so it holds no pictures")
    has_paths = "path" in fields
    rows = file.read(columns=[label, *([f"{image}.path"] if has_paths else [])])
    labels = rows.column(label).to_pylist()
    paths = [row["path"] or "" for row in rows.column(image).to_pylist()] if has_paths else []
    return Table(
        path,
        split_of(path, source),
        image,
        bool(fields),
        tuple((features.get(label) or {}).get("names") or ()),
        paths or [""] * len(labels),
        labels,
    )


def check_labels_type(path: Path, label: str, kind: Any) -> None:
    """Raise ValueError for labels that are neither whole numbers nor texts."""
    if not re.fullmatch(r"u?int\d+|(large_)?string|dictionary<values=string.*", str(kind)):
        raise ValueError(
            f"{path}: its column {label} is {kind}: one class for each picture is needed, a whole "
            "number or a text"
        )


def column(path: Path, what: str, names: Sequence[str], is_one: Any, usual: Sequence[str]) -> str:
    """The column of a file whose metadata or name match what is needed."""
    found = [n for n in names if is_one(n)] or [n for n in usual if n in names]
    if not found:
        raise ValueError(f"{path}: no {what} column among {', '.join(names)}")
    return found[0]


def file_names(tables: Sequence[Table], classes: Sequence[Sequence[str]]) -> list[list[str]]:
    """SPLIT/CLASS/FILE of every row, each once; "" for rows without a class.

    What is not unique is named after its parquet file and row, and not after the file's place among
    the others: one that is downloaded later must not take the names of pictures already written.
    """

    def own_name(path: str) -> str:
        name = posixpath.basename(path)
        return name if fits_a_disk(name) else ""

    def place_of(table: Table, path: str, name: str) -> str:
        return f"{table.split}/{name}/{own_name(path)}"

    times = Counter(
        place_of(table, path, name)
        for table, of_rows in zip(tables, classes, strict=True)
        for path, name in zip(table.paths, of_rows, strict=True)
    )
    names = []
    for table, of_rows in zip(tables, classes, strict=True):
        own = []
        for row, (path, name) in enumerate(zip(table.paths, of_rows, strict=True)):
            place = place_of(table, path, name)
            if not own_name(path) or times[place] > 1:
                file = f"{table.path.parent.name}_{table.path.stem}_{row:06d}"
                longer = f"{file}_{own_name(path)}"
                file = longer if own_name(path) and fits_a_disk(longer) else file
                place = f"{table.split}/{name}/{file}"
            own.append(place if name else "")
        names.append(own)
    written = Counter(place for own in names for place in own if place)
    if twice := next((place for place, count in written.items() if count > 1), ""):
        raise ValueError(f"{twice} would be written twice: give the parquet files other names")
    return names


def write_table(table: Table, names: Sequence[str], out: Path, reader: ModuleType) -> None:
    """Write the pictures of one file. Raises ValueError for a row without one."""
    for name, data in zip(names, pictures_of(table, reader), strict=True):
        if not name:
            continue
        if not data:
            raise ValueError(f"{table.path}: the row of {name} holds no picture, only its path")
        if not dataset_paths.is_picture(posixpath.basename(name)):
            name += next((end for begin, end in SIGNATURES.items() if data.startswith(begin)), "")
        place = out / name
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f".{place.name}.partial")
        partial.write_bytes(data)
        partial.replace(place)


def pictures_of(table: Table, reader: ModuleType) -> Iterator[bytes | None]:
    """Encoded pictures, row by row."""
    columns = [f"{table.image}.bytes"] if table.has_paths else [table.image]
    file = reader.ParquetFile(table.path)
    for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
        for value in batch.column(0).to_pylist():
            yield value["bytes"] if isinstance(value, dict) else value


def convert(source: Path, out: Path) -> None:
    """Write all pictures. Raises ValueError and OSError for what must be changed."""
    state = read_state(out)
    reader = parquet_module()
    tables = [open_table(path, source, reader) for path in find_files(source)]
    digits = num_digits(tables)
    if state.setdefault(DIGITS, digits) != digits:
        raise ValueError(
            f"--out {out} has folders for labels of {state[DIGITS]} digits, but those in {source} "
            f"now have {digits}, which changes the folders' names: give an empty or a new folder"
        )
    names = file_names(tables, class_names_of(tables))
    out.mkdir(parents=True, exist_ok=True)
    files.write_text(out / STATE, json.dumps(state), sync=False)
    for table, of_rows in zip(
        tqdm(tables, unit="file", disable=None, leave=False), names, strict=True
    ):
        status = table.path.stat()
        key = str(table.path.absolute())
        mark = [status.st_size, status.st_mtime_ns]
        if state.get(key) == mark:
            continue
        if key in state:
            raise ValueError(
                f"{table.path} has changed since its pictures were written to {out}, where they "
                "would stay: give an empty or a new folder"
            )
        write_table(table, of_rows, out, reader)
        state[key] = mark
        files.write_text(out / STATE, json.dumps(state), sync=False)
    report(out, tables, names)


def read_state(out: Path) -> dict[str, list[int] | int]:
    """Size and time of the files that an earlier start has written out, and DIGITS.

    Raises ValueError if `out` has other files.
    """
    try:
        return json.loads((out / STATE).read_text())
    except (OSError, ValueError):
        if out.is_dir() and any(out.iterdir()):
            names = ", ".join(sorted(path.name for path in out.iterdir())[:5])
            what = f"--out {out} holds other files ({names})"
            raise ValueError(f"{what}: give an empty or a new folder") from None
        return {}


def report(out: Path, tables: Sequence[Table], names: Sequence[Sequence[str]]) -> None:
    """Say what was written, what has no label, and what comes next."""
    written = [name for of_rows in names for name in of_rows if name]
    splits = sorted({name.partition("/")[0] for name in written})
    for split in splits:
        own = [name for name in written if name.startswith(f"{split}/")]
        classes = {name.split("/")[1] for name in own}
        print(f"{out / split}: {len(own):,} pictures of {len(classes):,} classes")
    if without := sum(map(len, names)) - len(written):
        print(f"  {without:,} rows have no label, as in a test split, and were left out")
    flags = "" if {"train", "val"} <= set(splits) else remedies.split_flags(splits)
    print(f"next: {remedies.pack_command(out, flags).strip('`')}")


def build_parser() -> argparse.ArgumentParser:
    """What can be asked for, and the text of --help."""
    parser = Parser(PROGRAM, __doc__)
    parser.add_argument("source", type=Path, metavar="FOLDER", help="with .parquet files, or one")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER2", help="to write")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; 0 if all is written, 2 if something must be changed, 75 if interrupted."""
    args = build_parser().parse_args(argv)
    try:
        convert(args.source, args.out)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; the same command resumes", file=sys.stderr)
        return os.EX_TEMPFAIL
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        message = f"--out {args.out}: {error.strerror}{where}; once fixed, the same command resumes"
        return print_error(PROGRAM, message)
    except ValueError as error:
        return print_error(PROGRAM, error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
