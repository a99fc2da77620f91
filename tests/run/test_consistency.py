"""Ranks that do not start alike end at once, and every host says why."""

import json
import shutil
from pathlib import Path

import pytest
from support.commands import PROGRAM_PATH, PROGRAMS, Result, run, tiny_flags, torchrun_words
from support.pictures import make_folder
from support.runs import status_of

from resnet50.config.recipes import RECIPES
from resnet50.config.train_config import TrainConfig
from resnet50.run import consistency

pytestmark = pytest.mark.usefixtures("no_leftovers")


def train_apart(tmp_path: Path, flags: list[object], *second: object) -> Result:
    """Two ranks with the same flags, and the second one with more."""
    words = torchrun_words(2, PROGRAMS / "train_on_two_hosts.py", *flags)
    return run(words, tmp_path, SECOND_HOST=json.dumps([*map(str, second)]), **PROGRAM_PATH)


def assert_refused(result: Result, run_dir: Path, *texts: str) -> None:
    """Both ranks said the same, ended with 2, and status.json tells it."""
    assert result.code == 1 and result.err.count("Traceback") == 1, result.err  # torchrun's own
    errors = [line for line in result.err.splitlines() if line.startswith("train.py: error: ")]
    assert len(errors) == 2, result.err
    status = status_of(run_dir)
    assert status["state"] == "config error"
    for text in texts:
        assert all(text in words for words in (*errors, status["message"])), (text, errors)
    assert "exitcode  : 2" in result.err and "exitcode  : 1" not in result.err


def test_a_run_folder_that_the_hosts_do_not_share_is_refused(image_folder, tmp_path):
    run_dir, other, copy = tmp_path / "run", tmp_path / "other", tmp_path / "copy"
    flags = tiny_flags(image_folder, run_dir)
    at_first = train_apart(tmp_path, flags, f"--run_dir={other}")
    assert_refused(at_first, run_dir, "--run_dir", "file system that they share", "rank 0 on ")
    assert not other.exists()

    shutil.copytree(image_folder, copy)  # the data may be copies
    assert train_apart(tmp_path, [*flags, "--max_steps=6"], f"--data_dir={copy}").code == 0
    shutil.copytree(run_dir, other)
    (other / "checkpoints" / "step_000000006.pt").unlink()
    later = train_apart(tmp_path, flags, f"--run_dir={other}")
    assert_refused(later, run_dir, "not the same folder", ": step 6; rank 1 on ", ": step 4")


def test_other_data_on_one_host_are_refused(image_folder, tmp_path):
    run_dir, fewer = tmp_path / "run", make_folder(tmp_path / "fewer", 21, 7)
    result = train_apart(tmp_path, tiny_flags(image_folder, run_dir), f"--data_dir={fewer}")
    assert_refused(result, run_dir, "--data_dir", "rank 1 on ", "has 63 images", "rank 0's 66")


def test_what_one_rank_alone_finds_ends_all(image_folder, tmp_path):
    run_dir = tmp_path / "run"
    result = train_apart(tmp_path, tiny_flags(image_folder, run_dir), "--data_dir=nowhere")
    assert "rank 1 on" in status_of(run_dir)["message"]
    assert_refused(result, run_dir, "--data_dir nowhere: no such folder")


def test_with_a_budget_in_dollars_the_price_must_be_the_same(image_folder, tmp_path):
    """It becomes the time, and so the length, of the schedule."""
    run_dir, other = tmp_path / "run", "--price_per_hour=4"
    flags = [*tiny_flags(image_folder, run_dir), "--price_per_hour=3"]
    result = train_apart(tmp_path, [*flags, "--budget_usd=0.05"], other)
    assert_refused(result, run_dir, "--price_per_hour 4.0 (rank 0: 3.0)")
    assert "price_per_hour" not in consistency.compared(TrainConfig(price_per_hour=3.0))


def test_ranks_that_plan_runs_of_other_lengths_are_refused(image_folder, tmp_path):
    """The recipe's own --epochs changes no setting, but the most that a budget may buy."""
    run_dir = tmp_path / "run"
    flags = ["--recipe=tiny", f"--data_dir={image_folder}", f"--run_dir={run_dir}"]
    epochs = f"--epochs={RECIPES['tiny'].settings['epochs']}"
    result = train_apart(tmp_path, [*flags, "--budget_hours=0.025"], epochs)
    assert_refused(result, run_dir, "rank 1 on ", "--num_steps ")


def test_other_settings_are_named():
    with pytest.raises(
        ValueError, match=r"rank 1 on b has .* --seed 1 \(rank 0: 0\)\. Run the same"
    ):
        consistency.refuse_other_settings(
            "rank 1 on b", {"seed": 1, "epochs": 3}, {"seed": 0, "epochs": 3}
        )
