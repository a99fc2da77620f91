"""The record of a run: rows, tables, and a log that survives kills and full disks."""

import csv
import json
import subprocess

import pytest
from support.logs import MEANS, add_row, fill, make_log
from support.needs import needs_root

from resnet50.records import metrics


def test_rows_become_tables_and_epochs_without_validation_stay_empty(tmp_path, capsys):
    log = make_log(tmp_path)
    fill(log, 1, 8)
    with open(tmp_path / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == metrics.COLUMNS
    assert [(row["step"], row["val_top1"]) for row in rows] == [("4", ""), ("8", "10.0")]
    assert rows[0]["images_per_s"] == "32.0" and rows[0]["data_wait_pct"] == "20.0"
    table = (tmp_path / "metrics.md").read_text().splitlines()
    assert table[2].endswith("| - | - | - |") and table[3].endswith("| 1.500 | 10.00 | 90.00 |")
    out = capsys.readouterr().out
    assert "epoch 1/3: train loss 1.500 top-1 40.00%, validation top-1 -%" in out
    assert "epoch 0.25/3 step 1/12 loss 1.500 lr 0.01 waiting 20% left 0:06 32 img/s" in out


def test_a_resume_drops_what_came_after_its_checkpoint_and_keeps_events(tmp_path):
    log = make_log(tmp_path)
    fill(log, 1, 6)
    log.event(6, "warning: something")
    rows = list(log.results.rows)
    fill(log, 7, 8)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"kind": "train", "st')  # cut by a kill
    again = make_log(tmp_path)
    again.results.rows = rows
    again.begin(5)
    fill(again, 6, 12)
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "train"] == list(range(1, 13))
    assert [r["text"] for r in records if r["kind"] == "event"] == ["warning: something"]
    assert [row["step"] for row in again.results.rows] == [4, 8, 12]


def test_best_is_the_earliest_of_the_highest(tmp_path):
    log = make_log(tmp_path)
    assert log.results.best is None
    for step, top1 in ((4, 20.0), (8, 30.0), (12, 30.0)):
        add_row(log, step, {**MEANS, "top1": top1})
    assert log.results.best["step"] == 8
    assert log.results.has_row(12) and not log.results.has_row(13)


def test_dollars_count_every_attempt(tmp_path):
    (tmp_path / "status.json").write_text('{"paid_s": 7200.0}')
    log = make_log(tmp_path, price_per_hour=1.5)
    assert log.cost_usd == pytest.approx(3.0, abs=0.01)
    log.write_status("running", 4)
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["cost_usd"] == pytest.approx(3.0, abs=0.01) and status["attempt"] == "a1"


def test_other_ranks_keep_the_rows_and_write_nothing(tmp_path, capsys):
    log = make_log(tmp_path, is_main=False)
    fill(log, 1, 8)
    log.close("done", 8)
    assert (
        len(log.results.rows) == 2 and not list(tmp_path.iterdir()) and not capsys.readouterr().out
    )


@needs_root
def test_a_full_disk_costs_lines_and_is_said(tmp_path, capsys):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=True)
    try:
        log = make_log(tmp_path)
        (tmp_path / "ballast").write_bytes(b"x" * 60_000)
        for _ in range(30):
            fill(log, 1, 8)
        log.close("done", 8)
        assert "No space left on device: skipping this record" in capsys.readouterr().out
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("max_minutes, left", [(0.0, "left 9:20 "), (2.0, "left 2:00 ")])
def test_the_time_left_knows_growing_images_and_the_minutes(tmp_path, capsys, max_minutes, left):
    """At one image a second: 48 of this epoch, and 64 of four times the area in each of two."""
    sizes = {"start_image_size": 32, "image_size": 64, "grow_end_epoch": 1.0}
    log = make_log(tmp_path, max_minutes=max_minutes, clock=lambda: 7.0, **sizes)
    log.step_done(1, 16.0, 0.0)
    log.train_record(1, 0.1, MEANS)
    out = capsys.readouterr().out
    assert left in out and "epoch 0.25/3 32 px step 1/12" in out
