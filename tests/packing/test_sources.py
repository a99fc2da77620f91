"""Sources of pictures: whatever holds a data set, the same names, labels and bytes come out."""

import functools
import gzip
import io
import os
import pickle
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.commands import run_program
from support.data_sources import (
    CONTAINERS,
    WNIDS,
    Files,
    image_folder_files,
    jpeg,
    kaggle_files,
    tar_bytes,
    tiny_files,
    val_name,
    write_folder,
    write_tar,
    write_zip,
)

from resnet50.data import class_names, splits
from resnet50.packing import archives, data_set, sources


def write_imagenet_tars(place: Path, wnids=WNIDS, val_wnids=WNIDS) -> Path:
    place.mkdir()
    inner = {
        f"{wnid}.tar": tar_bytes({f"{wnid}_{k}.JPEG": jpeg(10 * j + k) for k in range(3)})
        for j, wnid in enumerate(wnids)
    }
    (place / sources.TRAIN_TAR).write_bytes(tar_bytes(inner))
    val = {val_name(wnid, i): jpeg(70 + i) for wnid in val_wnids for i in range(2)}
    (place / sources.VAL_TAR).write_bytes(tar_bytes(val))
    (place / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"not looked at")
    return place


def content(source: data_set.Source) -> dict[str, list[tuple[str, int, bytes]]]:
    return {
        split: [(name, label, archives.read(member)) for name, label, member in pictures]
        for split, pictures in source.splits.items()
    }


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(
    "layout, files",
    [
        ("image-folder", image_folder_files),
        ("image-folder", lambda: image_folder_files("imagenette2-160/")),
        ("tiny-imagenet", tiny_files),
        ("kaggle", kaggle_files),
        ("kaggle", lambda: kaggle_files("downloads/", with_labels=False)),
        ("flat-classes", lambda: {f"mini/{w}/{k}.jpg": jpeg(k) for w in WNIDS for k in range(5)}),
    ],
)
def test_a_data_set_is_the_same_in_every_container(container, layout, files, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    folder = CONTAINERS["folder"](tmp_path / "one", files())
    packed = CONTAINERS[container](tmp_path / "other", files())
    expected = sources.recognize(folder, tmp_path)
    source = sources.recognize(packed, tmp_path / "work")
    assert source.layout == expected.layout == layout
    assert source.classes == expected.classes == WNIDS
    assert content(source) == content(expected)
    for pictures in source.splits.values():
        assert pictures == sorted(pictures, key=lambda picture: (picture.label, picture.name))
        assert all(name.split("/")[0] == WNIDS[label] for name, label, _ in pictures)


def test_folders_are_listed_as_training_lists_them(image_folder, tmp_path):
    source = sources.recognize(image_folder, tmp_path)
    for split, pictures in source.splits.items():
        listed = splits.open_split(image_folder, split)
        assert source.classes == listed.classes
        assert [os.fsencode(picture.name) for picture in pictures] == listed.paths.tolist()
        assert [picture.label for picture in pictures] == listed.labels.tolist()
        files = [(listed.root / os.fsdecode(path)).read_bytes() for path in listed.paths]
        assert [archives.read(picture.member) for picture in pictures] == files


def test_the_folder_of_the_validation_split_may_be_called_validation(tmp_path):
    files = {k.replace("val/", "validation/"): v for k, v in image_folder_files().items()}
    source = sources.recognize(write_folder(tmp_path / "x", files), tmp_path)
    assert (source.layout, len(source.splits["val"])) == ("image-folder", 12)


def test_imagenet_is_read_inside_its_archives(tmp_path):
    source = sources.recognize(write_imagenet_tars(tmp_path / "imagenet"), tmp_path / "work")
    assert (source.layout, source.classes) == ("imagenet-archives", WNIDS)
    train, val = source.splits["train"], source.splits["val"]
    assert [(picture.name, archives.read(picture.member)) for picture in train] == [
        (f"{w}/{w}_{k}.JPEG", jpeg(10 * j + k)) for j, w in enumerate(WNIDS) for k in range(3)
    ]
    assert [(picture.name, archives.read(picture.member)) for picture in val] == [
        (f"{wnid}/{val_name(wnid, i)}", jpeg(70 + i)) for wnid in WNIDS for i in range(2)
    ]
    assert not (tmp_path / "work").exists()


def test_one_archive_of_imagenet_left_beside_its_unpacked_folders_is_no_matter(tmp_path):
    files = image_folder_files() | {sources.VAL_TAR: b"not looked at"}
    assert sources.recognize(write_folder(tmp_path, files), tmp_path).layout == "image-folder"


def test_the_built_in_labels_are_imagenets():
    labels = class_names.imagenet_val_labels()
    assert len(labels) == 50_000 and len(set(labels.values())) == 1000
    classes = sorted(set(labels.values()))
    # The first of the devkit's ground truth, as torchvision numbers its classes.
    first = [classes.index(labels[f"ILSVRC2012_val_{i:08d}"]) for i in range(1, 6)]
    assert first == [65, 970, 230, 809, 516]


@pytest.mark.parametrize("val_pct, count", [(0.1, 1), (10, 2), (25, 5), (99.9, 19)])
def test_the_same_share_of_each_class_is_taken_for_validation(val_pct, count, tmp_path):
    files = {f"{wnid}/{k}.jpg": b"%d" % k for wnid in WNIDS for k in range(20)}
    folder = write_folder(tmp_path / "flat", files)
    source = sources.recognize(folder, tmp_path, val_pct)
    train, val = ({picture.name for picture in source.splits[split]} for split in ("train", "val"))
    assert train.isdisjoint(val) and train | val == set(files)
    assert [sum(name.startswith(wnid) for name in val) for wnid in WNIDS] == [count] * 3
    (folder / WNIDS[0] / "new.jpg").write_bytes(b"new")  # moves no other class's pictures
    again = {picture.name for picture in sources.recognize(folder, tmp_path, val_pct).splits["val"]}
    assert {name for name in val ^ again if not name.startswith(WNIDS[0])} == set()


@pytest.mark.parametrize("files", [image_folder_files, tiny_files, kaggle_files])
@pytest.mark.parametrize("beside", [True, False])
def test_written_annotations_read_back_as_the_same_data_set(files, beside, tmp_path):
    source = sources.recognize(write_folder(tmp_path / "data", files()), tmp_path)
    place = tmp_path / ("data" if beside else "elsewhere")
    place.mkdir(exist_ok=True)
    data_set.write_annotations(source, place)
    again = sources.recognize(place, tmp_path)
    assert (again.layout, again.classes) == ("csv", source.classes)
    assert content(again) == content(source)
    lines = (place / "val.csv").read_text().splitlines()[1:]
    assert {line.startswith("/") for line in lines} == {not beside}


def write_csvs(place: Path, train: str, val: str, **more: str) -> Path:
    pictures = {f"pictures/{i}/{j}.jpg": jpeg(i + j) for i in range(3) for j in range(3)}
    texts = {"train.csv": train, "val.csv": val} | {f"{k}.txt": v for k, v in more.items()}
    return write_folder(place, pictures | {k: v.encode() for k, v in texts.items()})


HEADER = "path,label\n"
TRAIN = HEADER + "pictures/0/0.jpg,cat\npictures/0/1.jpg,dog\n\n"
VAL = HEADER + "pictures/1/0.jpg,cat\npictures/1/1.jpg,dog\n"


def test_equal_file_names_in_a_class_are_told_apart_by_their_folders(tmp_path):
    folder = write_csvs(tmp_path / "x", TRAIN + "pictures/2/0.jpg,cat\n", VAL, classes="dog\ncat\n")
    source = sources.recognize(folder, tmp_path)
    assert (source.layout, source.classes) == ("csv", ("cat", "dog"))
    assert [picture.name for picture in source.splits["train"]] == [
        "cat/pictures__0__0.jpg",
        "cat/pictures__2__0.jpg",
        "dog/pictures__0__1.jpg",
    ]
    assert [picture.name for picture in source.splits["val"]] == ["cat/0.jpg", "dog/1.jpg"]


@pytest.mark.parametrize(
    "train, val, message",
    [
        (TRAIN, "file,label\n", "must both begin with the line path,label"),
        (TRAIN, HEADER, r"val.csv: lists no pictures"),
        (TRAIN + "a,b,c\n", VAL, r"train.csv line 5: 3 columns, not 2"),
        (TRAIN + '"a,b\n', VAL, r"train.csv line 5: unexpected end of data"),
        (TRAIN, VAL + "pictures/1/2.jpg,cow\n", r"val.csv line 4: 'cow' is not one of the classes"),
        (TRAIN + "pictures/1/2.jpg,\n", VAL, r"train.csv line 5: '' is not one"),
        (TRAIN + "pictures/1/2.jpg,a/b\n", VAL, r"train.csv line 5: the label 'a/b' holds a /"),
        (TRAIN + "pictures/./0/0.jpg,cat\n", VAL, r"train.csv line 5: .* is listed twice"),
        (
            TRAIN + "a,cat\nb,cat\nc,cat\nd,cat\n",
            VAL,
            r"4 listed .*: a \(line 5\), b .*, c .* 7\)$",
        ),
        (TRAIN + "pictures/2/2.jpg,cow\n", VAL, r"1 only in train \(such as cow\)"),
    ],
)
def test_a_mistake_in_a_csv_is_named_with_its_line(train, val, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        sources.recognize(write_csvs(tmp_path / "x", train, val), tmp_path)


def test_blanks_after_commas_are_no_part_of_labels(tmp_path):
    spaced = (text.replace(",", ", ") for text in (TRAIN, VAL))
    with_blanks = sources.recognize(write_csvs(tmp_path / "x", *spaced), tmp_path)
    without = sources.recognize(write_csvs(tmp_path / "y", TRAIN, VAL), tmp_path)
    assert with_blanks.classes == without.classes


def test_pictures_that_the_csvs_do_not_list_are_counted(tmp_path):
    folder = write_csvs(tmp_path / "x", TRAIN, VAL)
    before = sources.recognize(folder, tmp_path / "work").unused
    (folder / "later.jpg").write_bytes(jpeg(0))
    after = sources.recognize(folder, tmp_path / "work").unused
    assert sum(after.counts.values()) == sum(before.counts.values()) + 1
    assert "later.jpg" in {name for names in after.names.values() for name in names}


def test_a_lone_csv_and_a_class_list_that_does_not_fit_are_errors(tmp_path):
    folder = write_csvs(tmp_path / "x", TRAIN, VAL, classes="dog\ncat\ncow\n")
    with pytest.raises(ValueError, match=r"classes.txt: class cow has no pictures in train.csv"):
        sources.recognize(folder, tmp_path)
    (folder / "classes.txt").write_text("dog\n")
    with pytest.raises(ValueError, match=r"train.csv line 2: 'cat' is not one of the classes"):
        sources.recognize(folder, tmp_path)
    (folder / "val.csv").unlink()
    with pytest.raises(ValueError, match=r"train.csv and val.csv must both"):
        sources.recognize(folder, tmp_path)


def test_csvs_of_another_kind_do_not_hide_the_folders(tmp_path):
    files = image_folder_files() | {"train.csv": b"filename,label\n", "val.csv": b""}
    source = sources.recognize(write_folder(tmp_path / "x", files), tmp_path)
    assert source.layout == "image-folder"


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, r"0 files, at the top nothing"),
        ({"a.txt": b"", "b/c.txt": b""}, r"2 files, at the top a.txt, b\. Known are\n.*Kaggle"),
        ({f"{i}.jpg": b"" for i in range(9)}, r"0.jpg, .*7.jpg, \.\.\."),
        ({"cat/a.jpg": b"", "cat/b.jpg": b""}, r"a single class, cat"),
        ({"cat/a.jpg": b"", "cat/b.jpg": b"", "dog/a.jpg": b""}, r"class dog has a single picture"),
        (
            {"cat/a.jpg": b"", "dog/old/a.jpg": b""},
            r"/dog has no images: it holds 1 folder .old.",
        ),
        ({"train/cat/a.jpg": b"", "train/dog/a.jpg": b""}, r"a train/ and no val/"),
        ({"x/train/cat/a.jpg": b"", "x/test/cat/a.jpg": b""}, r"a train/ and no val/"),
        (
            {"train/cat/a.jpg": b"", "val/dog/a.jpg": b""},
            r"train .such as cat.*val .such as dog",
        ),
        ({"train/cat/a.jpg": b"", "val/a.jpg": b""}, r"val/a.jpg: no class folder, and no label"),
        (
            {f"{top}/{split}/cat/a.jpg": b"" for top in "ab" for split in ("train", "val")},
            r"several data sets \(a/train, b/train\)",
        ),
        (
            {f"train/{w}/images/a.JPEG": b"" for w in WNIDS}
            | {"val/images/v.JPEG": b"", "val/val_annotations.txt": b"w.JPEG\tn01440764\t0\n"},
            r"val/images/v.JPEG: no class folder, and no label in .*val_annotations.txt",
        ),
        (
            {"LOC_val_solution.csv": b"ImageId,PredictionString\nv,cow 1 2 3 4\n"}
            | {"train/cat/a.jpg": b"", "val/v.jpg": b""},
            r"1 only in train",
        ),
        (
            {"LOC_val_solution.csv": b"id,label\n", "train/cat/a.jpg": b"", "val/v.jpg": b""},
            r"LOC_val_solution.csv line 1: must be ImageId,PredictionString",
        ),
    ],
)
def test_what_is_no_known_layout_is_described(files, message, tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(ValueError, match=f"(?s){message}"):
        sources.recognize(write_folder(tmp_path / "x", files), tmp_path)


def test_wrong_sets_of_imagenet_archives_are_errors(tmp_path):
    more = write_imagenet_tars(tmp_path / "more", WNIDS[:2], WNIDS)
    with pytest.raises(ValueError, match=rf"1 only in val \(such as {WNIDS[2]}\)"):
        sources.recognize(more, tmp_path)
    (more / sources.VAL_TAR).write_bytes(tar_bytes({"ILSVRC2012_val_00050001.JPEG": b""}))
    with pytest.raises(ValueError, match=r"00050001.JPEG: no class folder, and no label in"):
        sources.recognize(more, tmp_path)
    for source in (more, more / sources.TRAIN_TAR):
        (more / sources.VAL_TAR).unlink(missing_ok=True)
        with pytest.raises(ValueError, match="give the folder that holds both"):
            sources.recognize(source, tmp_path)


@pytest.mark.parametrize("val_pct", [0, 100, -1, float("nan")])
def test_an_impossible_share_for_validation_is_an_error(val_pct, tmp_path):
    with pytest.raises(ValueError, match=r"--val_pct .*: must be more than 0 and less than 100"):
        sources.recognize(tmp_path, tmp_path, val_pct)


def test_a_missing_source_and_one_of_another_kind_are_errors(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        archives.list_members(tmp_path / "none", tmp_path)
    for junk in (b"", b"7z\xbc\xaf\x27\x1c" + bytes(1000), b"text" * 1000):
        (tmp_path / "junk").write_bytes(junk)
        with pytest.raises(ValueError, match=r"junk: neither a folder nor a whole .zip"):
            archives.list_members(tmp_path / "junk", tmp_path)


def test_links_to_files_and_folders_are_followed_and_loops_are_errors(tmp_path):
    real = write_folder(tmp_path / "real", image_folder_files())
    linked = tmp_path / "linked"
    (linked / "val").mkdir(parents=True)
    (linked / "train").symlink_to(real / "train")
    for wnid in WNIDS:
        (linked / "val" / wnid).mkdir()
        for file in (real / "val" / wnid).iterdir():
            (linked / "val" / wnid / file.name).symlink_to(file)
    one, other = (sources.recognize(folder, tmp_path) for folder in (real, linked))
    assert content(one) == content(other)
    (linked / "val" / "up").symlink_to(linked)
    with pytest.raises(ValueError, match="val/up: links back to a folder that contains it"):
        archives.list_members(linked, tmp_path)
    (linked / "val" / "up").unlink()
    (linked / "val" / "gone").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match="val/gone: a broken link; repair it"):
        sources.recognize(linked, tmp_path)
    (linked / "val" / "gone").rename(linked / "gone.jpg")
    assert sources.recognize(linked, tmp_path).unused.counts["dangling link"] == 1


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_survive_a_tar(form, tmp_path):
    files = {f"{'long ' * 40}/{'x' * 200}.jpg": jpeg(1), "größe/日本.jpg": jpeg(2)}
    (tmp_path / "x.tar").write_bytes(tar_bytes(files, form))
    members = archives.list_members(tmp_path / "x.tar", tmp_path)
    assert {member.path: archives.read(member) for member in members} == files


def tar_of(name: str, kind: bytes = tarfile.REGTYPE) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    return file.getvalue()


@pytest.mark.parametrize(
    "name, kind, message",
    [
        ("../a.jpg", tarfile.REGTYPE, r"'../a.jpg' points outside the archive; do not trust it"),
        ("a/../../b.jpg", tarfile.REGTYPE, "points outside the archive"),
        ("/etc/a.jpg", tarfile.REGTYPE, "has an absolute name, as `tar -P` writes them; unpack it"),
        ("a.jpg", tarfile.SYMTYPE, "'a.jpg' is a link, device or sparse file; unpack"),
        ("a.jpg", tarfile.LNKTYPE, "is a link, device or sparse file"),
        ("a.jpg", tarfile.CHRTYPE, "is a link, device or sparse file"),
        ("a.jpg", tarfile.FIFOTYPE, "is a link, device or sparse file"),
        ("a.jpg", tarfile.GNUTYPE_SPARSE, "is a link, device or sparse file"),
    ],
)
def test_a_tar_member_that_is_no_file_inside_is_an_error(name, kind, message, tmp_path):
    place = tmp_path / "x.tar"
    for inner in (tar_of(name, kind), tar_bytes({"n01440764.tar": tar_of(name, kind)})):
        place.write_bytes(inner)
        with pytest.raises(ValueError, match=rf"x.tar: .*{message}"):
            archives.list_members(place, tmp_path)


def zip_of(name: str, mode: int = 0, flags: int = 0, method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr, info.compress_type = mode << 16, method
        archive.writestr(info, b"/etc/passwd")
    raw = bytearray(file.getvalue())
    raw[raw.find(b"PK\x01\x02") + 8] |= flags
    return bytes(raw)


@pytest.mark.parametrize(
    "raw, message",
    [
        (zip_of("../a.jpg"), "points outside the archive"),
        (zip_of("/a.jpg"), "has an absolute name"),
        (zip_of("a.jpg", stat.S_IFLNK | 0o777), "a.jpg is a link, encrypted or"),
        (zip_of("a.jpg", flags=1), "a.jpg is a link, encrypted or"),
        (zip_of("a.jpg", method=zipfile.ZIP_LZMA), "compressed by method 14; unpack the archive"),
        (zip_of("a.jpg")[:-1], r"cut short or broken \(File is not a zip file\)"),
        (zip_of("a.jpg")[:60], r"cut short or broken .* download or copy it again"),
    ],
)
def test_a_zip_with_what_cannot_be_read_in_place_is_an_error(raw, message, tmp_path):
    (tmp_path / "x.zip").write_bytes(raw)
    with pytest.raises(ValueError, match=rf"x.zip: .*{message}"):
        archives.list_members(tmp_path / "x.zip", tmp_path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_path_that_is_twice_in_an_archive_is_an_error(tmp_path):
    inner = tar_bytes({"a.jpg": b"1", "./a.jpg": b"2"})
    (tmp_path / "x.tar").write_bytes(tar_bytes({"n01440764.tar": inner}))
    with zipfile.ZipFile(tmp_path / "y.zip", "w") as archive:
        archive.writestr("a.jpg", b"1")
        archive.writestr("a.jpg", b"2")
    for name, path in (("x.tar", "n01440764/a.jpg"), ("y.zip", "a.jpg")):
        with pytest.raises(ValueError, match=f"{name}: {path} is in it 2 times"):
            archives.list_members(tmp_path / name, tmp_path)


def test_a_zip_of_more_than_65535_files_is_counted(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for i in range(66_000):
            archive.writestr(zipfile.ZipInfo(f"{i}.jpg"), b"")
    assert len(archives.list_members(tmp_path / "x.zip", tmp_path)) == 66_000
    raw = bytearray((tmp_path / "x.zip").read_bytes())
    comment_bytes = raw.find(b"PK\x01\x02", len(raw) // 2 * 3 // 2) + 32
    raw[comment_bytes + 1] = 0xFF  # "a comment" that runs over the entries behind it
    (tmp_path / "x.zip").write_bytes(raw)
    with pytest.raises(ValueError, match=r"its directory lists .* of 66,000 files|broken"):
        archives.list_members(tmp_path / "x.zip", tmp_path)


@functools.cache
def small_files() -> Files:
    return {f"{wnid}/{k}.jpg": jpeg(k)[:700] for wnid in WNIDS for k in range(2)} | {"e.jpg": b""}


@functools.cache
def nested_tar() -> bytes:
    inner = {f"{wnid}.tar": tar_bytes({"inner.jpg": jpeg(1)[:700]}) for wnid in WNIDS}
    return tar_bytes(dict(small_files()) | inner, tarfile.PAX_FORMAT)


def end_of(raw: bytes) -> int:
    """Where a tar's first block of zeros, its end, is complete."""
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        archive.getmembers()
        return archive.offset + 512


@given(choice=st.data())
@settings(max_examples=150)
def test_a_tar_that_is_cut_anywhere_is_an_error(choice, tmp_path_factory):
    place = tmp_path_factory.getbasetemp() / "cut.tar"
    for raw in (tar_bytes(small_files()), nested_tar()):
        place.write_bytes(raw[: end_of(raw)])
        archives.list_members(place, place.parent)
        length = choice.draw(st.integers(0, end_of(raw) - 1))
        place.write_bytes(raw[:length])
        with pytest.raises(ValueError, match=r"cut.tar.*: .*download"):
            archives.list_members(place, place.parent)


@given(choice=st.data())
@settings(max_examples=150)
def test_a_tar_that_is_cut_inside_another_is_an_error(choice, tmp_path_factory):
    place = tmp_path_factory.getbasetemp() / "inner.tar"
    inner = tar_bytes(small_files())
    cut = inner[: choice.draw(st.integers(0, end_of(inner) - 1))]
    place.write_bytes(tar_bytes({"n01440764.tar": inner, "n01443537.tar": cut}))
    with pytest.raises(ValueError, match=r"inner.tar: n01443537.tar: .*download"):
        archives.list_members(place, place.parent)


@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=300)
def test_a_flipped_bit_in_a_tar_is_an_error_or_lists(position, bit, tmp_path_factory):
    place = tmp_path_factory.getbasetemp() / "flipped.tar"
    raw = bytearray(nested_tar())
    raw[int(position * end_of(bytes(raw)))] ^= 1 << bit
    place.write_bytes(raw)
    try:
        members = archives.list_members(place, place.parent)
    except ValueError as error:
        assert "flipped.tar" in str(error)
    else:
        assert len(members) == len(small_files()) + len(WNIDS)
        for member in members:
            assert len(archives.read(member)) == member.size


@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), stored=st.booleans())
@settings(max_examples=500)
def test_a_flipped_bit_in_a_zip_gives_no_wrong_bytes(position, bit, stored, tmp_path_factory):
    place = tmp_path_factory.getbasetemp() / "flipped.zip"
    write_zip(place, small_files(), zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED)
    raw = bytearray(place.read_bytes())
    raw[int(position * len(raw))] ^= 1 << bit
    place.write_bytes(raw)
    try:
        members = archives.list_members(place, place.parent)
    except ValueError:
        return
    for member in members:
        try:
            content = archives.read(member)
        except ValueError as error:
            assert "flipped.zip" in str(error)
        else:
            assert content == small_files()[member.path]


@pytest.mark.parametrize("length", [-1, 16])
def test_a_length_in_a_tar_that_leads_back_or_far_is_an_error(length, tmp_path):
    header = bytearray(tarfile.TarInfo("a.jpg").tobuf())
    header[124:136] = struct.pack(">iq", -1 if length < 0 else -(1 << 31), length * (1 << 40))
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "x.tar").write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(ValueError, match=r"x\.tar: "):
        archives.list_members(tmp_path / "x.tar", tmp_path)


def test_a_compressed_tar_is_decompressed_once_and_whole_or_not_at_all(tmp_path):
    source, work_dir = tmp_path / "x.tar.gz", tmp_path / "work"
    raw = gzip.compress(tar_bytes(small_files()))
    for length in (10, len(raw) // 2, len(raw) - 4):
        source.write_bytes(raw[:length])
        with pytest.raises(ValueError, match=r"x.tar.gz: .* download or copy it again"):
            archives.list_members(source, work_dir)
        assert list(work_dir.iterdir()) == []
    source.write_bytes(raw)
    (work_dir / "x.tar.partial").write_bytes(b"left by a start that was killed")
    first = archives.list_members(source, work_dir)
    tar = work_dir / "x.tar"
    assert list(work_dir.iterdir()) == [tar] and {m.file for m in first} == {str(tar)}
    number = tar.stat().st_ino
    assert archives.list_members(source, work_dir) == first and tar.stat().st_ino == number
    source.write_bytes(gzip.compress(tar_bytes({"other.jpg": b"other"})))
    os.utime(source, (1, 1))  # another file of that name
    assert [member.path for member in archives.list_members(source, work_dir)] == ["other.jpg"]


def test_members_are_read_in_another_process(tmp_path):
    source = sources.recognize(write_imagenet_tars(tmp_path / "imagenet"), tmp_path)
    members = [picture.member for picture in source.splits["train"]]
    (tmp_path / "members").write_bytes(pickle.dumps(members))
    result = run_program("read_members", tmp_path / "members")
    assert (
        result.out.split() == str([archives.zlib.crc32(archives.read(m)) for m in members]).split()
    )


def test_more_archives_than_are_kept_open_are_read(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for i in range(20):
            place = tmp_path / f"{i}.tar"
            place.write_bytes(tar_bytes({"a.jpg": jpeg(i)}))
            (member,) = archives.list_members(place, tmp_path)
            assert archives.read(member) == jpeg(i)
    assert len(os.listdir("/proc/self/fd")) <= before + 8


def test_a_file_that_shrank_after_listing_is_an_error(tmp_path):
    place = write_tar(tmp_path / "x.tar", small_files())
    member = archives.list_members(place, tmp_path)[0]
    os.truncate(place, 600)
    with pytest.raises(ValueError, match=rf"x.tar: {member.path} is cut short"):
        archives.read(member)
