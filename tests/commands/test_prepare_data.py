"""prepare_data.py: every source, mislabeled files, kills, full disks, mistakes; one result."""

import hashlib
import http.server
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest
from PIL import Image
from support.commands import (
    PROGRAM_PATH,
    REPOSITORY,
    Result,
    finish,
    program_words,
    run,
    start,
    wait_for,
)
from support.data_sources import (
    CONTAINERS,
    WNIDS,
    Files,
    image_folder_files,
    kaggle_files,
    tar_bytes,
    tiny_files,
    val_name,
    write_folder,
)
from support.in_process import run_here
from support.needs import needs_root
from support.packs import put_version
from support.pictures import CLASSES, make_folder, make_picture

import dataset_paths
from resnet50.data.pack import PackedImages
from resnet50.packing import downloads, sources

SPLITS = ("train", "val")


def prepare(cwd: Path, *flags: object) -> Result:
    return run_here([sys.executable, REPOSITORY / "prepare_data.py", *flags], cwd)


def packs(out: Path) -> dict[str, PackedImages]:
    return {split: PackedImages(out / f"{split}.pack") for split in SPLITS}


def report_of(out: Path) -> dict:
    return json.loads((out / "report.json").read_text())


def hashes(out: Path) -> dict[str, str]:
    files = {split: out / f"{split}.pack" for split in SPLITS}
    return {split: hashlib.sha256(file.read_bytes()).hexdigest() for split, file in files.items()}


def picture(form: str, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    make_picture(7, 1).convert(mode).save(file, form)
    return file.getvalue()


LIARS = {  # files as in every real data set: three that can be used, two that cannot
    "png.JPEG": picture("PNG"),
    "cmyk.JPEG": picture("JPEG", "CMYK"),
    "gray.JPEG": picture("JPEG", "L"),
    "cut.JPEG": picture("JPEG")[:600],
    "empty.JPEG": b"",
}


def liars_in(folder: str) -> Files:
    return {f"{folder}/{name}": content for name, content in LIARS.items()}


def csv_files() -> Files:
    files = {f"pictures/{split}{k}.jpg": picture("JPEG") for split in SPLITS for k in range(6)}
    files |= liars_in("pictures")
    rows = {
        split: [f"pictures/{split}{k}.jpg,{CLASSES[k % 3]}" for k in range(6)] for split in SPLITS
    }
    rows["train"] += [f"pictures/{name},{CLASSES[0]}" for name in LIARS]
    return files | {
        f"{split}.csv": "\n".join(["path,label", *rows[split], ""]).encode() for split in SPLITS
    }


def imagenet_tars() -> Files:
    """As image-net.org gives them: a tar of class tars, and a flat one."""
    inner = {}
    for j, wnid in enumerate(WNIDS):
        files = {f"{wnid}_{k}.JPEG": picture("JPEG") for k in range(3)}
        files |= {f"{wnid}_{name}": content for name, content in LIARS.items()} if not j else {}
        inner[f"{wnid}.tar"] = tar_bytes(files)
    val = {val_name(wnid, i): picture("JPEG") for wnid in WNIDS for i in range(2)}
    return {sources.TRAIN_TAR: tar_bytes(inner), sources.VAL_TAR: tar_bytes(val)}


def kaggle() -> Files:
    return kaggle_files() | liars_in(f"ILSVRC/Data/CLS-LOC/train/{WNIDS[0]}")


def tiny() -> Files:
    return tiny_files() | liars_in(f"tiny-imagenet-200/train/{WNIDS[0]}/images")


def imagenette() -> Files:
    top = "imagenette2-160/"
    return image_folder_files(top) | liars_in(f"{top}train/{WNIDS[0]}")


def flat() -> Files:
    files = {f"mini/{wnid}/{k}.jpg": picture("JPEG") for wnid in WNIDS for k in range(20)}
    return files | liars_in(f"mini/{WNIDS[0]}")


# Container, what is in it beside the three liars that can be used: training and validation images.
SOURCES = {
    "imagenet-archives": ("folder", imagenet_tars, 9, 6),
    "kaggle folder": ("folder", kaggle, 9, 3),
    "kaggle zip": ("deflated zip", kaggle, 9, 3),
    "tiny-imagenet zip": ("stored zip", tiny, 9, 6),
    "imagenette tgz": ("tar.gz", imagenette, 12, 12),
    "flat tar": ("tar", flat, 54, 6),
    "csv": ("folder", csv_files, 6, 6),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_is_packed_and_its_lying_files_are_reported(kind, tmp_path):
    container, files, num_train, num_val = SOURCES[kind]
    source, out = CONTAINERS[container](tmp_path, files()), tmp_path / "out"
    # Pictures out of archives with levels, those of folders without.
    flags = ["--levels", "none" if container == "folder" else "32"]
    result = prepare(tmp_path, source, "--out", out, "--skip_md5", "--num_workers", 2, *flags)
    assert result.code == 0, result.err
    assert sorted(path.name for path in out.iterdir()) == ["report.json", "train.pack", "val.pack"]
    report, opened = report_of(out), packs(out)
    assert opened["train"].has_levels == (container != "folder")
    counts = [len(opened[split]) for split in SPLITS]
    assert counts == [report[split]["images"] for split in SPLITS]
    assert sum(counts) == num_train + num_val + 3
    notes = [note for split in SPLITS for note in report[split]["notes"]]
    told = {note["name"].rpartition("_")[2].rpartition("/")[2]: note for note in notes}
    assert set(told) == {"png.JPEG", "cmyk.JPEG", "cut.JPEG", "empty.JPEG"}
    assert [told[name]["kind"] for name in told].count("bad") == 2
    assert "a PNG, not a JPEG" in told["png.JPEG"]["text"]
    assert "a JPEG in CMYK" in told["cmyk.JPEG"]["text"]
    assert "2 images cannot be decoded and were left out" in result.out or kind == "flat tar"
    verified = prepare(tmp_path, "--verify", out)
    assert verified.code == 0 and "all images are whole" in verified.out, verified.err


def test_the_pack_of_a_folder_holds_its_images_in_its_order(image_folder, tmp_path):
    result = prepare(tmp_path, image_folder, "--out", "out", "--write_annotations")
    assert result.code == 0, result.err
    opened = packs(tmp_path / "out")
    names = [opened["train"].name(i).rpartition(":")[2] for i in range(66)]
    assert names == [f"{name}/{i:03d}.jpg" for name in CLASSES for i in range(22)]
    assert opened["train"].store == "tiles" and opened["val"].store == "original"
    first = (image_folder / "val" / "ant" / "000.jpg").read_bytes()
    assert bytes(opened["val"]._read(0)[1]) == first
    again = prepare(tmp_path, tmp_path / "out", "--out", "again", "--num_workers", 1)
    assert again.code == 0, again.err  # out/train.csv and out/val.csv are a source
    assert hashes(tmp_path / "again") == hashes(tmp_path / "out")


def test_sizes_shrink_and_never_grow(image_folder, tmp_path):
    for flags, check in (
        (["--short_side", 32], lambda w, h: min(w, h) == 32),
        (["--long_side", 40], lambda w, h: max(w, h) <= 40),
        (["--max_resolution", 40, "--short_side", 33], lambda w, h: max(w, h) <= 40),
        ([], lambda w, h: True),
    ):
        out = tmp_path / "-".join(map(str, ["out", *flags]))
        assert prepare(tmp_path, image_folder, "--out", out, *flags).code == 0
        with Image.open(image_folder / "train" / "bee" / "003.jpg") as image:
            original = image.size
        sizes = packs(out)["train"].sizes.tolist()
        assert all(check(*size) for size in sizes) and sizes[25][0] <= original[0]
        assert flags or tuple(sizes[25]) == original


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory) -> Path:
    """Enough photos to take seconds: 3 classes, 480 and 30 images of up to 700 px."""
    root = make_folder(tmp_path_factory.mktemp("large"), 4, 10)
    for name in CLASSES:
        for i in range(4):
            file = root / "train" / name / f"{i:03d}.jpg"
            with Image.open(file) as image:
                image.resize((image.width * 10, image.height * 10)).save(file, quality=90)
            for copy in range(39):
                os.link(file, file.with_name(f"{i:03d}_{copy:03d}.jpg"))
    return root


def test_three_kills_leave_the_file_of_an_undisturbed_start(large_folder, tmp_path, no_leftovers):
    """SIGKILL at various moments, various numbers of processes: the same bytes, no process left."""
    calm = prepare(tmp_path, large_folder, "--out", "calm")
    assert calm.code == 0, calm.err
    words = packing_words(large_folder, tmp_path / "out")
    partial, done_before = tmp_path / "out" / "train.pack.partial", 0
    state = tmp_path / "out" / "train.pack.state"
    for kill in range(3):
        process = start([*words, "--num_workers", kill + 1], tmp_path, **PROGRAM_PATH)
        wait_for_progress(process, state, done_before)
        os.kill(process.pid, signal.SIGKILL)
        finish(process)
        assert partial.exists() and not (tmp_path / "out" / "train.pack").exists()
        assert not (tmp_path / "out" / "report.json").exists()
        done_before = done(state)
        refused = prepare(tmp_path, "--verify", tmp_path / "out")
        assert refused.code == 2 and "is not there, packing was interrupted" in refused.err
    last = prepare(tmp_path, *words[2:])
    assert last.code == 0, last.err
    assert hashes(tmp_path / "out") == hashes(tmp_path / "calm")
    assert packs(tmp_path / "out")["train"].has_levels
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["report.json", "train.pack", "val.pack"]


def packing_words(source: Path, out: Path) -> list[object]:
    return [*program_words("commit_often"), source, "--out", out]


def wait_for_progress(process: subprocess.Popen, state: Path, done_before: int) -> None:
    wait_for(lambda: done(state) > done_before or process.poll() is not None, what="progress")
    assert process.poll() is None, "it ended before it could be killed"


def done(state: Path) -> int:
    try:
        return json.loads(state.read_text())["position"][0]
    except (OSError, ValueError):
        return 0


def test_sigterm_keeps_what_is_done_and_says_so(large_folder, tmp_path, no_leftovers):
    words = [*packing_words(large_folder, tmp_path / "out"), "--levels", "none"]  # in half the time
    process = start(words, tmp_path, **PROGRAM_PATH)
    partial = tmp_path / "out" / "train.pack.partial"
    wait_for(lambda: partial.exists() and partial.stat().st_size > 10_000, what="packing to begin")
    os.killpg(process.pid, signal.SIGTERM)
    result = finish(process)
    assert result.code == 75 and "interrupted; the same command resumes" in result.err
    assert done(tmp_path / "out" / "train.pack.state") > 0
    second, lock = start(words, tmp_path, **PROGRAM_PATH), tmp_path / "out" / ".work" / ".lock"
    wait_for(lambda: lock.read_text() == f"{second.pid}\n", what="the second start to begin")
    second.send_signal(signal.SIGSTOP)
    other = prepare(tmp_path, *words[2:])
    assert other.code == 2 and f"{tmp_path}/out is in use by process {second.pid}" in other.err
    second.send_signal(signal.SIGCONT)
    assert finish(second).code == 0


def test_another_request_does_not_go_on_with_a_half_finished_file(large_folder, tmp_path):
    out = tmp_path / "out"
    words = packing_words(large_folder, out)
    process = start(words, tmp_path, **PROGRAM_PATH)
    wait_for(lambda: done(out / "train.pack.state") > 0, what="progress")
    os.kill(process.pid, signal.SIGKILL)
    finish(process)
    assert prepare(tmp_path, large_folder, "--out", out, "--short_side", 64).code == 0
    assert prepare(tmp_path, large_folder, "--out", "calm", "--short_side", 64).code == 0
    assert hashes(out) == hashes(tmp_path / "calm")


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_pack_that_was_damaged_or_removed_later_is_made_again(damage, image_folder, tmp_path):
    assert prepare(tmp_path, image_folder, "--out", "out").code == 0
    before, pack = hashes(tmp_path / "out"), tmp_path / "out" / "train.pack"
    os.truncate(pack, 5000) if damage == "cut" else pack.unlink()
    val_written = (tmp_path / "out" / "val.pack").stat().st_mtime_ns
    result = prepare(tmp_path, image_folder, "--out", "out")
    assert result.code == 0 and "already complete" not in result.out, result.err
    assert hashes(tmp_path / "out") == before
    assert (tmp_path / "out" / "val.pack").stat().st_mtime_ns == val_written
    assert "already complete" in prepare(tmp_path, image_folder, "--out", "out").out


def test_a_pack_of_a_newer_format_is_neither_read_nor_replaced(image_folder, tmp_path):
    assert prepare(tmp_path, image_folder, "--out", "out").code == 0
    pack = tmp_path / "out" / "train.pack"
    newer = bytearray(pack.read_bytes())
    put_version(newer)
    pack.write_bytes(newer)
    result = prepare(tmp_path, image_folder, "--out", "out")
    assert result.code == 2 and "format 9, and this program reads 1 and 2" in result.err
    assert "made by a newer version, so update this clone" in result.err
    assert pack.read_bytes() == newer


def test_levels_are_made_unasked_and_packs_without_them_stay_complete(image_folder, tmp_path):
    """Version 1, as all packs were before, counts as complete until levels are asked for."""
    size = ("--long_side", 96)  # of pictures of up to 75 pixels: levels of 48
    for name, flags in (("plain", [*size, "--levels", "none"]), ("leveled", size)):
        assert prepare(tmp_path, image_folder, "--out", name, *flags).code == 0
    made, before = (packs(tmp_path / name)["train"] for name in ("leveled", "plain"))
    assert made.has_levels and not before.has_levels
    assert made.settings == before.settings | {"levels": [48], "level_quality": 89}
    assert hashes(tmp_path / "leveled")["val"] == hashes(tmp_path / "plain")["val"]
    for name, flags, told in (
        ("plain", [], "is already complete"),
        ("leveled", [], "is already complete"),
        ("leveled", ["--levels", "48"], "is already complete"),
        ("plain", ["--levels", "48"], "made with other options (levels [], now [48])"),
        ("leveled", ["--levels", "none"], "made with other options (levels [48], now [])"),
    ):
        kept = hashes(tmp_path / name)
        result = prepare(tmp_path, image_folder, "--out", name, *size, *flags)
        assert told in result.out + result.err and hashes(tmp_path / name) == kept
    # Neither does a validation split that is packed again cost such a training split its place.
    kept = hashes(tmp_path / "plain")
    (tmp_path / "plain" / "val.pack").unlink()
    assert prepare(tmp_path, image_folder, "--out", "plain", *size).code == 0
    assert hashes(tmp_path / "plain") == kept
    # Pictures that are too small for levels are packed as they always were.
    assert prepare(tmp_path, image_folder, "--out", "small").code == 0
    small = packs(tmp_path / "small")["train"]
    assert not small.has_levels and "levels" not in small.settings


def test_another_request_does_not_keep_the_split_that_was_finished(image_folder, tmp_path):
    calm = prepare(tmp_path, image_folder, "--out", "out", "--quality", 70)
    assert calm.code == 0 and prepare(tmp_path, image_folder, "--out", "calm").code == 0
    out, work_dir = tmp_path / "out", tmp_path / "out" / ".work"
    report = report_of(out)  # as a kill before the validation split was packed would leave it
    work_dir.mkdir()
    (work_dir / "train.json").write_text(json.dumps(report["train"]))
    (out / "val.pack").unlink()
    (out / "report.json").unlink()
    assert prepare(tmp_path, image_folder, "--out", "out").code == 0
    assert hashes(out) == hashes(tmp_path / "calm")


def test_ctrl_c_before_packing_ends_at_once(tmp_path, no_leftovers):
    files = imagenet_tars()
    source = write_folder(tmp_path / "source", files)
    with open(source / sources.TRAIN_TAR, "r+b") as file:  # seconds to minutes of md5
        file.truncate(8 << 30)
    process = start(packing_words(source, tmp_path / "out"), tmp_path, **PROGRAM_PATH)
    wait_for((tmp_path / "out" / ".work").exists, what="the md5 to begin")
    process.send_signal(signal.SIGINT)
    result = finish(process, 60)
    assert result.code == 75 and "Traceback" not in result.err, result.err


@needs_root
def test_a_disk_that_is_too_small_is_said_before_and_one_that_fills_up_is_survived(
    large_folder, tmp_path
):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", disk], check=True)
    try:
        flags = (large_folder, "--out", disk / "out", "--num_workers", 2, "--levels", "none")
        result = prepare(tmp_path, *flags)
        assert result.code == 2 and "GB are free" in result.err and "Traceback" not in result.err
        assert not (disk / "out").exists()

        subprocess.run(["mount", "-o", "remount,size=200m", disk], check=True)
        words = [*program_words("commit_often"), *flags]
        process = start(words, tmp_path, **PROGRAM_PATH)
        wait_for((disk / "out" / "train.pack.partial").exists, what="packing to begin")
        (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - 2_000_000))
        result = finish(process)
        assert result.code == 2 and "No space left on device" in result.err, result.err
        assert "Traceback" not in result.err and not (disk / "out" / "train.pack").exists()

        (disk / "ballast").unlink()
        assert run(words, tmp_path, **PROGRAM_PATH).code == 0  # in this process, it may stay open
        assert prepare(tmp_path, large_folder, "--out", "calm", "--levels", "none").code == 0
        assert hashes(disk / "out") == hashes(tmp_path / "calm")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_verify_names_the_damaged_level(image_folder, tmp_path):
    assert prepare(tmp_path, image_folder, "--out", "out", "--levels", "48,32").code == 0
    path = tmp_path / "out" / "train.pack"
    entry, (width, height) = PackedImages(path)._index[30], PackedImages(path).open(30).sizes[-1]
    data = bytearray(path.read_bytes())
    data[int(entry["offset"] + entry["head_size"]) - 20] ^= 0x10
    path.write_bytes(data)
    result = prepare(tmp_path, "--verify", "out")
    what = f"its level of {width}x{height} pixels: its payload fails its checksum"
    assert f"train.pack:bee/008.jpg: {what}" in result.out, result.out
    assert result.code == 2 and "1 images are damaged" in result.out


def test_verify_names_the_damaged_image(image_folder, tmp_path):
    assert prepare(tmp_path, image_folder, "--out", "out").code == 0
    path = tmp_path / "out" / "train.pack"
    data = bytearray(path.read_bytes())
    pack = PackedImages(path)
    entry = pack._index[30]
    data[int(entry["offset"] + entry["table_size"]) + 20] ^= 0x10
    path.write_bytes(data)
    result = prepare(tmp_path, "--verify", "out")
    assert result.code == 2
    assert "train.pack:bee/008.jpg: its payload fails its checksum" in result.out
    assert "1 images are damaged" in result.out
    path.write_bytes(data[:-3])
    result = prepare(tmp_path, "--verify", "out")
    assert result.code == 2 and "Traceback" not in result.err
    assert "were written. It is damaged: copy it again" in result.err


def cut_tar(place: Path) -> list:
    files = imagenet_tars()
    files = files | {sources.TRAIN_TAR: files[sources.TRAIN_TAR][:-20_000]}
    return [write_folder(place / "source", files), "--skip_md5"]


def wrong_md5(place: Path) -> list:
    return [write_folder(place / "source", imagenet_tars())]


def dotted_member(place: Path) -> list:
    (place / "a.tar").write_bytes(tar_bytes({"../../etc/passwd": b"x"}))
    return [place / "a.tar"]


def linked_member(place: Path) -> list:
    with tarfile.open(place / "a.tar", "w") as archive:
        info = tarfile.TarInfo("train/a/x.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    return [place / "a.tar"]


def csv_with(place: Path, split: str, row: bytes) -> list:
    files = csv_files()
    return [write_folder(place / "source", files | {f"{split}.csv": files[f"{split}.csv"] + row})]


def missing_file(place: Path) -> list:
    return csv_with(place, "train", b"pictures/none.jpg,ant\n")


def unknown_label(place: Path) -> list:
    return csv_with(place, "val", b"pictures/train0.jpg,zebra\n")


def occupied(place: Path) -> list:
    write_folder(place / "out", {"thesis.txt": b"mine"})
    return [write_folder(place / "source", csv_files())]


def made_otherwise(place: Path) -> list:
    source = write_folder(place / "source", csv_files())
    assert prepare(place, source, "--out", "out", "--quality", 70).code == 0
    return [source]


def hopeless_class(place: Path) -> list:
    files = {f"{split}/{name}/0.jpg": picture("JPEG") for split in SPLITS for name in "ab"}
    return [write_folder(place / "source", files | {"train/b/0.jpg": b""})]


@pytest.mark.parametrize(
    "make, message",
    [
        (cut_tar, "ILSVRC2012_img_train.tar.*damaged, download"),
        (
            wrong_md5,
            "ILSVRC2012_img_train.tar: its md5 is .* published one is 1d675b47.*--skip_md5",
        ),
        (dotted_member, r"'\.\./\.\./etc/passwd' points outside the archive"),
        (linked_member, "'train/a/x.jpg' is a link"),
        (missing_file, r"1 listed files are missing: pictures/none.jpg \(line 13\)"),
        (unknown_label, "val.csv line 8: 'zebra' is not one of the classes"),
        (occupied, "holds other files .thesis.txt.: give an empty or a new folder"),
        (made_otherwise, "holds a data set made with other options.*remove it, or give another"),
        (hopeless_class, "class b has no image that can be decoded"),
        (lambda place: [place / "nowhere"], "nowhere: no such file or folder, nor one of imagenet"),
        (lambda place: ["tiny-imagenet"], "no such file or folder; --download gets http://cs231n"),
        (lambda place: ["imagenet", "--download"], "img_train.tar .147,897,477,120 bytes"),
        (lambda place: ["mini-imagenet"], "no plain URL: download it and give its folder"),
        (lambda place: [place, "--download"], "--download is for one of imagenet, "),
        (lambda place: [place, "--long_side", 8], "--long_side 8: must be from 32"),
        (lambda place: [place, "--quality", 101], "--quality 101: must be from 1 to 100"),
        (lambda place: [place, "--levels", "big"], "big: must be like 250 or 320,200, or none"),
        (lambda place: [place, "--levels", "250,8"], "--levels 250,8: must be from 32 to 8192"),
        (lambda place: [place, "--levels", "200,320"], "--levels 200,320: must be descending"),
        (
            lambda place: [place, "--levels", 450],
            "--levels 450: must be at most 400, which is --long_side 500 / 1.25",
        ),
        (
            lambda place: [place, "--levels", 250, "--store", "original"],
            "--levels 250 needs images stored as tiles, and original files are stored",
        ),
        (
            lambda place: [write_folder(place / "source", csv_files()), "--levels", "128"],
            r"--levels 128: must be 1.25 times smaller .* the largest of \d+ has \d+ pixels",
        ),
        (lambda place: [place, "--num_workers", 0], "--num_workers 0: must be from 1"),
        (lambda place: [place, "--val_pct", 100], "--val_pct 100: must be above 0"),
        (lambda place: [place, "--verify", place], "give a SOURCE to pack, or --verify DIR"),
        (lambda place: ["--source_dir", place, place], "--source_dir is for fashion-mnist"),
    ],
)
def test_a_mistake_gets_one_clear_message_and_costs_nothing(make, message, tmp_path):
    words = make(tmp_path)
    before = tree(tmp_path)
    result = prepare(tmp_path, *words, "--out", "out")
    assert result.code == 2 and "Traceback" not in result.err, result.err
    assert re.search(message, result.err, re.DOTALL), result.err
    left = {path for path in tree(tmp_path) - before if ".work" not in path and path != "out"}
    assert not {path for path in left if path.endswith(".pack")}, left


def tree(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*")}


def test_an_output_that_cannot_be_written_is_named(image_folder, tmp_path):
    (tmp_path / "file").write_text("")
    result = prepare(tmp_path, image_folder, "--out", "file/out")
    assert result.code == 2 and "file" in result.err and "Traceback" not in result.err


def test_a_download_is_checked_and_taken(tmp_path, monkeypatch):
    """From a server of our own, since the real ones cannot be reached everywhere."""
    served = tmp_path / "served"
    served.mkdir()
    archive = CONTAINERS["deflated zip"](served, tiny_files())
    archive.rename(served / "tiny-imagenet-200.zip")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=served)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/tiny-imagenet-200.zip"
        md5 = hashlib.md5((served / "tiny-imagenet-200.zip").read_bytes()).hexdigest()
        real = dataset_paths.DATASETS["tiny-imagenet"]
        for wanted, name in ((md5, "right"), ("0" * 32, "wrong")):
            entry = type(real)(real.title, 200, 100_000, 10_000, url, wanted)
            monkeypatch.setitem(dataset_paths.DATASETS, "tiny-imagenet", entry)
            (tmp_path / name).mkdir()
            if wanted == md5:
                path = downloads.find("tiny-imagenet", True, tmp_path / name)
                assert sources.recognize(path, tmp_path).layout == "tiny-imagenet"
                continue
            with pytest.raises(
                ValueError, match=r"cannot be downloaded \(.*give the file as SOURCE"
            ):
                downloads.find("tiny-imagenet", True, tmp_path / name)
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(ValueError, match=r"cannot be downloaded .*fetch it by other means"):
        downloads.find("tiny-imagenet", True, tmp_path / "wrong")


def test_the_md5_of_an_archive_is_remembered_until_it_changes(tmp_path, monkeypatch):
    archive = tmp_path / "imagenette2-160.tgz"
    archive.write_bytes(b"one")
    monkeypatch.setitem(downloads.ARCHIVE_MD5, archive.name, hashlib.md5(b"one").hexdigest())
    downloads.check_md5(archive, tmp_path)
    monkeypatch.setattr(downloads, "md5_of", lambda path: pytest.fail("read again"))
    downloads.check_md5(archive, tmp_path)
    monkeypatch.undo()
    time.sleep(0.01)
    archive.write_bytes(b"two")
    with pytest.raises(ValueError, match="published one is e793b78c"):
        downloads.check_md5(archive, tmp_path)
