"""benchmarks/board.py: records as train.py writes them, records that contradict themselves."""

import copy
import json
import shutil
from pathlib import Path

import board
import pytest
from support.commands import tiny_flags
from support.in_process import be_rank

import train

PRICE = 1.5


@pytest.fixture(scope="module")
def ran(image_folder, tmp_path_factory) -> Path:
    """The folder of a run of three epochs that ended, after a stop in the second."""
    run_dir = tmp_path_factory.mktemp("ran") / "run"
    flags = [*tiny_flags(image_folder, run_dir), "--spot_watch=off", f"--price_per_hour={PRICE}"]
    with pytest.MonkeyPatch.context() as patch:
        be_rank(patch)
        for steps in (6, 0):
            assert train.main([*map(str, flags), f"--max_steps={steps}"]) == 0
    return run_dir


@pytest.fixture
def record(ran) -> dict:
    return json.loads((ran / "record.json").read_text())


def test_a_runs_record_is_accepted_and_its_weights_are_measured_again(ran, image_folder, capsys):
    assert board.main([str(ran), f"--data_dir={image_folder}"]) == 0
    assert "complete; its weights have " in capsys.readouterr().out
    assert board.main([str(ran / "record.json")]) == 0
    assert f"--data_dir DIR computes the top-1 of {ran / 'checkpoints' / 'best.pt'}" in (
        capsys.readouterr().out
    )


def test_a_record_has_neither_paths_nor_names_of_its_machine(ran, image_folder, record):
    text = (ran / "record.json").read_text()
    assert str(ran) not in text and str(image_folder) not in text
    assert [point["step"] for point in record["curve"]] == [4, 6, 8, 12]
    assert record["curve"][-1]["seconds"] <= record["seconds"]


def test_other_weights_are_noticed(ran, image_folder, tmp_path, record, capsys):
    run_dir = shutil.copytree(ran, tmp_path / "run")
    for point in record["curve"]:
        point["top1"] = point["top5"] = 100.0
    (run_dir / "record.json").write_text(json.dumps(record))
    assert board.main([str(run_dir), f"--data_dir={image_folder}"]) == 2
    assert "its best top-1 is 100.00%, but " in capsys.readouterr().err


def edit(record: dict, path: str, value: object) -> dict:
    """A copy with another value at a path such as curve.0.top1; None: without it."""
    record = copy.deepcopy(record)
    *way, last = path.split(".")
    at = record
    for name in way:
        at = at[int(name) if isinstance(at, list) else name]
    key = int(last) if isinstance(at, list) else last
    if value is None:
        del at[key]
    else:
        at[key] = value
    return record


@pytest.mark.parametrize(
    "path, value, text",
    [
        ("commit", None, "commit is null"),
        ("seconds", "fast", 'seconds is "fast"'),
        ("seconds", float("nan"), "seconds is NaN"),
        ("curve", [], "the curve has no point"),
        ("curve.0", 3, "point 1 of the curve has no epoch"),
        ("curve.1.top5", None, "point 2 of the curve has no top5"),
        ("curve.1.step", 4.5, "point 2 of the curve has no step"),
        ("steps_per_epoch", 0, "steps_per_epoch is 0"),
        ("host.ranks", True, "host has no ranks"),
        ("curve.3.step", 10**15, "but --epochs 3 end before"),
        ("data.val", None, "data has no num_images of val"),
        ("host.cores", None, "host has no cores"),
        ("format", 2, "its format is 2, and this clone reads 1: git pull"),
        ("settings.epochs", 1, "but --epochs 1 end before"),
        ("settings.epochs", "two", "its settings are not those of a run"),
        ("settings.new_trick", 1, "unknown settings new_trick"),
        ("settings.total_batch_size", 8, "steps per epoch, but its data and batch make"),
        ("curve.1.seconds", 0.001, "seconds 0.001 of the curve comes after"),
        ("curve.1.step", 1, "step 1 of the curve comes after 4"),
        ("curve.0.top1", 50.0, "50% at step 4 of the curve is 10.500 of 21 images"),
        ("curve.0.top5", 0.0, "and top-5 0%"),
        ("seconds", 0.0, "0 s in all, but the curve ends at"),
        ("cost_usd", 0.01, "$0.01 after"),
        ("price_per_hour", 0.1, "which at $0.1 an hour are"),
        ("ended", "2099-01-01T00:00:00+00:00", "still to come"),
        ("ended", "yesterday", "not a time with its zone"),
    ],
)
def test_what_does_not_fit_is_said(record, tmp_path, capsys, path, value, text):
    (tmp_path / "record.json").write_text(json.dumps(edit(record, path, value)))
    assert board.main([str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert f"board.py: error: {tmp_path / 'record.json'} does not fit:" in err and text in err, err


def test_a_clock_that_is_too_fast_for_the_model(record):
    record["settings"] |= {"layers": [3, 4, 6, 3], "width": 64}
    scale = 1e-3 / record["seconds"]
    for part in (record, *record["curve"]):
        part["seconds"] *= scale
        part["cost_usd"] = part["seconds"] / 3600 * PRICE
    assert "times as fast as this machine can be" in " ".join(board.problems(record))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": []}'])
def test_what_is_no_record_is_named(tmp_path, capsys, text):
    (tmp_path / "mine.json").write_text(text)
    assert board.main([str(tmp_path / "mine.json")]) == 2
    assert f"board.py: error: {tmp_path / 'mine.json'}" in capsys.readouterr().err


def test_the_tables_have_ours_and_published_figures(record):
    """A run that reached a goal on the goal's data and machine stands in its table."""
    record["data"]["val"] |= {"num_images": 10_000, "num_classes": 10}
    record["host"]["cores"] = 2
    for point, top1 in zip(record["curve"], (10.0, 87.99, 88.5, 89.0), strict=True):
        point["top1"] = top1
    lines = board.table(board.FASHION, {"mine": record})
    assert "| mine: tiny, 88.50% | 2 cores" in lines[4]
    assert board.table(board.FASHION, {"mine": edit(record, "host.cores", 4)})[2] == "no run yet"
    published = board.table(board.IMAGENET, {})
    assert any("8x H200 SXM" in line and "| 1.60 |" in line for line in published)
    dollars = [line.split("|")[5].strip() for line in published[4:-1]]
    known = [float(text[1:].split()[0]) for text in dollars if text != "-"]
    assert known == sorted(known) and dollars[len(known) :] == ["-"] * (len(dollars) - len(known))
