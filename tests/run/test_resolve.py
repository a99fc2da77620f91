"""Which settings a resume takes over, and which it refuses."""

import dataclasses

import pytest

from resnet50.config.train_config import TrainConfig
from resnet50.config.train_flags import Request
from resnet50.records import checkpoint, run_folder
from resnet50.run.resolve import resolve, resumed

FIELDS = dataclasses.fields(TrainConfig)


def test_a_resume_changes_only_what_may_change():
    stored = TrainConfig(run_dir="runs/a", epochs=50)
    assert resumed(stored, {"epochs": 50, "num_workers": 3}).num_workers == 3
    with pytest.raises(ValueError, match=r"--epochs 60 \(the run has 50\), --max_lr 0\.2"):
        resumed(stored, {"epochs": 60, "max_lr": 0.2, "num_workers": 3})
    may_change = {item.name for item in FIELDS if item.metadata["may_change"]}
    assert not may_change & {"seed", "total_batch_size", "device_batch_size", "image_size", "amp"}


def test_a_run_of_before_goes_on_as_it_began(tmp_path):
    settings = TrainConfig(run_dir=str(tmp_path)).to_json()
    del settings["upright"], settings["fused_optimizer"]
    run_folder.write_config(tmp_path, settings, [], "cpu", "fp32")
    for given, expected in (({}, "legacy"), ({"upright": "auto"}, "legacy")):
        cfg = resolve(Request({"run_dir": str(tmp_path), **given}))
        assert cfg.upright == expected and not cfg.fused_optimizer
    with pytest.raises(ValueError, match=r"--upright yes \(the run has legacy\)"):
        resolve(Request({"run_dir": str(tmp_path), "upright": "yes"}))
    new = resolve(Request({"run_dir": str(tmp_path / "new")}))
    assert new.upright == "auto" and new.fused_optimizer


def test_auto_keeps_what_the_start_found_out_and_is_a_word_elsewhere():
    stored = TrainConfig(run_dir="runs/a", device_batch_size=64, max_lr=0.2, amp="bf16")
    assert resumed(stored, {"device_batch_size": "auto", "max_lr": "auto"}) == stored
    assert resumed(stored, {"data_dir": "auto"}).data_dir == "auto"  # a folder's name
    with pytest.raises(ValueError, match=r"--amp auto \(the run has bf16\)"):
        resumed(stored, {"amp": "auto"})


def test_a_budget_may_not_change_and_the_same_command_resumes(tmp_path):
    """What its plan has changed since, such as --epochs, which was the most, is no change."""
    words = {"run_dir": str(tmp_path), "recipe": "fast16", "epochs": 40, "price_per_hour": 1.5}
    budget = {"budget_usd": 3.0}
    new = resolve(Request(words | budget))
    planned = dataclasses.replace(new, epochs=19, num_steps=5900, grow_end_epoch=15.2)
    record = {"before": {"epochs": 40, "num_steps": 0, "grow_end_epoch": 13.0}}
    run_folder.write_config(tmp_path, planned.to_json(), [], "cpu", "fp32", record)
    assert resolve(Request(words | budget)) == planned
    assert resolve(Request({"run_dir": str(tmp_path)})) == planned
    assert resolve(Request(words | budget | {"price_per_hour": "auto"})) == planned
    for change, texts in (
        ({"budget_usd": 6.0}, ["--budget_usd 6.0 (the run has 3.0)", "2:00:00", "after 4:00:00"]),
        ({"price_per_hour": 3.0}, ["--price_per_hour 3.0 (the run has 1.5)", "after 1:00:00"]),
        ({"price_per_hour": 0.0}, ["--price_per_hour 0.0 (the run has 1.5)"]),
        ({"epochs": 41}, ["--epochs 41 (the run has 19)"]),
        ({"max_minutes": 3.0}, ["--max_minutes 3 would end the run", "--budget_usd 3"]),
    ):
        with pytest.raises(ValueError) as refusal:
            resolve(Request(words | budget | change))
        assert all(text in str(refusal.value) for text in texts), refusal.value


@pytest.mark.parametrize("left", [None, "{"])
def test_the_same_command_resumes_a_budget_whose_config_json_is_lost(tmp_path, left):
    """From a checkpoint, which has the plan and what it was made from."""
    words = {"run_dir": str(tmp_path), "recipe": "fast16", "epochs": 40, "budget_hours": 2.0}
    planned = dataclasses.replace(resolve(Request(words)), epochs=19, num_steps=5900)
    record = {"before": {"epochs": 40, "num_steps": 0}, "import_s": 2.5}
    folder = run_folder.checkpoints_dir(tmp_path)
    checkpoint.make_folder(folder)
    checkpoint.save(folder, 7, {"config": planned.to_json(), "budget": record})
    if left is not None:
        (tmp_path / "config.json").write_text(left)
    assert resolve(Request(words)) == planned
    assert run_folder.read_budget(tmp_path) == record
    checkpoint.save(folder, 8, {"config": planned.to_json()})  # from before it was kept there
    assert run_folder.read_budget(tmp_path) == {}


def test_a_budget_takes_the_place_of_the_recipes_own_limits(tmp_path):
    demo = {"run_dir": str(tmp_path), "recipe": "demo"}
    assert resolve(Request(demo)).max_minutes == 11
    assert resolve(Request(demo | {"budget_hours": 0.1})).max_minutes == 0
