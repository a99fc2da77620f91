"""Data sets as folders and archives, with small pictures."""

import functools
import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from support.pictures import make_picture

from resnet50.data import class_names

Files = Mapping[str, bytes]
WNIDS = ("n01440764", "n01443537", "n01484850")


@functools.cache
def jpeg(seed: int) -> bytes:
    file = io.BytesIO()
    make_picture(seed, seed % 3).save(file, "JPEG")
    return file.getvalue()


def write_folder(place: Path, files: Files) -> Path:
    for path, content in files.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_bytes(content)
    return place


def write_zip(place: Path, files: Files, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(place, "w", method) as archive:
        archive.mkdir("an empty folder")
        for path, content in files.items():
            archive.writestr(path, content)
    return place


def tar_bytes(files: Files, form: int = tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def write_tar(place: Path, files: Files) -> Path:
    place.write_bytes(tar_bytes({f"./{path}": content for path, content in files.items()}))
    return place


def write_pax_tgz(place: Path, files: Files) -> Path:
    place.write_bytes(gzip.compress(tar_bytes(files, tarfile.PAX_FORMAT), 1))
    return place


# The names say nothing, as those of a browser's downloads may.
CONTAINERS: dict[str, Callable[[Path, Files], Path]] = {
    "folder": lambda place, files: write_folder(place / "folder", files),
    "stored zip": lambda place, files: write_zip(place / "a.bin", files, zipfile.ZIP_STORED),
    "deflated zip": lambda place, files: write_zip(place / "b", files),
    "tar": lambda place, files: write_tar(place / "c.download", files),
    "tar.gz": lambda place, files: write_pax_tgz(place / "d.tgz", files),
}


def image_folder_files(top: str = "") -> Files:
    """Two splits of three classes with what else such archives hold."""
    files = {
        f"{top}{split}/{wnid}/{name}": jpeg(100 * i + 10 * j + k)
        for i, split in enumerate(("train", "val"))
        for j, wnid in enumerate(WNIDS)
        for k, name in enumerate(("b.JPEG", "a.png", val_name(wnid), "ä.jpg"))
    }
    junk = ("train/._n", "train/.DS_Store", f"train/{WNIDS[0]}/._a.png", "noisy.csv", "README.md")
    return files | {f"{top}{path}": b"junk" for path in junk} | {f"__MACOSX/{top}a.jpg": b"junk"}


def tiny_files() -> Files:
    top = "tiny-imagenet-200"
    files = {
        f"{top}/train/{wnid}/images/{wnid}_{k}.JPEG": jpeg(10 * j + k)
        for j, wnid in enumerate(WNIDS)
        for k in range(3)
    }
    files |= {f"{top}/train/{wnid}/{wnid}_boxes.txt": b"0 0 1 1" for wnid in WNIDS}
    files |= {f"{top}/val/images/val_{k}.JPEG": jpeg(50 + k) for k in range(6)}
    lines = [f"val_{k}.JPEG\t{WNIDS[k % 3]}\t0\t0\t9\t9\n" for k in range(6)]
    files[f"{top}/val/val_annotations.txt"] = "".join(lines).encode()
    return files | {f"{top}/test/images/test_0.JPEG": jpeg(9), f"{top}/wnids.txt": b"n01440764\n"}


@functools.cache
def val_name(wnid: str, i: int = 0) -> str:
    """The name of the i-th validation image of a class of ImageNet."""
    numbers = [name for name, label in class_names.imagenet_val_labels().items() if label == wnid]
    return f"{sorted(numbers)[i]}.JPEG"


def kaggle_files(top: str = "", with_labels: bool = True) -> Files:
    place = f"{top}ILSVRC/Data/CLS-LOC"
    files = {
        f"{place}/train/{wnid}/{wnid}_{k}.JPEG": jpeg(10 * j + k)
        for j, wnid in enumerate(WNIDS)
        for k in range(3)
    }
    files |= {f"{place}/val/{val_name(wnid)}": jpeg(70 + j) for j, wnid in enumerate(WNIDS)}
    files |= {f"{place}/test/ILSVRC2012_test_00000001.JPEG": jpeg(9)}
    for split in ("train/n01440764", "val"):
        files[f"{top}ILSVRC/Annotations/CLS-LOC/{split}/x.xml"] = b"<a/>"
    files[f"{top}LOC_synset_mapping.txt"] = b"n01440764 tench, Tinca tinca\n"
    if with_labels:
        lines = [f"{val_name(wnid)[:-5]},{wnid} 1 2 3 4 {wnid} 5 6 7 8 \n" for wnid in WNIDS]
        text = "ImageId,PredictionString\n" + "".join(reversed(lines))
        files[f"{top}LOC_val_solution.csv"] = text.encode()
    return files
