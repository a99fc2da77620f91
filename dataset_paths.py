"""The data sets: where they are and what they must contain.

    python dataset_paths.py          # print the folder that `python train.py` would use

A data folder holds `train.pack` and `val.pack`, which prepare_data.py makes, or `train/CLASS/*` and
`val/CLASS/*` (or `validation/CLASS/*`). A pack takes precedence over a folder.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT_VARIABLE = "IMAGENET_DIR"
# The EBS volume of setup_and_train.sh first, then the clone's own data folder.
SEARCHED_DIRS = (
    Path("/mnt/imagenet/imagenet"),
    Path("/mnt/imagenet"),
    Path("data/imagenet"),
    Path("data"),
)
VAL_NAMES = ("val", "validation")
# Formats that Pillow decodes by itself; a test decodes one of each. HEIC, PSD, and camera raw files
# need other programs, or lose what they hold.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".gif"),
    *(".bmp", ".dib", ".tif", ".tiff", ".tga", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ico", ".qoi", ".pcx", ".sgi", ".dds"),
)
PICTURE_ENDS = frozenset(EXTENSIONS)
# All that earlier versions listed: runs begun with them keep exactly these.
LEGACY_ENDS = PICTURE_ENDS & {
    *(".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
}
# What operating systems leave in folders, besides names that begin with a dot.
SYSTEM_LITTER = frozenset(
    {
        "__MACOSX",
        "Thumbs.db",
        "desktop.ini",
        "lost+found",
        "System Volume Information",
        "$RECYCLE.BIN",
    }
)


@dataclass(frozen=True)
class Dataset:
    """What a complete data set must contain, and where its archive is, if it has a public URL.

    num_val 0: the data set has no validation split, and num_train counts all images.
    """

    title: str
    num_classes: int
    num_train: int
    num_val: int
    url: str = ""
    md5: str = ""


FASTAI = "https://s3.amazonaws.com/fast-ai-imageclas"
# Counts of ImageNet: torchvision's datasets/imagenet.py and image-net.org; of Fashion-MNIST: Xiao
# et al. 2017, arXiv:1708.07747; of Tiny-ImageNet its own readme; of Imagenette
# github.com/fastai/imagenette. URLs and md5 sums: torchvision's datasets/imagenette.py and
# cs231n.stanford.edu.
DATASETS: Mapping[str, Dataset] = {
    "imagenet": Dataset("ImageNet-1K (ILSVRC 2012)", 1000, 1_281_167, 50_000),
    "fashion-mnist": Dataset("Fashion-MNIST", 10, 60_000, 10_000),
    "tiny-imagenet": Dataset(
        "Tiny-ImageNet-200",
        200,
        100_000,
        10_000,
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "90528d7ca1a48142e341f4ef8d21d0de",
    ),
    "imagenette": Dataset(
        "Imagenette",
        10,
        9_469,
        3_925,
        f"{FASTAI}/imagenette2.tgz",
        "fe2fc210e6bb7c5664d602c3cd71e612",
    ),
    "imagenette-320": Dataset(
        "Imagenette",
        10,
        9_469,
        3_925,
        f"{FASTAI}/imagenette2-320.tgz",
        "3df6f0d01a2c9592104656642f5e78a3",
    ),
    "imagenette-160": Dataset(
        "Imagenette",
        10,
        9_469,
        3_925,
        f"{FASTAI}/imagenette2-160.tgz",
        "e793b78cc4c9e9a4ccc0c1155377a412",
    ),
    "mini-imagenet": Dataset("mini-ImageNet", 100, 60_000, 0),
}
# md5 of archives that may be there already, by file name: torchvision's datasets/imagenet.py.
ARCHIVE_MD5: Mapping[str, str] = {
    "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
    "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
    **{d.url.rpartition("/")[2]: d.md5 for d in DATASETS.values() if d.url},
}
MAY_BE_MISSING = 0.02  # share of a data set's images without which it is still recognized
HOW_TO_GET_IMAGENET = """\
ImageNet may not be redistributed; its terms are at image-net.org/download. Get it in one of these
ways:
  image-net.org: with an account, ILSVRC2012_img_train.tar (147,897,477,120 bytes, md5
    1d675b47d978889d74fa0da5fadfb00e) and ILSVRC2012_img_val.tar (6,744,924,160 bytes, md5
    29b22e2961454d5413ddabcf34fc5622) into one folder
  Academic Torrents, the same two files, by the info hashes
    a306397ccf9c2ead27155983c254227c0fd938e2 and 5d6d0df7ed81efd49ca99ea4737e0ae5e3a5f2e5
  Kaggle, after accepting the rules of the competition:
    kaggle competitions download -c imagenet-object-localization-challenge
Then: python prepare_data.py FOLDER_OR_ZIP --out /mnt/imagenet/imagenet"""

IMAGENETTE_CLASSES = (
    "n01440764",
    "n02102040",
    "n02979186",
    "n03000684",
    "n03028079",
    "n03394916",
    "n03417042",
    "n03425413",
    "n03445777",
    "n03888257",
)
FASHION_MNIST_CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not part of the user's data, such as macOS's ._NAME.jpg."""
    return name.startswith(".") or name in SYSTEM_LITTER


def is_picture(file_name: str, ends: frozenset[str] = PICTURE_ENDS) -> bool:
    """Whether it is one, by its extension; hidden files, such as macOS's ._NAME.jpg, are not."""
    # Called for 1.28 million names whenever training starts, so the test must be cheap.
    return file_name[file_name.rfind(".") :].lower() in ends and file_name[:1] != "."


def are_wnids(classes: Iterable[str]) -> bool:
    """Whether all classes are ids of WordNet, as ImageNet's are."""
    return all(re.fullmatch(r"n\d{8}", name) for name in classes)


def known_dataset(
    classes: Sequence[str], num_train: int | None = None, num_val: int = 0
) -> Dataset | None:
    """The data set that has these class folders, if it is one of ours.

    Some sets consist of any hundred or two hundred of ImageNet's classes (ImageNet-100,
    ImageNet-R), so Tiny-ImageNet and mini-ImageNet are recognized by their number of images too, of
    which a copy may lack a few.
    """
    if not are_wnids(classes):
        return DATASETS["fashion-mnist"] if set(classes) == set(FASHION_MNIST_CLASSES) else None
    if set(classes) == set(IMAGENETTE_CLASSES):
        return DATASETS["imagenette"]
    if len(classes) == DATASETS["imagenet"].num_classes:
        return DATASETS["imagenet"]
    for dataset in (DATASETS["tiny-imagenet"], DATASETS["mini-imagenet"]):
        if len(classes) == dataset.num_classes and num_train is not None:
            here = num_train if dataset.num_val else num_train + num_val
            if (1 - MAY_BE_MISSING) * dataset.num_train <= here <= dataset.num_train:
                return dataset
    return None


def missing_images(classes: Sequence[str], num_train: int, num_val: int) -> str:
    """What a known data set should have but does not; empty if nothing is missing."""
    dataset = known_dataset(classes, num_train, num_val)
    if dataset is None or (num_train, num_val) == (dataset.num_train, dataset.num_val):
        return ""
    if not dataset.num_val:
        total = dataset.num_train
        here = num_train + num_val
        return "" if here == total else f"{dataset.title} has {total:,} images, not {here:,}"
    return (
        f"{dataset.title} has {dataset.num_train:,} training and {dataset.num_val:,} validation "
        f"images, but there are {num_train:,} and {num_val:,} here"
    )


def split_path(data_dir: Path, split: str) -> Path:
    """Pack or folder of a split; `val` may be called `validation`. Raises ValueError if neither."""
    names = VAL_NAMES if split in VAL_NAMES else (split,)
    for name in names:
        if (data_dir / f"{name}.pack").is_file():
            return data_dir / f"{name}.pack"
    for name in names:
        if (data_dir / name).is_dir():
            return data_dir / name
    if (data_dir / f"{names[0]}.pack.partial").exists():
        raise ValueError(
            f"--data_dir {data_dir}: packing was interrupted before {names[0]}.pack was complete: "
            "run the same prepare_data.py command again to resume it"
        )
    wanted = " or ".join(f"{name}/" for name in names)
    raise ValueError(
        f"--data_dir {data_dir}: it has neither {names[0]}.pack nor {wanted} with one folder per "
        "class"
    )


def has_both_splits(data_dir: Path) -> bool:
    try:
        return all(split_path(data_dir, split) for split in ("train", "val"))
    except ValueError:
        return False


def find_data_dir() -> Path:
    """The first place that holds both splits: $IMAGENET_DIR, the mounted volume, ./data.

    Raises ValueError listing every place that was looked at.
    """
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    places = (Path(named),) if named else SEARCHED_DIRS
    for place in places:
        if has_both_splits(place):
            return place
    looked = ", ".join(str(place) for place in places)
    raise ValueError(
        f"no data found: no train and val splits, packed or as folders, in {looked}. Give train.py "
        "--data_dir DIR or set "
        f"{ENVIRONMENT_VARIABLE}; `python prepare_data.py fashion-mnist` makes a small set to try"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the data folder that would be used."""
    formatter = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=formatter).parse_args(argv)
    try:
        print(find_data_dir())
    except ValueError as error:
        print(f"dataset_paths.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
