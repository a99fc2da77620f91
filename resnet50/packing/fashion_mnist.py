"""Fashion-MNIST, the data set of the demo: where to get it, and its pictures.

70,000 real product photographs of 28x28 pixels in 10 classes, 31 MB (Xiao et al. 2017,
arXiv:1708.07747; MIT license). It comes through torchvision's downloader or, where only a Debian or
Ubuntu mirror is reachable, out of their package `dataset-fashion-mnist`, which holds the same
files; md5 sums are checked either way. The pictures become PNG with a black border of 2 pixels,
since 32 is the smallest side that a ResNet50 reduces without a remainder.
"""

import gzip
import hashlib
import io
import os
import subprocess
import tempfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

import dataset_paths
from resnet50.packing.data_set import Picture, Source
from resnet50.packing.downloads import silence_limit

BORDERS = ((2, 2), (2, 2))  # pixels before and after: 28x28 -> 32x32
SORTED_CLASSES = tuple(sorted(dataset_paths.FASHION_MNIST_CLASSES))
PACKAGE = "dataset-fashion-mnist"
# split: (images, labels), each with the md5 of its content. The published sums are of the .gz files
# (github.com/zalandoresearch/fashion-mnist); Debian has compressed the same bytes again, so the
# unpacked contents are compared.
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

    with silence_limit():
        FashionMNIST(str(folder), download=True)
    return folder / "FashionMNIST" / "raw"


def apt_download(folder: Path) -> Path:
    """Fetch the four files from Debian's or Ubuntu's package, without root and without a trace.

    apt gets state and cache folders of its own. Raises OSError or CalledProcessError.
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
    """The contents of the four files, from wherever they can be downloaded.

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
        f"Fashion-MNIST cannot be downloaded ({'; '.join(failures)}). Put its four .gz files into "
        "a folder (github.com/zalandoresearch/fashion-mnist) and give it with --source_dir"
    )


def source(folder: Path | None) -> Source:
    """The data set out of a folder with its four files, or fetched. Raises ValueError."""
    contents = fetch() if folder is None else read_files(folder)
    classes = dataset_paths.FASHION_MNIST_CLASSES
    splits = {}
    for split, ((images_name, _), (labels_name, _)) in FILES.items():
        images = np.frombuffer(contents[images_name], np.uint8, offset=16).reshape(-1, 28, 28)
        labels = np.frombuffer(contents[labels_name], np.uint8, offset=8).tolist()
        # The classes in the order of their names, as folders would have them.
        ordered = sorted(range(len(labels)), key=lambda i: (classes[labels[i]], i))
        splits[split] = [
            Picture(
                f"{classes[labels[i]]}/{i:05d}.png",
                SORTED_CLASSES.index(classes[labels[i]]),
                images[i].tobytes(),
            )
            for i in ordered
        ]
    return Source("fashion-mnist", SORTED_CLASSES, splits)


def read(member: bytes) -> bytes:
    """The 28x28 bytes of a picture as a PNG."""
    pixels = np.frombuffer(member, np.uint8).reshape(28, 28)
    file = io.BytesIO()
    Image.fromarray(np.pad(pixels, BORDERS)).save(file, "PNG", compress_level=1)
    return file.getvalue()
