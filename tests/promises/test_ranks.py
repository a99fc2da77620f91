"""Several real gloo processes against one: the same images, gradients, statistics and figures."""

import json
from pathlib import Path

import pytest
import torch
from support.commands import (
    PROGRAM_PATH,
    PROGRAMS,
    Result,
    run,
    run_program,
    tiny_flags,
    torchrun_words,
    train_words,
)
from support.in_process import run_here
from support.runs import assert_same, newest_checkpoint, status_of, steps_logged

import prepare_data

PLAIN = ("--clip_grad_norm=0", "--weight_decay=0")  # so that momentum begins as the gradient
MIXED = ("--mixup_alpha=0.2", "--cutmix_alpha=1", "--trivial_augment", "--random_erasing=0.5")
FLAGS = (*PLAIN, *MIXED)


def run_ranks(num_ranks: int, flags: list[object], cwd: Path) -> Result:
    """train.py as this many gloo processes; a single one runs without torchrun."""
    if num_ranks == 1:
        return run_here(train_words(*flags), cwd)
    return run(torchrun_words(num_ranks, "train.py", *flags), cwd)


@pytest.fixture(scope="module")
def runs(image_folder, tmp_path_factory) -> dict[int, dict]:
    """Checkpoints after (ranks, steps) of the same run; batch 16 = 2 x 8."""
    folder = tmp_path_factory.mktemp("ranks")
    ends = {}
    for num_ranks, steps in ((1, 1), (2, 1), (1, 12)):
        run_dir = folder / f"{num_ranks}-{steps}"
        flags = [*tiny_flags(image_folder, run_dir), *FLAGS, f"--max_steps={steps}"]
        result = run_ranks(num_ranks, flags, folder)
        assert result.code == 0 and "Warning" not in result.err, result.err
        assert f"{num_ranks} ranks x {2 // num_ranks} micro-batches x 8" in result.out
        assert status_of(run_dir)["state"] == "done"
        ends[num_ranks, steps] = torch.load(newest_checkpoint(run_dir), weights_only=True)
        ends[num_ranks, steps]["logged"] = steps_logged(run_dir)
    return ends


def test_two_ranks_have_the_gradients_of_one_rank_with_two_micro_batches(runs):
    # After one step, without decay and clipping, the momentum buffer is the gradient.
    one, two = (runs[ranks, 1]["optimizer"]["state"] for ranks in (1, 2))
    for number in one:
        a, b = one[number]["momentum_buffer"], two[number]["momentum_buffer"]
        assert (a - b).norm() <= 1e-5 * a.norm(), number


def test_two_ranks_have_the_batch_norm_buffers_of_one(runs):
    one, two = (runs[ranks, 1]["model"] for ranks in (1, 2))
    for key in one:
        if "running" in key or "num_batches" in key:
            assert torch.equal(one[key], two[key]), key
    assert one["bn1.num_batches_tracked"] == 1


def test_a_run_goes_on_with_another_number_of_ranks(image_folder, tmp_path, runs):
    flags = [*tiny_flags(image_folder, tmp_path / "run"), *FLAGS]
    for num_ranks, steps in ((1, 5), (2, 9), (1, 12)):
        result = run_ranks(num_ranks, [*flags, f"--max_steps={steps}"], tmp_path)
        assert result.code == 0, result.err
    end = torch.load(newest_checkpoint(tmp_path / "run"), weights_only=True)
    assert_same(end["model"], runs[1, 12]["model"], "2 and 1 ranks add the same two numbers")
    assert steps_logged(tmp_path / "run") == runs[1, 12]["logged"]


def test_a_number_of_ranks_that_does_not_divide_is_refused_with_those_that_do(
    image_folder, tmp_path
):
    flags = [*tiny_flags(image_folder, tmp_path / "run"), "--total_batch_size=24"]
    result = run(torchrun_words(2, "train.py", *flags, "--device_batch_size=8"), tmp_path)
    assert "does not divide over 2 ranks: start 1, 3 of them" in result.err
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "config error" and "start 1, 3 of them" in status["message"]


@pytest.mark.parametrize("command", ["train", pytest.param("lr_finder", marks=pytest.mark.long)])
def test_the_wrapped_model_is_gone_before_the_process_group(command, image_folder, tmp_path):
    """gloo sometimes ends with SIGABRT otherwise, after everything went well."""
    flags = ["--recipe=tiny", f"--data_dir={image_folder}", "--amp=fp32"]
    flags += [f"--run_dir={tmp_path / 'run'}", "--max_steps=1"] if command == "train" else []
    flags += ["--num_iter=60", f"--out={tmp_path}"] if command == "lr_finder" else []
    script = PROGRAMS / "leave_without_wrapped_model.py"
    result = run(torchrun_words(2, script, command, *flags), tmp_path, **PROGRAM_PATH)
    assert result.code == 0, result.err
    assert result.out.count("leaving with 0 wrapped models") == 2, result.out


def pixel_hashes(data_dir: Path, rank: int, world_size: int, num_workers: int) -> list[str]:
    result = run_program("hash_pixels", data_dir, rank, world_size, num_workers)
    assert result.code == 0, result.err
    return result.out.split()


@pytest.mark.parametrize("world_size, num_workers, levels", [(2, 0, "48"), (4, 1, "")])
def test_ranks_in_processes_of_their_own_see_the_pixels_of_one(
    image_folder, tmp_path, world_size, num_workers, levels
):
    data_dir = image_folder
    if levels:
        data_dir = tmp_path / "packed"
        words = [str(image_folder), "--out", str(data_dir), "--levels", levels]
        assert prepare_data.main(words) == 0
    alone = pixel_hashes(data_dir, 0, 1, 0)
    assert len(alone) == 32
    shared = [pixel_hashes(data_dir, r, world_size, num_workers) for r in range(world_size)]
    assert alone == [shared[m % world_size][m // world_size] for m in range(32)]
