"""ImageNet-1K as Hugging Face distributes it: archives of flat pictures, whose names end in a WNID.

train_images_0.tar.gz to train_images_4.tar.gz and val_images.tar.gz hold
n01440764_10026_n01440764.JPEG and ILSVRC2012_val_00000001_n01751748.JPEG.
"""

import re
import shutil
from collections import defaultdict
from pathlib import Path

from resnet50.data import class_folders, unused
from resnet50.packing import archives
from resnet50.packing.archives import Member
from resnet50.packing.members import Passed
from resnet50.packing.tree import ByClass, Tree

ARCHIVE = re.compile(r"(train|val|test)_images(_\d+)?\.(tar\.gz|tgz|tar)")
NUMBER, ALL = re.compile(r"train_images_(\d+)\."), set(range(5))
TRAIN_NAME = class_folders.HUGGING_FACE_TRAIN
VAL_NAME = re.compile(r"ILSVRC2012_val_\d{8}_(n\d{8})\.JPEG")
TEST_NAME = re.compile(r"ILSVRC2012_test_\d+.*\.JPEG")


def find_archives(source: Path) -> list[Path]:
    """The archives of both splits, in this folder or in its data/; [] if there are none.

    Raises ValueError for one archive alone, or one split.
    """
    if source.is_file():
        if ARCHIVE.fullmatch(source.name):
            raise ValueError(_both(source, "one of the archives"))
        return []
    for folder in (source, source / "data"):
        if not folder.is_dir():
            continue
        found = sorted(p for p in folder.iterdir() if ARCHIVE.fullmatch(p.name) and p.is_file())
        found = [path for path in found if not path.name.startswith("test")]
        # A .tar beside its .tar.gz has the same pictures.
        found = [p for p in found if p.suffix == ".tar" or p.with_suffix("") not in found]
        if found:
            numbers = {int(match[1]) for p in found if (match := NUMBER.match(p.name))}
            # Each of the five has pictures of every class, so the classes would not tell.
            if len({path.name[:3] for path in found}) < 2 or numbers < ALL:
                raise ValueError(_both(source, ", ".join(path.name for path in found) + ": some"))
            return found
    return []


def _both(source: Path, what: str) -> str:
    return (
        f"{source}: {what} of Hugging Face's ImageNet-1K: give the folder that holds all of "
        "train_images_0.tar.gz to train_images_4.tar.gz and val_images.tar.gz"
    )


def list_archives(source: Path, paths: list[Path], work_dir: Path) -> Tree:
    """All their pictures as one tree, one folder per archive. Raises ValueError without room for
    the .tar of each .tar.gz."""
    compressed = [path for path in paths if path.suffix != ".tar"]
    needed = sum(path.stat().st_size for path in compressed)
    place = work_dir if work_dir.exists() else work_dir.absolute().parent
    there = sum(path.stat().st_size for path in place.glob("*.tar"))
    free = shutil.disk_usage(place).free if place.exists() else needed
    if needed - there > free:
        raise ValueError(
            f"{source}: its .tar.gz are unpacked while packing, to about {needed / 1e9:.1f} GB, "
            f"but {free / 1e9:.1f} GB are free in {place}: free some, or `gunzip` them where there "
            "is room and give that folder"
        )
    members: list[Member] = []
    passed = Passed()
    for path in paths:
        own = Passed()
        name = path.name.partition(".")[0]
        listed = archives.list_members(path, work_dir, own)
        members += [member._replace(path=f"{name}/{member.path}") for member in listed]
        passed.include(own)
    for path in source.iterdir():
        if path not in paths and path.is_file():
            passed.unused.add(unused.OUTSIDE, path.name)
    passed.folders = set()
    for member in members:
        passed.add_folder(member.path.rpartition("/")[0])
    return Tree(source, members, passed)


def by_names(tree: Tree) -> tuple[ByClass, ByClass] | None:
    """Training and validation pictures by class, if the names of all say both; else None.

    Not for pictures that are already in folders of their classes.
    """
    train, val = defaultdict(list), defaultdict(list)
    for folder, members in tree.pictures.items():
        for member in members:
            name = member.path.rpartition("/")[2]
            for pattern, by_class in ((TRAIN_NAME, train), (VAL_NAME, val)):
                if match := pattern.fullmatch(name):
                    by_class[match[1]].append(member)
                    break
            else:
                if not TEST_NAME.fullmatch(name):
                    return None
                continue
            if folder.rpartition("/")[2] == match[1]:
                return None
    return (train, val) if train and val else None
