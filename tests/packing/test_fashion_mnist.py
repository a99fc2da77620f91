"""Fashion-MNIST: the published bytes, whole or not at all."""

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
from support.commands import REPOSITORY, run

import dataset_paths
from resnet50.data import splits
from resnet50.data.jpeg import WholePicture
from resnet50.packing import fashion_mnist

NAMES = [name for pair in fashion_mnist.FILES.values() for name, _ in pair]


@pytest.fixture(scope="session")
def originals(tmp_path_factory) -> Path:
    """The four files as they come; skipped where neither their server nor apt can be reached."""
    folder = tmp_path_factory.mktemp("fashion-mnist")
    try:
        contents = fashion_mnist.fetch()
    except ValueError as error:
        pytest.skip(f"needs Fashion-MNIST: {error}")
    for name, content in contents.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, 1))
    return folder


def prepare(cwd: Path, *flags: object):
    words = [sys.executable, REPOSITORY / "prepare_data.py", "fashion-mnist", *flags]
    return run(words, cwd)


def test_its_pictures_are_the_published_ones_without_loss(originals):
    source = fashion_mnist.source(originals)
    for split, count in (("train", 6000), ("val", 1000)):
        assert np.bincount([p.label for p in source.splits[split]]).tolist() == [count] * 10
    raw = gzip.decompress((originals / "train-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((originals / "train-labels-idx1-ubyte.gz").read_bytes())[8:]
    for picture in (source.splits["train"][index] for index in (0, 12_345, 59_999)):
        class_name, number = picture.name.removesuffix(".png").split("/")
        assert dataset_paths.FASHION_MNIST_CLASSES[labels[int(number)]] == class_name
        assert source.classes[picture.label] == class_name
        pixels = WholePicture(fashion_mnist.read(picture.member)).pixels()
        start = 16 + int(number) * 784
        assert pixels.shape == (32, 32, 3)
        assert pixels[2:30, 2:30, 1].tobytes() == raw[start : start + 784]
        assert pixels.sum() == pixels[2:30, 2:30].sum()


@pytest.mark.long
def test_it_becomes_packs_of_the_right_size_once(originals, tmp_path):
    out = tmp_path / "data" / "fashion-mnist"
    result = prepare(tmp_path, "--source_dir", originals, "--num_workers", "2")
    assert result.code == 0, result.err
    assert "the numbers of images are right for this data set" in result.out
    train, val = splits.open_dataset(out)
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert np.bincount(val.labels).tolist() == [1000] * 10
    before = (out / "train.pack").stat().st_mtime_ns
    again = prepare(tmp_path, "--source_dir", originals)
    assert again.code == 0 and "is already complete" in again.out
    assert (out / "train.pack").stat().st_mtime_ns == before


def write_other(folder: Path) -> None:
    for name in NAMES:
        (folder / f"{name}.gz").write_bytes(gzip.compress(b"something else"))


def write_junk(folder: Path) -> None:
    (folder / f"{NAMES[0]}.gz").write_bytes(b"<html>not found</html>")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (write_other, "train-images-idx3-ubyte.gz: not Fashion-MNIST's (md5 of its content is not"),
        (write_junk, "train-images-idx3-ubyte.gz: Not a gzipped file"),
        (lambda folder: None, "train-images-idx3-ubyte.gz"),
    ],
)
def test_other_bytes_are_refused_and_nothing_is_written(tmp_path, spoil, message):
    spoil(tmp_path)
    result = prepare(tmp_path, "--source_dir", tmp_path, "--out", "out")
    assert result.code == 2 and message in result.err and "Traceback" not in result.err
    assert not (tmp_path / "out").exists()
