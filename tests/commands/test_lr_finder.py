"""lr_finder.py and train.py --max_lr auto, as users call them."""

import csv
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from support.commands import (
    AS_USERS_HAVE_IT,
    ONE_RANK,
    REPOSITORY,
    Result,
    finish,
    run,
    start,
    tiny_flags,
    train_words,
    wait_for,
)
from support.in_process import run_here
from support.runs import assert_same_end, status_of

import lr_finder
import prepare_data
from resnet50.training import lr_curve

FINDER = [sys.executable, REPOSITORY / "lr_finder.py", "--recipe=tiny", "--amp=fp32"]
PICTURES = ("full_range.png", "high_range.png", "mid_range.png")


def test_the_last_line_the_files_and_the_pictures_tell_the_same(image_folder, tmp_path):
    flags = ["--start_lr=1e-4", "--end-lr=10", "--num_iter=40", "--out=out", "--json=line.json"]
    result = run([*FINDER, f"--data_dir={image_folder}", *flags], tmp_path)
    assert result.code == 0, result.err
    line = result.out.splitlines()[-1]
    values = json.loads(line)
    assert (tmp_path / "line.json").read_text() == line + "\n"
    stored = json.loads((tmp_path / "out" / "result.json").read_text())
    assert values == {name: stored[name] for name in ("max_lr", "suggestions")}
    assert values["max_lr"] == values["suggestions"]["recommended"]
    assert f"recommended: --max_lr {values['max_lr']:g} (pictures in out)" in result.out
    assert (stored["start_lr"], stored["end_lr"], stored["num_iter"]) == (1e-4, 10, 40)
    with open(tmp_path / "out" / "curve.csv") as file:
        rows = list(csv.DictReader(file))
    assert 20 <= len(rows) == stored["num_losses"] <= 40
    lrs, lost = ([float(row[name]) for row in rows] for name in ("lr", "loss"))
    assert lrs == pytest.approx(np.geomspace(1e-4, 10, 40)[: len(rows)], rel=1e-6)
    for name in PICTURES:
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.size == (1200, 700)
    ended_early = f"range test: ended after {len(rows)} steps: the loss exploded"
    assert (ended_early in result.out) == (len(rows) < 40)
    again = lr_curve.suggest(lrs, lost, 16)
    assert {**again.as_dict(), "warnings": 0} == {**values["suggestions"], "warnings": 0}


def interrupt(process, signum: int) -> Result:
    """Signal a command and its loaders, as a terminal does; it must end soon."""
    begin = time.monotonic()
    os.killpg(process.pid, signum)
    result = finish(process)
    assert time.monotonic() - begin < 20
    assert result.code == 75, result.err
    assert "Traceback" not in result.err
    return result


@pytest.mark.parametrize(
    "signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
def test_a_signal_ends_the_command_soon(image_folder, tmp_path, no_leftovers, signum):
    flags = ["--num_workers=2", "--start_lr=1e-9", "--end_lr=1e-8", "--num_iter=100000"]
    words = [*FINDER, f"--data_dir={image_folder}", f"--out={tmp_path / 'out'}", *flags]
    with open(tmp_path / "stdout", "w") as stdout:
        process = start(words, tmp_path, stdout=stdout)
    wait_for(lambda: "100000 steps from 1e-09" in (tmp_path / "stdout").read_text())
    time.sleep(0.5)  # in the middle of the steps
    result = interrupt(process, signum)
    assert result.err == "lr_finder.py: interrupted\n"
    assert not (tmp_path / "out").exists()


def test_max_lr_auto_is_found_once_and_the_run_is_one_of_that_rate(
    image_folder, tmp_path, no_leftovers
):
    """Interrupted in the range test, started again with the same command, and resumed."""
    run_dir, folder = tmp_path / "auto", tmp_path / "auto" / "lr_finder"
    sizes = ["--image_size=48", "--eval_resize_size=48", "--num_workers=2", "--epochs=2"]
    words = train_words(*tiny_flags(image_folder, run_dir), *sizes, "--max_lr=auto")
    process = start(words, tmp_path, **ONE_RANK, **AS_USERS_HAVE_IT)  # seconds to make the model
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_for(lambda: status_of(run_dir).get("state") == "running")
    wait_for(lambda: len(children.read_text().split()) == 2)  # the model is the next to be made
    time.sleep(0.5)
    result = interrupt(process, signal.SIGINT)
    assert "interrupted before the first step; the same command starts again" in result.out
    assert status_of(run_dir)["state"] == "interrupted"
    assert not folder.exists() and not (run_dir / "config.json").exists()

    result = run_here([*words, "--max_steps=4"], tmp_path)
    assert result.code == 0, result.err
    max_lr = json.loads((folder / "result.json").read_text())["max_lr"]
    event = f"--max_lr auto: {max_lr:g} ("
    assert event in result.out
    assert {path.name for path in folder.iterdir()} == {"result.json", "curve.csv", *PICTURES}
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    result = run_here([*words, "--max_steps=0"], tmp_path)
    assert result.code == 0 and "resuming at step 4" in result.out, result.err
    assert "range test" not in result.out and event not in result.out
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    settings = json.loads((run_dir / "config.json").read_text())["settings"]
    assert settings["max_lr"] == max_lr
    log = (run_dir / "log.jsonl").read_text()
    assert log.count(f'{{"kind": "event", "step": 0, "text": "{event}') == 1

    words = train_words(*tiny_flags(image_folder, tmp_path / "given"), *sizes, f"--max_lr={max_lr}")
    assert run_here(words, tmp_path).code == 0
    assert_same_end(run_dir, tmp_path / "given")


@pytest.mark.parametrize(
    "flags, texts",
    [
        (["--start_lr=1", "--end_lr=0.1"], ["--start_lr 1 must be", "below --end_lr 0.1"]),
        (["--start_lr=1", "--end_lr=1"], ["--start_lr 1 must be", "below --end_lr 1"]),
        (["--start_lr=0"], ["--start_lr 0 must be above 0"]),
        (["--end_lr=nan"], ["--end_lr nan"]),
        (["--end_lr=inf"], ["--end_lr inf"]),
        (["--num_iter=5"], ["--num_iter 5 is too few", "20 or more"]),
        (["--run_dir=runs/x"], ["--run_dir is for train.py", "give --out"]),
        (["--iterations=50"], ["unrecognized arguments: --iterations=50"]),
        (["--data_dir=/nowhere"], ["--data_dir /nowhere: no such folder"]),
        (["--total_batch_size=67", "--device_batch_size=67"], ["--total_batch_size 67", "66"]),
        (["--out=a_file"], ["--out a_file cannot be written: it is a file"]),
        (["--json=none/line.json"], ["--json none/line.json cannot be written"]),
        (["--data_dir=packed", "--image_size=64"], ["--image_size 64", "shrunk to 48 px"]),
    ],
)
def test_mistakes_get_one_clear_line(image_folder, tmp_path, monkeypatch, capsys, flags, texts):
    monkeypatch.chdir(tmp_path)
    never = SimpleNamespace(requested=False)
    monkeypatch.setattr(lr_finder, "Interruption", lambda: never)  # pytest keeps its own handlers
    (tmp_path / "a_file").touch()
    if "--data_dir=packed" in flags:
        words = [str(image_folder), "--out=packed", "--long_side=48"]
        assert prepare_data.main(words) == 0
        flags = [*flags, "--eval_resize_size=64"]
    capsys.readouterr()
    try:
        code = lr_finder.main(["--recipe=tiny", f"--data_dir={image_folder}", *flags])
    except SystemExit as ended:  # argparse's way
        code = ended.code
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if "error: " in line]
    assert code == 2 and len(errors) == 1 and all(text in errors[0] for text in texts), captured
    assert errors[0] == captured.err.splitlines()[-1] and not (tmp_path / "runs").exists()
