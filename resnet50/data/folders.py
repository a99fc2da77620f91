"""Pictures in folders, listed quickly; files that are not used are counted.

Listing a folder is enough: no file is opened, and no size is looked up, since training on
ImageNet's 1.28 million files on a network volume must start in seconds.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dataset_paths import PICTURE_ENDS, is_hidden, is_picture
from resnet50.data import class_folders, class_names, orientation, pack, remedies, unused
from resnet50.data.jpeg import WholePicture
from resnet50.data.unused import Unused, printable


@dataclass(frozen=True)
class ImageFolder:
    """One split: a folder with a folder per class.

    paths: (N,) bytes, relative to root, sorted; labels: (N,) int64. Both are arrays, not lists,
    since loader processes would copy a list page by page as they touch its reference counts.
    upright: how they are read (data/orientation.py).
    """

    root: Path
    classes: tuple[str, ...]
    paths: np.ndarray
    labels: np.ndarray
    upright: str = orientation.NO
    unused: Unused = field(default_factory=Unused)  # everything there but the images

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """Path of an image, for messages."""
        return str(self.root / os.fsdecode(self.paths[index]))

    def imagenet_val_names(self) -> Iterator[tuple[str, str]]:
        """Class and file name of what may be ImageNet's validation pictures.

        Only for classes whose first file is one, to avoid searching 1.28 million names.
        """
        begins = np.searchsorted(self.labels, np.arange(len(self.classes) + 1))
        for name, begin, end in zip(self.classes, begins, begins[1:], strict=False):
            skip = len(name) + 1
            if self.paths[begin][skip:].startswith(class_folders.VAL_PICTURE.encode()):
                for path in self.paths[begin:end]:
                    yield name, os.fsdecode(path[skip:])

    def open(self, index: int, image_size: int | None = None) -> WholePicture:
        """Read an image; its pixels are decoded later. image_size: of the crop that is wanted."""
        return WholePicture(Path(self.name(index)).read_bytes(), self.upright)

    def extents(self, indices: np.ndarray) -> list[tuple[Path, int, int]]:
        """File, offset and bytes of images on the disk."""
        paths = [Path(self.name(index)) for index in indices.tolist()]
        return [(path, 0, path.stat().st_size) for path in paths]

    def will_need(self, indices: np.ndarray, image_size: int | None = None) -> None:
        """Does nothing: finding where a file is on the disk takes as long as reading it."""

    @property
    def largest_side(self) -> int:
        """Pixels that pictures were shrunk to: 0, since a folder's are not shrunk."""
        return 0

    @property
    def sha256(self) -> str:
        return pack.content_hash(self.classes, self.paths)


def list_split(data_dir: Path, root: Path, ends: frozenset[str] = PICTURE_ENDS) -> ImageFolder:
    """A split's folder of class folders.

    data_dir: the data set that the split belongs to; ends: extensions of pictures.

    Raises ValueError naming the unexpected folder and the remedy.
    """
    passed, entries = Unused(), _scan(root)
    classes = sorted(e.name for e in entries if e.is_dir() and not is_hidden(e.name))
    loose = []
    folders = set(classes)
    for entry in entries:
        reason = "" if entry.name in folders else _reason(entry, ends)
        if reason == unused.DANGLING:
            _refuse_lost_class(entry)
        if reason:
            passed.add(reason, f"{root.name}/{entry.name}")
        elif entry.name not in folders:
            loose.append(entry.name)
    if loose and not classes:
        raise ValueError(class_folders.flat(root, sorted(loose), remedies.then_train(data_dir)))
    if not classes:
        what = f"{root} has no class folders"
        if passed.counts.get(unused.ARCHIVE):
            what = f"{what}. Its archives must be unpacked, each into a folder of its class"
        raise ValueError(f"{what}; {passed.line()}" if passed.line() else what)
    for name in sorted(loose):
        passed.add(unused.LOOSE, f"{root.name}/{name}")
    class_names.check_spelling(classes, root)
    paths = []
    labels = []
    empty = []
    for label, name in enumerate(classes):
        files = _pictures_of(root, name, passed, ends)
        if not files:
            empty.append(name)
        paths += [os.fsencode(f"{name}/{file}") for file in files]
        labels += [label] * len(files)
    if empty:
        class_folders.check_names(classes, root)  # labels/ of a detection set never has images
        raise ValueError(_no_images(data_dir, root, empty))
    labels = np.array(labels, dtype=np.int64)
    return ImageFolder(root, tuple(classes), np.array(paths), labels, unused=passed)


def _scan(folder: Path) -> list[os.DirEntry]:
    """Entries of a folder. Raises ValueError if it may not be read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        what = f"{printable(str(folder))} cannot be read ({error.strerror})"
        raise ValueError(f"{what}: fix its permissions") from error


def _refuse_lost_class(entry: os.DirEntry) -> None:
    """Raise ValueError for a broken link that would be a class."""
    if not Path(entry.name).suffix:
        raise ValueError(f"{printable(entry.path)}: a broken link; repair it")


def _reason(entry: os.DirEntry, ends: frozenset[str] = PICTURE_ENDS) -> str:
    """Why an entry that is no folder is not used; "" for a picture."""
    if is_hidden(entry.name):
        return unused.HIDDEN
    if is_picture(entry.name, ends):
        return ""
    if entry.is_symlink() and not Path(entry.path).exists():
        return unused.DANGLING
    return unused.ARCHIVE if unused.is_archive(entry.name) else unused.UNKNOWN


def _pictures_of(
    root: Path, name: str, passed: Unused, ends: frozenset[str] = PICTURE_ENDS
) -> list[str]:
    """File names of a class's pictures, sorted; other files in its folder are counted."""
    try:
        names = os.listdir(root / name)
    except OSError as error:
        what = f"{printable(str(root / name))}: a class folder that cannot be read"
        raise ValueError(f"{what} ({error.strerror}); fix its permissions") from error
    pictures = [file for file in names if is_picture(file, ends)]
    # Other entries are examined only if there are any: listing just names is fastest.
    for entry in _scan(root / name) if len(pictures) < len(names) else ():
        place = f"{root.name}/{name}/{entry.name}"
        if reason := _reason(entry, ends):
            is_deeper = reason != unused.HIDDEN and entry.is_dir()
            passed.add(unused.DEEPER if is_deeper else reason, place + "/" * is_deeper)
    return sorted(pictures)


def _no_images(data_dir: Path, root: Path, empty: Sequence[str]) -> str:
    """The message for class folders without images, by the contents of the first one."""
    name = empty[0]
    place = root / name
    own = Unused()
    what = f"{printable(str(place))} has no images"
    _pictures_of(root, name, own)
    inner = sorted(path.rstrip("/").rpartition("/")[2] for path in own.names.get(unused.DEEPER, ()))
    if "images" in inner:
        return f"{what} directly in it; they are in its images/: {remedies.then_train(data_dir)}"
    if inner:
        flags = " ".join(
            f"{flag} {remedies.quoted(f'{folder}/{other}')}"
            for flag, folder in (("--train_dir", "train"), ("--val_dir", "val"))
            for other in empty[:3]
        )
        shown = ", ".join(map(printable, inner[:3]))
        what = f"{what} directly in it, only folders ({shown}): one level is supported"
        more = " (and so on for the other folders)" if len(empty) > 3 else ""
        return (
            f"{what}. If those are the classes, {remedies.then_train(data_dir, flags)}{more}. If "
            f"{printable(name)} is one, list all pictures in a train.csv and a val.csv of "
            "path,label, and pack that"
        )
    if line := own.line():
        return f"{what}: {line}. Give it pictures in a supported format (README.md lists them)"
    return f"{what}: fill that class or remove its folder"


def list_pictures(folder: Path) -> tuple[list[bytes], Unused]:
    """Paths of all pictures in a folder or below it, relative, sorted, and what is not used."""
    found = []
    passed = Unused()
    pending = [(folder, "")]
    seen = set()
    while pending:
        place, prefix = pending.pop()
        status = place.stat()
        if (status.st_dev, status.st_ino) in seen:  # a link to what is listed already
            continue
        seen.add((status.st_dev, status.st_ino))
        try:
            entries = _scan(place)
        except ValueError:
            passed.add(unused.UNREADABLE, prefix or str(folder))
            continue
        for entry in entries:
            path = f"{prefix}{entry.name}"
            if entry.is_dir() and not is_hidden(entry.name):
                pending.append((Path(entry.path), f"{path}/"))
            elif reason := _reason(entry):
                passed.add(reason, path)
            else:
                found.append(os.fsencode(path))
    return sorted(found), passed
