"""The commands as users type them: defaults, outputs, and one clear message for every mistake."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.commands import (
    ONE_RANK,
    REPOSITORY,
    WITH_CURVES,
    Result,
    finish,
    run,
    start,
    tiny_flags,
    torchrun_words,
    train_words,
    wait_for,
)
from support.in_process import run_here
from support.needs import needs_root
from support.pictures import make_folder
from support.runs import newest_checkpoint, status_of, steps_logged

from model import ResNet
from resnet50.records import checkpoint

TINY = ["--layers=1,1,1,1", "--width=8", "--image_size=32", "--total_batch_size=16", "--amp=fp32"]


@pytest.fixture(scope="module")
def done(image_folder, tmp_path_factory) -> Path:
    """The run folder of a finished run."""
    run_dir = tmp_path_factory.mktemp("done") / "run"
    words = train_words(*tiny_flags(image_folder, run_dir), "--price_per_hour=1")
    result = run(words, run_dir.parent, **ONE_RANK, **WITH_CURVES)
    assert result.code == 0, result.err
    return run_dir


def assert_refused(result: Result, *texts: str) -> None:
    """The command ended with one line that has all the texts, and no traceback."""
    assert result.code == 2, result.out + result.err
    assert "Traceback" not in result.err
    lines = [line for line in result.err.splitlines() if "error: " in line]
    assert len(lines) == 1 and all(text in lines[0] for text in texts), result.err


def test_the_run_folder_has_what_it_promises(done):
    names = {path.name for path in done.iterdir()}
    assert names >= {
        "config.json",
        "status.json",
        "log.jsonl",
        "metrics.csv",
        "metrics.md",
        "curves.png",
        "checkpoints",
    }
    record = json.loads((done / "config.json").read_text())
    assert record["settings"]["epochs"] == 3 and record["settings"]["device_batch_size"] == 8
    assert {"command_line", "commit", "versions", "gpus"} <= record.keys()
    with open(done / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "epoch",
        "step",
        "seconds",
        "lr",
        "train_loss",
        "train_top1",
        "train_top5",
        "val_loss",
        "val_top1",
        "val_top5",
        "images_per_s",
        "data_wait_pct",
        "cost_usd",
    ]
    assert [row["epoch"] for row in rows] == ["1.0", "2.0", "3.0"]
    assert all(0 <= float(row["val_top1"]) <= float(row["val_top5"]) <= 100 for row in rows)
    assert float(rows[-1]["cost_usd"]) == pytest.approx(float(rows[-1]["seconds"]) / 3600, abs=1e-4)
    table = (done / "metrics.md").read_text().splitlines()
    assert len(table) == 2 + 3 and table[0].startswith("| epoch | minutes |")
    with Image.open(done / "curves.png") as picture:
        assert picture.size == (1300, 700)
    checkpoints = sorted(path.name for path in (done / "checkpoints").iterdir())
    assert checkpoints[0] == "best.pt" and checkpoints[-1] == "step_000000012.pt"
    assert len(checkpoints) == 1 + 3


def test_best_is_the_first_of_the_highest(done):
    state = torch.load(done / "checkpoints" / "best.pt", weights_only=True)
    rows = torch.load(newest_checkpoint(done), weights_only=True)["rows"]
    best = max(rows, key=lambda row: row["val_top1"])
    assert state["step"] == best["step"] == state["best"]["step"]
    assert status_of(done)["best_top1"] == best["val_top1"]


def test_evaluate_repeats_the_figures_of_the_run_on_any_number_of_ranks(
    done, image_folder, tmp_path
):
    last = torch.load(newest_checkpoint(done), weights_only=True)["rows"][-1]
    flags = [f"--data_dir={image_folder}", f"--weights={newest_checkpoint(done)}"]
    results = []
    for num_ranks in (1, 2):  # 3 batches
        path = tmp_path / f"{num_ranks}.json"
        words = [*flags, f"--json={path}", "--num_workers=0"]
        result = (
            run_here([sys.executable, REPOSITORY / "evaluate.py", *words], tmp_path)
            if num_ranks == 1
            else run(torchrun_words(num_ranks, "evaluate.py", *words), tmp_path)
        )
        assert result.code == 0, result.err
        results.append(json.loads(path.read_text()))
        assert json.loads(result.out) == results[-1]
    assert results[0] == results[1]
    assert results[0]["num_images"] == 21 and results[0]["kind"] == "EMA"
    for name in ("loss", "top1", "top5"):
        assert results[0][name] == last[f"val_{name}"]


def test_evaluate_takes_bare_weights_and_other_splits(image_folder, tmp_path):
    torch.save(ResNet((1, 1, 1, 1), 8, 3).state_dict(), tmp_path / "weights.pt")
    flags = [f"--data_dir={image_folder}", f"--weights={tmp_path / 'weights.pt'}"]
    words = [sys.executable, REPOSITORY / "evaluate.py", *flags, "--split=train", "--image-size=40"]
    result = run_here(words, tmp_path)
    assert result.code == 0, result.err
    values = json.loads(result.out)
    assert (values["num_images"], values["image_size"], values["resize_size"]) == (66, 40, 46)
    torch.save(ResNet((1, 1, 1, 1), 8, 4).state_dict(), tmp_path / "weights.pt")
    result = run_here(words, tmp_path)
    assert_refused(result, "knows 4 classes", "has 3", "give the data it was trained on")


def test_no_arguments_start_the_default_and_resume_it(tmp_path):
    """In a clone with data under ./data. No step is taken: one needs a GPU's memory."""
    make_folder(tmp_path / "data", 90, 1)  # a batch of 256 must fit
    run_dir = tmp_path / "runs" / "onecycle50"
    attempts = []
    for words in (train_words(), torchrun_words(1, "train.py")):
        process = start(words, tmp_path)
        wait_for(lambda: status_of(run_dir).get("attempt") not in [None, *attempts])
        attempts.append(status_of(run_dir)["attempt"])
        process.terminate()
        result = finish(process)
        assert "trying 256 images of 224 px" in result.out  # of --device_batch_size auto
        assert "interrupted before the first step; the same command starts again" in result.out
        assert status_of(run_dir)["state"] == "interrupted"
        assert result.code == (75 if len(attempts) == 1 else 1)  # torchrun knows no other code
    settings = json.loads(run_here(train_words("--print_config"), tmp_path).out)
    assert (settings["recipe"], settings["epochs"]) == ("onecycle50", 50)


def test_no_arguments_resume_the_newest_unfinished_run(image_folder, tmp_path, monkeypatch):
    for name in ("older", "newer"):
        flags = tiny_flags(image_folder, Path("runs") / name)
        process = start(train_words(*flags, "--epochs=5000"), tmp_path, **ONE_RANK)
        wait_for(lambda name=name: len(steps_logged(tmp_path / "runs" / name)) >= 2)
        process.terminate()
        assert finish(process).code == 75
    process = start(train_words(), tmp_path)
    wait_for(lambda: status_of(tmp_path / "runs" / "newer")["state"] == "running")
    wait_for(lambda: "resuming" in (tmp_path / "runs" / "newer" / "log.jsonl").read_text())
    process.terminate()
    result = finish(process)
    assert result.code == 75 and "run folder runs/newer" in result.out
    assert not (tmp_path / "runs" / "onecycle50").exists()


def test_print_config_shows_flags_over_recipe_over_defaults(image_folder, tmp_path):
    words = train_words(
        "--recipe=tiny", f"--data_dir={image_folder}", "--max-lr=3", "--print_config"
    )
    values = json.loads(run_here(words, tmp_path).out)
    assert (values["max_lr"], values["width"], values["momentum"]) == (3.0, 8, 0.9)
    assert not (tmp_path / "runs").exists()
    values = json.loads(run_here(train_words("--print_config"), tmp_path).out)  # needs no data
    assert (values["recipe"], values["run_dir"]) == ("onecycle50", "runs/onecycle50")


@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "prepare_data.py", "bench.py"])
def test_help_shows_commands_to_copy(script, tmp_path):
    result = run_here([sys.executable, REPOSITORY / script, "--help"], tmp_path)
    assert result.code == 0 and f"    python {script} " in result.out


@pytest.mark.parametrize(
    "flags, texts",
    [
        (["--data_dir=/nowhere"], ["--data_dir /nowhere: no such folder"]),
        (["--recipe=fast"], ["invalid choice: 'fast'"]),
        (["--epoch=3"], ["unrecognized arguments: --epoch=3"]),
        (
            ["--run_dir=new", "--total_batch_size=100", "--device_batch_size=64"],
            ["--total_batch_size 100", "use a multiple, such as 128"],
        ),
        (
            ["--total_batch_size=64"],
            ["cannot be resumed with different settings", "(the run has 16)"],
        ),
        (
            ["--max_lr=9", "--epochs=7"],
            ["--max_lr 9.0 (the run has 0.05), --epochs 7 (the run has 3)"],
        ),
        (["--fresh"], ["--fresh: there is a run in", "--overwrite to delete it"]),
        ([f"--run_dir={REPOSITORY / 'README.md'}"], ["README.md is a file: give a new folder"]),
    ],
)
def test_mistakes_are_met_before_anything_starts(done, image_folder, tmp_path, flags, texts):
    before = (done / "status.json").read_bytes()
    data = [] if any("data_dir" in flag for flag in flags) else [f"--data_dir={image_folder}"]
    words = train_words(*data, f"--run_dir={done}", *flags)
    assert_refused(run_here(words, tmp_path, as_rank=False), *texts)
    assert not (tmp_path / "new").exists()
    assert (done / "status.json").read_bytes() == before


def test_class_mismatch_and_tiny_data_are_refused_by_the_supervised_run(image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "data")
    (tmp_path / "data" / "val" / "cat").rename(tmp_path / "data" / "val" / "dog")
    words = train_words("--recipe=tiny", f"--data_dir={tmp_path / 'data'}")
    assert_refused(run(words, tmp_path), "the splits' classes differ: 1 only in", "such as cat")
    assert status_of(tmp_path / "runs" / "tiny")["state"] == "config error"
    (tmp_path / "data" / "val" / "dog").rename(tmp_path / "data" / "val" / "cat")
    words += ["--epochs=1", "--amp=fp32"]  # the refused start has left no settings behind
    assert run_here(words, tmp_path).code == 0


def test_other_data_schedules_and_files_are_refused_and_the_run_stands(
    done, image_folder, tmp_path
):
    run_dir = tmp_path / "run"
    shutil.copytree(done, run_dir)
    shutil.copytree(image_folder, tmp_path / "data")
    (tmp_path / "data" / "train" / "ant" / "000.jpg").unlink()
    words = train_words(f"--run_dir={run_dir}", "--max_steps=13")
    more = f"--data_dir={tmp_path / 'data'}"
    result = run_here([*words, more], tmp_path)
    assert_refused(result, "is not the data of the run in", "has 65 images")
    changed = [
        "--epochs 9 (the run has 3)",
        "At step 12 the learning rate would jump from 0 to 0.0",
    ]
    changed.append(f"--init_from {run_dir}/checkpoints/best.pt --run_dir NEW")
    assert_refused(run_here([*words, "--epochs=9"], tmp_path), *changed)
    assert_refused(run([*words[:-1], "--epochs=9"], tmp_path), *changed)  # nor by the supervisor
    record = json.loads((run_dir / "config.json").read_text())
    record["settings"] |= {"epochs": 9, "max_lr": 0.2, "data_dir": str(image_folder)}
    (run_dir / "config.json").write_text(json.dumps(record))
    result = run_here(words, tmp_path)
    assert_refused(result, "another schedule (max_lr 0.05 -> 0.2,", "epochs 3 -> 9)")
    assert newest_checkpoint(run_dir).read_bytes() == newest_checkpoint(done).read_bytes()
    shutil.copy(done / "config.json", run_dir / "config.json")
    for path in (run_dir / "checkpoints").glob("step_*.pt"):
        path.write_bytes(b"something else")
    result = run_here(words, tmp_path)
    assert_refused(result, "no checkpoint in", "step_000000012.pt is damaged")
    assert len(list((run_dir / "checkpoints").glob("step_*.pt"))) == 3


def test_fresh_with_overwrite_replaces_the_run_and_nothing_else(done, image_folder, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(done, run_dir)
    (run_dir / "notes.txt").write_text("mine")
    flags = [*tiny_flags(image_folder, run_dir), "--epochs=1", "--fresh", "--overwrite"]
    result = run(train_words(*flags), tmp_path)
    assert result.code == 0, result.err
    assert status_of(run_dir)["step"] == 4 and (run_dir / "notes.txt").exists()
    assert len((run_dir / "metrics.csv").read_text().splitlines()) == 2


def test_divergence_stops_all_ranks_with_3_and_keeps_the_good_checkpoint(image_folder, tmp_path):
    run_dir = tmp_path / "run"
    flags = [*tiny_flags(image_folder, run_dir), "--num_workers=1"]
    assert run_here(train_words(*flags, "--max_steps=3"), tmp_path).code == 0
    good = newest_checkpoint(run_dir)
    state = torch.load(good, weights_only=True)
    state["optimizer"]["param_groups"][0]["weight_decay"] = 1e30  # the next step explodes
    checkpoint.save(good.parent, 3, state)
    before = good.read_bytes()
    words = torchrun_words(2, "train.py", *flags, "--max_steps=0")
    result = run(words, tmp_path)
    assert "error: the loss is not finite at or before step" in result.out
    assert status_of(run_dir)["state"] == "diverged" and status_of(run_dir)["step"] <= 5
    assert newest_checkpoint(run_dir).read_bytes() == before
    assert run(train_words(*flags, "--max_steps=0"), tmp_path).code == 3  # nor is it restarted


def test_too_many_bad_images_stop_the_run_and_few_do_not(tmp_path):
    root = make_folder(tmp_path / "data", 12, 3)
    for i in (1, 5, 9):
        (root / "train" / "bee" / f"{i:03d}.jpg").write_bytes(b"\xff\xd8 broken")
    flags = tiny_flags(root, tmp_path / "few")
    result = run_here(train_words(*flags, "--epochs=2"), tmp_path)
    assert result.code == 0, result.err
    assert result.out.count("warning: cannot be decoded, replaced: ") == 3
    events = (tmp_path / "few" / "log.jsonl").read_text()
    assert all(f"train/bee/{i:03d}.jpg" in events for i in (1, 5, 9))
    flags = [*tiny_flags(root, tmp_path / "many"), "--max_bad_images=2"]
    result = run_here(train_words(*flags), tmp_path)
    assert (
        result.code == 2
        and "3 images cannot be decoded, more than --max_bad_images 2" in result.out
    )
    assert status_of(tmp_path / "many")["state"] == "config error"


@needs_root
def test_a_full_disk_costs_checkpoints_and_not_the_run(image_folder, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=True)
    try:
        flags = [*tiny_flags(image_folder, disk / "run"), "--epochs=4000", "--save_every_steps=40"]
        with open(tmp_path / "out", "w") as out:
            words = train_words(*flags, "--log_every_steps=20")
            process = start(words, tmp_path, stdout=out, **ONE_RANK)
        checkpoints = disk / "run" / "checkpoints"
        wait_for(lambda: len(list(checkpoints.glob("step_*.pt"))) >= 2)
        ballast = disk / "ballast"
        with pytest.raises(OSError, match="No space left"), open(ballast, "wb") as file:
            while True:
                os.write(file.fileno(), b"x" * 65536)
        kept = newest_checkpoint(disk / "run")
        wait_for(lambda: "warning: no checkpoint of step" in (tmp_path / "out").read_text())
        ballast.unlink()
        wait_for(lambda: newest_checkpoint(disk / "run") > kept)
        process.terminate()
        assert finish(process).code == 75
        assert status_of(disk / "run")["state"] == "interrupted"
    finally:
        process.kill()
        process.wait()
        subprocess.run(["umount", disk], check=True)
