"""A pruned network is an ordinary one with narrower blocks, and nothing important is gone."""

import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.commands import REPOSITORY, tiny_flags, train_words
from support.in_process import run_here
from torch import nn

from model import Bottleneck, ResNet, architecture_of
from resnet50.export import formats, pruning
from resnet50.inference import pretrained
from resnet50.inference.pretrained import Pretrained
from resnet50.records import weight_files

TINY = ((1, 1, 1, 1), 8, 3)


def with_dead_channels(model: ResNet, share: float) -> ResNet:
    """The model with random norms, of which that share of every block's inner channels is zero."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    for module in model.modules():
        if isinstance(module, Bottleneck):
            for norm in (module.bn1, module.bn2):
                dead = torch.randperm(len(norm.weight))[: round(share * len(norm.weight))]
                norm.weight.data[dead] = norm.bias.data[dead] = 0
    return model.eval()


@pytest.mark.parametrize("blurpool", [False, True])
def test_channels_that_give_nothing_go_first_and_are_not_missed(blurpool):
    torch.manual_seed(0)
    for layers, width in (((3, 4, 6, 3), 64), ((1, 2, 1, 1), 8)):
        model = with_dead_channels(ResNet(layers, width, 5, blurpool=blurpool), 0.5)
        smaller = pruning.with_base_width(model, 32, {"blurpool": blurpool})
        images = torch.randn(2, 3, 64, 64)
        with torch.inference_mode():
            expected = model(images)
            assert (smaller(images) - expected).abs().max() <= 1e-4 * expected.abs().max()
        assert architecture_of(smaller.state_dict())["base_width"] == 32


def test_half_of_a_resnet50_is_half_and_timm_builds_it(tmp_path):
    torch.manual_seed(0)
    loaded = Pretrained(ResNet(num_classes=10).eval(), [], 224, 256, "a model")
    full = pruning.multiply_adds(loaded.model, 224)
    assert full == pytest.approx(4.09e9, rel=0.001)  # as torchvision's documentation has it
    smaller = pruning.prune(loaded, 0.5)
    assert 0.4 < pruning.multiply_adds(smaller, 224) / full <= 0.5
    formats.write_config(Pretrained(smaller, [], 224, 256, "half"), tmp_path)
    torch.save(smaller.state_dict(), tmp_path / "pytorch_model.bin")
    timm = pytest.importorskip("timm")
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(model(images), smaller(images))


@settings(max_examples=8)
@given(share=st.floats(0.05, 0.99), width=st.sampled_from([8, 16, 24, 64]))
def test_the_widest_that_fits_is_taken(share, width):
    architecture = {"layers": (1, 1, 1, 1), "width": width, "base_width": 64, "num_classes": 3}

    def share_of(base_width: int) -> float:
        with torch.device("meta"):
            models = [ResNet(**architecture | {"base_width": b}).eval() for b in (base_width, 64)]
            narrow, full = (pruning.multiply_adds(model, 64) for model in models)
        return narrow / full

    step = max(pruning.CHANNEL_MULTIPLE, 64 // width)
    try:
        found = pruning.largest_base_width(architecture, {}, 64, share)
    except ValueError as error:
        assert "narrow enough" in str(error) and share_of(step) > share
        return
    assert share_of(found) <= share < share_of(found + step)


def export_words(*flags: object) -> list[object]:
    return [sys.executable, REPOSITORY / "export.py", *flags]


def test_from_a_run_to_a_smaller_one_and_its_table(image_folder, tmp_path):
    """Prune, train on, resume, export: as docs/publishing.md has it."""
    full, half = tmp_path / "full", tmp_path / "half"
    assert run_here(train_words(*tiny_flags(image_folder, full)), tmp_path).code == 0
    result = run_here(
        export_words(f"--weights={full}", f"--out={tmp_path}/out", "--prune=80"), tmp_path
    )
    assert result.code == 0 and "multiply-adds at 32 px" in result.out, result.err
    pruned = tmp_path / "out/pruned.pt"
    weights = weight_files.read(pruned)
    base_width = architecture_of(weights)["base_width"]
    assert base_width < 64 and f"--init_from {pruned} --base_width {base_width}" in result.out
    flags = [*tiny_flags(image_folder, half), f"--init_from={pruned}"]
    refused = run_here(train_words(*flags), tmp_path)
    assert refused.code == 2 and f"give --base_width {base_width} too" in refused.err
    flags.append(f"--base_width={base_width}")
    for steps in (5, 0):
        result = run_here(train_words(*flags, f"--max_steps={steps}"), tmp_path)
        assert result.code == 0, result.err
    table, out = tmp_path / "table.json", tmp_path / "exported"
    words = [f"--weights={half}", f"--out={out}", f"--data_dir={image_folder}", f"--json={table}"]
    more = ["--formats=safetensors", "--num_rounds=1", f"--compare={full}"]
    result = run_here(export_words(*words, *more), tmp_path)
    assert result.code == 0, result.err
    last = json.loads(table.read_text())["models"][-1]
    assert last["model"].startswith(str(full)) and last["top1"] is not None
    again: Pretrained = pretrained.load(str(out))
    assert architecture_of(again.model.state_dict())["base_width"] == base_width


@pytest.mark.parametrize("value", ["0", "100", "-5", "nan"])
def test_shares_that_make_no_sense_are_refused(value, tmp_path):
    weights: Path = tmp_path / "tiny.pt"
    torch.save(ResNet(*TINY).state_dict(), weights)
    words = [f"--weights={weights}", f"--out={tmp_path}/out", f"--prune={value}"]
    result = run_here(export_words(*words), tmp_path)
    assert result.code == 2 and f"--prune {value}" in result.err and "Traceback" not in result.err
    assert not (tmp_path / "out").exists()
