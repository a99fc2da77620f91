"""Well-known archives: where they are published, and whether a copy is whole."""

import hashlib
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

import dataset_paths
from dataset_paths import ARCHIVE_MD5, DATASETS

SILENCE_S = 20.0  # without an answer from the server, before a download is given up


# What the data sets are called on disks: their archives, and the folders that they unpack to. A
# folder with both of ImageNet's tars is found by the first of them.
FOUND_AS = {
    "imagenet": (
        "ILSVRC2012_img_train.tar",
        "imagenet-object-localization-challenge.zip",
        "imagenet-object-localization-challenge",
        "ILSVRC",
    ),
    "tiny-imagenet": ("tiny-imagenet-200.zip", "tiny-imagenet-200.tar", "tiny-imagenet-200"),
    "imagenette": ("imagenette2.tgz", "imagenette2"),
    "imagenette-320": ("imagenette2-320.tgz", "imagenette2-320"),
    "imagenette-160": ("imagenette2-160.tgz", "imagenette2-160"),
    "mini-imagenet": ("mini-imagenet.zip", "mini-imagenet.tar", "miniimagenet.zip", "miniimagenet"),
}
SEARCH_DEPTH = 3


def search(name: str, folder: Path) -> Path | None:
    """The source of a named data set on a volume, at most three folders deep; None without one.

    Raises ValueError if there are several.
    """
    patterns = ["*/" * depth for depth in range(SEARCH_DEPTH)]
    for wanted in FOUND_AS.get(name, ()):
        listed = (path for pattern in patterns for path in folder.glob(f"{pattern}{wanted}"))
        # Hidden folders hold what is not whole yet, such as a download that was interrupted.
        found = [p for p in listed if not any(x[0] == "." for x in p.relative_to(folder).parts)]
        if len(found) > 1:
            names = ", ".join(str(path) for path in sorted(found))
            raise ValueError(f"{folder} has {name} more than once ({names}): move one away")
        if found:
            return found[0].parent if wanted == "ILSVRC2012_img_train.tar" else found[0]
    return None


def find(name: str, may_download: bool, folder: Path, search_dir: Path | None = None) -> Path:
    """The source of a named data set: in search_dir, else downloaded to `folder` if that may be.

    Raises ValueError saying how to get it if it is not found.
    """
    dataset = DATASETS[name]
    if search_dir is not None and (found := search(name, search_dir)) is not None:
        return found
    if name == "imagenet":
        raise ValueError(dataset_paths.HOW_TO_GET_IMAGENET)
    if not dataset.url:
        raise ValueError(f"{dataset.title} has no plain URL: download it and give its folder")
    if not may_download:
        raise ValueError(f"{name}: no such file or folder; --download gets {dataset.url}")
    from torchvision.datasets.utils import download_url  # takes three seconds to import

    path = folder / dataset.url.rpartition("/")[2]
    try:
        with silence_limit():
            download_url(dataset.url, str(folder), path.name, dataset.md5)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{dataset.url} cannot be downloaded ({' '.join(str(error).split())}): fetch it by "
            "other means and give the file as SOURCE"
        ) from error
    return path


@contextmanager
def silence_limit() -> Iterator[None]:
    """Downloads in this block give up when no data arrive for long; Python's own never do."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def check_md5(source: Path, work_dir: Path) -> None:
    """Raise ValueError if a well-known archive is not what was published.

    Reading 147 GB takes a while, so the result is kept in work_dir for the next start.
    """
    known_path = work_dir / "md5.json"
    known = json.loads(known_path.read_text()) if known_path.exists() else {}
    paths = [source] if source.is_file() else [source / name for name in ARCHIVE_MD5]
    for path in paths:
        if not path.is_file() or path.name not in ARCHIVE_MD5:
            continue
        state = path.stat()
        key = f"{path.resolve()} {state.st_size} {state.st_mtime_ns}"
        if key not in known:
            known[key] = md5_of(path)
            known_path.write_text(json.dumps(known))
        if known[key] != ARCHIVE_MD5[path.name]:
            raise ValueError(
                f"{path}: its md5 is {known[key]}, the published one is {ARCHIVE_MD5[path.name]}: "
                "download it again, or accept it as it is with --skip_md5"
            )


def md5_of(path: Path) -> str:
    """md5 of a file in hexadecimal digits, with a progress bar."""
    digest = hashlib.md5(usedforsecurity=False)
    with (
        open(path, "rb") as file,
        tqdm(
            total=path.stat().st_size,
            desc=f"md5 of {path.name}",
            unit="B",
            unit_scale=True,
            disable=None,
            leave=False,
        ) as bar,
    ):
        while block := file.read(1 << 22):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()
