"""Which settings a resume takes over, and which it refuses."""

import dataclasses

import pytest

from resnet50.config.train_config import TrainConfig
from resnet50.config.train_flags import Request
from resnet50.records import run_folder
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
