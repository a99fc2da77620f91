"""What only a GPU can show: `python -m pytest -m gpu` on a host that has one.

Elsewhere these tests are deselected. All others hide the GPU, so that they show the same on every
host.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from support.commands import (
    ONE_RANK,
    REPOSITORY,
    host_words,
    kill,
    program_words,
    run,
    start,
    tiny_flags,
    torchrun_words,
    train_words,
    wait_for,
)
from support.methods import METHODS, config_of
from support.runs import (
    assert_same,
    assert_same_end,
    newest_checkpoint,
    status_of,
    steps_logged,
    values_of,
)

from resnet50.data import splits as data
from resnet50.data.batch import Slot
from resnet50.data.loader import Loader
from resnet50.data.sampling import BatchKey
from resnet50.training import build, engine
from resnet50.training.distributed import Ranks

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def usual_algorithms() -> Iterator[None]:
    """Turn off what a test has turned on in this process."""
    yield
    torch.use_deterministic_algorithms(False)


def gpu_flags(folder: Path, run_dir: Path, amp: str, *more: object) -> list[object]:
    return [*tiny_flags(folder, run_dir), f"--amp={amp}", "--num_workers=2", *more]


def straight_run(folder: Path, run_dir: Path, amp: str, *more: object) -> Path:
    """A run that nothing interrupts."""
    result = run(train_words(*gpu_flags(folder, run_dir, amp, *more)), run_dir.parent, **ONE_RANK)
    assert result.code == 0, result.err
    return run_dir


def first_and_last_losses(run_dir: Path) -> list[float]:
    """Few steps on a tiny model tell bits apart quickly: between the two the losses may differ."""
    losses = [record["loss"] for record in steps_logged(run_dir)]
    return [losses[0], losses[-1]]


@pytest.mark.parametrize("amp", ["bf16", "fp16", "fp32"])
def test_a_deterministic_run_repeats_and_resumes_to_the_bit(image_folder, tmp_path, amp):
    first = straight_run(image_folder, tmp_path / "first", amp, "--deterministic")
    again = straight_run(image_folder, tmp_path / "again", amp, "--deterministic")
    assert_same_end(first, again)
    words = train_words(*gpu_flags(image_folder, tmp_path / "run", amp, "--deterministic"))
    process = start(words, tmp_path, **ONE_RANK)
    wait_for(lambda: len(steps_logged(tmp_path / "run")) >= 5)
    kill(process)
    result = run(words, tmp_path, **ONE_RANK)
    assert result.code == 0 and "resuming at step" in result.out, result.err
    assert_same_end(first, tmp_path / "run")


def test_a_deterministic_resnet50_resumes_to_the_bit_as_well(image_folder, tmp_path):
    more = [
        "--recipe=demo",
        "--epochs=2",
        "--image_size=96",
        "--start_image_size=64",
        "--grow_end_epoch=2",
        "--eval_resize_size=96",
        "--total_batch_size=16",
        "--device_batch_size=8",
        "--blurpool",
        "--mixup_alpha=0.2",
        "--cutmix_alpha=1",
        "--random_erasing=0.5",
        "--trivial_augment",
        "--save_every_steps=1",
    ]
    first = straight_run(image_folder, tmp_path / "first", "bf16", "--deterministic", *more)
    flags = gpu_flags(image_folder, tmp_path / "run", "bf16", "--deterministic", *more)
    process = start(train_words(*flags), tmp_path, **ONE_RANK)
    wait_for(lambda: len(steps_logged(tmp_path / "run")) >= 5)
    kill(process)
    result = run(train_words(*flags), tmp_path, **ONE_RANK)
    assert result.code == 0 and "resuming at step" in result.out, result.err
    assert_same_end(first, tmp_path / "run")
    assert len(torch.load(newest_checkpoint(first), weights_only=True)["model"]) == 320


def test_any_run_has_the_same_rates_and_nearly_the_same_losses(image_folder, tmp_path):
    """What is promised without --deterministic: pixels, order and schedule, not the last bits."""
    deterministic = straight_run(image_folder, tmp_path / "first", "fp32", "--deterministic")
    usual = straight_run(image_folder, tmp_path / "usual", "fp32")
    for one, other in zip(steps_logged(deterministic), steps_logged(usual), strict=True):
        assert one["lr"] == other["lr"] and one["step"] == other["step"]
    assert first_and_last_losses(deterministic) == pytest.approx(
        first_and_last_losses(usual), rel=0.3
    )


@pytest.mark.parametrize("name", METHODS)
def test_every_method_repeats_to_the_bit(image_folder, name):
    ends = []
    for _ in range(2):
        cfg = config_of(**{**METHODS[name], "amp": "bf16", "deterministic": True})
        ranks, splits = Ranks(device=GPU), data.open_dataset(image_folder)
        parts = build.set_up(cfg, ranks, splits, first_step=0)
        plan = parts.plan
        for step in range(plan.total_steps):
            batches = [next(parts.batches) for _ in range(plan.micro_batches_per_rank)]
            sums = engine.train_step(parts.state, batches, parts.context)
            engine.advance(parts.state, sums)
            assert sums[engine.NON_FINITE] == 0 and sums[engine.COUNT] == 16
            if plan.ends_epoch(step + 1):
                parts.state.learning_rate.note_val_loss(step + 1, 1.0)
        ends.append(values_of(parts.state))
        assert all(tensor.is_cuda for tensor in parts.state.model.state_dict().values())
    assert_same(*ends, name)


def count_up(slot: Slot) -> None:
    """Pixels that tell which image and which place they belong to."""
    for place, index in enumerate(slot.key.indices.tolist()):
        slot.images[place] = (np.arange(slot.images[place].size) + index).reshape(
            slot.images[place].shape
        ) % 251
        slot.labels[place], slot.flips[place] = index, index % 2


@pytest.mark.parametrize("num_workers", [0, 3])
def test_a_slot_is_not_filled_again_before_its_copy_has_arrived(num_workers):
    """With a device so busy that every copy waits, and batches that are all kept."""
    keys = [BatchKey(0, np.arange(8 * i, 8 * i + 8), 64) for i in range(60)]
    loader, busy = Loader([count_up], 8, 64, num_workers, GPU), torch.rand(4096, 4096, device=GPU)
    kept = []
    for batch in loader.batches(0, keys):
        kept.append(batch)
        for _ in range(5):
            busy = (busy @ busy).clamp(0, 1)
    loader.close()
    expected = Loader([count_up], 8, 64, 0, torch.device("cpu"))
    for batch, right in zip(kept, expected.batches(0, keys), strict=True):
        assert batch.images.is_cuda and torch.equal(batch.images.cpu(), right.images)
        assert torch.equal(batch.labels.cpu(), right.labels)
        assert torch.equal(batch.flips.cpu(), right.flips)


def test_a_compiled_model_learns_the_same_and_is_saved_under_the_same_names(image_folder, tmp_path):
    eager = straight_run(image_folder, tmp_path / "eager", "fp32")
    compiled = straight_run(image_folder, tmp_path / "compiled", "fp32", "--compile")
    assert first_and_last_losses(eager) == pytest.approx(first_and_last_losses(compiled), rel=0.3)
    first, second = (
        torch.load(newest_checkpoint(end), weights_only=True) for end in (eager, compiled)
    )
    assert first["model"].keys() == second["model"].keys()


def test_sigterm_to_the_supervisor_saves_and_the_same_command_goes_on(image_folder, tmp_path):
    words = train_words(*gpu_flags(image_folder, tmp_path / "run", "bf16", "--epochs=300"))
    process = start(words, tmp_path)
    wait_for(lambda: len(steps_logged(tmp_path / "run")) >= 5)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    saved = torch.load(newest_checkpoint(tmp_path / "run"), weights_only=True)["step"]
    assert saved == status_of(tmp_path / "run")["step"] >= 5
    result = run([*words, f"--max_steps={saved + 4}"], tmp_path)
    assert result.code == 0 and f"resuming at step {saved:,}" in result.out, result.err
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert torch.cuda.get_device_name() in json.dumps(config)


def test_the_largest_micro_batch_is_found_beside_another_program(image_folder, tmp_path):
    """With 3 GB of memory left, 1,024 images of 224 px do not fit for a ResNet50, but fewer do."""
    free, _ = torch.cuda.mem_get_info()
    hog = subprocess.Popen(
        program_words("fill_gpu", free - 3 * 10**9),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert hog.stdout.readline() == "full\n"
        flags = [f"--data_dir={image_folder}", f"--run_dir={tmp_path / 'run'}", "--epochs=2"]
        flags += ["--total_batch_size=64", "--device_batch_size=auto", "--num_workers=1"]
        result = run(train_words(*flags, "--max_lr=0.01", "--amp=bf16"), tmp_path, **ONE_RANK)
        assert result.code == 0, result.err
        found = int(re.search(r"device batch size: (\d+) fit", result.out + result.err)[1])
        assert found < 64
        flags += ["--device_batch_size=64", f"--run_dir={tmp_path / 'other'}"]
        words = train_words(*flags, "--max_lr=0.01", "--amp=bf16")
        too_much = run(words, tmp_path, **ONE_RANK)
    finally:
        hog.communicate()
    assert too_much.code == 2 and "not enough memory on cuda:0 for step 1" in too_much.out
    assert "Traceback" not in too_much.err


def test_evaluation_on_gpu_and_cpu_counts_alike(image_folder, tmp_path):
    run_dir = straight_run(image_folder, tmp_path / "run", "fp32")
    counted = []
    for visible in (os.environ.get("CUDA_VISIBLE_DEVICES", "0"), ""):
        words = [
            sys.executable,
            REPOSITORY / "evaluate.py",
            f"--data_dir={image_folder}",
            f"--weights={newest_checkpoint(run_dir)}",
            f"--json={tmp_path / 'e.json'}",
        ]
        result = run(words, tmp_path, CUDA_VISIBLE_DEVICES=visible)
        assert result.code == 0, result.err
        counted.append(json.loads((tmp_path / "e.json").read_text()))
    on_gpu, on_cpu = counted
    assert on_gpu["top1"] == on_cpu["top1"] and on_gpu["top5"] == on_cpu["top5"]
    assert on_gpu["loss"] == pytest.approx(on_cpu["loss"], rel=1e-3)


def test_the_finder_recommends_about_what_it_does_on_a_cpu(image_folder, tmp_path):
    found = []
    for visible in (os.environ.get("CUDA_VISIBLE_DEVICES", "0"), ""):
        words = [sys.executable, REPOSITORY / "lr_finder.py", "--recipe=tiny", "--amp=fp32"]
        words += [f"--data_dir={image_folder}", "--start_lr=1e-4", "--end_lr=10", "--num_iter=60"]
        result = run(
            [*words, f"--json={tmp_path / 'lr.json'}"], tmp_path, CUDA_VISIBLE_DEVICES=visible
        )
        assert result.code == 0, result.err
        found.append(json.loads((tmp_path / "lr.json").read_text())["max_lr"])
    assert found[0] == pytest.approx(found[1], rel=0.5)


def test_the_bench_names_the_gpu(image_folder, tmp_path):
    words = [sys.executable, REPOSITORY / "bench.py", "--recipe=tiny", f"--data_dir={image_folder}"]
    result = run([*words, "--seconds=0.5", f"--json={tmp_path / 'bench.json'}"], tmp_path)
    assert result.code == 0, result.err
    machine = json.loads((tmp_path / "bench.json").read_text())["machine"]
    assert machine["gpu"] == torch.cuda.get_device_name() and machine["num_gpus"] >= 1


def test_ten_minutes_of_a_gpu_in_short(image_folder, tmp_path):
    path = tmp_path / "day.json"
    words = [sys.executable, REPOSITORY / "benchmarks" / "gpu_day.py", f"--data_dir={image_folder}"]
    flags = ["--recipe=tiny", "--batch_size=16", "--image_sizes", "32", "48", "--minutes=2"]
    result = run([*words, *flags, f"--json={path}"], tmp_path)
    assert result.code == 0, result.err
    for row in json.loads(path.read_text())["rows"]:
        for mode in ("eager", "compiled", "CUDA graph"):
            assert row[mode].get("images_per_s", 0) > 0, row


def test_more_ranks_than_gpus_are_refused(image_folder, tmp_path):
    num_ranks = torch.cuda.device_count() + 1
    flags = tiny_flags(image_folder, tmp_path / "run")
    result = run(torchrun_words(num_ranks, "train.py", *flags), tmp_path)
    assert result.code != 0 and f"{num_ranks} ranks for {num_ranks - 1} GPUs" in result.err


def test_the_smoke_test_and_the_host_check_see_it(tmp_path):
    result = run(host_words("smoke_test"), tmp_path)
    assert result.code == 0 and torch.cuda.get_device_name() in result.out, result.err
    result = run(host_words("check"), tmp_path)
    assert torch.cuda.get_device_name().split()[-1] in result.out + result.err


def test_a_step_waits_for_the_device_nowhere(image_folder):
    """cudaStreamSynchronize or an .item() in the step would keep the GPU idle between steps."""
    cfg = config_of(amp="bf16", ema_decay=0.9, mixup_alpha=0.2)
    ranks, splits = Ranks(device=GPU), data.open_dataset(image_folder)
    parts = build.set_up(cfg, ranks, splits, first_step=0)
    for step in range(8):
        batches = [next(parts.batches) for _ in range(parts.plan.micro_batches_per_rank)]
        torch.cuda.set_sync_debug_mode("error" if step >= 3 else "default")
        try:
            sums = engine.train_step(parts.state, batches, parts.context)
            engine.advance(parts.state, sums)
        finally:
            torch.cuda.set_sync_debug_mode("default")
