"""Splits as folders and packs give the same batches; mislabeled files are read, bad ones named."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.pictures import make_folder, make_picture
from torchvision.transforms import v2

import dataset_paths
from resnet50.data import crops, sampling, splits
from resnet50.data.loader import Batch, Loader, Slot
from resnet50.data.sampling import BatchKey
from resnet50.packing import encode
from resnet50.packing.data_set import Picture
from resnet50.packing.encode import Encoding, SplitJob

CPU = torch.device("cpu")


def one_batch(fill: Callable[[Slot], None], indices: Sequence[int], size: int = 32) -> Batch:
    key = sampling.BatchKey(0, np.array(indices), size)
    return next(Loader([fill], len(indices), size, 0, CPU).batches(0, [key]))


def keys_of(seed: int, size_of: Callable[[int], int], steps: range) -> Iterator[BatchKey]:
    """Two micro-batches of 8 a step, four steps an epoch of the 66 images."""
    for step in steps:
        epoch, batch = divmod(step, 4)
        order = sampling.epoch_order(seed, epoch, 66)
        for start in (16 * batch, 16 * batch + 8):
            yield BatchKey(epoch, order[start : start + 8], size_of(epoch))


def assert_same_batches(ours: Sequence[Batch], reference: Sequence[Batch]) -> None:
    for one, other in zip(ours, reference, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_any_number_of_loaders_gives_the_same_pixels(image_folder, num_workers):
    train, _ = splits.open_dataset(image_folder)

    def batches(workers: int) -> list[Batch]:
        images = crops.TrainImages(train, 0, crops.Augmentation())
        keys = keys_of(0, lambda epoch: 32 - 4 * epoch, range(2, 9))
        return list(Loader([images], 8, 32, workers, CPU).batches(0, keys))

    ours, reference = batches(num_workers), batches(0)
    assert len(ours) == len(reference) == 14
    assert_same_batches(ours, reference)
    assert any(batch.flips.any() for batch in reference)
    assert not all(batch.flips.all() for batch in reference)


def test_batches_have_the_promised_form_and_no_flip_where_none_is_wanted(image_folder):
    train, val = splits.open_dataset(image_folder)
    batch = one_batch(crops.TrainImages(train, 0, crops.Augmentation(0.5, flip=False)), [0, 30, 65])
    assert batch.images.shape == (3, 32, 32, 3) and batch.images.dtype == torch.uint8
    assert batch.labels.tolist() == [0, 1, 2] and not batch.flips.any() and not batch.bad_images
    batch = one_batch(crops.EvalImages(val, 40), [20])
    assert batch.images.shape == (1, 32, 32, 3) and batch.labels.tolist() == [2]


@pytest.fixture
def lying_folder(tmp_path: Path) -> Path:
    """Files that are not what their names say, all of them readable, and three that are not."""
    root = make_folder(tmp_path, 4, 2)
    ant, bee = root / "train" / "ant", root / "train" / "bee"
    make_picture(901, 0).save(ant / "000.jpg", format="PNG")
    make_picture(902, 0).convert("CMYK").save(ant / "001.jpg")
    make_picture(903, 0).convert("L").save(ant / "002.jpg")
    whole = (bee / "000.jpg").read_bytes()
    (bee / "000.jpg").write_bytes(whole[: len(whole) // 2])
    (bee / "001.jpg").write_bytes(b"")
    (bee / "002.jpg").write_bytes(b"not a picture at all")
    return root


def test_lying_files_are_read_and_broken_ones_named_and_replaced_the_same_way(lying_folder):
    train, _ = splits.open_dataset(lying_folder)
    images = crops.TrainImages(train, 0, crops.Augmentation())
    whole = one_batch(images, range(4))
    assert not whole.bad_images and whole.labels.tolist() == [0] * 4
    bad = one_batch(images, range(4, 8))
    named = {Path(line.split(": ")[0]).name for line in bad.bad_images}
    assert named == {"000.jpg", "001.jpg", "002.jpg"}
    assert all(str(lying_folder) in line and "Error" in line for line in bad.bad_images)
    again = one_batch(images, range(4, 8))
    assert torch.equal(bad.images, again.images) and bad.labels.tolist() == [1] * 4
    assert bad.images.float().std() > 5


def test_a_broken_validation_image_counts_once_as_itself(lying_folder):
    (lying_folder / "val" / "bee" / "001.jpg").write_bytes(b"")
    _, val = splits.open_dataset(lying_folder)
    batch = one_batch(crops.EvalImages(val, 32), range(6))
    assert batch.labels.tolist() == [0, 0, 1, 1, 2, 2] and len(batch.bad_images) == 1
    assert not batch.images[3].any() and batch.images[2].any()


def test_validation_may_be_called_validation(tmp_path):
    train, val = splits.open_dataset(make_folder(tmp_path, 2, 1, val_name="validation"))
    assert (len(train), len(val)) == (6, 3) and train.classes == ("ant", "bee", "cat")


def test_fingerprint_tells_data_sets_apart(tmp_path):
    train, val = splits.open_dataset(make_folder(tmp_path, 2, 2))
    assert splits.fingerprint(train) == splits.fingerprint(val)  # same names; they compare by split
    (tmp_path / "val" / "ant" / "001.jpg").rename(tmp_path / "val" / "ant" / "009.jpg")
    assert splits.fingerprint(splits.open_split(tmp_path, "val")) != splits.fingerprint(train)


def remove_class(root: Path) -> None:
    (root / "val" / "cat").rename(root / "val" / "dog")


def empty_class(root: Path) -> None:
    for file in (root / "train" / "bee").iterdir():
        file.unlink()


def flatten(root: Path) -> None:
    for file in list((root / "val").rglob("*.jpg")):
        file.rename(root / "val" / f"{file.parent.name}_{file.name}")
    for name in ("ant", "bee", "cat"):
        (root / "val" / name).rmdir()


def drop_val(root: Path) -> None:
    (root / "val").rename(root / "test")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (remove_class, r"classes differ: 1 only in .*train \(such as cat\), 1 only in .*val"),
        (empty_class, r"train/bee has no images: fill that class or remove its folder"),
        (flatten, r"val is flat: 6 images such as .* Move each to .*/val/CLASS/"),
        (drop_val, r"--data_dir .*: .*neither val.pack nor val/ or validation/"),
    ],
)
def test_data_that_would_train_wrongly_are_refused(tmp_path, spoil, message):
    spoil(make_folder(tmp_path, 2, 2))
    with pytest.raises(ValueError, match=message):
        splits.open_dataset(tmp_path)


def test_data_are_found_where_the_variable_says_and_the_search_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGENET_DIR", str(tmp_path))
    with pytest.raises(
        ValueError, match=rf"no train and val splits, .*, in {tmp_path}\. Give train\.py --data_dir"
    ):
        dataset_paths.find_data_dir()
    make_folder(tmp_path, 1, 1)
    assert dataset_paths.find_data_dir() == tmp_path
    monkeypatch.delenv("IMAGENET_DIR")
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "data", 1, 1)
    assert dataset_paths.find_data_dir() == Path("data")


def test_a_known_data_set_that_is_not_complete_is_noticed():
    wnids = [f"n{i:08d}" for i in range(1000)]
    assert dataset_paths.missing_images(wnids, 1_281_167, 50_000) == ""
    text = dataset_paths.missing_images(wnids, 1_281_166, 50_000)
    assert "has 1,281,167 training and 50,000" in text and "here are 1,281,166 and" in text
    assert dataset_paths.missing_images(["ant", "bee"], 3, 1) == ""
    assert "Fashion-MNIST" in dataset_paths.missing_images(
        dataset_paths.FASHION_MNIST_CLASSES, 3, 1
    )


def pack(folder: Path, split: str, place: Path, **how: object) -> splits.Split:
    """A split of a folder as a pack."""
    listed = splits.open_split(folder, split)
    pictures = [
        Picture(os.fsdecode(path), int(label), str(listed.root / os.fsdecode(path)))
        for path, label in zip(listed.paths, listed.labels, strict=True)
    ]
    path, encoding = place / f"{split}.pack", Encoding(**how)
    encode.pack_split(SplitJob(split, pictures, listed.classes, read_bytes, encoding), path, 1)
    return splits.open_split(place, split)


def read_bytes(file: str) -> bytes:
    return Path(file).read_bytes()


def batches_of(fill: Callable[[Slot], None], size: int = 40) -> list[Batch]:
    keys = keys_of(3, lambda epoch: size - 8 * epoch, range(9))
    return list(Loader([fill], 8, size, 0, CPU).batches(0, keys))


def test_a_pack_of_originals_gives_the_pixels_of_its_folder(image_folder, tmp_path):
    for split in ("train", "val"):
        folder = splits.open_split(image_folder, split)
        packed = pack(image_folder, split, tmp_path, store="original")
        assert splits.fingerprint(packed) == splits.fingerprint(folder)
        ours, reference = (
            batches_of(crops.TrainImages(s, 0, crops.Augmentation()))
            if split == "train"
            else [one_batch(crops.EvalImages(s, 40), range(len(s)))]
            for s in (packed, folder)
        )
        assert_same_batches(ours, reference)


@pytest.mark.parametrize("levels", [(), (48,)])
def test_a_pack_of_tiles_gives_nearly_the_pixels_of_its_folder(image_folder, tmp_path, levels):
    folder = splits.open_split(image_folder, "train")
    packed = pack(image_folder, "train", tmp_path, levels=levels)
    assert splits.fingerprint(packed) != splits.fingerprint(folder)  # a run cannot switch
    ours, reference = (
        batches_of(crops.TrainImages(split, 0, crops.Augmentation())) for split in (packed, folder)
    )
    for one, other in zip(ours, reference, strict=True):
        assert torch.equal(one.labels, other.labels) and torch.equal(one.flips, other.flips)
        assert (one.images.float() - other.images.float()).abs().mean() < 5


@settings(max_examples=60)
@given(st.integers(30, 300), st.integers(30, 300), st.integers(20, 200), st.integers(0, 99))
def test_resizing_is_torchvisions(height, width, size, seed):
    """Anti-aliased where it shrinks by more than 1.25, plain bilinear elsewhere."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width + 9, 3), dtype=np.uint8)[:, 4:-5]
    out = np.empty((size, size, 3), np.uint8)
    crops.resize(pixels, out)
    shrinks = max(height, width) > 1.25 * size
    planar = torch.from_numpy(pixels).permute(2, 0, 1)
    reference = v2.functional.resize(planar, [size, size], antialias=shrinks)
    difference = (torch.from_numpy(out).permute(2, 0, 1).int() - reference.int()).abs()
    assert difference.max() <= (0 if shrinks else 2)


@given(st.lists(st.tuples(*[st.integers(0, 300)] * 2, *[st.integers(1, 900)] * 2), min_size=1))
def test_a_reduced_rectangle_lies_in_its_own_and_is_large_enough(rectangles):
    boxes = np.array([[x, y, x + width, y + height] for x, y, width, height in rectangles])
    reduced, shrinks = crops.reduce_boxes(boxes, 100)
    for before, after, shrink in zip(boxes, reduced, shrinks, strict=True):
        moved = (after - before) * [1, 1, -1, -1]
        assert moved.min() >= 0 and moved.max() < shrink and not (after % shrink).any()
        width, height = after[2:] - after[:2]
        assert shrink == 1 or min(width, height) >= 100 * shrink
        assert shrink == 4 or min(width, height) < 200 * shrink + 8


def around(box: Sequence[int], size: Sequence[int], full: Sequence[int]) -> list[int]:
    """The whole pixels of a level that a rectangle of the full picture touches."""
    ratios = [Fraction(small, large) for small, large in zip(size, full, strict=True)]
    left, top = (math.floor(edge * ratio) for edge, ratio in zip(box[:2], ratios, strict=True))
    right, bottom = (math.ceil(edge * ratio) for edge, ratio in zip(box[2:], ratios, strict=True))
    return [left, top, right, bottom]


@st.composite
def stored_pictures(draw) -> tuple[list[tuple[int, int]], list[int]]:
    """All sizes of a picture, largest first, and a rectangle on it."""
    width, height = draw(st.integers(40, 500)), draw(st.integers(40, 500))
    smaller = [(-(-width // k), height // k) for k in (2, 3)[: draw(st.integers(0, 2))]]
    edges = [
        sorted(draw(st.sets(st.integers(0, n), min_size=2, max_size=2))) for n in (width, height)
    ]
    (left, right), (top, bottom) = edges
    return [(width, height), *smaller], [left, top, right, bottom]


@settings(max_examples=60)
@given(st.lists(stored_pictures(), min_size=1, max_size=9), st.sampled_from([16, 32, 88, 128]))
def test_a_crop_is_cut_from_the_smallest_level_that_has_its_pixels(pictures, side):
    sizes, boxes = zip(*pictures, strict=True)
    picked, levels = crops.pick_levels(np.array(boxes), crops.stacked(sizes), side)
    for place, ((full, *smaller), box) in enumerate(pictures):
        mapped = [box, *(around(box, size, full) for size in smaller)]
        fitting = [
            level
            for level, (left, top, right, bottom) in enumerate(mapped)
            if level and min(right - left, bottom - top) >= side
        ]
        assert levels[place] == max(fitting, default=0)
        assert picked[place].tolist() == mapped[levels[place]]
        assert (picked[place, 2:] <= ([full, *smaller])[levels[place]]).all()
        # The others of the batch do not matter.
        alone = crops.pick_levels(np.array([box]), crops.stacked([sizes[place]]), side)
        assert np.array_equal(alone[0][0], picked[place]) and alone[1][0] == levels[place]


def test_evaluation_takes_the_largest_of_a_pack_with_levels(image_folder, tmp_path):
    for name, levels in (("plain", ()), ("leveled", (48, 32))):
        (tmp_path / name).mkdir()
        packed = pack(image_folder, "train", tmp_path / name, levels=levels)
        assert splits.fingerprint(packed)["tiles"].get("levels", []) == list(levels)
    plain, leveled = (splits.open_split(tmp_path / name, "train") for name in ("plain", "leveled"))
    assert splits.fingerprint(plain) != splits.fingerprint(leveled)  # a run cannot switch
    ours, reference = (
        [one_batch(crops.EvalImages(split, 40), range(66))] for split in (leveled, plain)
    )
    assert_same_batches(ours, reference)
    # Training does take levels, and the same crops from them whatever else is in the batch.
    fills = [crops.TrainImages(split, 0, crops.Augmentation(0.5)) for split in (leveled, plain)]
    together, without = (one_batch(fill, range(66)) for fill in fills)
    changed = (together.images != without.images).flatten(1).any(dim=1)
    assert 0 < changed.sum() < 66
    alone = [one_batch(fills[0], [i]).images[0] for i in range(0, 66, 5)]
    assert all(map(torch.equal, alone, together.images[::5]))


def test_images_around_one_that_cannot_be_opened_are_still_themselves(lying_folder):
    train, _ = splits.open_dataset(lying_folder)
    together = one_batch(crops.TrainImages(train, 0, crops.Augmentation()), range(12))
    assert len(together.bad_images) > 3  # a replacement may be bad as well, and is named again
    for index in (0, 3, 7, 8, 11):
        alone = one_batch(crops.TrainImages(train, 0, crops.Augmentation()), [index])
        assert torch.equal(together.images[index], alone.images[0])
