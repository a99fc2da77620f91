"""Other people's layouts: recognized, or refused by both tools with a remedy.

Pictures used and files not used, by reason, always add up to all the files.
"""

import io
import os
import re
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.data_sources import WNIDS, Files, jpeg, tar_bytes, val_name, write_folder

import prepare_data
from resnet50.data import orientation, splits, unused
from resnet50.packing import archives, sources
from resnet50.packing.members import Passed
from resnet50.packing.sources import SplitDirs

VAL = "ILSVRC2012_val_"
FLAT = "is flat: .* and no class folders"


def files(*paths: str) -> Files:
    """Files of one byte; {a,b} in a path expands to several."""
    found = {}
    for path in paths:
        if match := re.search(r"\{(.*?)\}", path):
            for part in match[1].split(","):
                found |= files(path[: match.start()] + part + path[match.end() :])
        else:
            found[path] = b"x"
    return found


def flat_val() -> Files:
    return files(*(f"val/{val_name(wnid)}" for wnid in WNIDS))


TRAIN = files(f"train/{{{','.join(WNIDS)}}}/{{1,2}}.JPEG")
SPLITS = files("{train,val}/{a,b}/{1,2}.jpg")
TABLE = b"filename,label\n"

# The messages of prepare_data.py and of train.py for the same folder, as regexes.
REFUSED = {
    "flat train/ and test1/": (
        files("train/{cat,dog}.{1,2}.jpg", "test1/{1,2}.jpg"),
        f"src/train {FLAT}",
        "neither val.pack nor val/",
    ),
    "train_images/ and test_images/": (
        files("train_images/{1,2}.jpg", "test_images/{1,2}.jpg", "train.csv"),
        FLAT,
        "neither train.pack .* holds no folders",
    ),
    "a lone val/ beside class tars": (
        files("val/{a,b}/{1,2}.jpg", "train/a.tar"),
        r"has val/ alone, .*train/ holds 1 archive \(a.tar\) to be unpacked.*--train_dir val",
        "train has no class folders. Its archives must be unpacked.*left-over archive",
    ),
    "a lone test/": (
        files("test/{a,b}/{1,2}.jpg"),
        "has test/ alone, without a train/",
        "neither train.pack nor train/",
    ),
    "for detection": (
        files("{train,val}/images/{1,2}.jpg", "{train,val}/labels/{1,2}.txt"),
        "src/train: the classes would be images, labels, but these name splits",
        "src/train: the classes would be images, labels, but these name splits",
    ),
    "images only": (
        files("{train,val}/images/{1,2}.jpg"),
        "classes would be images, but",
        "classes would be images, but",
    ),
    "two parts": (
        files("{train,val}/{images,gt}/{1,2}.jpg"),
        "classes would be gt, images, but",
        "classes would be gt, images, but",
    ),
    "splits of two sets": (
        files("{trainA,trainB,testA,testB}/{1,2}.jpg"),
        "classes would be testA, testB, trainA, trainB, but",
        "neither train.pack",
    ),
    "shards": (files("shard-{000000,000001}.tar"), "is a shard, as WebDataset", "neither train.p"),
    "ImageNet's archives by another name": (
        files("ILSVRC2012.img_{train,val}.tar"),
        "ImageNet's archives are called ILSVRC2012_img_train.tar and",
        "neither train.pack",
    ),
    "a table without a header": (
        files("i/{1,2}.jpg") | {"train.csv": b"i/1.jpg\tcat\n"},
        "a single class, i: .*train.csv was not used: .* first line is path,label",
        "neither train.pack",
    ),
    "folders of folders": (
        files("{a,b}/{s1,s2}/{1,2}.jpg"),
        "--train_dir a --train_dir b --out .*If a is a class, list",
        "neither train.pack",
    ),
    "one class": (files("{train,val}/cat/{1,2}.jpg"), "a single class, cat", "a single class, cat"),
    "one class without splits": (files("cat/{1,2}.jpg"), "a single class, cat", "neither train.p"),
    "Training and Testing": (
        files("{Training,Testing}/{a,b}/{1,2}.jpg"),
        "prepare_data.py src --train_dir Training --val_dir Testing --out",
        "prepare_data.py src --train_dir Training --val_dir Testing --out",
    ),
    "capitals": (
        files("{Train,Val}/{a,b}/1.jpg"),
        "src --train_dir Train --val_dir Val --out",
        "src --train_dir Train --val_dir Val --out",
    ),
    "four training folders": (
        files("train.X{1,2}/{a,b}/{1,2}.jpg", "val.X/{a,b}/1.jpg"),
        "src --train_dir train.X1 --train_dir train.X2 --val_dir val.X --out",
        "src --train_dir train.X1 --train_dir train.X2 --val_dir val.X --out",
    ),
    "valid and test": (
        files("{train,valid,test}/{a,b}/{1,2}.jpg"),
        "has a train/ and no val/ .*src --train_dir train --val_dir valid --out",
        "src --train_dir train --val_dir valid --out",
    ),
    "sets beside each other": (
        files("{color,grayscale}/{a,b}/{1,2}.jpg"),
        "color, grayscale.* hold folders of pictures.* color --train_dir grayscale --out",
        "neither train.pack",
    ),
    "classes one level deeper": (
        files("{train,val}/{Fruit,Packages}/{a,b}/1.jpg"),
        "src/train/Fruit has no images: it holds 2 folders .*--train_dir train/Fruit --train_dir "
        "train/Packages --val_dir val/Fruit --val_dir val/Packages --out",
        "src/train/Fruit has no images directly.*--train_dir train/Fruit --train_dir train/Pack",
    ),
    "a class of HEIC": (
        SPLITS | files("{train,val}/h/1.heic"),
        r"src/train/h has no images: it holds 1 file \(1.heic\) in no supported format",
        r"src/train/h has no images: not used: 1 of unknown extension \(train/h/1.heic\)",
    ),
    "val too deep and other names": (
        TRAIN | files("val/x/1.JPEG"),
        r"3 only in train \(such as n01440764\), 1 only in val \(such as x\)",
        r"3 only in src/train \(such as n01440764\), 1 only in src/val \(such as x\)",
    ),
    "the devkit's numbers": (
        TRAIN | files("val/{1,2,3}/1.JPEG"),
        "the devkit's class numbers",
        "the devkit's class numbers",
    ),
    "WordNet ids renamed by hand": (
        files(*(f"train/{wnid}-fish/1.JPEG" for wnid in WNIDS)) | flat_val(),
        "such as n01440764-fish.*such as n01440764",
        "val is flat.*pack it with `python prepare_data.py src --out",
    ),
    "validation pictures in wrong folders": (
        TRAIN | files(*(f"val/{a}/{val_name(b)}" for a, b in zip(WNIDS, WNIDS[::-1], strict=True))),
        f"2 of ImageNet's validation pictures.*the first is n01440764/{VAL}.*of n01484850 .great",
        f"2 of ImageNet's validation pictures.*the first is n01440764/{VAL}.*of n01484850 .great",
    ),
    "train flat too": (
        files("train/n01440764_10.JPEG", "train/n01443537_2.JPEG") | flat_val(),
        f"src/train {FLAT}. Move each to src/train/WNID/",
        f"src/train {FLAT}. Move each to src/train/WNID/",
    ),
    "one name in two forms": (
        files("{train,val}/a/1.jpg")
        | files(f"train/{unicodedata.normalize('NFC', 'café')}/1.jpg")
        | files(f"val/{unicodedata.normalize('NFD', 'café')}/1.jpg"),
        "NFC.*NFD.*the same name in two Unicode forms",
        "NFC.*NFD.*the same name in two Unicode forms",
    ),
    "a class that is not UTF-8": (
        SPLITS | files(f"{{train,val}}/{os.fsdecode(bytes([0xE9]))}/1.jpg"),
        "the name of class .xe9 is not UTF-8: rename it",
        "the name of class .xe9 is not UTF-8: rename it",
    ),
    "parquet": (
        files("data/train-00000-of-00257.parquet"),
        "python -m resnet50.packing.parquet src --out .*src-images",
        "python -m resnet50.packing.parquet src --out .*src-images",
    ),
    "parts of an archive": (
        files("a.zip.{001,002}"),
        r"cat src/a.zip.\[0-9\]\[0-9\]\[0-9\] > src/a.zip",
        "neither train.pack",
    ),
    "ten parts and more": (
        files("a.tar.{0,1,9,10}"),
        r"cat src/a.tar.\[0-9\] src/a.tar.\[0-9\]\[0-9\] > src/a.tar`",
        "neither train.pack",
    ),
    "one of several parquet files": (
        files("train.parquet"),
        "python -m resnet50.packing.parquet src --out .*src-images",
        "python -m resnet50.packing.parquet src --out .*src-images",
    ),
    "unpacked with backslashes": (
        files(r"train\a\1.jpg", r"val\a\1.jpg"),
        "backslashes.*give the zip itself",
        "backslashes.*that zip",
    ),
    "archives in a folder": (
        files("train.zip", "val.zip"),
        "holds archives .train.zip, val.zip., .*unpack each",
        "neither train.pack",
    ),
    "a table of another program's classes": (
        files("{1,2}.jpg")
        | {f"{s}.csv": b"path,label\n1.jpg,cat\n2.jpg,dog\n" for s in ("train", "val")}
        | {"classes.txt": b"0 cat\n1 dog\n"},
        "'cat' is not one of the classes that src/classes.txt lists",
        "neither train.pack",
    ),
    "a table in Latin-1": (
        files("1.jpg")
        | {f"{s}.csv": "path,label\n1.jpg,café\n".encode("latin-1") for s in ("train", "val")},
        "train.csv line 2: the label caf.udce9 is not UTF-8: save the file as UTF-8",
        "neither train.pack",
    ),
    "a table with semicolons": (
        files("1.jpg") | {f"{s}.csv": b"path;label\n1.jpg;cat\n" for s in ("train", "val")},
        "first line is 'path;label', but must be path,label",
        "neither train.pack",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_data_set_is_refused_with_its_remedy(name, tmp_path, monkeypatch):
    layout, by_packing, by_training = REFUSED[name]
    monkeypatch.chdir(tmp_path)
    write_folder(Path("src"), layout)
    with pytest.raises(ValueError, match=f"(?s){by_packing}"):
        sources.recognize(Path("src"), tmp_path / "work")
    with pytest.raises(ValueError, match=f"(?s){by_training}"):
        splits.open_dataset(Path("src"))


def few_shot_tables() -> Files:
    names = {"train": "012", "val": "34", "test": "56"}
    found = {}
    for split, numbers in names.items():
        rows = [f"n{n:0>8}_{k}.jpg,n{n:0>8}" for n in numbers for k in range(2)]
        found[f"{split}.csv"] = TABLE + "\n".join([*rows, ""]).encode()
        found |= files(*(f"images/{row.partition(',')[0]}" for row in rows))
    return found


def hugging_face() -> Files:
    train = files(*(f"train/{wnid}_{{1,2}}_{wnid}.JPEG" for wnid in WNIDS))
    val = (f"val/{val_name(w).removesuffix('.JPEG')}_{w}.JPEG" for w in WNIDS)
    return train | files(*val, "test/ILSVRC2012_test_00000001.JPEG")


# Options, layout, training and validation pictures, classes, what is not taken.
TAKEN = {
    "archives of splits, each unpacked into a folder of its name": (
        (),
        files("train/train/{a,b}/{1,2}.jpg", "val/val/{a,b}/1.jpg"),
        *(4, 2, 2, {}),
    ),
    "a class called train": ((), files("{bus,car,train}/{1,2}.jpg"), 3, 3, 3, {}),
    "a class called train, each with images/": (
        (),
        files("{bus,car,train}/images/{1,2}.jpg"),
        *(3, 3, 3, {}),
    ),
    "two named training folders": (
        (["a", "b/b"], ["c"]),
        files("{a,b/b,c}/{x,y}/{1,2}.jpg"),
        *(8, 4, 2, {}),
    ),
    "a folder in a folder of its name": (
        (["seg_train"], ["seg_test"]),
        files("{seg_train/seg_train,seg_test/seg_test}/{x,y}/{1,2}.jpg", "seg_pred/seg_pred/1.jpg"),
        *(4, 4, 2, {unused.OUTSIDE: 1}),
    ),
    "only a training folder": ((["a"],), files("{a,b}/{x,y}/{1,2}.jpg"), 2, 2, 2, {"outside": 4}),
    "val/ILSVRC2012_img_val/": (
        (),
        TRAIN | {path.replace("val/", "val/img/", 1): b"x" for path in flat_val()},
        *(6, 3, 3, {}),
    ),
    "class folders in folders of their names": (
        (),
        files("{train,val}/{a/a,b/b}/{1,2}.jpg"),
        *(4, 4, 2, {}),
    ),
    "few-shot tables": ((), few_shot_tables(), 7, 7, 7, {}),
    "few-shot folders": (
        (),
        files("train/n0000000{1,2}/{1,2}.jpg", "{val/n00000003,test/n00000004}/{1,2}.jpg"),
        *(4, 4, 4, {}),
    ),
    "Hugging Face, flat": ((), hugging_face(), 6, 3, 3, {unused.OUTSIDE: 1}),
    "two validation sets": ((), SPLITS | files("validation/a/1.jpg"), 4, 4, 2, {unused.OUTSIDE: 1}),
    "all reasons": (
        (),
        SPLITS
        | files("train/a/more/{1,2}.jpg", "val/{1,2,3}.jpg", "train/a/{x.heic,y.jpg~}", "a.zip")
        | files("test/1.jpg", "train/{._1.jpg,Thumbs.db}", "__MACOSX/1.jpg", "lost+found/1.jpg"),
        *(4, 4, 2),
        {
            unused.DEEPER: 2,
            unused.LOOSE: 3,
            unused.UNKNOWN: 2,
            unused.ARCHIVE: 1,
            unused.OUTSIDE: 1,
            unused.HIDDEN: 4,
        },
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_can_be_read_is_read_and_the_rest_is_counted(name, tmp_path):
    dirs, layout, num_train, num_val, num_classes, not_taken = TAKEN[name]
    source = write_folder(tmp_path / "src", layout)
    found = sources.recognize(source, tmp_path / "work", dirs=SplitDirs(*dirs))
    counts = [len(pictures) for pictures in found.splits.values()]
    assert (counts, len(found.classes)) == ([num_train, num_val], num_classes)
    said = {reason: count for reason, count in found.unused.counts.items() if count}
    assert said == {{"outside": unused.OUTSIDE}.get(k, k): v for k, v in not_taken.items()}
    line = found.unused.line()
    assert all(f"{count} {'of ' * (r == unused.UNKNOWN)}{r}" in line for r, count in said.items())
    for _, label, member in (p for pictures in found.splits.values() for p in pictures):
        assert found.classes[label] in member.path or VAL in member.path


def test_training_warns_of_deep_gray(tmp_path):
    for place in ("train/a/1.jpg", "train/b/2.png", "val/a/3.jpg", "val/b/4.jpg"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("I;16" if place.endswith("png") else "L", (40, 40)).save(tmp_path / place)
    train, val = splits.open_dataset(tmp_path)
    assert f"{tmp_path}/train/b/2.png has gray values of more" in splits.deep_gray_line(train)
    assert not splits.deep_gray_line(val), "JPEG has 8 bits"
    begun_before = splits.open_dataset(tmp_path, orientation.LEGACY).train
    assert not splits.deep_gray_line(begun_before), "which reads the upper 8 bits"


def test_training_says_what_its_listing_shows(tmp_path):
    layout = TAKEN["all reasons"][1]
    write_folder(tmp_path, layout)
    listed = splits.open_dataset(tmp_path)
    assert [len(split) for split in listed] == [4, 4]
    assert splits.unused_line(*listed) == (
        "not used: 1 deeper than a class (train/a/more/); 3 loose beside the classes (val/1.jpg, "
        "val/2.jpg, val/3.jpg); 2 of unknown extension (train/a/x.heic, train/a/y.jpg~); 2 hidden "
        "(train/._1.jpg, train/Thumbs.db)"
    )
    pictures = splits.open_pictures(tmp_path / "train")
    assert len(pictures) == 6 and "2 of unknown extension" in splits.unused_line(pictures)


def test_what_lies_behind_the_end_of_a_tar_is_counted(tmp_path):
    more = tar_bytes({"train/a/3.jpg": b"x", "train/a/4.jpg": b"x"})
    (tmp_path / "two.tar").write_bytes(tar_bytes(SPLITS) + more)
    found = sources.recognize(tmp_path / "two.tar", tmp_path)
    assert len(found.splits["train"]) == 4 and found.unused.counts == {unused.AFTER_END: 2}
    assert found.unused.names[unused.AFTER_END][0].endswith("two.tar: train/a/3.jpg")


def test_a_zip_of_windows_is_read_with_its_backslashes(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in SPLITS:
            archive.writestr(path.replace("/", "\\"), jpeg(1))
    found = sources.recognize(tmp_path / "a.zip", tmp_path)
    assert found.classes == ("a", "b")
    assert all(archives.read(picture.member) == jpeg(1) for picture in found.splits["val"])


@pytest.mark.parametrize(
    "name, remedy",
    [
        ("a.zip.001", r"cat .*/a.zip.(\[0-9\]){3} > .*/a.zip"),
        ("a.tar.part_aa", r"cat .*/a.tar.part_\[a-z\]\[a-z\] > .*/a.tar"),
        ("a.tar.gz.aa", r"cat .*/a.tar.gz.\[a-z\]\[a-z\] > .*/a.tar.gz"),
        ("a.tgzaz", r"cat .*/a.tgz\[a-z\]\[a-z\] > .*/a.tgz"),
        ("a.tar_0001", r"cat .*/a.tar_(\[0-9\]){4} > .*/a.tar"),
        ("a.z01", r"zip -s 0 .*/a.zip"),
        ("train_images_0.tar.gz", "give the folder that holds all of train_images_0"),
        ("a.parquet", "python -m resnet50.packing.parquet"),
    ],
)
def test_a_file_that_is_only_a_part_is_named_as_such(name, remedy, tmp_path):
    (tmp_path / name).write_bytes(b"PAR1" * 9)
    with pytest.raises(ValueError, match=remedy):
        sources.recognize(tmp_path / name, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_hugging_faces_archives_are_read_as_one_set(tmp_path):
    def write(name: str, *paths: str) -> None:
        with tarfile.open(tmp_path / name, "w:gz") as archive:
            for path in paths:
                info = tarfile.TarInfo(path.rpartition("/")[2])
                info.size = 1
                archive.addfile(info, io.BytesIO(b"x"))

    names = list(hugging_face())
    train = [name for name in names if name.startswith("train")]

    def assert_refused() -> None:
        with pytest.raises(ValueError, match="give the folder that holds all"):
            sources.recognize(tmp_path, tmp_path / "work")

    for number in range(5):
        write(f"train_images_{number}.tar.gz", *train[number : number + 1 if number < 4 else None])
        assert_refused()
    write("val_images.tar.gz", *(name for name in names if name.startswith("val")))
    found = sources.recognize(tmp_path, tmp_path / "work")
    assert [len(pictures) for pictures in found.splits.values()] == [6, 3]
    assert found.classes == WNIDS and len(found.archives) == 6
    (tmp_path / "train_images_3.tar.gz").unlink()
    assert_refused()  # each has pictures of every class: nothing else would tell
    write("train_images_3.tar.gz", train[3])
    assert {found.classes[label] in name for name, label, _ in found.splits["train"]} == {True}


PLACES = st.sampled_from(["", *(f"{s}/{c}" for s in ("train", "val", "test") for c in ("", "a/"))])
INSIDE = st.sampled_from(["", "", "", "sub/", "images/", ".git/", "c d/", "__MACOSX/"])
NAMES = st.sampled_from(
    ["1.jpg", "2.PNG", "x.heic", "r.txt", "more.zip", ".DS_Store", "._1.jpg", "Thumbs.db", "é.gif"]
)


@given(
    paths=st.sets(st.tuples(PLACES, INSIDE, NAMES).map("".join), max_size=25),
    container=st.sampled_from(["folder", "zip", "tar"]),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_taken_and_not_taken_are_all_the_files(paths, container, tmp_path_factory):
    place = tmp_path_factory.mktemp("layout")
    layout = SPLITS | dict.fromkeys(paths, b"x")
    if container == "folder":
        source = write_folder(place / "src", layout)
    else:
        source = place / "src"
        if container == "tar":
            source.write_bytes(tar_bytes(layout))
        else:
            with zipfile.ZipFile(source, "w") as archive:
                for path in layout:
                    archive.writestr(path, b"x")
    listed = archives.list_members(source, place, passed := Passed())
    assert len(listed) + sum(passed.unused.counts.values()) == len(layout)
    try:
        found = sources.recognize(source, place)
    except ValueError:  # a folder beside the classes counts as one, and lacks pictures in a split
        assert any(re.match("(train|val)/(sub|images|c d)/", path) for path in paths)
        return
    taken = [picture for pictures in found.splits.values() for picture in pictures]
    assert len({picture.member.path for picture in taken}) == len(taken)
    assert len(taken) + sum(found.unused.counts.values()) == len(layout)
    if container == "folder":
        by_training = splits.open_dataset(source)
        assert [len(split) for split in by_training] == [len(p) for p in found.splits.values()]


def test_packs_may_lie_in_their_source(tmp_path, monkeypatch):
    """Its own folder is no class, and nothing that was passed over."""
    for name in ("ant", "bee"):
        for number in range(3):
            path = tmp_path / name / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (40, 30), (90 * number, 0, 0)).save(path)
    monkeypatch.chdir(tmp_path)
    assert prepare_data.main([".", "--out=packed", "--num_workers=1"]) == 0
    assert splits.open_dataset(tmp_path / "packed").train.classes == ("ant", "bee")


def test_a_named_split_without_classes_is_refused_and_leaves_nothing(tmp_path, capsys):
    (tmp_path / "src" / "train").mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (40, 30)).save(tmp_path / "src" / "train" / f"{number}.png")
    words = [str(tmp_path / "src"), f"--out={tmp_path / 'out'}", "--train_dir=train"]
    assert prepare_data.main(words) == 2
    assert "is flat" in capsys.readouterr().err and not (tmp_path / "out").exists()
    twice = [*words, "--val_dir=train"]
    assert prepare_data.main(twice) == 2 and "is named twice" in capsys.readouterr().err
