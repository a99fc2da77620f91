"""The commands that messages suggest for data that cannot be used as they are."""

import os
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from dataset_paths import is_hidden
from resnet50.data.unused import is_archive, printable

# Names of splits and of parts of data sets, alone or put together: test1, train_images, seg_train,
# trainingSet, train.X1. The other parts of such a name do not count by themselves.
TRAIN_WORDS = ("training", "train")
VAL_WORDS = ("validation", "valid", "val", "evaluation", "eval", "dev")
TEST_WORDS = ("testing", "test")
PART_WORDS = (
    *("images", "image", "imgs", "img", "jpegimages", "pictures", "photos"),
    *("labels", "label", "annotations", "annotation", "masks", "mask"),
    *("predictions", "prediction", "pred", "unlabeled", "unlabelled"),
)
FILLERS = ("dataset", "data", "folder", "set", "split", "seg", "raw", "part", "sample", "x")
_SPLIT = "|".join((*TRAIN_WORDS, *VAL_WORDS, *TEST_WORDS))
_ANY = re.compile(f"(?:{_SPLIT}|{'|'.join((*PART_WORDS, *FILLERS))})+")
ONE_OF_SEVERAL = re.compile(r"-\d+-of-\d+$")
_SOME = re.compile(f"{_SPLIT}|{'|'.join(PART_WORDS)}")


def quoted(name: str) -> str:
    """A word for a shell, and for a terminal."""
    return shlex.quote(printable(name))


def is_part_name(name: str) -> bool:
    """Whether a folder's name is that of a split or a part of a data set rather than of a class."""
    letters = re.sub(r"[^a-z]", "", name.lower())
    return name.isascii() and bool(_ANY.fullmatch(letters) and _SOME.search(letters))


def is_split_name(name: str) -> bool:
    """Whether a folder's name is that of a split: train, test1, seg_val, but not images."""
    return is_part_name(name) and bool(re.search(_SPLIT, name.lower()))


def split_words_in(name: str) -> set[str]:
    """The kinds of split that a name mentions: "train" for trainA, "val" for DIV2K_valid_HR."""
    words = set(map(str.lower, re.findall("[A-Z]?[a-z]+|[A-Z]+", name)))
    kinds = {"train": TRAIN_WORDS, "val": VAL_WORDS, "test": TEST_WORDS}
    return {kind for kind, known in kinds.items() if words & set(known)}


def split_flags(names: Iterable[str]) -> str:
    """--train_dir and --val_dir for folders with names of splits; "" without any to train
    on. A test split is used for validation if there is no other."""
    names = sorted(name for name in names if is_split_name(name))

    def called(words: Sequence[str]) -> list[str]:
        return [name for name in names if re.search("|".join(words), name.lower())]

    train = called(TRAIN_WORDS)
    val = [name for name in called(VAL_WORDS) if name not in train]
    val = val or [name for name in called(TEST_WORDS) if name not in train]
    if not train:
        return ""
    return " ".join(
        f"{flag} {quoted(name)}"
        for flag, found in (("--train_dir", train), ("--val_dir", val))
        for name in found
    )


def pack_command(source: Path, flags: str = "") -> str:
    """The command that packs a source into a folder beside it."""
    out = source.absolute().with_name(f"{source.absolute().name}-packed")
    words = ["python prepare_data.py", quoted(str(source)), flags]
    return f"`{' '.join(word for word in words if word)} --out {quoted(str(out))}`"


def then_train(source: Path, flags: str = "") -> str:
    """The same, for training on a folder that must be packed first."""
    return f"pack it with {pack_command(source, flags)} and train on that --out"


def parquet_command(source: Path) -> str:
    """The command that turns parquet files into class folders.

    One file of several (train-00000-of-00257.parquet) means their folder.
    """
    if source.is_file() and ONE_OF_SEVERAL.search(source.stem):
        source = source.absolute().parent
    out = source.absolute().with_name(f"{source.absolute().name.removesuffix('.parquet')}-images")
    words = map(quoted, (str(source), "--out", str(out)))
    return f"`python -m resnet50.packing.parquet {' '.join(words)}`"


def no_such_folder(data_dir: Path) -> str:
    """The message for a --data_dir that is not a folder."""
    if data_dir.is_file() and data_dir.suffix == ".parquet":
        what = f"--data_dir {data_dir} is a file: {parquet_command(data_dir)} writes it out"
        return f"{what}, and prepare_data.py packs that"
    if data_dir.is_file():
        remedy = f": {then_train(data_dir)}" if is_archive(data_dir.name) else ""
        return f"--data_dir {data_dir} is a file, not a folder{remedy}"
    below = "" if data_dir.is_absolute() else f" in {Path.cwd()}"
    return f"--data_dir {data_dir}: no such folder{below}"


def other_splits(data_dir: Path) -> str:
    """How to make a folder without train/ or val/ usable; "" if unknown."""
    paths = sorted(path for path in data_dir.iterdir() if not is_hidden(path.name))
    folders = [path for path in paths if path.is_dir()]
    names = [path.name for path in paths if not path.is_dir()]
    places = (data_dir, *(folder for folder in folders if folder.name in ("data", "default")))
    if any(path.suffix == ".parquet" for place in places for path in place.iterdir()):
        command = parquet_command(data_dir)
        return f". It holds parquet files: {command} writes their pictures out"
    splits = [folder.name for folder in folders if is_split_name(folder.name)]
    if 2 * len(splits) > len(folders):
        nested = [name for name in splits if _has_folders(data_dir / name)]
        if flags := split_flags(nested):
            return f". Splits with other names must be named: {then_train(data_dir, flags)}"
        if len(nested) == 1:
            own = then_train(data_dir, f"--train_dir {quoted(nested[0])}")
            return f". To take a validation split out of {nested[0]}/ and train on the rest, {own}"
        if not nested:
            return f". {data_dir / splits[0]} holds no folders, and every class needs one"
    if any("\\" in name for name in names):
        return ". Its names have backslashes, from a Windows zip: give prepare_data.py that zip"
    if folders or any(is_archive(name) or name.endswith(".csv") for name in names):
        return f". If it holds a data set in another layout, {then_train(data_dir)}"
    return ""


def _has_folders(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.is_dir() and not is_hidden(entry.name) for entry in entries)
    except OSError:
        return False
