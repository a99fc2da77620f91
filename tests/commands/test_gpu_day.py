"""benchmarks/gpu_day.py in its short form on a CPU; tests/gpu/test_gpu.py has that on a GPU."""

import functools
import json
import math
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import MagicMock

import gpu_day
import pytest
import torch

from resnet50.config.recipes import RECIPES
from resnet50.data.batch import Batch
from resnet50.training import engine
from resnet50.training.plan import make_plan

QUICK = ("--recipe=tiny", "--batch_size=8", "--num_workers=1", "--amp=fp32")


def test_all_that_a_cpu_can_do_is_measured(image_folder, tmp_path, monkeypatch, capsys):
    # Without the minute that its C++ compiler takes; graphs of operations are made all the same.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr(
        gpu_day, "MEASURED", 0.008
    )  # of the minutes: a busy machine has time for all
    path = tmp_path / "day.json"
    flags = [*QUICK, f"--data_dir={image_folder}", "--minutes=3", f"--json={path}"]
    assert gpu_day.main([*flags, "--image_sizes", "48", "32"]) == 0
    result = json.loads(path.read_text())
    assert [row["image_size"] for row in result["rows"]] == [32, 48]
    for row in result["rows"]:
        assert row["loader_images_per_s"] > 0
        for mode in (gpu_day.EAGER, gpu_day.COMPILED):
            figures = row[mode]
            assert all(math.isfinite(number) for number in figures.values())
            assert figures["step_s"] == pytest.approx(8 / figures["images_per_s"])
            assert figures["first_step_s"] > 0 and 0 <= figures["data_wait_pct"] <= 100
        assert row[gpu_day.GRAPH] == {"missing": "needs a GPU"}
    # A size that comes is compiled for: that is what the column is for.
    first, later = (
        result["rows"][0][gpu_day.COMPILED][name] for name in ("first_step_s", "step_s")
    )
    assert first > 2 * later
    table = gpu_day.as_table(result["rows"]).splitlines()
    assert len(table) == 5 and len({line.count("|") for line in table[:4]}) == 1
    assert table[4] == "CUDA graph: needs a GPU (32, 48 px)"
    out = capsys.readouterr().out
    assert "no GPU, " in out and "\n".join(table) in out


def test_what_fails_or_comes_too_late_is_named(image_folder, monkeypatch, capsys):
    def broken(graph, inputs):
        raise RuntimeError("the compiler\nis broken")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=broken))
    monkeypatch.setattr(gpu_day, "MEASURED", 0.001)
    flags = [*QUICK, f"--data_dir={image_folder}", "--image_sizes=32"]
    assert gpu_day.main([*flags, "--minutes=3"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "compiled: " in line)
    assert "the compiler is broken" in line and line.endswith(" (32 px)")
    assert gpu_day.main([*flags, "--minutes=1e-6"]) == 0
    assert "eager: no time was left (32 px)" in capsys.readouterr().out


def test_a_graph_is_recorded_for_every_size_and_fed_the_given_batch(monkeypatch):
    """With a stand-in for CUDA, whose recorded steps do nothing: the calls, their order, inputs."""
    calls = []
    for name in ("Stream", "current_stream", "Event"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: nullcontext())
    monkeypatch.setattr(
        torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: calls.append("replay"))
    )
    seen = []

    def train_step(state, micro_batches, context):
        calls.append("step")
        seen[:] = micro_batches

    monkeypatch.setattr(engine, "train_step", train_step)
    step = gpu_day.RecordedStep(MagicMock())
    for size in (32, 32, 48):
        images = torch.randint(256, (2, size, size, 3), dtype=torch.uint8)
        batch = Batch(images, torch.arange(2), torch.tensor([True, False]), [])
        step([batch])
        assert torch.equal(seen[0].images, images) and seen[0].images is not images
    recorded = ["step"] * (gpu_day.WARM_UP_STEPS + 1)
    assert calls == [*recorded, "replay", "replay", *recorded, "replay"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_can_be_measured(recipe):
    args = gpu_day.build_parser().parse_args(["--data_dir=unused", f"--recipe={recipe}"])
    cfg = gpu_day.settings(args)
    assert cfg.image_size == 224 and make_plan(cfg, 10**6).num_micro_batches == 1


@pytest.mark.parametrize(
    "flags, texts",
    [
        (["--minutes=0"], ["--minutes 0", "above 0"]),
        (["--data_dir=/nowhere"], ["--data_dir /nowhere", "no such folder"]),
        (["--batch_size=128"], ["--total_batch_size 128", "the 66 training images"]),
        (["--json=/nowhere/out.json"], ["--json /nowhere/out.json", "give a file"]),
    ],
)
def test_mistakes_are_named_before_anything_is_measured(image_folder, capsys, flags, texts):
    places = [f"--data_dir={image_folder}", "--image_sizes=32"]
    assert gpu_day.main([*QUICK, *places, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gpu_day.py: error: ") and error.count("\n") == 1
    assert all(text in error for text in texts), error
