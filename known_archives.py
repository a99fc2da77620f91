"""Archives that everybody knows: where they are published, and whether a copy is whole."""

import hashlib
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

import dataset_paths
from dataset_paths import ARCHIVE_MD5, DATASETS

SILENCE_S = 20.0  # of a server, before a download is given up


def find(name: str, may_download: bool, folder: Path) -> Path:
    """The archive of a named data set in `folder`, downloaded if that is allowed.

    Raises ValueError saying how to get it if it cannot be had.
    """
    dataset = DATASETS[name]
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
            f"{dataset.url} cannot be had ({' '.join(str(error).split())}): fetch it by other "
            "means and give the file as SOURCE"
        ) from error
    return path


@contextmanager
def silence_limit() -> Iterator[None]:
    """Downloads within give up when nothing comes for long; Python's own never do."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def check_md5(source: Path, work_dir: Path) -> None:
    """Raise ValueError if a well-known archive is not what was published.

    147 GB take a while, so what was found is kept in work_dir for the next start.
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
                f"{path}: its md5 is {known[key]}, published is {ARCHIVE_MD5[path.name]}: "
                "download it again, or take it as it is with --skip_md5"
            )


def md5_of(path: Path) -> str:
    """md5 of a file in hexadecimal digits, with a progress bar."""
    digest = hashlib.md5(usedforsecurity=False)
    with (
        open(path, "rb") as file,
        tqdm(total=path.stat().st_size, desc=f"md5 of {path.name}", unit="B", unit_scale=True,
             disable=None, leave=False) as bar,
    ):  # fmt: skip
        while block := file.read(1 << 22):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()
