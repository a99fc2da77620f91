"""A source that changes during or after packing is noticed, and the suggested remedy works."""

import gzip
import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
from support.data_sources import jpeg, tar_bytes, write_folder

import prepare_data
from resnet50.data.pack import PackedImages
from resnet50.packing import encode, snapshot, writer

POINTER = b"version https://git-lfs.github.com/spec/v1\n"
FILES = {f"{s}/{c}/{k}.jpg": jpeg(k) for s in ("train", "val") for c in "ab" for k in range(3)}


@pytest.fixture
def prepare(tmp_path, monkeypatch, capsys):
    """prepare_data.py in this process: its exit code and all that it said."""
    monkeypatch.chdir(tmp_path)

    def run(*flags: object) -> tuple[int, str]:
        code = prepare_data.main([str(flag) for flag in (*flags, "--num_workers", 1)])
        out, err = capsys.readouterr()
        return code, out + err

    return run


def add_class(source: Path) -> None:
    write_folder(source, {"train/c/1.jpg": jpeg(1), "val/c/1.jpg": jpeg(1)})


def repair(source: Path) -> None:
    (source / "train" / "a" / "0.jpg").write_bytes(jpeg(5))


def touch(source: Path) -> None:
    os.utime(source / "train" / "a" / "1.jpg", (1, 1))


def drop(source: Path) -> None:
    (source / "train" / "a" / "1.jpg").unlink()


@pytest.mark.parametrize(
    "change, message",
    [
        (add_class, r"2 new (such as train/c/1.jpg)"),
        (repair, r"1 changed (such as train/a/0.jpg)"),
        (touch, r"1 changed (such as train/a/1.jpg)"),
        (drop, r"1 gone"),
        (lambda source: shutil.rmtree(source / "val" / "b"), "1 only in train (such as b)"),
    ],
)
def test_a_folder_that_changed_is_noticed_and_can_be_packed_anew(
    change, message, prepare, tmp_path
):
    source = write_folder(tmp_path / "src", FILES | {"train/a/0.jpg": b"broken"})
    assert prepare("src", "--out", "out")[0] == 0
    assert prepare("src", "--out", "out") == (0, "out is already complete\n")
    change(source)
    code, said = prepare("src", "--out", "out")
    assert code == 2 and message in said and "Remove out to pack it again, or" in said


def test_an_archive_that_changed_is_noticed_and_one_that_is_gone_is_not_missed(prepare, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path, content in FILES.items():
            archive.writestr(path, content)
    assert prepare("a.zip", "--out", "out")[0] == 0
    assert prepare("a.zip", "--out", "out") == (0, "out is already complete\n")
    os.utime(tmp_path / "a.zip", (1, 1))
    code, said = prepare("a.zip", "--out", "out")
    assert code == 2 and "a.zip has changed. Remove out to pack it again" in said
    (tmp_path / "a.zip").unlink()
    code, said = prepare("a.zip", "--out", "out")
    assert code == 0 and "a.zip no longer exists, so it was not compared" in said


def test_a_pack_of_before_stays_complete_which_is_said(prepare, tmp_path):
    source = write_folder(tmp_path / "src", FILES)
    assert prepare("src", "--out", "out")[0] == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    for kept in (report, report["train"], report["val"]):
        kept.pop("source_files", None)
        kept.pop("source", None)
    (tmp_path / "out" / "report.json").write_text(json.dumps(report))
    repair(source)
    code, said = prepare("src", "--out", "out")
    assert code == 0 and "out is already complete; it was packed before file sizes" in said


def test_a_class_of_pointers_is_named_and_packs_once_it_is_pulled(prepare, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "COMMIT_EVERY_S", 0.0)
    pointers = {f"train/a/{k}.jpg": POINTER for k in range(3)}
    write_folder(tmp_path / "src", FILES | pointers)
    for _ in range(2):
        code, said = prepare("src", "--out", "out")
        assert code == 2 and "class a has no image that can be decoded (a/0.jpg: a git-lfs" in said
        assert "`git lfs pull` gets it" in said
    write_folder(tmp_path / "src", {path: FILES[path] for path in pointers})
    code, said = prepare("src", "--out", "out")
    assert code == 0, said
    assert "packing it again: files that were packed already have changed since" in said
    assert len(PackedImages(tmp_path / "out" / "train.pack")) == 6


def test_an_interrupted_pack_goes_on_unless_what_it_dealt_with_changed(
    prepare, tmp_path, monkeypatch
):
    source = write_folder(tmp_path / "src", FILES | {"train/a/0.jpg": b"broken"})
    monkeypatch.setattr(writer, "COMMIT_EVERY_S", 0.0)
    monkeypatch.setattr(encode, "CHUNK", 2)
    real = writer.PackWriter.append

    def append_two(self: writer.PackWriter, chunk: writer.Chunk) -> None:
        real(self, chunk)
        if self.num_done == 2:
            raise KeyboardInterrupt

    for change, says in ((None, "resuming at image 2"), (repair, "packing it again: files that")):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        with monkeypatch.context() as patched:
            patched.setattr(writer.PackWriter, "append", append_two)
            assert prepare("src", "--out", "out")[0] == 75
        if change:
            change(source)
        code, said = prepare("src", "--out", "out")
        assert code == 0 and says in said
        assert ("1 images cannot be decoded" in said) == (change is None)


def test_a_split_that_was_finished_is_packed_anew_if_its_files_changed(prepare, tmp_path):
    source = write_folder(tmp_path / "src", FILES)
    assert prepare("src", "--out", "out")[0] == 0
    (tmp_path / "out" / "val.pack").unlink()
    drop(source)
    code, said = prepare("src", "--out", "out")
    assert code == 0 and "train: packing it again: its files have changed since" in said
    assert len(PackedImages(tmp_path / "out" / "train.pack")) == 5


def test_a_split_that_was_finished_is_packed_anew_with_other_settings(
    prepare, tmp_path, monkeypatch
):
    write_folder(tmp_path / "src", FILES)
    real, finished = writer.PackWriter.append, tmp_path / "out" / "train.pack"

    def append_train(self: writer.PackWriter, chunk: writer.Chunk) -> None:
        real(self, chunk)
        if finished.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(writer.PackWriter, "append", append_train)
        assert prepare("src", "--out", "out", "--quality=90")[0] == 75
    assert finished.exists()
    code, said = prepare("src", "--out", "out", "--quality=80")
    assert code == 0 and "train: packing it again: the settings have changed since" in said
    assert PackedImages(finished).settings["quality"] == 80


def test_huge_sets_keep_no_marks_and_are_noticed_all_the_same(prepare, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "MOST_MARKS", 5)
    source = write_folder(tmp_path / "src", FILES)
    assert prepare("src", "--out", "out")[0] == 0
    repair(source)
    code, said = prepare("src", "--out", "out")
    assert code == 2 and "has changed since it was packed: 12 files then, 12 now, or" in said


def test_a_refused_archive_leaves_nothing_behind(prepare, tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar_bytes({"x.jpg": b"x"})))
    code, said = prepare("a.tar.gz", "--out", "out")
    assert code == 2 and "no known layout" in said
    assert not (tmp_path / "out").exists()
