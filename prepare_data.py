"""Get a data set and write it where train.py finds it.

    python prepare_data.py fashion-mnist --out data/fashion-mnist

Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747; MIT licence) is 70,000 real product photographs
of 28x28 pixels in 10 classes, 31 MB. It comes through torchvision's downloader or, where only a
Debian or Ubuntu mirror is reachable, out of their package `dataset-fashion-mnist`, which holds the
same files; md5 sums are checked either way. The pictures are written as PNG with a black border of
2 pixels, since 32 is the smallest side that a ResNet50 reduces without a remainder.
"""

import argparse
import gzip
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

import dataset_paths

SOURCES = ("fashion-mnist",)
BORDERS = ((0, 0), (2, 2), (2, 2))  # pixels before and after: 28x28 -> 32x32
CHUNK = 500  # images a task
DOWNLOAD_TIMEOUT_S = 20.0  # without a byte
PACKAGE = "dataset-fashion-mnist"
# split: (images, labels), each with the md5 of its content. The published sums are of the .gz files
# (github.com/zalandoresearch/fashion-mnist); Debian compresses the same bytes anew, so what is
# compared is what unpacks from either.
FILES = {
    "train": (
        ("train-images-idx3-ubyte", "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
        ("train-labels-idx1-ubyte", "9018921c3c673c538a1fc5bad174d6f9"),
    ),
    "val": (
        ("t10k-images-idx3-ubyte", "8181f5470baa50b63fa0f6fddb340f0a"),
        ("t10k-labels-idx1-ubyte", "15d484375f8d13e6eb1aabb0c3f46965"),
    ),
}


def read_files(folder: Path) -> dict[str, bytes]:
    """Contents of the four files by name. Raises ValueError naming a missing or damaged one."""
    contents = {}
    for name, expected in (file for pair in FILES.values() for file in pair):
        path = folder / f"{name}.gz"
        try:
            contents[name] = gzip.decompress(path.read_bytes())
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: {error}") from error
        if hashlib.md5(contents[name], usedforsecurity=False).hexdigest() != expected:
            raise ValueError(f"{path}: not Fashion-MNIST's (md5 of its content is not {expected})")
    return contents


def download(folder: Path) -> Path:
    """Fetch the four files by torchvision's downloader. Raises OSError or RuntimeError."""
    from torchvision.datasets import FashionMNIST  # takes three seconds to import, so only here

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        FashionMNIST(str(folder), download=True)
    finally:
        socket.setdefaulttimeout(before)
    return folder / "FashionMNIST" / "raw"


def apt_download(folder: Path) -> Path:
    """Fetch the four files out of Debian's or Ubuntu's package, without root and without a trace.

    apt works in state and cache folders of our own. Raises OSError or CalledProcessError.
    """
    for name in ("lists/partial", "cache/archives/partial", "unpacked"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    options = [
        f"Dir::State::lists={folder}/lists",
        f"Dir::Cache={folder}/cache",
        f"APT::Sandbox::User={os.environ.get('USER', '')}"
        if os.geteuid()
        else "APT::Sandbox::User=root",
        "Debug::NoLocking=1",
        "Acquire::Retries=3",
        "Acquire::http::Timeout=30",
    ]
    apt = ["apt-get", "--quiet=2", *(word for option in options for word in ("-o", option))]
    subprocess.run([*apt, "update"], check=True, capture_output=True, text=True)
    subprocess.run(
        [*apt, "download", PACKAGE], check=True, capture_output=True, text=True, cwd=folder
    )
    package = next(folder.glob("*.deb"))
    subprocess.run(["dpkg-deb", "-x", str(package), str(folder / "unpacked")], check=True)
    return folder / "unpacked" / "usr" / "share" / "datasets" / "fashion-mnist"


def fetch() -> dict[str, bytes]:
    """The contents of the four files, from wherever they can be had.

    Raises ValueError saying what was tried and how it failed.
    """
    failures = []
    with tempfile.TemporaryDirectory(prefix="fashion-mnist-") as folder:
        for way in (download, apt_download):
            try:
                return read_files(way(Path(folder)))
            except subprocess.CalledProcessError as error:
                lines = (error.stderr or error.stdout or "").strip().splitlines()
                failures.append(f"{way.__name__}: {lines[-1] if lines else error}")
            except (OSError, RuntimeError, ValueError) as error:
                failures.append(f"{way.__name__}: {' '.join(str(error).split())}")
    raise ValueError(
        f"Fashion-MNIST cannot be had ({'; '.join(failures)}). Put its four .gz files into a "
        "folder (github.com/zalandoresearch/fashion-mnist) and give it with --source_dir"
    )


def write_images(folder: Path, first: int, images: np.ndarray, labels: np.ndarray) -> int:
    """Write images (N, 28, 28) as CLASS/NUMBER.png with a border; returns N."""
    for i, (image, label) in enumerate(zip(np.pad(images, BORDERS), labels, strict=True)):
        name = dataset_paths.FASHION_MNIST_CLASSES[label]
        Image.fromarray(image).save(folder / name / f"{first + i:05d}.png", compress_level=1)
    return len(images)


def write_split(
    contents: dict[str, bytes], split: str, out: Path, pool: ProcessPoolExecutor
) -> int:
    """Write one split as a folder with a folder per class; returns the number of images."""
    (images_name, _), (labels_name, _) = FILES[split]
    images = np.frombuffer(contents[images_name], np.uint8, offset=16).reshape(-1, 28, 28)
    labels = np.frombuffer(contents[labels_name], np.uint8, offset=8)
    for name in dataset_paths.FASHION_MNIST_CLASSES:
        (out / split / name).mkdir(parents=True)
    tasks = [
        pool.submit(write_images, out / split, i, images[i : i + CHUNK], labels[i : i + CHUNK])
        for i in range(0, len(images), CHUNK)
    ]
    with tqdm(total=len(images), desc=split, unit="img", disable=None, leave=False) as bar:
        for task in tasks:
            bar.update(task.result())
    return len(images)


def is_complete(out: Path) -> bool:
    """Whether the data set lies there already; it is renamed into place when it is whole."""
    return (out / "train").is_dir() and (out / "val").is_dir()


def prepare_fashion_mnist(out: Path, source_dir: Path | None, num_workers: int) -> None:
    """Fetch and write Fashion-MNIST into `out`, whole or not at all."""
    start = time.monotonic()
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a start that was killed
    partial.mkdir(parents=True)
    expected = dataset_paths.DATASETS["fashion-mnist"]
    contents = fetch() if source_dir is None else read_files(source_dir)
    with ProcessPoolExecutor(num_workers) as pool:
        counts = [write_split(contents, split, partial, pool) for split in FILES]
    assert counts == [expected.num_train, expected.num_val], counts
    partial.rename(out)
    print(
        f"{out}: {counts[0]} training and {counts[1]} validation images, "
        f"{expected.num_classes} classes, {time.monotonic() - start:.0f} s"
    )


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="prepare_data.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", choices=SOURCES, help="what to prepare")
    parser.add_argument(
        "--out", type=Path, help="folder to write [data/SOURCE]; left alone if it is complete"
    )
    parser.add_argument(
        "--source_dir", type=Path, help="folder with the original files; nothing is downloaded then"
    )
    parser.add_argument(
        "--num_workers", type=int, default=os.cpu_count(), metavar="N", help="processes [all cores]"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare one data set; 0 if it is there afterwards, 2 if something must be changed."""
    parser = build_parser()
    args = parser.parse_args(argv)
    out = args.out or Path("data") / args.source
    if args.num_workers < 1:
        parser.error(f"--num_workers {args.num_workers}: must be at least 1")
    if is_complete(out):
        print(f"{out} is complete already")
        return 0
    if out.exists() and any(out.iterdir()):
        parser.error(f"--out {out}: lies there and is not a finished data set; remove it")
    try:
        prepare_fashion_mnist(out, args.source_dir, args.num_workers)
    except (ValueError, OSError) as error:
        print(f"prepare_data.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
