"""Fashion-MNIST: the published bytes, whole or not at all."""

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, run
from PIL import Image

import data
import prepare_data

NAMES = [name for pair in prepare_data.FILES.values() for name, _ in pair]


@pytest.fixture(scope="session")
def originals(tmp_path_factory) -> Path:
    """The four files as they come; skipped where neither their server nor apt can be reached."""
    folder = tmp_path_factory.mktemp("fashion-mnist")
    try:
        contents = prepare_data.fetch()
    except ValueError as error:
        pytest.skip(f"needs Fashion-MNIST: {error}")
    for name, content in contents.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, 1))
    return folder


def prepare(cwd: Path, *flags: object):
    words = [sys.executable, REPOSITORY / "prepare_data.py", "fashion-mnist", *flags]
    return run(words, cwd)


def test_it_becomes_an_ordinary_image_folder(originals, tmp_path):
    out = tmp_path / "data" / "fashion-mnist"
    left = tmp_path / "data" / "fashion-mnist.partial" / "train" / "bag"
    left.mkdir(parents=True)  # by a start that was killed
    (left / "junk.png").write_bytes(b"")
    result = prepare(tmp_path, "--source_dir", originals, "--num_workers", "2")
    assert result.code == 0, result.err
    assert not (out / "train" / "bag" / "junk.png").exists() and not left.exists()
    assert "60000 training and 10000 validation images, 10 classes" in result.out
    train, val = data.open_dataset(out)
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert np.bincount(val.labels).tolist() == [1000] * 10
    raw = gzip.decompress((originals / "train-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((originals / "train-labels-idx1-ubyte.gz").read_bytes())[8:]
    name = prepare_data.dataset_paths.FASHION_MNIST_CLASSES[labels[12_345]]
    with Image.open(out / "train" / name / "12345.png") as image:
        pixels = np.asarray(image)
    start = 16 + 12_345 * 784
    assert pixels.shape == (32, 32) and pixels[2:30, 2:30].tobytes() == raw[start : start + 784]
    assert pixels.sum() == pixels[2:30, 2:30].sum()
    before = (out / "train").stat().st_mtime_ns
    again = prepare(tmp_path, "--source_dir", originals)
    assert again.code == 0 and "is complete already" in again.out
    assert (out / "train").stat().st_mtime_ns == before


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


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    result = prepare(tmp_path, "--out", "out")
    assert result.code == 2 and "is not a finished data set; remove it" in result.err
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"
