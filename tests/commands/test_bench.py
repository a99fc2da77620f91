"""bench.py: figures that agree with each other, plain arithmetic, no traces but --json."""

import itertools
import json
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.commands import REPOSITORY, finish, run, start, wait_for
from support.in_process import run_here

import bench
from resnet50.config.recipes import RECIPES
from resnet50.config.train_config import TrainConfig
from resnet50.data.batch import Slot
from resnet50.data.loader import Loader
from resnet50.data.sampling import BatchKey
from resnet50.system.processes import children_of
from resnet50.training import engine, throughput

PROMISED = {
    "loader_images_per_s",
    "model_images_per_s",
    "beside_images_per_s",
    "neighbors_images_per_s",
    "both_images_per_s",
    "data_wait_pct",
    "limit",
    "image_size",
    "sizes",
    "disk",
    "recipe",
    "machine",
}
RATES = ("loader_images_per_s", "model_images_per_s", "both_images_per_s")
NEIGHBORS = ("beside_images_per_s", "neighbors_images_per_s")
rates = st.floats(0.1, 1e6)


def bench_words(*flags: object) -> list[object]:
    quick = ("--recipe=tiny", "--seconds=0.3", "--amp=fp32")
    return [sys.executable, REPOSITORY / "bench.py", *quick, *flags]


@pytest.fixture(scope="module")
def pack_folder(image_folder, tmp_path_factory) -> Path:
    """The training images in a pack, without any for validation."""
    folder = tmp_path_factory.mktemp("packed")
    words = [sys.executable, REPOSITORY / "prepare_data.py", image_folder, f"--out={folder}"]
    result = run_here(words, folder)
    assert result.code == 0, result.err
    (folder / "val.pack").unlink()
    return folder


@pytest.fixture(scope="module")
def folder_result(image_folder, tmp_path_factory) -> tuple[dict, str, Path]:
    """JSON, text and working folder of a run on an image folder with two workers."""
    cwd = tmp_path_factory.mktemp("bench")
    flags = (f"--data-dir={image_folder}", "--num_workers=2", "--price_per_hour=1.5")
    result = run(bench_words(*flags, "--image_size", 32, 48, "--json=out.json"), cwd)
    assert result.code == 0, result.err
    return json.loads((cwd / "out.json").read_text()), result.out, cwd


def assert_consistent(values: dict) -> None:
    assert values.keys() >= PROMISED
    largest = values["sizes"][-1]
    assert all(values[key] == largest[key] for key in largest)
    for row in values["sizes"]:
        assert all(math.isfinite(row[key]) and row[key] > 0 for key in RATES)
        if values["machine"]["num_workers"]:
            assert all(math.isfinite(row[key]) and row[key] > 0 for key in NEIGHBORS)
        else:
            assert all(row[key] is None for key in NEIGHBORS)
        assert 0 <= row["data_wait_pct"] <= 100
        assert min(row["num_chunks"]) >= 1
        disk = values["disk"]
        of_disk = (disk["images_per_s"], disk["fits_in_memory"])
        assert row["limit"] == bench.find_limit(*(row[key] for key in RATES[:2]), *of_disk)
    assert values["machine"]["cores"] >= 1 and values["machine"]["torch"] == torch.__version__


def test_a_folder_gives_the_promised_figures_and_leaves_nothing_else(folder_result):
    values, text, cwd = folder_result
    assert_consistent(values)
    assert [row["image_size"] for row in values["sizes"]] == [32, 48]
    assert values["machine"]["num_workers"] == 2
    assert values["disk"]["fits_in_memory"] and values["disk"]["num_images"] == 66
    sizes = [path.stat().st_size for path in Path(values["settings"]["data_dir"]).glob("train/*/*")]
    assert values["disk"]["split_bytes"] == pytest.approx(sum(sizes), abs=1)
    assert [path.name for path in cwd.iterdir()] == ["out.json"]
    assert len(text.splitlines()) <= 25 and f"limit at 48 px: {values['limit']}" in text
    costs = [row["model_images_per_s"] / row["beside_images_per_s"] for row in values["sizes"]]
    said = (
        f"beside 2 loader processes at full load, a step takes {costs[0]:.2f} times as long at "
        f"32 px, {costs[1]:.2f} times as long at 48 px"
    )
    assert said in text


def test_the_projection_adds_up(folder_result):
    values, text, _ = folder_result
    plan = values["recipe"]
    assert plan["epochs_by_size"] == {"48": 2} and plan["images_per_epoch"] == 4 * 16
    assert (plan["evaluations"], plan["num_val_images"]) == (2, 21)
    disk_rate = values["disk"]["images_per_s"] or math.inf
    both = values["both_images_per_s"]
    train_s = 64 / min(both, disk_rate) + 64 / both
    assert plan["train_s"] == pytest.approx(train_s)
    assert plan["eval_s"] == pytest.approx(2 * 21 / plan["eval_images_per_s"])
    assert plan["hours"] == pytest.approx((plan["train_s"] + plan["eval_s"]) / 3600)
    assert plan["cost_usd"] == pytest.approx(1.5 * plan["hours"])
    assert "projection of tiny: 2 epochs x 64 images / " in text


def test_a_pack_without_validation_images_will_do(pack_folder, tmp_path):
    result = run_here(bench_words(f"--data_dir={pack_folder}", "--json=out.json"), tmp_path)
    assert result.code == 0, result.err
    values = json.loads((tmp_path / "out.json").read_text())
    assert_consistent(values)
    assert values["image_size"] == 32 and values["machine"]["num_workers"] == 0  # the recipe's
    assert values["recipe"]["evaluations"] == 0 and values["recipe"]["cost_usd"] is None
    assert 0 < values["disk"]["split_bytes"] < (pack_folder / "train.pack").stat().st_size


@pytest.mark.parametrize(
    "loader, model, disk, fits, limit",
    [
        (100.0, 200.0, 50.0, True, "cpu"),
        (100.0, 200.0, 50.0, False, "disk"),
        (100.0, 200.0, None, False, "cpu"),
        (300.0, 200.0, 50.0, True, "device"),
        (300.0, 200.0, 250.0, False, "device"),
    ],
)
def test_the_limit_is_the_slowest(loader, model, disk, fits, limit):
    assert bench.find_limit(loader, model, disk, fits) == limit


@given(rates, rates, st.none() | rates, st.booleans())
def test_nothing_that_counts_is_slower_than_the_limit(loader, model, disk, fits):
    found = {"cpu": loader, "device": model, "disk": disk}[
        bench.find_limit(loader, model, disk, fits)
    ]
    assert found == min(loader, model, disk if disk and not fits else math.inf)


def test_growing_crops_and_a_disk_that_counts_are_projected_epoch_by_epoch():
    cfg = TrainConfig(
        epochs=4,
        start_image_size=64,
        image_size=128,
        grow_start_epoch=1,
        grow_end_epoch=2,
        total_batch_size=10,
        eval_every_epochs=3,
        price_per_hour=2.0,
    )
    disk = {"images_per_s": 25.0, "fits_in_memory": True}
    measured = {64: 50.0, 128: 20.0}
    plan = bench.project(cfg, 1009, 300, measured, disk, 100.0)
    assert plan["epochs_by_size"] == {"64": 2, "128": 2}
    assert plan["train_s"] == pytest.approx(1000 / 25 + 1000 / 50 + 2 * 1000 / 20)
    assert (plan["evaluations"], plan["eval_s"]) == (2, 6.0)  # after epochs 3 and 4
    assert plan["cost_usd"] == pytest.approx(2.0 * (plan["train_s"] + 6) / 3600)
    plan = bench.project(cfg, 1009, 0, measured, disk | {"fits_in_memory": False}, None)
    assert plan["train_s"] == pytest.approx(2 * 1000 / 25 + 2 * 1000 / 20)
    assert plan["eval_s"] == 0


@pytest.mark.parametrize(
    "flags, texts",
    [
        (["--data_dir=/nowhere"], ["--data_dir /nowhere", "no such folder"]),
        (["--image_size", "64", "16"], ["--image_size 16", "at least 32"]),
        (["--image_size=60000"], ["--device_batch_size", "GiB"]),
        (["--total_batch_size=128"], ["--total_batch_size 128", "the 66 training images"]),
        (["--total_batch_size=12"], ["--total_batch_size 12", "--device_batch_size 8"]),
        (["--seconds=0"], ["--seconds 0", "above 0"]),
        (["--price_per_hour=-1"], ["--price_per_hour -1", "at least 0"]),
        (["--num_workers=-2"], ["--num_workers -2", "at least -1"]),
        (["--json=/nowhere/out.json"], ["--json /nowhere/out.json", "give a file"]),
        (["--json=."], ["--json .", "give a file"]),
    ],
)
def test_mistakes_are_named_before_anything_is_measured(image_folder, capsys, flags, texts):
    code = bench.main(["--recipe=tiny", f"--data_dir={image_folder}", *flags])
    error = capsys.readouterr().err
    assert code == 2 and error.startswith("bench.py: error: ") and error.count("\n") == 1
    assert all(text in error for text in texts), error


def test_too_little_memory_is_met_with_advice(image_folder, capsys, monkeypatch):
    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine, "train_step", no_memory)
    flags = ["--recipe=tiny", f"--data_dir={image_folder}", "--seconds=0.01", "--json=unwritten"]
    assert bench.main(flags) == 2
    assert "error: --device_batch_size 8 at 32 px" in capsys.readouterr().err
    assert not Path("unwritten").exists()


def count_up(slot: Slot) -> None:
    slot.labels[:] = slot.key.indices


def test_a_loader_at_full_load_never_waits_and_is_then_as_before():
    def keys(first: int) -> Iterator[BatchKey]:
        return (BatchKey(0, np.arange(i, i + 4), 8) for i in itertools.count(first))

    others = set(multiprocessing.active_children())
    loader = Loader([count_up], 4, 8, 2, torch.device("cpu"))
    with throughput.full_load(loader, 0, keys(0)) as num_batches:
        wait_for(lambda: num_batches[0] > 100, what="more batches than there are slots")
    (batch,) = loader.batches(0, itertools.islice(keys(7), 1))
    assert batch.labels.tolist() == [7, 8, 9, 10]
    with (
        pytest.raises(RuntimeError, match="a loader process ended while"),
        throughput.full_load(loader, 0, keys(0)),
    ):
        waiting = set(multiprocessing.active_children()) - others - set(loader._workers)
        os.kill(loader._workers[0].pid, signal.SIGKILL)
        wait_for(lambda: not any(process.is_alive() for process in waiting), what="the end of it")
    loader.close()


def test_ctrl_c_ends_it_at_once_and_its_workers_too(image_folder, tmp_path, no_leftovers):
    data_dir = tmp_path / "data"  # named by every process of this test
    data_dir.symlink_to(image_folder)
    words = bench_words(f"--data_dir={data_dir}", "--num_workers=2", "--seconds=2")
    process = start(words, tmp_path)
    said = ""
    while "model beside" not in said:  # when there are the most processes
        said += process.stderr.read(1)
        assert process.poll() is None
    wait_for(lambda: len(children_of(process.pid)) == 3, what="the process that takes the batches")
    children = children_of(process.pid)
    process.send_signal(signal.SIGINT)
    result = finish(process, 40)  # at once, and slack for a busy machine
    assert result.code == 130 and "Traceback" not in result.err
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


def test_every_recipe_has_its_sizes():
    for recipe in RECIPES.values():
        cfg = TrainConfig(**recipe.settings)
        sizes = bench.epoch_sizes(cfg)
        assert len(sizes) == cfg.epochs and sizes[-1] == cfg.image_size
