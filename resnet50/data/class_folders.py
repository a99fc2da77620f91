"""Which class names and folders are accepted, for every reader of a data set.

Classes are refused if they have names of splits or parts of a data set: train, test1, images,
labels (remedies.py has the words). A single such name among others is a class like any other: a set
of vehicles has bus, car and train.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

import dataset_paths
from resnet50.data import class_names, remedies
from resnet50.data.unused import printable

VAL_PICTURE = "ILSVRC2012_val_"
# n01440764_10026_n01440764.JPEG, in Hugging Face's archives of ImageNet-1K
HUGGING_FACE_TRAIN = re.compile(r"(n\d{8})_\d+_\1\.JPEG")
SHOWN_CLASSES = 10


def described(classes: Sequence[str]) -> str:
    """All classes up to ten, else the first three and the last."""
    names = [printable(name) for name in classes]
    if len(names) > SHOWN_CLASSES:
        return f"{', '.join(names[:3])} ... {names[-1]}"
    return ", ".join(names)


def check_names(classes: Sequence[str], where: object, remedy: str = "") -> None:
    """Raise ValueError if these folders can hardly be classes: their names are not text, look the
    same, or are those of splits."""
    class_names.check_spelling(classes, where)
    by_form: dict[str, str] = {}
    for name in classes:
        other = by_form.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            raise ValueError(f"{where}: two classes are called {name}: {_forms(other, name)}")
    if are_parts(classes):
        raise ValueError(
            f"{where}: the classes would be {described(classes)}, but these name splits or "
            "parts of a data set, such as a detection set, and not classes. Every picture "
            "must be in a folder of its class, train/CLASS/* and val/CLASS/*, or be listed with "
            f"its class in train.csv and val.csv of path,label{remedy}"
        )


def are_parts(classes: Sequence[str]) -> bool:
    """Whether folders are parts of a data set rather than classes: most are called so, or one of
    two images, labels and the like, or half are splits of something (trainA, testA)."""
    parts = [name for name in classes if remedies.is_part_name(name)]
    if 2 * len(parts) > len(classes):
        return True
    # images beside gt; but train may be one of two classes of vehicles.
    if len(classes) == 2 and not all(map(remedies.is_split_name, parts)):
        return True
    splits = [remedies.split_words_in(name) for name in classes]
    named = [words for words in splits if words]
    return len(set().union(*named)) > 1 and 2 * len(named) >= len(classes)


def check_number(classes: Sequence[str], where: object) -> None:
    """Raise ValueError if there are fewer than two classes."""
    if not classes:
        raise ValueError(f"{where}: no class folders with images; two or more are needed")
    if len(classes) == 1:
        raise ValueError(
            f"{where}: a single class, {printable(classes[0])}: any answer would be right; "
            "two or more classes are needed, with a folder each"
        )


def difference(
    train: Sequence[str], val: Sequence[str], train_where: object, val_where: object
) -> str:
    """How the classes of two splits differ, both sides named, and what to do; "" if they do not."""
    only_train, only_val = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if not only_train and not only_val:
        return ""
    sides = ", ".join(
        f"{len(only)} only in {printable(str(where))} (such as {printable(only[0])})"
        for only, where in ((only_train, train_where), (only_val, val_where))
        if only
    )
    what = f"the splits' classes differ: {sides}"
    twins = {unicodedata.normalize("NFC", name): name for name in only_val}
    for name in only_train:
        if twin := twins.get(unicodedata.normalize("NFC", name)):
            return f"{what}. {_forms(name, twin)}"
    if dataset_paths.are_wnids(train) and only_val and all(name.isdigit() for name in only_val):
        return (
            f"{what}. The folders of {val_where} are the devkit's class numbers, which are "
            f"not in the order of the names. If its pictures are called {VAL_PICTURE}*, "
            "prepare_data.py knows the class of each: give it a val/ that holds them directly"
        )
    return f"{what}; both need pictures of every class"


def _forms(one: str, other: str) -> str:
    """The message for two names that look alike."""
    pair = " and ".join(
        f"{name!a} ({'NFC' if unicodedata.is_normalized('NFC', name) else 'NFD'})"
        for name in (one, other)
    )
    return (
        f"{pair} are the same name in two Unicode forms: rename one of the two "
        "(convmv -r -f utf8 -t utf8 --nfc --notest FOLDER does it)"
    )


def check_val_pictures(names: Iterable[tuple[str, str]], where: object) -> None:
    """Raise ValueError if ImageNet's validation pictures, whose classes are all known, are in
    folders of other classes. names: class and file name of each picture."""
    found = [(wnid, file) for wnid, file in names if file.startswith(VAL_PICTURE)]
    labels = class_names.imagenet_val_labels() if found else {}
    wrong = []
    for wnid, file in found:
        label = labels.get(file[: len(VAL_PICTURE) + 8])
        if label is not None and label != wnid:
            wrong.append((f"{wnid}/{file}", label))
    if wrong:
        name, label = min(wrong)
        raise ValueError(
            f"{where}: {len(wrong):,} of ImageNet's validation pictures are in folders of other "
            f"classes; the first is {name}, a picture of {label} "
            f"({class_names.imagenet_names()[label]}). Give prepare_data.py a val/ that holds them "
            "directly, without class folders: it knows the class of each"
        )


def flat(folder: object, names: Sequence[str], remedy: str = "") -> str:
    """The message for a split without class folders. names: of its pictures, sorted; remedy: the
    command that packs it, if its names tell the classes of ImageNet's validation pictures."""
    what = (
        f"{printable(str(folder))} is flat: {len(names):,} images such as {printable(names[0])} "
        "and no class folders"
    )
    if remedy and all(name.startswith(VAL_PICTURE) for name in names):
        return f"{what}. prepare_data.py knows the class of each: {remedy}"
    if remedy and all(map(HUGGING_FACE_TRAIN.fullmatch, names)):
        return f"{what}. prepare_data.py reads the classes out of these names: {remedy}"
    if all(re.fullmatch(r"n\d{8}_.+", name) for name in names):
        return f"{what}. Move each to {folder}/WNID/, with the WNID that its name begins with"
    return (
        f"{what}. Move each to {folder}/CLASS/, or list all with their classes in train.csv and "
        "val.csv of path,label for prepare_data.py; without classes there is nothing to learn"
    )
