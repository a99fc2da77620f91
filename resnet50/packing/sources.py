"""Which data set a folder or an archive holds: its classes, splits and pictures.

    source = sources.recognize(Path("imagenet-object-localization-challenge.zip"), work_dir)
    source.layout, len(source.classes), len(source.splits["train"])

Recognized by its content, not by a name; `refusals.UNDERSTOOD` lists what is known.
"""

import posixpath
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import dataset_paths
from resnet50.data import class_folders, remedies
from resnet50.data.class_names import IMAGENET_CLASSES, imagenet_val_labels
from resnet50.data.unused import HIDDEN, OUTSIDE, Unused, printable
from resnet50.packing import archives, csv_splits, hugging_face, refusals
from resnet50.packing.archives import Member
from resnet50.packing.csv_splits import ANY_BYTES
from resnet50.packing.data_set import Source, make_source, merged, split_off
from resnet50.packing.members import Passed
from resnet50.packing.tree import ByClass, Tree

TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


class SplitDirs(NamedTuple):
    """Folders inside a source that hold the classes of each split; empty: to be found."""

    train: Sequence[str] = ()
    val: Sequence[str] = ()


TO_BE_FOUND = SplitDirs()


def recognize(
    source: Path, work_dir: Path, val_pct: float = 10.0, dirs: SplitDirs = TO_BE_FOUND
) -> Source:
    """Find the pictures and labels of a data set.

    val_pct: share of each class that becomes the validation split where the source has none.
    Raises ValueError naming what was found and what is understood.
    """
    if not 0 < val_pct < 100:
        raise ValueError(f"--val_pct {val_pct}: must be more than 0 and less than 100")
    found = _recognize(source, work_dir, val_pct, dirs)
    class_folders.check_names(found.classes, source)
    class_folders.check_number(found.classes, source)
    if dataset_paths.are_wnids(found.classes):
        for split, pictures in found.splits.items():
            named = (
                (found.classes[label], posixpath.basename(member.path))
                for _, label, member in pictures
            )
            class_folders.check_val_pictures(named, f"{source}: {split}")
    if found.archives or source.is_dir():
        return found
    return replace(found, archives=(source,))


def _recognize(source: Path, work_dir: Path, val_pct: float, dirs: SplitDirs) -> Source:
    if not dirs.train and csv_splits.are_there(source):
        return _from_our_tables(source, work_dir)
    if not dirs.train and (paths := hugging_face.find_archives(source)):
        tree = hugging_face.list_archives(source, paths, work_dir)
        return replace(_from_names(tree), archives=tuple(paths))
    tars = [name for name in (TRAIN_TAR, VAL_TAR) if (source / name).is_file()]
    if len(tars) == 2 and not dirs.train:
        return _from_imagenet_tars(source, work_dir)
    passed = Passed()
    tree = Tree(source, archives.list_members(source, work_dir, passed), passed)
    if dirs.train:
        return _from_named_folders(tree, dirs, val_pct)
    if hugging_face.by_names(tree) is not None:
        return _from_names(tree)
    if (folders := tree.split_folders()) is not None:
        return _from_split_folders(tree, *folders, val_pct)
    if (tables := csv_splits.others_tables(tree)) is not None:
        return _from_others_tables(tree, tables, val_pct)
    if tars or source.name in (TRAIN_TAR, VAL_TAR):
        raise ValueError(f"{source}: give the folder that holds both {TRAIN_TAR} and {VAL_TAR}")
    return _from_classes(tree, val_pct)


def _from_our_tables(source: Path, work_dir: Path) -> Source:
    """train.csv and val.csv of path,label; whatever else is in their folder is counted."""
    train, val, tables = csv_splits.read(source)
    made = make_source("csv", source, train, val)
    passed = Passed()
    inside = f"{source.absolute()}/"
    tree = Tree(source, archives.list_members(source, work_dir, passed), passed)
    listed = [m for part in (train, val) for members in part.values() for m in members]
    # Paths in a table may be absolute, and so are those of its own files.
    paths = [m.path for m in listed] + [str(table.absolute()) for table in tables]
    taken = (Member(path.removeprefix(inside), path) for path in paths)
    unused = tree.not_taken(taken, [])
    return replace(made, unused=unused, tables=tuple(tables), remarks=_in_both(train, val))


def _in_both(train: ByClass, val: ByClass) -> tuple[str, ...]:
    """A remark if validation pictures are also in training, which inflates the accuracy."""
    seen = {member.file for members in train.values() for member in members}
    both = sorted(m.file for members in val.values() for m in members if m.file in seen)
    if not both:
        return ()
    such = printable(both[0])
    return (f"{len(both):,} pictures are in train.csv and in val.csv, such as {such}",)


def _from_imagenet_tars(source: Path, work_dir: Path) -> Source:
    """The two archives of image-net.org: a tar for each class, and one flat tar."""
    paths = (source / TRAIN_TAR, source / VAL_TAR)
    trees = []
    for path in paths:
        passed = Passed()
        trees.append(Tree(path, archives.list_members(path, work_dir, passed), passed))
    train_tree, val_tree = trees
    train_root = train_tree.top()
    train = train_tree.classes(train_root)
    val, _ = _val_by_class(val_tree, val_tree.top(), train)
    made = make_source("imagenet-archives", source, train, val)
    unused = _not_taken(train_tree, train, [train_root]).include([_not_taken(val_tree, val, [""])])
    for path in source.iterdir():
        if path not in paths and path.is_file():
            unused.add(HIDDEN if dataset_paths.is_hidden(path.name) else OUTSIDE, path.name)
    return replace(made, archives=paths, unused=unused)


def _from_names(tree: Tree) -> Source:
    """Hugging Face's pictures, flat, with their labels in their names."""
    found = hugging_face.by_names(tree)
    if found is None:
        what = f"{tree.source}: holds pictures whose names are not those of Hugging Face's archives"
        raise ValueError(f"{what} (n01440764_10026_n01440764.JPEG), so their classes are not known")
    return replace(
        make_source("hugging-face", tree.source, *found),
        unused=_not_taken(tree, {**found[0], "": [m for ms in found[1].values() for m in ms]}, []),
    )


def _from_others_tables(tree: Tree, tables: Mapping[str, ByClass], val_pct: float) -> Source:
    """Tables of filename,label: their splits, or one set if they share no class."""
    names = [set(by_class) for by_class in tables.values()]
    if sum(map(len, names)) == len(set().union(*names)):
        listed = merged(tables.values())
        made = split_off("mini-imagenet", tree.source, listed, val_pct)
        remark = FEW_SHOT.format(", ".join(f"{split}.csv" for split in tables))
        made = replace(made, remarks=(remark,))
    else:
        made = make_source("csv", tree.source, tables["train"], tables["val"])
        listed = merged([tables["train"], tables["val"]])
    paths = [m for ms in tree.others.values() for m in ms if m.path.endswith(".csv")]
    taken = {"": [m for ms in listed.values() for m in ms] + paths}
    files = tuple(Path(member.file) for member in paths)
    return replace(made, unused=_not_taken(tree, taken, []), tables=files)


FEW_SHOT = (
    "{} share no class, as in few-shot learning: they are taken together, and a "
    "validation split is taken out of each class"
)


def _from_split_folders(tree: Tree, train_dir: str, val_dir: str, val_pct: float) -> Source:
    """train/CLASS/* with val/CLASS/*, or with a flat val/ whose labels are known."""
    folder = posixpath.dirname(train_dir)
    remarks = []
    if few_shot := _few_shot_dirs(tree, folder, train_dir, val_dir):
        made = _from_named_folders(tree, SplitDirs(few_shot), val_pct)
        names = ", ".join(f"{posixpath.basename(name)}/" for name in few_shot)
        return replace(made, layout="flat-classes", remarks=(FEW_SHOT.format(names),))
    other = posixpath.join(folder, dataset_paths.VAL_NAMES[-1])
    if val_dir != other and posixpath.basename(other) in tree.subfolders[folder]:
        remarks.append(f"validating on {val_dir}/; {other}/ is not used")
    # train.zip, unpacked into a folder of its name, is train/train.
    made = _from_folders(tree, [_to_classes(tree, train_dir)], [_to_classes(tree, val_dir)])
    return replace(made, remarks=tuple(remarks))


def _few_shot_dirs(tree: Tree, folder: str, train_dir: str, val_dir: str) -> list[str]:
    """train, val and test folders of WNIDs that share no class; [] if there are none."""
    dirs = [train_dir, val_dir, posixpath.join(folder, "test")]
    names = [tree.subfolders.get(name, set()) for name in dirs]
    total = set().union(*names)
    disjoint = all(names) and sum(map(len, names)) == len(total)
    return dirs if disjoint and dataset_paths.are_wnids(total) else []


def _from_named_folders(tree: Tree, dirs: SplitDirs, val_pct: float) -> Source:
    """The splits that --train_dir and --val_dir name."""
    places = []
    for option, names in (("--train_dir", dirs.train), ("--val_dir", dirs.val)):
        for name in names:
            place = posixpath.normpath(name).strip("/")
            place = "" if place == "." else place
            if not tree.below(place):
                there = ", ".join(sorted(tree.subfolders.get("", ())))
                what = f"{option} {name}: no folder with pictures in {tree.source}"
                raise ValueError(f"{what}; those at its top are {printable(there) or 'none'}")
            places.append(_to_classes(tree, place))
    if twice := next((place for place in places if places.count(place) > 1), ""):
        raise ValueError(f"--train_dir, --val_dir: {twice} is named twice; leave one out")
    train_dirs, val_dirs = places[: len(dirs.train)], places[len(dirs.train) :]
    if val_dirs:
        return _from_folders(tree, train_dirs, val_dirs)
    for place in train_dirs:
        refusals.refuse_flat(tree, place)
    train = merged(tree.classes(place) for place in train_dirs)
    made = split_off("flat-classes", tree.source, train, val_pct)
    return replace(made, unused=_not_taken(tree, train, train_dirs))


def _to_classes(tree: Tree, folder: str) -> str:
    """A folder, or the one in it that holds the classes: seg_train/seg_train."""
    while not tree.pictures.get(folder) and len(names := tree.subfolders.get(folder, ())) == 1:
        inner = posixpath.join(folder, *names)
        if not tree.subfolders.get(inner) or tree.pictures.get(inner):
            break
        folder = inner
    return folder


def _from_folders(tree: Tree, train_dirs: Sequence[str], val_dirs: Sequence[str]) -> Source:
    """The splits in these folders."""
    for folder in train_dirs:
        refusals.refuse_flat(tree, folder)
        # Checked before the search for empty folders: labels/ of a detection set has no images.
        class_folders.check_names(sorted(tree.folders.get(folder, ())), tree.where(folder))
    train = merged(tree.classes(folder) for folder in train_dirs)
    val = defaultdict(list)
    layout = "image-folder"
    tables = []
    for folder in val_dirs:
        tiny = next((m for m in tree.members if m.path == f"{folder}/val_annotations.txt"), None)
        if tiny is not None and tree.subfolders.get(folder) == {"images"}:
            found = _from_tiny(tree, folder, tiny)
            layout = "tiny-imagenet"
            tables.append(tiny)
        else:
            found, own_tables = _val_by_class(tree, folder, train)
            layout = "image-folder" if own_tables is None else "kaggle"
            tables += own_tables or []
        val = merged([val, found])
    where = (*train_dirs, *val_dirs)
    made = make_source(layout, tree.source, train, val, where[0], where[-1])
    taken = merged([train, val, {"": tables}])
    files = tuple(Path(member.file) for member in tables)
    return replace(made, unused=_not_taken(tree, taken, where), tables=files)


def _from_tiny(tree: Tree, folder: str, table: Member) -> ByClass:
    """Tiny-ImageNet's flat validation pictures with their table."""
    lines = archives.read(table).decode("utf-8-sig", ANY_BYTES).splitlines()
    fields = [line.split("\t") for line in lines if "\t" in line]
    labels = {file.rpartition(".")[0]: label for file, label, *_ in fields}
    return _label(tree.pictures[f"{folder}/images"], labels, tree.where(table.path))


def _val_by_class(tree: Tree, folder: str, train: ByClass) -> tuple[ByClass, list[Member] | None]:
    """Validation pictures by class, by their folders or by their names.

    Second: tables that were read, None if the folders tell the classes.
    """
    names = tree.subfolders.get(folder, set())
    is_flat = not names
    if not is_flat and not names & train.keys() and dataset_paths.are_wnids(train):
        known, members = imagenet_val_labels(), tree.below(folder)
        numbered = any(name.isdigit() for name in names)
        are_known = all(_stem(member) in known for member in members)
        is_flat = are_known and not numbered and not dataset_paths.are_wnids(names)
    if not is_flat:
        class_folders.check_names(sorted(tree.folders.get(folder, ())), tree.where(folder))
        return tree.classes(folder), None
    labels = imagenet_val_labels()
    where = IMAGENET_CLASSES
    tables = []
    kaggle = next((m for m in tree.members if m.path.endswith("LOC_val_solution.csv")), None)
    if kaggle is not None:
        where = tree.where(kaggle.path)
        tables = [kaggle]
        rows = csv_splits.rows(archives.read(kaggle), where, ("ImageId", "PredictionString"))
        # A prediction is "WNID x y w h" of each object in the picture, all of one class.
        labels = {image: prediction.partition(" ")[0] for _, (image, prediction) in rows}
    return _label(tree.below(folder), labels, where), tables


def _stem(member: Member) -> str:
    return posixpath.basename(member.path).rpartition(".")[0]


def _from_classes(tree: Tree, val_pct: float) -> Source:
    """CLASS/* alone: the first val_pct of each class, by sha256 of CLASS/FILE, are validation's."""
    root = tree.top()
    names = sorted(tree.subfolders.get(root, ()))
    refusals.refuse_lone_split(tree, root, names)
    if len(names) < 2:
        raise ValueError(refusals.too_few(tree, root))
    flags = remedies.split_flags(names)
    if all(not tree.subfolders.get(posixpath.join(root, name)) for name in names):
        flags = ""  # flat folders, for which no option helps
        part_names = [name for name in names if remedies.is_split_name(name)]
        if 2 * len(part_names) > len(names):
            refusals.refuse_flat(tree, posixpath.join(root, part_names[-1]))
    nested = [name for name in names if not tree.class_pictures(root, name)]
    if nested and (flags or len(nested) == len(names)):
        raise ValueError(refusals.other_splits(tree, root, names))
    class_folders.check_names(names, tree.where(root), refusals.use_flags(tree, root, names, flags))
    classes = tree.classes(root, may_hold_documents=True)
    made = split_off("flat-classes", tree.source, classes, val_pct)
    return replace(made, unused=_not_taken(tree, classes, [root]))


def _label(members: Sequence[Member], labels: Mapping[str, str], where: Path) -> ByClass:
    """Flat pictures by class; labels: class by a file's name without its extension."""
    by_class: ByClass = defaultdict(list)
    for member in members:
        label = labels.get(_stem(member))
        if label is None and (match := hugging_face.VAL_NAME.fullmatch(_name(member))):
            label = match[1]
        if label is None:
            what = f"{member.file}: {printable(member.path)}: no class folder, and no label in"
            raise ValueError(f"{what} {where}; put it into a folder of its class")
        by_class[label].append(member)
    return by_class


def _name(member: Member) -> str:
    return posixpath.basename(member.path)


def _not_taken(tree: Tree, by_class: ByClass, roots: Sequence[str]) -> Unused:
    return tree.not_taken((m for members in by_class.values() for m in members), roots)
