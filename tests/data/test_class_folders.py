"""Which folders are accepted as classes, how classes are described, which files are pictures."""

import io

import pytest
from PIL import Image

import dataset_paths
from resnet50.data import class_folders, remedies
from resnet50.data.jpeg import WholePicture
from resnet50.data.unused import HIDDEN, KEPT_NAMES, UNKNOWN, Unused


@pytest.mark.parametrize(
    "name, expected",
    [
        *((name, True) for name in ("train", "test1", "train_images", "Training", "trainingSet")),
        *((name, True) for name in ("seg_train", "train.X1", "val", "VALID", "validation_set")),
        *((name, True) for name in ("images", "labels", "annotations", "image-data", "test_data")),
        *((name, False) for name in ("cat", "trainer", "latest", "medal", "1", "n01440764", "x")),
        *((name, False) for name in ("data", "contest", "grain", "图片train", "imagery", "valley")),
    ],
)
def test_names_of_splits_and_parts_are_told_from_words(name, expected):
    assert remedies.is_part_name(name) is expected


@pytest.mark.parametrize(
    "classes, is_refused",
    [
        (["train", "test1"], True),
        (["images", "labels"], True),
        (["images"], True),
        (["a", "test", "train"], True),
        (["bus", "car", "train"], False),
        (["bus", "train"], False),
        (["button", "image", "label", "text"], False),
    ],
)
def test_most_classes_must_not_be_called_like_splits(classes, is_refused):
    if not is_refused:
        class_folders.check_names(classes, "src")
        return
    with pytest.raises(ValueError, match=r"src: the classes would be .*train/CLASS/\*"):
        class_folders.check_names(classes, "src")


def test_classes_are_shown_all_or_the_first_and_the_last():
    names = [f"c{i:02d}" for i in range(11)]
    assert class_folders.described(names[:10]) == ", ".join(names[:10])
    assert class_folders.described(names) == "c00, c01, c02 ... c10"


def test_a_hundred_ids_are_mini_imagenet_only_with_its_images():
    for count, num_train, num_val, title in (
        (100, 54_000, 6_000, "mini-ImageNet"),
        (100, 126_689, 5_000, None),
        (100, 100, 100, None),
        (200, 100_000, 10_000, "Tiny-ImageNet-200"),
        (200, 99_000, 10_000, "Tiny-ImageNet-200"),
        (200, 24_000, 6_000, None),
        (1000, 5, 5, "ImageNet-1K (ILSVRC 2012)"),
    ):
        wnids = [f"n{i:08d}" for i in range(count)]
        found = dataset_paths.known_dataset(wnids, num_train, num_val)
        assert (found and found.title) == title
        assert bool(dataset_paths.missing_images(wnids, num_train, num_val)) == (
            (num_train, num_val) in ((99_000, 10_000), (5, 5))
        )


def test_every_extension_that_is_taken_is_read():
    """Pictures of every listed extension load; write-only formats and HEIC are not listed."""
    Image.init()
    forms = Image.registered_extensions()
    for extension in dataset_paths.EXTENSIONS:
        file = io.BytesIO()
        form = "JPEG" if extension == ".mpo" else forms[extension]
        Image.new("RGB", (40, 32), (200, 30, 30)).save(file, form)
        assert WholePicture(file.getvalue()).pixels().shape[2] == 3, extension
        assert dataset_paths.is_picture(f"a{extension.upper()}")
    for name in ("a.heic", "a.pdf", "a.eps", "a.jpg~", "jpg", "a", ".jpg", "._a.jpg", "Thumbs.db"):
        assert not dataset_paths.is_picture(name), name


def test_many_names_are_counted_and_the_first_kept():
    counted, other = Unused(), Unused()
    for i in range(2 * KEPT_NAMES):
        counted.add(UNKNOWN, f"{i:05d}.heic")
    other.add(HIDDEN, "caf\udce9")
    told = counted.include([other]).to_json()
    assert told[UNKNOWN]["count"] == 2 * KEPT_NAMES and len(told[UNKNOWN]["names"]) == KEPT_NAMES
    assert counted.line() == (
        "not used: 2,000 of unknown extension (00000.heic, 00001.heic, 00002.heic, ...); 1 hidden "
        "(caf\\udce9)"
    )
