"""Pictures that a camera stored sideways: upright for your own data, as stored for published sets
and for older packs and runs; the same pixels from folders, tiles and originals."""

import io
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from support.jpegs import encoded, picture

import dataset_paths
import prepare_data
from resnet50.data import crops, jpeg, orientation, splits
from resnet50.data.pack import PackedImages
from resnet50.inference import uploads

ORIENTATIONS = range(1, 9)
FORMS = ("JPEG", "PNG", "WEBP", "TIFF", "MPO", "progressive", "gray")
XMP = '<x:xmpmeta><rdf:Description tiff:Orientation="{}"/></x:xmpmeta>'


def held(number: int, form: str = "JPEG", seed: int = 1) -> bytes:
    """A picture with this orientation in its EXIF data."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[orientation.ORIENTATION_TAG] = number
    image = picture(seed).convert("L" if form == "gray" else "RGB")
    how = {"progressive": True} if form == "progressive" else {}
    form = form if form in ("PNG", "WEBP", "TIFF", "MPO") else "JPEG"
    how |= {"lossless": True} if form == "WEBP" else {}
    image.save(file, form, exif=exif, **how)
    return file.getvalue()


def turned_by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(ORIENTATIONS), st.sampled_from(FORMS), st.data())
def test_an_upright_crop_is_pillows_of_the_turned_picture(number, form, choice):
    data = held(number, form)
    upright, reference = jpeg.WholePicture(data, "yes"), turned_by_pillow(data)
    width, height = upright.size
    assert (height, width, 3) == reference.shape
    left, top = choice.draw(st.integers(0, width - 1)), choice.draw(st.integers(0, height - 1))
    right = choice.draw(st.integers(left + 1, width))
    bottom = choice.draw(st.integers(top + 1, height))
    crop = upright.crop(left, top, right, bottom)
    assert crop.flags.c_contiguous or number == 1 or form == "TIFF"
    assert np.array_equal(crop, reference[top:bottom, left:right])
    lying = jpeg.WholePicture(data, "no").pixels()
    assert np.array_equal(lying, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("number", ORIENTATIONS)
@pytest.mark.parametrize("shrink", [2, 4])
def test_a_reduced_upright_crop_is_the_lying_one_turned(number, shrink):
    data = held(number, seed=7)
    upright, lying = (jpeg.WholePicture(data, way) for way in ("yes", "no"))
    box = orientation.stored_box((4, 8, 44, 72), upright.size, number)
    crop = upright.crop(4, 8, 44, 72, shrink)
    if any(edge % shrink for edge in box):  # such edges fall between pixels of the smaller picture
        assert crop.shape == (64, 40, 3)
    else:
        assert np.array_equal(crop, orientation.turned(lying.crop(*box, shrink), number))


def test_of_a_turned_jpeg_no_more_is_decoded_than_the_crop_needs(monkeypatch):
    rows = []
    decode = jpeg.decode

    def noted(data, width, height, *more, **most):
        rows.append(height)
        return decode(data, width, height, *more, **most)

    monkeypatch.setattr(jpeg, "decode", noted)
    upright = jpeg.WholePicture(held(6), "yes")
    upright.crop(0, 0, 40, 30)  # to be turned clockwise: its left side is the stored bottom
    width = upright.size[0]
    upright.crop(width - 40, 0, width, 30)
    assert rows == [width, 40 + jpeg.EDGE]


def test_what_tells_the_orientation_is_read_as_pillow_reads_it():
    plain = held(1)
    at = plain.index(b"Exif")
    exif = plain[at + 6 : at - 2 + int.from_bytes(plain[at - 2 : at])]
    order = "<" if exif[:2] == b"II" else ">"
    entry = exif.index(struct.pack(f"{order}H", orientation.ORIENTATION_TAG))
    for value in range(11):
        changed = exif[: entry + 8] + struct.pack(f"{order}H", value) + exif[entry + 10 :]
        data = plain.replace(exif, changed)
        reference = turned_by_pillow(data)
        assert np.array_equal(jpeg.WholePicture(data, "yes").pixels(), reference), value
    for cut in range(len(exif)):  # damaged metadata do not affect the pixels
        data = plain.replace(exif, exif[:cut] + b"\xff" * (len(exif) - cut))
        assert jpeg.WholePicture(data, "yes").pixels().shape[2] == 3
    xmp = b"http://ns.adobe.com/xap/1.0/\0" + XMP.format(8).encode()
    segment = b"\xff\xe1" + (len(xmp) + 2).to_bytes(2) + xmp
    for data in (encoded(1, "4:2:0"), plain):
        data = data[:2] + segment + data[2:]
        reference = turned_by_pillow(data)
        assert np.array_equal(jpeg.WholePicture(data, "yes").pixels(), reference)


def test_auto_turns_ones_own_pictures_and_no_published_data_set():
    wnids = [f"n{number:08}" for number in range(37)]
    for classes in (wnids, dataset_paths.FASHION_MNIST_CLASSES, list(map(str, range(1000)))):
        assert orientation.of_classes(classes) == "no"
    for classes in (["ant", "bee"], [*wnids, "others"], list(map(str, range(10)))):
        assert orientation.of_classes(classes) == "yes"


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """Own classes and WNIDs, each with every orientation in both splits."""
    found = {}
    for name, classes in (("own", ("ant", "bee")), ("wnids", ("n01440764", "n01443537"))):
        found[name] = tmp_path_factory.mktemp(name)
        for split in ("train", "val"):
            for label in classes:
                (found[name] / split / label).mkdir(parents=True)
                for number in ORIENTATIONS:
                    place = found[name] / split / label / f"{number}.jpg"
                    place.write_bytes(held(number, seed=3))
    return found


def is_upright(split: splits.Split) -> bool:
    """Whether pixels and crops are all turned (tiles: approximately), or else all as stored."""
    found = set()
    for index in range(len(split)):
        opened = split.open(index)
        data = held(index % 8 + 1, seed=3)
        for way in ("yes", "no"):
            whole = jpeg.WholePicture(data, way)
            if opened.size != whole.size or index % 8 == 0:
                continue
            difference = np.abs(opened.pixels().astype(int) - whole.pixels())
            if difference.mean() < (6 if getattr(split, "store", "") == "tiles" else 1e-9):
                found.add(way)
    assert len(found) == 1, found
    return found == {"yes"}


@pytest.mark.parametrize("name, flag, expected", [
    ("own", "auto", True), ("own", "no", False), ("wnids", "auto", False), ("wnids", "yes", True),
])  # fmt: skip
def test_folder_tiles_and_originals_are_read_the_same_way(sources, tmp_path, name, flag, expected):
    source, packs = sources[name], tmp_path / "packs"
    words = [str(source), "--out", str(packs), "--num_workers=1", f"--upright={flag}"]
    assert prepare_data.main(words) == 0
    train, val = splits.open_dataset(packs)
    folder, _ = splits.open_dataset(source, flag)
    assert (train.store, val.store) == ("tiles", "original")
    assert [is_upright(split) for split in (train, val, folder)] == [expected] * 3
    way = "yes" if expected else "no"
    assert {split.upright for split in (train, val, folder)} == {way}
    assert train.settings["upright"] == val.settings["upright"] == way
    for split in (val, folder):
        assert splits.fingerprint(split)["upright"] == way
    assert [val.sizes[i].tolist() for i in range(8)] == [list(val.open(i).size) for i in range(8)]
    assert not any(val.find_fault(index) for index in range(len(val)))
    # A pack is complete under any equivalent flag, and refused under the opposite one.
    assert prepare_data.main([*words[:-1], f"--upright={way}"]) == 0
    assert prepare_data.main([*words[:-1], f"--upright={'no' if expected else 'yes'}"]) == 2
    other = "no" if expected else "yes"
    with pytest.raises(ValueError, match=rf"train.pack holds .* --upright {other}.* pack the data"):
        splits.open_dataset(packs, other)
    assert splits.open_split(packs, "val", other).upright == other  # originals keep their EXIF


def test_packs_and_runs_of_before_are_read_as_they_were(sources, tmp_path, monkeypatch):
    """A pack whose settings do not say, and the fingerprint in a checkpoint from that time."""
    monkeypatch.setattr(
        prepare_data.Encoding, "settings", lambda self: {"store": self.store, "long_side": 500}
    )
    monkeypatch.setattr(prepare_data, "request_of", lambda args: {"source": str(args.source)})
    flags = ["--upright=no", "--num_workers=1"]
    assert prepare_data.main([str(sources["own"]), f"--out={tmp_path}", *flags]) == 0
    train, val = splits.open_dataset(tmp_path)
    assert PackedImages(tmp_path / "val.pack").upright == "legacy"
    assert train.upright == val.upright == "legacy" and not is_upright(train)
    assert not is_upright(val)
    folder, _ = splits.open_dataset(sources["own"], "legacy")
    assert not is_upright(folder)
    for split in (train, val, folder):
        assert "upright" not in splits.fingerprint(split)
    assert json.dumps(splits.fingerprint(folder)).startswith('{"num_images": 16, "num_classes": 2')


def test_a_run_of_before_lists_the_files_that_it_began_with(sources, tmp_path):
    """A GIF, a format not listed then, does not change the fingerprint."""
    own = shutil.copytree(sources["own"], tmp_path / "own")
    before = [splits.fingerprint(split) for split in splits.open_dataset(own, "legacy")]
    folder = next(path for path in (own / "train").iterdir() if path.is_dir())
    Image.new("RGB", (40, 30)).save(folder / "later.gif")
    assert [splits.fingerprint(split) for split in splits.open_dataset(own, "legacy")] == before
    train, _ = splits.open_dataset(own)
    assert len(train) == before[0]["num_images"] + 1


def test_training_crops_of_turned_pictures_are_those_of_upright_files(tmp_path):
    """Orientation 6 through the loader's own path, beside the same pixels stored upright."""
    seen = []
    for name in ("turned", "upright"):
        for split in ("train", "val"):
            for class_name in ("ant", "bee"):
                (tmp_path / name / split / class_name).mkdir(parents=True)
            for number in (3, 6, 8):
                folder = tmp_path / name / split / ("bee" if number == 8 else "ant")
                data, file = held(number, "PNG"), folder / f"{number}.png"
                if name == "upright":
                    Image.fromarray(turned_by_pillow(data)).save(file)
                else:
                    file.write_bytes(data)
        train, val = splits.open_dataset(tmp_path / name)
        fills = crops.TrainImages(train, 0, crops.Augmentation()), crops.EvalImages(val, 40)
        seen.append([fill_of(fill) for fill in fills])
    for ours, reference in zip(*seen, strict=True):
        assert np.array_equal(ours, reference)


def fill_of(fill) -> np.ndarray:
    """The images that a stream puts into a slot."""
    from resnet50.data.batch import Slot, slot_dtype
    from resnet50.data.sampling import BatchKey

    slot = Slot(0, np.zeros(1, slot_dtype(3, 32))[0])
    slot.set_key(BatchKey(0, np.arange(3), 32))
    fill(slot)
    return slot.images.copy()


@pytest.mark.parametrize("number", ORIENTATIONS)
def test_the_page_and_pictures_without_classes_are_always_upright(tmp_path, number):
    file = tmp_path / "n01440764" / "photo.jpg"
    file.parent.mkdir()
    file.write_bytes(held(number))
    split, page = splits.open_pictures(tmp_path), uploads.open_picture(str(file))
    assert np.array_equal(split.open(0).pixels(), np.asarray(page))
    assert np.array_equal(np.asarray(page), turned_by_pillow(held(number)))


def test_what_auto_means_is_compared_with_a_finished_pack(sources, tmp_path, capsys):
    """Packed upright by request, WNIDs are not what the same command without it asks for."""
    words = [str(sources["wnids"]), f"--out={tmp_path / 'out'}", "--num_workers=1"]
    assert prepare_data.main([*words, "--upright=yes"]) == 0
    assert prepare_data.main([*words, "--upright=yes"]) == 0
    assert prepare_data.main(words) == 2
    assert "made with other options (upright yes, now no)" in capsys.readouterr().err
