"""The folders of a source: which hold pictures, and what else is in them."""

import posixpath
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import dataset_paths
from resnet50.data import remedies, unused
from resnet50.data.unused import Unused, printable
from resnet50.packing.archives import Member
from resnet50.packing.members import Passed

ByClass = dict[str, list[Member]]


class Tree:
    """The pictures of each folder, and each folder's subfolders that hold some; "" is the top.

    folders: all subfolders of each folder; others: files that are not pictures.
    """

    def __init__(self, source: Path, members: Sequence[Member], passed: Passed) -> None:
        self.source, self.members, self.passed = source, members, passed
        self.pictures: ByClass = defaultdict(list)
        self.others: ByClass = defaultdict(list)
        self.subfolders: dict[str, set[str]] = defaultdict(set)
        self.folders: dict[str, set[str]] = defaultdict(set)
        for member in members:
            folder, _, name = member.path.rpartition("/")
            kind = self.pictures if dataset_paths.is_picture(name) else self.others
            kind[folder].append(member)
        for folder in self.pictures:
            while folder:
                above, _, name = folder.rpartition("/")
                self.subfolders[above].add(name)
                folder = above
        for folder in passed.folders:
            above, _, name = folder.rpartition("/")
            self.folders[above].add(name)

    def where(self, folder: str) -> Path:
        """A folder as messages name it."""
        return self.source / folder

    def top(self, folder: str = "") -> str:
        """The first folder from here down that holds more than one folder with pictures."""
        while not self.pictures.get(folder) and len(self.subfolders.get(folder, ())) == 1:
            folder = posixpath.join(folder, *self.subfolders[folder])
        return folder

    def below(self, folder: str) -> list[Member]:
        """All pictures in a folder and in those below it."""
        begin = f"{folder}/" if folder else ""
        return [
            member
            for place, members in self.pictures.items()
            if place == folder or place.startswith(begin)
            for member in members
        ]

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

    def class_pictures(self, folder: str, name: str) -> list[Member]:
        """Pictures of one class: those directly in its folder, else in Tiny-ImageNet's
        CLASS/images, else in CLASS/CLASS, as tars of class folders unpack."""
        place = posixpath.join(folder, name)
        for inside in (place, f"{place}/images", f"{place}/{name}"):
            if self.pictures.get(inside):
                return self.pictures[inside]
        return []

    def is_no_class(self, folder: str, name: str) -> bool:
        """Whether a folder beside classes holds only documents, and so is not a class."""
        place = posixpath.join(folder, name)
        files = [m for f, ms in self.others.items() if f"{f}/".startswith(f"{place}/") for m in ms]
        return (
            name not in self.subfolders.get(folder, ())
            and bool(files)
            and all(member.path.lower().endswith(DOCUMENT_ENDS) for member in files)
        )

    def classes(self, folder: str, may_hold_documents: bool = False) -> ByClass:
        """Pictures by class. Raises ValueError naming a class folder without any, and what is in
        it. may_hold_documents: folders with only documents are not classes."""
        self.refuse_lost(folder)
        found = {}
        for name in sorted(self.folders.get(folder, ())):
            found[name] = self.class_pictures(folder, name)
            if found[name]:
                continue
            if may_hold_documents and self.is_no_class(folder, name):
                del found[name]
                continue
            place = posixpath.join(folder, name)
            what = f"{printable(str(self.where(place)))} has no images"
            raise ValueError(f"{what}: it holds {self.contents(place)}. {self._remedy(folder)}")
        return found

    def refuse_lost(self, folder: str) -> None:
        """Raise ValueError for an unreadable folder or broken link that would be a class."""
        for paths, what in (
            (self.passed.unreadable, "a class folder that cannot be read; fix its permissions"),
            (self.passed.dangling, "a broken link; repair it"),
        ):
            lost = {path for path in paths if path.rpartition("/")[0] == folder}
            if lost := {path for path in lost if not posixpath.splitext(path)[1]}:
                raise ValueError(f"{printable(str(self.where(min(lost))))}: {what}")

    def _remedy(self, folder: str) -> str:
        """What to do about classes whose pictures are in deeper folders."""
        flags = [f"--train_dir {remedies.quoted(name)}" for name in self.nested(folder)]
        if flags and posixpath.basename(folder) == "train":
            above = posixpath.dirname(folder)
            vals = (self.nested(posixpath.join(above, val)) for val in dataset_paths.VAL_NAMES)
            flags += [f"--val_dir {remedies.quoted(name)}" for names in vals for name in names]
        if flags:
            command = remedies.pack_command(self.source, " ".join(flags))
            outer = self.nested(folder)[0]
            inner = sorted(self.subfolders[self.nested(folder)[0]])
            return (
                f"A class folder holds its pictures directly. If {inner[0]} is a class, name the "
                f"folders above the classes: {command}. If {posixpath.basename(outer)} is one, "
                "list all pictures in a train.csv and a val.csv of path,label"
            )
        return "Give every class folder pictures of its class, or remove it if it is not one"

    def nested(self, folder: str) -> list[str]:
        """Folders in this one whose pictures are deeper than those of a class."""
        names = sorted(self.subfolders.get(folder, ()))
        deep = [name for name in names if not self.class_pictures(folder, name)]
        return [posixpath.join(folder, name) for name in deep]

    def contents(self, folder: str) -> str:
        """The contents of a folder, for messages."""
        below = sorted(self.folders.get(folder, ()))
        files = [m.path for m in (*self.pictures.get(folder, ()), *self.others.get(folder, ()))]
        parts = []
        if below:
            shown = ", ".join(printable(name) for name in below[:3])
            folders = "folder" if len(below) == 1 else "folders"
            parts.append(f"{len(below)} {folders} ({shown}{', ...' if len(below) > 3 else ''})")
        if files:
            shown = ", ".join(printable(posixpath.basename(path)) for path in sorted(files)[:3])
            shown += ", ..." if len(files) > 3 else ""
            many = "s" if len(files) > 1 else ""
            if all(unused.is_archive(path) for path in files):
                kind = f"archive{many} ({shown}) to be unpacked, each into a folder of its name"
            elif any(dataset_paths.is_picture(posixpath.basename(path)) for path in files):
                kind = f"file{many} ({shown})"
            else:
                kind = f"file{many} ({shown}) in no supported format"
            parts.append(f"{len(files):,} {kind}")
        return " and ".join(parts) or "nothing, or only hidden files"

    def not_taken(self, taken: Iterable[Member], roots: Sequence[str]) -> Unused:
        """All files there that are not these members. roots: folders that hold classes."""
        found = Unused().include([self.passed.unused])
        used = {member.path for member in taken}
        for member in self.members:
            if member.path not in used:
                found.add(reason(member.path, roots), member.path)
        return found


DOCUMENT_ENDS = (
    *(".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".html", ".pdf"),
    *(".py", ".pyc", ".ipynb", ".sh", ".mat", ".npy", ".npz", ".pkl", ".log", ".cfg", ".doc"),
    *(".docx", ".xls", ".xlsx", ".m"),
)


def reason(path: str, roots: Sequence[str]) -> str:
    """Why a file is not used, judged by its place."""
    name = posixpath.basename(path)
    if unused.is_archive(name):
        return unused.ARCHIVE
    for root in roots:
        begin = f"{root}/" if root else ""
        if path.startswith(begin):
            depth = path.count("/", len(begin))
            if not dataset_paths.is_picture(name):
                return unused.UNKNOWN
            return unused.LOOSE if depth == 0 else unused.DEEPER
    return unused.OUTSIDE
