"""Exported files do what the checkpoint does, in other programs too, or are not written at all."""

import dataclasses
import json
import math
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.commands import REPOSITORY, run, tiny_flags, train_words
from support.in_process import run_here
from support.pictures import CLASSES

import evaluate
import export
from model import ResNet
from resnet50.data import splits
from resnet50.export import comparison, formats
from resnet50.inference import pretrained
from resnet50.inference.pretrained import Pretrained

TINY = ((1, 1, 1, 1), 8, len(CLASSES))
ALL_FILES = {"config.json", "model.safetensors", "model.onnx", "model_int8.onnx"}
QUICK = ["--num_rounds=1", "--batch_size=4"]


@pytest.fixture(scope="module")
def run_dir(image_folder, tmp_path_factory) -> Path:
    """A finished run whose averaged weights differ from the trained ones."""
    run_dir = tmp_path_factory.mktemp("done") / "run"
    flags = [*tiny_flags(image_folder, run_dir), "--epochs=8", "--save_every_steps=0"]
    result = run_here(train_words(*flags), run_dir.parent)
    assert result.code == 0, result.err
    return run_dir


@pytest.fixture(scope="module")
def exported(run_dir, image_folder, tmp_path_factory) -> tuple[Path, dict, str]:
    """The folder with all formats, the object of --json, what was printed."""
    folder = tmp_path_factory.mktemp("exported")
    words = [sys.executable, REPOSITORY / "export.py", f"--weights={run_dir}", f"--out={folder}/it"]
    words += [f"--data-dir={image_folder}", f"--json={folder}/it.json", "--num_calibration=30"]
    result = run([*words, *QUICK], folder)
    assert result.code == 0, result.out + result.err
    assert not result.err, "nothing to complain about"
    return folder / "it", json.loads((folder / "it.json").read_text()), result.out


@pytest.fixture
def weights(tmp_path) -> Path:
    """A file of a tiny model's weights, untrained."""
    torch.manual_seed(1)
    torch.save(ResNet(*TINY).state_dict(), tmp_path / "tiny.pt")
    return tmp_path / "tiny.pt"


def pictures(loaded: Pretrained, image_folder: Path) -> torch.Tensor:
    """All pictures of the validation split, normalized."""
    split = splits.open_split(image_folder, "val")
    ((images, _),) = comparison.batches(split, np.arange(len(split)), loaded, 32, pytest.fail)
    return images


def onnx_logits(path: Path, images: torch.Tensor) -> torch.Tensor:
    """What onnxruntime makes of them, asked as any other program would."""
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path))
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def test_every_file_gives_the_logits_of_the_model_for_any_batch(run_dir, image_folder, exported):
    folder, result, _ = exported
    loaded = pretrained.load(str(run_dir))
    images = pictures(loaded, image_folder)
    expected = loaded.model(images)
    again = pretrained.load(str(folder)).model
    assert torch.equal(again(images), expected)
    assert (onnx_logits(folder / "model.onnx", images) - expected).abs().max() < 1e-4
    for size in (1, 5):
        part = onnx_logits(folder / "model.onnx", images[:size])
        assert part.shape == (size, 3) and (part - expected[:size]).abs().max() < 1e-4
    classes = onnx_logits(folder / "model_int8.onnx", images).argmax(dim=1)
    agreement = 100 * float((classes == expected.argmax(dim=1)).double().mean())
    assert agreement >= 95 and agreement == pytest.approx(result["models"][-1]["agreement"])
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sizes.keys() == ALL_FILES and list(folder.parent.glob(".*")) == []
    assert sizes["model_int8.onnx"] < sizes["model.onnx"] / 2


def test_the_table_has_what_evaluate_finds_and_says_which_weights(
    run_dir, image_folder, exported, capsys
):
    folder, result, out = exported
    words = [f"--data_dir={image_folder}", "--num_workers=0"]
    found = []
    for weights in (run_dir, folder):
        assert evaluate.main([*words, f"--weights={weights}"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    for key in ("top1", "top5", "kind", "image_size", "resize_size"):
        assert found[0][key] == found[1][key], key
    rows = result["models"]
    assert [row["model"] for row in rows] == [
        "PyTorch",
        "model.safetensors",
        "model.onnx",
        "model_int8.onnx",
    ]
    assert [row["top1"] for row in rows[:3]] == pytest.approx([found[0]["top1"]] * 3)
    assert all(row["latency_ms"] > 0 and row["images_per_s"] > 0 for row in rows)
    assert all(row["speed"] == rows[0]["latency_ms"] / row["latency_ms"] for row in rows)
    assert max(row["max_difference"] for row in rows[:3]) < 1e-4
    assert result["kind"] == "EMA" and "best.pt: EMA weights, 3 classes" in out
    assert "calibrating int8 on 30 pictures" in out and "/train" in out
    assert all(f"\n| {row['model']} | " in out for row in rows)
    assert "1 thread(s)" in out and "compared on 21 pictures of val" in out


def test_the_config_keeps_what_the_checkpoint_knew(run_dir, exported):
    folder, _, _ = exported
    before, after = pretrained.load(str(run_dir)), pretrained.load(str(folder))
    for item in dataclasses.fields(Pretrained):
        if item.name not in ("model", "name", "settings"):
            assert getattr(before, item.name) == getattr(after, item.name), item.name
    assert after.folders == list(CLASSES) and after.about["recipe"] == "tiny"
    onnx = pytest.importorskip("onnx")
    for file in ("model.onnx", "model_int8.onnx"):
        metadata = {item.key: item.value for item in onnx.load(folder / file).metadata_props}
        assert json.loads(metadata["config"]) == json.loads((folder / "config.json").read_text())


def test_raw_takes_the_trained_weights(run_dir, tmp_path, capsys):
    out, words = tmp_path / "out", [f"--weights={run_dir}", "--formats=safetensors", *QUICK]
    assert export.main([*words, f"--out={out}", "--raw"]) == 0
    assert "best.pt: trained weights" in capsys.readouterr().out
    state = torch.load(run_dir / "checkpoints" / "best.pt", weights_only=True)
    found = pretrained.load(str(out))
    assert found.kind == "trained"
    for key, tensor in found.model.state_dict().items():
        assert torch.equal(tensor, state["model"][key]), key
    assert any(not torch.equal(state["ema"][key], state["model"][key]) for key in state["ema"])


def trained(layers: tuple[int, ...], num_classes: int, blurpool: bool = False) -> Pretrained:
    """A model as if trained: no batch norm has its first statistics, no block is the identity."""
    torch.manual_seed(2)
    model = ResNet(layers, 64, num_classes, zero_init_gamma=False, blurpool=blurpool)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    names = [f"n{number:08d}" for number in range(num_classes)]
    model.eval().requires_grad_(False)
    return Pretrained(model, names, 128, 146, "made here", blurpool=blurpool)


@pytest.mark.parametrize("layers", [(3, 4, 6, 3), (1, 2, 1, 1)])
def test_timm_loads_the_folder_and_gives_the_same_logits(layers, tmp_path):
    timm = pytest.importorskip("timm")
    loaded = trained(layers, 7)
    formats.write_config(loaded, tmp_path)
    formats.write_safetensors(loaded, tmp_path / "model.safetensors")
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = comparison.noise(128, 2)
    with torch.inference_mode():
        assert torch.equal(model(images), loaded.model(images))
    cfg = model.pretrained_cfg
    assert list(cfg["label_names"]) == loaded.folders and cfg["architecture"] == "resnet50"
    assert tuple(cfg["input_size"]) == (3, 128, 128)
    assert math.floor(128 / cfg["crop_pct"]) == 146  # what timm.data.create_transform computes


def test_timm_refuses_what_is_not_its_resnet50(tmp_path):
    timm = pytest.importorskip("timm")
    loaded = trained((1, 1, 1, 1), 7, blurpool=True)
    formats.write_config(loaded, tmp_path)
    formats.write_safetensors(loaded, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match="Unknown model"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    again, images = pretrained.load(str(tmp_path)), comparison.noise(128, 2)
    assert again.blurpool and torch.equal(again.model(images), loaded.model(images))


def test_every_crop_share_gives_timm_the_same_size():
    for resize_size in range(32, 600):
        for image_size in range(resize_size // 2, resize_size + 1):
            share = formats.crop_share(image_size, resize_size)
            assert math.floor(image_size / share) == resize_size


def refused(argv: list[object], capsys, *texts: str) -> None:
    """main() returns 2 and says why in one line."""
    assert export.main([str(word) for word in argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("export.py: error: "), lines
    assert all(text in lines[-1] for text in texts), lines[-1]


def test_int8_that_disagrees_is_not_written(image_folder, tmp_path, capsys):
    """Three nearly equal classes: fp32 tells them apart, 8 bits cannot."""
    torch.manual_seed(1)
    model = ResNet(*TINY)
    with torch.no_grad():
        model.fc.weight[:] = model.fc.weight[0] + 1e-5 * torch.randn(3, 256)
        model.fc.bias.zero_()
    torch.save(model.state_dict(), tmp_path / "tied.pt")
    argv = [f"--weights={tmp_path}/tied.pt", f"--data_dir={image_folder}", f"--out={tmp_path}/out"]
    texts = ("model_int8.onnx: it agrees with fp32 on ", "--min_agreement is 95", "Nothing was")
    refused([*argv, "--formats=int8", *QUICK], capsys, *texts)
    assert not (tmp_path / "out").exists() and list(tmp_path.glob(".*")) == []


def test_a_file_with_other_logits_is_not_written(weights, tmp_path, monkeypatch, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("mine")
    real: Callable = formats.write_safetensors

    def write_wrong(loaded: Pretrained, path: Path) -> None:
        real(loaded, path)
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1  # of an exponent in the last tensor
        path.write_bytes(raw)

    monkeypatch.setattr(formats, "write_safetensors", write_wrong)
    argv = [f"--weights={weights}", f"--out={tmp_path}/out", "--formats=safetensors"]
    refused(argv, capsys, "model.safetensors: its logits differ from the model's", "0.0001")
    assert (tmp_path / "out" / "config.json").read_text() == "mine"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]


def test_without_a_train_split_int8_says_what_it_was_calibrated_on(
    weights, image_folder, tmp_path, capsys
):
    shutil.copytree(image_folder / "val", tmp_path / "data" / "val")
    argv = [f"--weights={weights}", f"--out={tmp_path}/out", f"--data_dir={tmp_path}/data", *QUICK]
    assert export.main([*argv, "--formats=int8", "--min_agreement=0"]) == 0
    printed = capsys.readouterr()
    assert "no train split" in printed.err and "on 21 pictures of" in printed.out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model_int8.onnx"}  # the fp32 file was not asked for
    argv[2:3] = []
    refused([*argv, "--formats=safetensors"], capsys, "has model_int8.onnx from another export")


@pytest.mark.parametrize(
    "flags, texts",
    [
        (["--formats=int8"], ["the format int8 needs --data_dir"]),
        (["--formats=onnx,pdf"], ["--formats pdf: no such format", "safetensors, onnx, int8"]),
        (["--out={here}/tiny.pt"], ["tiny.pt is a file: give a folder"]),
        (["--weights={here}/nothing.pt"], ["nothing.pt: no such file or folder"]),
        (["--num_calibration=0"], ["--num_calibration 0: must be at least 1"]),
        (["--num_images=-1"], ["--num_images -1: must be at least 1, or 0 for all"]),
        (["--min_agreement=101"], ["--min_agreement 101: must be from 0 to 100"]),
        (["--data_dir=/nowhere"], ["--data_dir /nowhere: no such folder"]),
    ],
)
def test_mistakes_cost_one_line(weights, tmp_path, capsys, flags, texts):
    argv = [f"--weights={weights}", f"--out={tmp_path}/out", "--formats=safetensors"]
    refused([*argv, *(flag.format(here=tmp_path) for flag in flags)], capsys, *texts)
    assert not (tmp_path / "out").exists()


def test_out_may_be_a_link_to_another_disk_and_is_tried_before_the_work(
    weights, tmp_path, monkeypatch, capsys
):
    """Files are staged inside --out, so that no rename crosses file systems."""
    disk = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else tmp_path))
    try:
        (tmp_path / "out").symlink_to(disk)
        argv = [f"--weights={weights}", f"--out={tmp_path}/out", "--formats=safetensors", *QUICK]
        assert export.main(argv) == 0, capsys.readouterr().err
        names = {path.name for path in disk.iterdir()}
        assert names == {"config.json", "model.safetensors"} and (tmp_path / "out").is_symlink()
    finally:
        shutil.rmtree(disk)
    # Now a broken link; then a folder in place of a file.
    monkeypatch.setattr(pretrained, "load", lambda *_: pytest.fail("the model was loaded"))
    refused(argv, capsys, f"--out {tmp_path}/out cannot be written: ")
    (tmp_path / "in" / "config.json").mkdir(parents=True)
    argv[1] = f"--out={tmp_path}/in"
    refused(argv, capsys, f"--out {tmp_path}/in has a folder config.json: move it")


def test_weights_that_are_not_right_cost_one_line(run_dir, image_folder, tmp_path, capsys):
    def check(name: str, *texts: str) -> None:
        flags = ["--formats=safetensors", f"--data_dir={image_folder}"]
        refused([f"--weights={tmp_path}/{name}", f"--out={tmp_path}/out", *flags], capsys, *texts)
        assert not (tmp_path / "out").exists()

    state = torch.load(run_dir / "checkpoints" / "best.pt", weights_only=True)
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pt")
    check("other.pt", "these weights are not a ResNet's")
    torch.save(state | {"classes": ["ant"]}, tmp_path / "few.pt")
    check("few.pt", "1 class names for 3 classes")
    torch.save(state | {"classes": ["ant", "cat", "bee"]}, tmp_path / "swapped.pt")
    check("swapped.pt", "class 1 is bee there, and cat here")
    torch.save(ResNet((1, 1, 1, 1), 8, 5).state_dict(), tmp_path / "five.pt")
    check("five.pt", "knows 5 classes", "has 3: give the data it was trained on")
    raw = bytearray((run_dir / "checkpoints" / "best.pt").read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "damaged.pt").write_bytes(raw)
    check("damaged.pt", "damaged.pt is damaged", "its sha256 does not match")
    torch.save([1, 2], tmp_path / "list.pt")
    check("list.pt", "holds a list, not a state dict")


@pytest.mark.parametrize(
    "module, flags, text",
    [
        ("onnxscript", ["--formats=onnx"], "the format onnx needs a package: pip install onnx"),
        ("onnxruntime", ["--formats=int8"], "the format int8 needs a package: pip install onnx"),
        ("tensorrt", ["--tensorrt"], "the format tensorrt needs a package: pip install tensorrt"),
    ],
)
def test_a_missing_package_is_named(weights, tmp_path, monkeypatch, capsys, module, flags, text):
    monkeypatch.setitem(sys.modules, module, None)  # makes Python refuse to import it
    argv = [f"--weights={weights}", f"--out={tmp_path}/out", f"--data_dir={tmp_path}"]
    refused([*argv, *flags], capsys, text, "trtexec" if module == "tensorrt" else module)


def test_no_network_costs_one_line(tmp_path, monkeypatch, capsys):
    def no_network(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    argv = [f"--out={tmp_path}/out", "--formats=safetensors"]
    refused([*argv, "--weights=torchvision"], capsys, "no network")
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(
        [*argv, "--weights=nobody/nothing"], capsys, "nobody/nothing: cannot be downloaded from"
    )
