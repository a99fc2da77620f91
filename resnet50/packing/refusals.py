"""The messages for sources that cannot be used as they are, with remedies."""

import posixpath
import re
from collections.abc import Sequence

import dataset_paths
from resnet50.data import class_folders, remedies
from resnet50.data.unused import is_archive, printable
from resnet50.packing import archives
from resnet50.packing.tree import Tree

SHARD = re.compile(r"\d{4,}\.tar$")
UNDERSTOOD = """\
  a folder with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar
  a folder with Hugging Face's train_images_0.tar.gz to train_images_4.tar.gz and val_images.tar.gz
  a folder with train.csv and val.csv, whose first line is path,label
  and as folder, .zip, .tar or .tar.gz:
  Kaggle's imagenet-object-localization-challenge, Tiny-ImageNet-200, Imagenette, Imagewoof
  mini-ImageNet as images/ with train.csv, val.csv and test.csv of filename,label
  train/CLASS/* with val/CLASS/* or validation/CLASS/*; other names by --train_dir and --val_dir
  CLASS/* of two classes or more, from which a validation split is taken"""


def refuse_flat(tree: Tree, folder: str) -> None:
    """Raise ValueError if pictures lie in a split without class folders."""
    if tree.subfolders.get(folder) or not tree.pictures.get(folder):
        return
    names = sorted(posixpath.basename(member.path) for member in tree.pictures[folder])
    raise ValueError(class_folders.flat(tree.where(folder), names))


def use_flags(tree: Tree, root: str, names: Sequence[str], flags: str) -> str:
    """How to name folders that look like splits; "" if they do not."""
    if not flags:
        return ""
    flags = remedies.split_flags(posixpath.join(root, name) for name in names)
    return f". If these are splits, name them: {remedies.pack_command(tree.source, flags)}"


def other_splits(tree: Tree, root: str, names: Sequence[str]) -> str:
    """The message for folders of folders of pictures that are called neither train nor val."""
    shown = class_folders.described(names)
    what = f"{tree.where(root)}: its folders ({shown}) hold folders of pictures"
    flags = remedies.split_flags(names)
    known = "splits are called train/ and val/ or validation/, each with a folder per class"
    if flags:
        flags = remedies.split_flags(posixpath.join(root, name) for name in names)
        command = remedies.pack_command(tree.source, flags)
        return f"{what}; {known}. Name yours: {command}"
    places = [remedies.quoted(posixpath.join(root, name)) for name in names]
    flags = " ".join(f"--train_dir {place}" for place in places[:3])
    command = remedies.pack_command(tree.source, flags)
    more = " (and so on for the other folders)" if len(places) > 3 else ""
    return (
        f"{what}; {known}. If the subfolders are the classes, name the folders above them: "
        f"{command}{more}, with --val_dir for those to validate on. If {printable(names[0])} is a "
        "class, list all pictures in a train.csv and a val.csv of path,label"
    )


def refuse_lone_split(tree: Tree, root: str, names: Sequence[str]) -> None:
    """Raise ValueError if all pictures are in one split: splitting it would train on part of it."""
    folders = root.split("/") if root else []
    for depth, name in enumerate(folders):
        if not remedies.is_split_name(name):
            continue
        above = "/".join(folders[:depth])
        flags = f"--train_dir {remedies.quoted(posixpath.join(above, name))}"
        own = f"to take a validation split out of it: {remedies.pack_command(tree.source, flags)}"
        is_train = bool(re.search("train", name.lower()))
        missing = "val/ or validation/" if is_train else "train/"
        what = f"{tree.source} has a {name}/ and no {missing} with pictures beside it"
        if not is_train:
            what = f"{tree.source} has {name}/ alone, without a train/ with pictures beside it"
        others = ("train",) if not is_train else dataset_paths.VAL_NAMES
        for other in others:
            if other in tree.folders.get(above, ()):
                place = posixpath.join(above, other)
                what += f"; {other}/ holds {tree.contents(place)}"
        raise ValueError(
            f"{what}. Add what is missing, or name it by --train_dir and --val_dir; {own}"
        )
    if len(names) == 1 or not names:
        return
    lone = "train" in names and not tree.class_pictures(root, "train")
    if lone and not any(tree.pictures.get(posixpath.join(root, name)) for name in names):
        flags = remedies.split_flags(posixpath.join(root, name) for name in names)
        raise ValueError(
            f"{tree.source} has a train/ and no val/ or validation/ beside it; name the split to "
            f"validate with: {remedies.pack_command(tree.source, flags)}, where without --val_dir "
            "one is taken out of the training split"
        )


def too_few(tree: Tree, root: str) -> str:
    """The message for a source without two classes."""
    if any("\\" in member.path for member in tree.members):
        return unknown(tree)
    if root and tree.pictures.get(root):
        flat = [n for n in root.split("/") if remedies.is_part_name(n)]
        if not flat:
            return (
                f"{tree.source}: a single class, {printable(posixpath.basename(root))}: any "
                "answer would be right; two or more classes are needed, with a folder each"
                f"{unused_tables(tree)}"
            )
    if tree.pictures.get(root):
        names = sorted(posixpath.basename(member.path) for member in tree.pictures[root])
        return f"{class_folders.flat(tree.where(root), names)}. {unknown(tree)}"
    return unknown(tree)


def unused_tables(tree: Tree) -> str:
    """The hint that there are tables, and that they are not ours; "" without any."""
    tables = [
        m.path for ms in tree.others.values() for m in ms if m.path.endswith((".csv", ".tsv"))
    ]
    if not tables:
        return ""
    return (
        f". {printable(min(tables))} was not used: tables of classes are called train.csv and "
        "val.csv, and their first line is path,label"
    )


def unknown(tree: Tree) -> str:
    """The message for a source with none of the known layouts."""
    names = [member.path for member in tree.members]
    if tree.source.is_dir():
        archives.refuse_parts([tree.source / name for name in names])
    parquet = next((name for name in names if name.endswith(".parquet")), None)
    if parquet is not None:
        command = remedies.parquet_command(tree.source)
        return f"{tree.source}: holds parquet files such as {parquet}; {command} writes them out"
    backslashes = next((name for name in names if "\\" in name), None)
    if backslashes is not None:
        return (
            f"{tree.source}: names with backslashes, such as {printable(backslashes)}, are from a "
            "Windows zip that was unpacked without its folders: give the zip itself"
        )
    inner = sorted(name for name in names if is_archive(name))
    if inner and all(SHARD.search(name) for name in inner):
        return (
            f"{tree.source}: {printable(inner[0])} is a shard, as WebDataset has them, which are "
            "not read: write their pictures into a folder for each class"
        )
    if any("ilsvrc2012" in name.lower() for name in inner):
        return (
            f"{tree.source}: ImageNet's archives are called ILSVRC2012_img_train.tar and "
            f"ILSVRC2012_img_val.tar, and here there are {printable(', '.join(inner[:3]))}: rename "
            "them, and give the folder that holds both"
        )
    if inner and not tree.pictures:
        shown = ", ".join(map(printable, inner[:3])) + (", ..." if len(inner) > 3 else "")
        what = f"{tree.source}: holds archives ({shown}), which are not opened"
        return f"{what}: unpack each into a folder of its name, and give the parent folder"
    entries = sorted({name.partition("/")[0] for name in names})
    shown = ", ".join([*entries[:8], "..."] if len(entries) > 8 else entries) or "nothing"
    found = f"{len(tree.members):,} files, at the top {printable(shown)}"
    return f"{tree.source} has no known layout: {found}. Known are\n{UNDERSTOOD}"
