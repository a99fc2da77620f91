"""Data sets in parquet files, as Hugging Face exports them, become class folders."""

import importlib
import json
from pathlib import Path

import pytest
from support.data_sources import WNIDS, jpeg, val_name
from support.needs import package

from resnet50.packing import parquet, sources

Row = tuple[bytes | None, str | None, int]
NAMES = ("tench, Tinca tinca", "T-shirt/top", "shark")


def write(path: Path, rows: list[Row], names: tuple[str, ...] = ()) -> None:
    """A file of the columns image and label, with the metadata that `datasets` writes."""
    arrow, writer = package("pyarrow"), package("pyarrow.parquet")
    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    images = arrow.array([{"bytes": data, "path": name} for data, name, _ in rows], kind)
    labels = arrow.array([label for *_, label in rows], arrow.int64())
    table = arrow.table({"image": images, "label": labels})
    if names:
        label = {"names": list(names), "_type": "ClassLabel"}
        features = {"image": {"_type": "Image"}, "label": label}
        text = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": text})
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_table(table, path)


def written(out: Path) -> dict[str, bytes]:
    files = (path for path in out.rglob("*") if path.is_file() and path.name[0] != ".")
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def test_imagenets_parquet_files_become_folders_of_wnids(tmp_path, capsys):
    place, out = tmp_path / "a" / "data", tmp_path / "out"
    for i in range(2):
        rows = [(jpeg(i + k), f"{w}_{i}{k}_{w}.JPEG", k) for k, w in enumerate(WNIDS)]
        write(place / f"train-0000{i}-of-00002.parquet", rows, NAMES)
    # The labels mean the same in files whose names do not tell the class.
    val = [(jpeg(9), val_name(w), k) for k, w in enumerate(WNIDS)]
    write(place / "validation-00000-of-00001.parquet", val, NAMES)
    write(place / "test-00000-of-00001.parquet", [(jpeg(8), "x.JPEG", -1)], NAMES)
    assert parquet.main([str(place.parent), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "6 pictures of 3 classes" in said and "1 rows have no label" in said
    assert f"next: python prepare_data.py {out} --out" in said
    files = written(out)
    assert files == {
        f"train/{w}/{w}_{i}{k}_{w}.JPEG": jpeg(i + k) for i in range(2) for k, w in enumerate(WNIDS)
    } | {f"val/{w}/{val_name(w)}": jpeg(9) for w in WNIDS}
    found = sources.recognize(out, tmp_path)
    assert (found.layout, found.classes) == ("image-folder", WNIDS)


def test_labels_have_the_names_of_the_metadata_or_their_numbers(tmp_path, capsys):
    rows = [(jpeg(k), None, k % 2) for k in range(4)]
    write(tmp_path / "a" / "default" / "train" / "0000.parquet", rows, NAMES)
    write(tmp_path / "a" / "default" / "test" / "0000.parquet", rows, NAMES)
    assert parquet.main([str(tmp_path / "a"), "--out", str(tmp_path / "x")]) == 0
    assert "--train_dir train --val_dir test --out" in capsys.readouterr().out
    classes = {name.rpartition("/")[0] for name in written(tmp_path / "x")}
    assert classes == {f"{s}/{c}" for s in ("train", "test") for c in (NAMES[0], "T-shirt-top")}
    write(tmp_path / "b" / "train.parquet", [(jpeg(k), "same.jpg", k) for k in (0, 0, 10)])
    assert parquet.main([str(tmp_path / "b"), "--out", str(tmp_path / "y")]) == 0
    names = sorted(written(tmp_path / "y"))
    repeated = [f"train/00/b_train_00000{row}_same.jpg" for row in (0, 1)]
    assert names == [*repeated, "train/10/same.jpg"]


def test_two_labels_never_share_a_folder(tmp_path, capsys):
    names = ("crane", "x/y", "x-y", "crane")
    rows = [(jpeg(k), None, k) for k in range(4)]
    write(tmp_path / "a" / "train.parquet", rows, names)
    assert parquet.main([str(tmp_path / "a"), "--out", str(tmp_path / "x")]) == 0
    folders = {name.split("/")[1] for name in written(tmp_path / "x")}
    assert folders == {"crane_0", "x-y_1", "x-y_2", "crane_3"}
    write(tmp_path / "b" / "train.parquet", [(jpeg(0), None, -2)], names)
    assert parquet.main([str(tmp_path / "b"), "--out", str(tmp_path / "y")]) == 2
    assert "row 0 has the label -2" in capsys.readouterr().err


def test_names_that_no_disk_takes_are_made_anew_or_refused(tmp_path, capsys):
    names = ["a\0b.jpg", "x" * 300 + ".jpg", "é" * 150, "fits.jpg"]
    write(tmp_path / "a" / "train.parquet", [(jpeg(k), n, 0) for k, n in enumerate(names)], NAMES)
    assert parquet.main([str(tmp_path / "a"), "--out", str(tmp_path / "x")]) == 0
    made = [f"train/{NAMES[0]}/a_train_00000{row}.jpg" for row in range(3)]
    assert sorted(written(tmp_path / "x")) == [*made, f"train/{NAMES[0]}/fits.jpg"]
    write(tmp_path / "b" / "train.parquet", [(jpeg(0), None, 0)], ("x" * 300, "b"))
    assert parquet.main([str(tmp_path / "b"), "--out", str(tmp_path / "y")]) == 2
    assert "'... is too long for a folder's name: shorten it" in capsys.readouterr().err


def test_larger_labels_that_come_later_do_not_split_a_class(tmp_path, capsys):
    words = [str(tmp_path / "a"), "--out", str(tmp_path / "out")]
    write(tmp_path / "a" / "train-0.parquet", [(jpeg(k), f"{k}.jpg", k) for k in range(3)])
    assert parquet.main(words) == 0
    before = written(tmp_path / "out")
    write(tmp_path / "a" / "train-1.parquet", [(jpeg(k), f"{k}.jpg", 10) for k in range(3, 5)])
    assert parquet.main(words) == 2
    assert "has folders for labels of 1 digits" in capsys.readouterr().err
    assert written(tmp_path / "out") == before


def test_a_file_that_was_replaced_does_not_mix_with_the_one_before(tmp_path, capsys):
    words = [str(tmp_path / "food.parquet"), "--out", str(tmp_path / "out")]
    write(tmp_path / "food.parquet", [(jpeg(k), "..", k) for k in range(2)])
    assert parquet.main(words) == 0
    before = written(tmp_path / "out")
    assert sorted(before) == [f"train/{k}/{tmp_path.name}_food_00000{k}.jpg" for k in range(2)]
    write(tmp_path / "food.parquet", [(jpeg(k), "a.jpg", 1) for k in range(3)])
    assert parquet.main(words) == 2
    assert "food.parquet has changed since" in capsys.readouterr().err
    assert written(tmp_path / "out") == before


@pytest.mark.parametrize(
    "column, values, message",
    [
        ("label", [[1, 2]], "its column label is list<"),
        ("label", [0.5], "its column label is double"),
        ("label", [True], "its column label is bool"),
        ("image", ["a.jpg"], "its column image is string, so it holds no pictures"),
    ],
)
def test_columns_of_other_kinds_are_named(column, values, message, tmp_path, capsys):
    arrow, writer = package("pyarrow"), package("pyarrow.parquet")
    columns = {"image": arrow.array([jpeg(0)]), "label": arrow.array([0])}
    columns[column] = arrow.array(values)
    writer.write_table(arrow.table(columns), tmp_path / "train.parquet")
    assert parquet.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_downloaded_later_takes_nobodys_name(tmp_path):
    """Its place is before the one that was written first."""
    for number in (1, 0):
        rows = [(jpeg(10 * number + row), None, row % 2) for row in range(4)]
        write(tmp_path / "a" / f"train-0000{number}-of-00002.parquet", rows, NAMES)
        assert parquet.main([str(tmp_path / "a"), "--out", str(tmp_path / "out")]) == 0
    expected = {jpeg(10 * number + row) for number in (0, 1) for row in range(4)}
    files = written(tmp_path / "out")
    assert len(files) == 8 and set(files.values()) == expected


def test_an_interruption_costs_one_file_and_a_whole_set_is_written_once(tmp_path, monkeypatch):
    for i in range(3):
        write(tmp_path / "a" / f"train-{i}.parquet", [(jpeg(i), f"{i}.jpg", 0)], NAMES)
    real, seen = parquet.write_table, []

    def interrupted(table: parquet.Table, *rest: object) -> None:
        seen.append(table.path.name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        real(table, *rest)

    monkeypatch.setattr(parquet, "write_table", interrupted)
    words = [str(tmp_path / "a"), "--out", str(tmp_path / "out")]
    assert [parquet.main(words) for _ in range(3)] == [75, 0, 0]
    assert seen == ["train-0.parquet", "train-1.parquet", "train-1.parquet", "train-2.parquet"]
    assert len(written(tmp_path / "out")) == 3


def test_mistakes_are_named(tmp_path, capsys):
    write(tmp_path / "a" / "0.parquet", [(jpeg(0), "0.jpg", 0)])
    write(tmp_path / "b" / "train.parquet", [(None, "0.jpg", 0)])
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "train.parquet").write_bytes(b"PAR1 cut")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    for source, out, message in (
        ("none", "out", "no such file or folder"),
        ("mine", "out", "no .parquet files in it"),
        ("a", "out", "neither its name nor its folder's says which split"),
        ("b", "out", "holds no picture, only its path"),
        ("c", "out2", "not a complete parquet file"),
        ("a", "mine", "mine holds other files (thesis.txt)"),
    ):
        assert parquet.main([str(tmp_path / source), "--out", str(tmp_path / out)]) == 2
        assert message in capsys.readouterr().err


def test_without_pyarrow_the_command_that_installs_it_is_named(tmp_path, capsys, monkeypatch):
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    assert parquet.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "pip install pyarrow" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
