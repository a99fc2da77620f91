"""Wrong folders and files for every command that writes: refused before anything is computed, and
nothing that was there is changed. Run folders: tests/run/test_folders.py."""

import os
from pathlib import Path

import pytest
from support.in_process import tree

import bench
import lr_finder
import prepare_data
import train
from resnet50.data.splits import open_pictures

THEIRS = {
    "a file": {"out": "mine"},
    "curve": {"out/curve.csv": "mine"},
    "result": {"out/result.json": '{"accuracy": 70}'},
    "a report": {"out/report.json": '{"request": "mine"}', "out/mine": ""},
    "half a report": {"out/report.json": '{"request": {}}', "out/mine": ""},
    "a list": {"out/report.json": "[1]", "out/mine": ""},
    "another report": {"out/report.json": '{"accuracy": 70}', "out/mine": ""},
}


def write(folder: Path, names: dict[str, str]) -> None:
    for name, text in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize(
    "command, kind, words",
    [
        (lr_finder, "a file", ["--out=out"]),
        (lr_finder, "a file", ["--out=out/below"]),
        (lr_finder, "curve", ["--out=out"]),
        (lr_finder, "result", ["--out=out"]),
        (lr_finder, "result", ["--out=new", "--json=out"]),
        (lr_finder, "result", ["--out=new", "--json=none/line.json"]),
        (bench, "result", ["--json=out"]),
        (bench, "result", ["--json=none/bench.json"]),
        (bench, "a file", ["--json=out/bench.json"]),
        (prepare_data, "a file", ["source", "--out=out"]),
        (prepare_data, "a report", ["source", "--out=out"]),
        (prepare_data, "half a report", ["source", "--out=out"]),
        (prepare_data, "a list", ["source", "--out=out"]),
        (prepare_data, "another report", ["source", "--out=out"]),
        (train, "a file", ["--run_dir=out"]),
        (train, "a file", ["--run_dir=out/below"]),
    ],
)
def test_refused_and_unchanged(in_process, image_folder, tmp_path, command, kind, words):
    write(tmp_path, THEIRS[kind])
    if command is prepare_data:
        (tmp_path / "source").symlink_to(image_folder)
    else:
        words = [*words, f"--data_dir={image_folder}", "--recipe=tiny"]
    in_process.monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    result = in_process(command, *words)
    assert result.code == 2, result.out + result.err
    assert result.err.count("error: ") == 1 and "Traceback" not in result.err
    assert tree(tmp_path) == before


def test_pictures_are_a_file_a_folder_or_links_to_them(tmp_path):
    write(tmp_path, dict.fromkeys(["a/1.jpg", "b/2.png", "b/notes.txt", "far/3.jpg"], ""))
    top = tmp_path / "top"
    top.mkdir()
    (top / "link").symlink_to(tmp_path / "a")
    (top / "again").symlink_to(tmp_path / "a")
    (top / "back").symlink_to(top)
    (top / "4.jpg").symlink_to(tmp_path / "far" / "3.jpg")

    def names(path: Path) -> list[str]:
        return [os.fsdecode(name) for name in open_pictures(path).paths]

    assert names(tmp_path / "a" / "1.jpg") == ["1.jpg"]
    assert open_pictures(tmp_path / "a" / "1.jpg").name(0) == str(tmp_path / "a" / "1.jpg")
    # Of two links to one folder either may be the one that is followed.
    assert names(top) in (["4.jpg", "again/1.jpg"], ["4.jpg", "link/1.jpg"])
    assert names(tmp_path / "b") == ["2.png"]
    with pytest.raises(ValueError, match="is not a picture: "):
        open_pictures(tmp_path / "b" / "notes.txt")
    with pytest.raises(ValueError, match="no such file or folder"):
        open_pictures(tmp_path / "none")
