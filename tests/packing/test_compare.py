"""prepare_data.py --compare: right packs are right, and every planted fault is found and named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.commands import REPOSITORY
from support.data_sources import CONTAINERS, tiny_files
from support.in_process import run_here
from support.jpegs import picture
from support.pictures import CLASSES

from resnet50.data import pack
from resnet50.data.pack import PackedImages
from resnet50.data.tiles import FULL_TILES, LEVEL_TILES, TiledPicture
from resnet50.packing.encode import encode_size

PER_CLASS = 2


def prepare(cwd: Path, *flags: object):
    return run_here(["python", REPOSITORY / "prepare_data.py", *flags], cwd)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Noisy pictures, of which no two parts are alike, of three classes; one is turned by EXIF."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(len(CLASSES) * PER_CLASS):
        label, place = divmod(number, PER_CLASS)
        for split in ("train", "val"):
            folder = root / split / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            exif = Image.Exif()
            exif[0x0112] = 6 if place == 0 else 1
            image = picture(number + 100 * (split == "val"))
            image.save(folder / f"{place}.jpg", quality=95, exif=exif)
    return root


@pytest.fixture(scope="module")
def packed(photos, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "out"
    result = prepare(out.parent, photos, "--out", out, "--long_side=160", "--num_workers=1")
    assert result.code == 0, result.err
    return out


def repacked(path: Path, change: Callable[[int, list], tuple[int, list]]) -> None:
    """Write a pack anew, with whole checksums, each image changed: label, pixels of all sizes."""
    images = PackedImages(path)
    data = path.read_bytes()
    about = json.loads(data[64 : 64 + int.from_bytes(data[12:16], "little")])
    with open(path.with_suffix(".new"), "w+b") as file:
        file.seek(pack.records_offset(about))
        entries = []
        for index in range(len(images)):
            opened = images.open(index)
            sizes = [opened.level(number).pixels() for number in range(len(opened.sizes))]
            label, sizes = change(int(images.labels[index]), sizes)
            tilings = [FULL_TILES] + [LEVEL_TILES] * (len(sizes) - 1)
            tiles = [encode_size(*one) for one in zip(sizes, [90, 89], tilings, strict=True)]
            name = images.name(index).partition(":")[2]
            record = pack.leveled_record(name, label, tiles[::-1])
            entries.append(record.index_entry(file.tell()))
            file.write(record.table + record.payload)
        pack.seal(file, about, np.array(entries))
    path.with_suffix(".new").rename(path)


def each(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[int, list], tuple[int, list]]:
    return lambda label, sizes: (label, [change(pixels) for pixels in sizes])


def smaller(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    return np.asarray(Image.fromarray(pixels).resize((width * 3 // 4, height * 3 // 4)))


FAULTS = {
    "swapped channels": (
        each(lambda pixels: pixels[:, :, ::-1]),
        "12 of 12 crops (full size) have red and blue swapped, such as ",
    ),
    "shifted labels": (
        lambda label, sizes: ((label + 1) % 3, sizes),
        "6 images have a wrong label, such as ant/0.jpg: bee",
    ),
    "a class of its own": (
        lambda label, sizes: (max(label, 1), sizes),
        "2 classes have other numbers of images: ant has 0, in the source 2, bee has 4, in the",
    ),
    "mirrored pixels": (
        each(lambda pixels: pixels[:, ::-1]),
        "12 of 12 crops (full size) are mirrored, such as ",
    ),
    "on its side": (
        each(np.rot90),
        "12 of 12 crops (full size) are turned by 90 degrees, such as ",
    ),
    "moved pixels": (
        each(lambda pixels: np.roll(pixels, 40, axis=0)),
        "12 of 12 crops (full size) are unlike their originals, such as ",
    ),
    "another size": (
        each(smaller),
        "6 of 6 images have other sizes than packing gives them, such as ",
    ),
    "a mirrored level": (
        lambda label, sizes: (label, [sizes[0], sizes[1][:, ::-1]]),
        " crops (level 80) are mirrored, such as ",
    ),
    "a wrong level": (
        lambda label, sizes: (label, [sizes[0], np.roll(sizes[1], 20, axis=1)]),
        " crops (level 80) are unlike their originals, such as ",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(packed, tmp_path, fault):
    change, text = FAULTS[fault]
    out = shutil.copytree(packed, tmp_path / "out")
    repacked(out / "train.pack", change)
    assert prepare(tmp_path, "--verify", out).code == 0  # the file is whole
    result = prepare(tmp_path, "--compare", out)
    assert result.code == 2 and "Traceback" not in result.err
    assert any(text in line for line in result.out.splitlines() if line[:13] == "wrong: train:")
    assert "wrong: val" not in result.out


def test_boxes_that_are_mirrored_in_reading_are_found(packed, tmp_path, monkeypatch):
    crop = TiledPicture.crop

    def mirrored(self, left, top, right, bottom, shrink=1):
        width = self.size[0] // shrink * shrink
        return crop(self, width - right, top, width - left, bottom, shrink)

    monkeypatch.setattr(TiledPicture, "crop", mirrored)
    result = prepare(tmp_path, "--compare", packed)
    assert result.code == 2 and "crops (full size) are unlike their originals" in result.out


def test_a_right_pack_is_right_and_ten_crops_are_drawn(packed, tmp_path):
    before = {path.name for path in packed.iterdir()}
    result = prepare(tmp_path, "--compare", packed)
    assert result.code == 0, result.out + result.err
    lines = result.out.splitlines()
    assert lines[0] == f"{packed}/train.pack: 6 images in 3 classes"
    rows = [line.split() for line in lines if line.startswith(("train ", "val "))]
    # The training images were shrunk to 160 px, too small for crops of 224; 40 px fit their levels.
    assert [row[:-8] for row in rows] == [
        ["train", "full", "size", "112"],
        ["train", "full", "size", "40"],
        ["train", "level", "80", "40"],
        ["val", "original", "224"],
        ["val", "original", "112"],
    ]
    assert all(0 < int(row[-8]) <= 6 and float(row[-7]) > 30 for row in rows)
    with Image.open(packed / "compare.png") as drawn:
        assert drawn.size == (1600, 390)
    assert {path.name for path in packed.iterdir()} == before | {"compare.png"}


@pytest.mark.parametrize("container", ["deflated zip", "tar.gz"])
def test_pictures_are_compared_with_those_in_an_archive(tmp_path, container):
    source, out = CONTAINERS[container](tmp_path, tiny_files()), tmp_path / "out"
    assert prepare(tmp_path, source, "--out", out, "--skip_md5", "--num_workers=1").code == 0
    moved = source.rename(tmp_path / "moved")
    result = prepare(tmp_path, "--compare", out)
    assert result.code == 2 and f"{source}: no such file" in result.err
    result = prepare(tmp_path, moved, "--compare", out)
    assert result.code == 0, result.out + result.err


@pytest.mark.parametrize("flags", [["--store=original"], ["--levels=none", "--upright=no"]])
def test_small_pictures_of_sharp_pixels_are_no_fault(tmp_path, flags):
    """Enlarged ten times, what lies beside a rectangle would show in its crop."""
    random = np.random.default_rng(0)
    for number in range(12):
        folder = tmp_path / "in" / CLASSES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 2, size=(28, 28, 3), dtype=np.uint8) * 255
        Image.fromarray(pixels).save(folder / f"{number}.png")
    result = prepare(tmp_path, "in", "--out", "out", "--num_workers=1", *flags)
    assert result.code == 0, result.err
    result = prepare(tmp_path, "--compare", "out")
    assert result.code == 0, result.out + result.err


def test_pictures_left_out_in_packing_are_not_missed_and_later_ones_are(photos, tmp_path):
    source, out = shutil.copytree(photos, tmp_path / "in"), tmp_path / "out"
    (source / "train" / "ant" / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    assert prepare(tmp_path, source, "--out", out, "--num_workers=1").code == 0
    result = prepare(tmp_path, "--compare", out)
    assert result.code == 0 and "6 images in 3 classes, 1 left out when it was packed" in result.out
    (source / "train" / "bee" / "0.jpg").rename(source / "train" / "cat" / "new.jpg")
    result = prepare(tmp_path, "--compare", out)
    assert result.code == 2
    for text in (
        "2 classes have other numbers of images: bee has 2, in the source 1, cat has 2, in the",
        "its images are not those of the source",
        "1 of 6 images are not in the source, such as bee/0.jpg",
    ):
        assert f"wrong: train: {text}" in result.out


@pytest.mark.parametrize(
    "flags, texts",
    [
        (["--compare=nowhere"], ["--compare nowhere: train.pack is not there"]),
        (["--compare=here", "--out=there"], ["--compare here", "leave out --out"]),
        (["--compare=bare"], ["--compare bare", "no report.json", "give its SOURCE too"]),
        (["/nowhere", "--compare=bare"], ["/nowhere: no such file or folder"]),
        (["--compare=taken"], ["--compare taken", "compare.png", "move it away"]),
    ],
)
def test_mistakes_are_named(packed, tmp_path, flags, texts):
    for name in ("bare", "taken"):
        shutil.copytree(packed, tmp_path / name)
    (tmp_path / "bare" / "report.json").unlink()
    (tmp_path / "taken" / "compare.png").write_text("mine")
    result = prepare(tmp_path, *flags)
    error = result.err.splitlines()[-1]
    assert result.code == 2 and error.startswith("prepare_data.py: error: ")
    assert all(text in error for text in texts), error
    assert (tmp_path / "taken" / "compare.png").read_text() == "mine"
