"""Other people's weights give the outputs of their own network, or are refused by name, and no
code in a file ever runs."""

import argparse
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms as tv
from PIL import Image
from safetensors.torch import save_file
from support import foreign
from support.foreign import HEADLESS, LOADED, REFUSED, tiny
from support.pictures import make_picture

from resnet50.inference import pretrained
from resnet50.records import weight_files, weights

NETWORK, OTHER = tiny(1), tiny(2)
W, V = NETWORK.state_dict(), OTHER.state_dict()
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
OURS = dict.fromkeys(weights.OUR_SETTINGS, 1) | {"image_size": 64}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder, made the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def folder_of(path: Path, state: dict, config: object, name: str = pretrained.WEIGHTS) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path / name)
    (path / pretrained.CONFIG).write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("kind", LOADED)
def test_everyones_files_give_the_answers_of_their_network(here, kind):
    contents, said = LOADED[kind]
    is_old = kind in ("bare", "torchvision's references")  # torch.save's format before 1.6
    torch.save(contents(W, V), "a.pth", _use_new_zipfile_serialization=not is_old)
    loaded = pretrained.load("a.pth")
    assert not torch.allclose(NETWORK(IMAGES), OTHER(IMAGES), atol=0.1)
    atol = 0.02 if kind == "half precision" else 0
    assert torch.allclose(loaded.model(IMAGES), NETWORK(IMAGES), atol=atol, rtol=0)
    assert loaded.kind == "weights" and not loaded.settings and not loaded.about
    assert [said in note for note in loaded.notes] == [True] * bool(said), loaded.notes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_number_format_becomes_float32(here, dtype):
    state = {key: t.to(dtype) if t.is_floating_point() else t for key, t in W.items()}
    save_file(state, "a.safetensors")
    loaded, expected = pretrained.load("a.safetensors").model.state_dict(), tiny(2)
    expected.load_state_dict(state)
    assert all(torch.equal(t, loaded[key]) for key, t in expected.state_dict().items())
    assert loaded["fc.weight"].dtype == torch.float32


@pytest.mark.parametrize("kind", ["torchvision's references", "timm's saver", "an average inside"])
def test_raw_takes_what_the_average_is_of(here, kind):
    torch.save(LOADED[kind][0](W, V), "a.pth")
    assert torch.equal(pretrained.load("a.pth", raw=True).model(IMAGES), OTHER(IMAGES))


@pytest.mark.parametrize("kind", HEADLESS)
def test_without_a_classifier_nothing_can_be_classified(here, kind):
    torch.save(HEADLESS[kind](W, V), "a.pth")
    with pytest.raises(ValueError, match=r"--weights a\.pth: .*head.*--init_from starts from it"):
        pretrained.load("a.pth")
    found = weights.load("a.pth", "--init_from")
    assert found.num_classes == 0 and found.no_head
    assert torch.equal(found.tensors["layer1.0.conv1.weight"], W["layer1.0.conv1.weight"])


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_nearly_a_resnet50_is_named(here, kind):
    contents, text = REFUSED[kind]
    torch.save(contents(W), "a.pth")
    for option in ("--weights", "--init_from"):
        with pytest.raises(ValueError, match=rf"{option} a\.pth.*{text}") as refused:
            weights.load("a.pth", option)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "contents, variant",
    [
        (foreign.blurred, {"blurpool": True, "blur_max_pool": False}),
        (foreign.composers, {"blurpool": True, "blur_max_pool": True}),
    ],
)
def test_blurred_strides_are_read_off_their_keys(here, contents, variant):
    torch.save(contents(W), "a.pt")
    loaded, expected = pretrained.load("a.pt"), tiny(1, **variant)
    assert torch.equal(loaded.model(IMAGES), expected(IMAGES))
    assert loaded.variant == variant | {"v1_strides": False}
    assert not torch.equal(expected(IMAGES), NETWORK(IMAGES))


def test_a_resnet_v1_needs_its_flag_and_its_name_gives_a_hint(here):
    torch.save(W, "resnet50_v1.pth")
    torch.save(W, "resnet50-imagenet1k_v1.pth")
    torch.save(W, "resnetblur50.pth")
    (note,) = pretrained.load("resnet50_v1.pth").notes
    assert note.startswith("warning: ") and "give --v1_strides" in note
    loaded = pretrained.load("resnet50_v1.pth", v1_strides=True)
    assert torch.equal(loaded.model(IMAGES), tiny(1, v1_strides=True)(IMAGES)) and not loaded.notes
    assert not torch.equal(loaded.model(IMAGES), NETWORK(IMAGES))
    assert not pretrained.load("resnet50-imagenet1k_v1.pth").notes
    assert "resnetblur50" in pretrained.load("resnetblur50.pth").notes[0]


class Bag:
    """An instance of a class that exists only here."""


def hostile(path: Path) -> object:
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (path / "owned",))

    return Hostile()


MORE = {
    "numpy's numbers": (lambda w, _: {"state_dict": w, "acc": np.float64(75)}, "'state_dict']"),
    "an average": (
        lambda w, _: {"state_dict": w, "state_dict_ema": dict(w), "acc": np.float64(75)},
        "'state_dict_ema']",
    ),
    "objects": (lambda w, _: {"model": w, "args": Bag()}, "'model']"),
    "code": (lambda w, path: {"model": w, "args": hostile(path)}, "'model']"),
    "a whole model": (lambda *_: NETWORK, "contents.state_dict()"),
    "a whole model inside": (lambda *_: {"epoch": 3, "net": NETWORK}, "contents['net'].state_dict"),
}


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("kind", MORE)
def test_more_than_tensors_is_refused_with_the_lines_that_save_them_alone(here, kind, is_old):
    contents, place = MORE[kind]
    torch.save(contents(W, here), "m.pth.tar", _use_new_zipfile_serialization=not is_old)
    with pytest.raises(ValueError, match=r"--weights m\.pth\.tar holds more than tensors") as no:
        pretrained.load("m.pth.tar")
    _, *lines = str(no.value).splitlines()
    assert len(lines) == 3 and place in lines[2] and not (here / "owned").exists()
    if kind != "code":
        exec("\n".join(line.strip() for line in lines), {})
        assert torch.equal(pretrained.load("m_weights.pt").model(IMAGES), NETWORK(IMAGES))


def zipped(name: str) -> bytes:
    with zipfile.ZipFile("made.zip", "w") as archive:
        archive.writestr(name, b"content")
    return Path("made.zip").read_bytes()


def saved(is_old: bool = False) -> bytes:
    torch.save(W, "made.pth", _use_new_zipfile_serialization=not is_old)
    return Path("made.pth").read_bytes()


def tensors_cut() -> bytes:
    save_file(W, "made.safetensors")
    return Path("made.safetensors").read_bytes()[:-100]


FILES = {
    "empty": (lambda: b"", "is empty"),
    "zeros": (lambda: bytes(5000), "begins with zeros alone"),
    "LFS": (lambda: b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
    "page": (lambda: b"\n<!DOCTYPE html>\n<html>", "is a web page"),
    "page of a login": (lambda: b"<html lang=en>" + b" " * 600, "is a web page"),
    "json": (lambda: b'{"error": "not found"}', "is JSON"),
    "keras": (lambda: b"\x89HDF\r\n\x1a\n" + b"\0" * 99, "is HDF5"),
    "cut": (lambda: saved()[:5000], "is cut short"),
    "cut, old": (lambda: saved(is_old=True)[:5000], "is cut short"),
    "cut in its tensors, old": (lambda: saved(is_old=True)[:-5000], "is cut short|or damaged"),
    "cut safetensors": (tensors_cut, "is damaged or cut short"),
    "script": (lambda: zipped("m/constants.pkl"), "is TorchScript"),
    "numpy": (lambda: zipped("a.npy"), "holds NumPy arrays"),
    "zip": (lambda: zipped("model.pth"), "is a zip archive with model.pth in it"),
    "gzip": (lambda: b"\x1f\x8b" + b"\0" * 99, "is compressed"),
    "text": (lambda: b"no tensors" * 50, "is not a file of tensors"),
}


@pytest.mark.parametrize("kind", FILES)
def test_what_is_no_weights_file_is_said(here, kind):
    content, text = FILES[kind]
    Path("a.pth").write_bytes(content())
    with pytest.raises(ValueError, match=rf"--weights a\.pth ({text})"):
        weight_files.read(Path("a.pth"))


def test_the_named_file_is_taken_and_never_its_neighbor(here):
    config = {"training": {"image_size": 32, "resize_size": 40, "kind": "EMA"}}
    folder_of(here / "ours", W, config)
    save_file(V, "ours/epoch10.safetensors")
    assert torch.equal(pretrained.load("ours/model.safetensors").model(IMAGES), NETWORK(IMAGES))
    loaded = pretrained.load("ours/epoch10.safetensors")
    assert torch.equal(loaded.model(IMAGES), OTHER(IMAGES)) and loaded.kind == "weights"
    assert "config.json beside it describes model.safetensors" in loaded.notes[0]
    with pytest.raises(ValueError, match=r"no such file or folder; there is ours/model\.safetens"):
        pretrained.load("ours/models.safetensors")
    Path("ours/config.json").unlink()
    assert not pretrained.load("ours/epoch10.safetensors").notes


TIMM = {
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.25, 0.3],
    "input_size": [3, 64, 64],
    "interpolation": "bicubic",
    "crop_pct": 0.9,
}
PROCESSOR = {
    "size": {"shortest_edge": 64},
    "crop_pct": 0.9,
    "resample": 3,
    "image_mean": TIMM["mean"],
    "image_std": TIMM["std"],
}


@pytest.mark.parametrize("kind", ["timm", "timm before 0.9", "transformers", "exported again"])
def test_a_folder_has_its_own_preprocessing(here, kind):
    config = {"architecture": "resnet50", "global_pool": "avg", "pretrained_cfg": TIMM}
    config["model_args"] = {"in_chans": 3, "num_classes": 10, "global_pool": "avg"}  # 1.0.31
    if kind == "timm before 0.9":
        config = {"architecture": "resnet50", **TIMM}
    if kind == "exported again":
        config["training"] = {"image_size": 64, "resize_size": 71, "kind": "weights"}
    folder_of(here / "it", W, config)
    if kind == "transformers":
        folder_of(here / "it", foreign.of_transformers(W), {"model_type": "resnet"})
        Path("it/preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    loaded, picture = pretrained.load("it"), make_picture(5, 1).resize((150, 110))
    bicubic = tv.InterpolationMode.BICUBIC
    steps = [tv.Resize(71, bicubic), tv.CenterCrop(64), tv.ToTensor()]
    expected = tv.Compose([*steps, tv.Normalize(TIMM["mean"], TIMM["std"])])(picture)
    assert torch.allclose(loaded.pixels(picture)[0], expected, atol=1e-5)
    is_told = any("64 px of 71, bicubic, mean 0.5 0.4 0.3" in note for note in loaded.notes)
    assert is_told != (kind == "exported again")


CONFIGS = {
    "list": ([], r"config\.json holds a list"),
    "null": ({"training": None}, '"training" is null'),
    "size": ({"training": {"image_size": [224, 224]}}, r'"image_size" is \[224, 224\]'),
    "names": ({"label_names": {"0": "ant"}}, '"label_names" is not a list of names'),
    "blurred": ({"architecture": "resnetblur50"}, "resnetblur50 has a ResNet50's tensors"),
    "silu": (
        {"architecture": "resnet50", "model_args": {"act_layer": "silu"}},
        '"act_layer" is "silu", which is',
    ),
    "oblong": ({"pretrained_cfg": {"input_size": [3, 224, 320]}}, r'"input_size" is \[3, 224, 3'),
    "test size": ({"pretrained_cfg": {"test_input_size": 64}}, '"test_input_size" is 64: this'),
    "huge": ({"pretrained_cfg": {"input_size": [3, 10**400, 10**400]}}, '"input_size" is 1000'),
    "tiny crop": ({"pretrained_cfg": {"crop_pct": 1e-9}}, '"crop_pct" is 1e-09: this program'),
    "labels": ({"model_type": "resnet", "id2label": ["a", "b"]}, '"id2label" is not an object'),
    "mean": ({"pretrained_cfg": {"mean": [0.5]}}, r'"mean" is \[0.5\]: three numbers'),
    "std": ({"pretrained_cfg": {"std": [0, 1, 1]}}, r'"std" is \[0, 1, 1\]: three numbers'),
    "resize": ({"pretrained_cfg": {"interpolation": "best"}}, '"interpolation" is "best"'),
    "vit": ({"model_type": "vit"}, "a vit of transformers"),
    "basic": ({"model_type": "resnet", "layer_type": "basic"}, '"layer_type" is "basic"'),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_that_cannot_be_done_is_one_line(here, kind):
    config, text = CONFIGS[kind]
    folder_of(here / "it", W, config)
    with pytest.raises(ValueError, match=rf"--weights it: .*{text}") as refused:
        weights.load("it")
    assert "\n" not in str(refused.value)


def test_what_a_config_says_and_is_not_done_is_named(here):
    config = {"architecture": "resnet50", "pretrained_cfg": TIMM | {"crop_mode": "squash"}}
    folder_of(here / "it", W, config)
    assert "crop_mode squash is ignored" in pretrained.load("it").notes[1]
    config["pretrained_cfg"] |= {"crop_mode": "center", "test_input_size": [3, 96, 96]}
    folder_of(here / "it", W, config)
    assert "--image_size 96 --resize_size 106" in pretrained.load("it").notes[1]
    folder_of(here / "it", W, {"anything": 1})
    assert pretrained.load("it").notes[0].startswith("warning: config.json is from no")


@pytest.mark.parametrize(
    "stated",
    [
        {"arch": "resnetblur50"},
        {"args": {"model": "resnetblur50"}},
        {"args": argparse.Namespace(arch="resnetaa50")},
        {"hyper_parameters": {"model_name": "resnetaa50"}},
    ],
    ids=str,
)
def test_a_file_that_says_that_it_is_another_network_is_refused(here, stated):
    torch.save({"state_dict": W, **stated}, "it.pth")
    with pytest.raises(ValueError, match=r"--weights it\.pth: resnet(blur|aa)50 has a ResNet50's"):
        weights.load("it.pth")


def test_odd_class_numbers_are_no_names(here):
    torch.save({"model": W, "class_to_idx": {"a": 0, "b": "1", "c": None}}, "it.pth")
    assert weights.load("it.pth").classes == []


def test_a_pipe_is_not_waited_for(here):
    os.mkfifo("a.pth")
    with pytest.raises(ValueError, match=r"--weights a\.pth is a pipe or a device: give a file"):
        weights.load("a.pth")


@pytest.mark.parametrize("name", ["x" * 300, "é" * 200])
def test_a_name_that_is_too_long_is_refused_without_its_length(here, name):
    with pytest.raises(ValueError, match="too long to be a file, folder or repository") as refused:
        weights.load(name)
    assert len(str(refused.value)) < 120


def test_an_average_without_names_is_said_to_be_left(here):
    torch.save({"model": W, "ema": {"decay": 0.9, "shadow_params": list(V.values())}}, "a.pth")
    loaded = pretrained.load("a.pth")
    assert torch.equal(loaded.model(IMAGES), NETWORK(IMAGES))
    assert "shadow_params" in loaded.notes[0]


def test_a_counter_of_another_shape_changes_nothing(here):
    counters = [key for key in W if key.endswith("num_batches_tracked")]
    for counter in (torch.tensor([3]), torch.tensor([3]).to_sparse(), torch.tensor(3.0)):
        torch.save(W | dict.fromkeys(counters, counter), "a.pth")
        assert torch.equal(pretrained.load("a.pth").model(IMAGES), NETWORK(IMAGES))


PATHS = {
    "runs/frist": "no such file or folder: there is no runs in .* the Hub was not asked",
    "weights/last.ckpt": "no such file or folder: there is no weights in",
    "me/best.pth": "no such file or folder: there is no me in",
    "mine/fisrt": "no such file or folder; there is mine/first",
    "mines/first": "no such file or folder; there is mine in .*The Hub was not asked",
    "nothing": "no such file or folder, nor a repository's name",
    "./best": "no such file or folder, nor a repository's name",
    "a/b/c": "no such file or folder, nor a repository's name",
    "mine/first": "is neither a run with a checkpoint nor an export .*name a file in it, such as ",
}


@pytest.mark.parametrize("source", PATHS)
def test_a_mistyped_path_is_no_question_to_the_hub(here, source, monkeypatch):
    Path("mine/first").mkdir(parents=True)
    Path("mine/first/other.pth").touch()
    monkeypatch.setattr(weights, "download", lambda *_: pytest.fail("the Hub was asked"))
    with pytest.raises(ValueError, match=rf"--weights {source}:? ?{PATHS[source]}"):
        weights.load(source)


def test_a_repositorys_name_is_asked_for(here, monkeypatch):
    folder_of(here / "cache", W, {"training": {}})
    monkeypatch.setattr(weights, "download", lambda *_: here / "cache")
    for name in ("timm/resnet50.a1_in1k", "microsoft/resnet-50"):
        assert pretrained.load(name).name == name


def test_only_a_checkpoint_with_all_of_our_keys_counts_as_ours(here):
    ours = {"model": W, "ema": V, "config": OURS, "step": 3, "data": {"train": {}}, "classes": []}
    torch.save(ours, "a.pt")
    loaded = pretrained.load("a.pt")
    assert loaded.kind == "EMA" and loaded.image_size == 64 and loaded.about["step"] == 3
    assert "does not end with its sha256" in loaded.notes[0], "written by torch.save alone"
    torch.save(ours | {"rows": None}, "a.pt")
    assert pretrained.load("a.pt").kind == "EMA"
    with pytest.raises(ValueError, match=r"--v1_strides: --weights a\.pt is our own model"):
        pretrained.load("a.pt", v1_strides=True)
    for key in ("config", "step", "data"):
        torch.save({name: value for name, value in ours.items() if name != key}, "b.pt")
        loaded = pretrained.load("b.pt")
        assert loaded.kind == "weights" and not loaded.settings
        assert torch.equal(loaded.model(IMAGES), OTHER(IMAGES)), "the average, as any other's"


def test_class_names_of_other_programs_are_taken_where_they_fit(here):
    names = [f"name {number}" for number in range(10)]
    by_name = {name: number for number, name in enumerate(names)}
    for more in ({"classes": names}, {"class_to_idx": by_name}):
        torch.save({"model": W, **more}, "a.pth")
        assert pretrained.load("a.pth").classes == names
    for more in ({"classes": names[1:]}, {"classes": 10}, {"class_to_idx": {"a": 3}}):
        torch.save({"model": W, **more}, "a.pth")
        assert pretrained.load("a.pth").classes[0] == "class 0"


def test_a_picture_is_seen_alike_with_any_interpolation():
    picture = Image.fromarray(np.arange(90 * 70 * 3, dtype=np.uint8).reshape(90, 70, 3))
    for name in ("bilinear", "bicubic", "nearest", "lanczos", "box", "hamming"):
        mode = tv.InterpolationMode(name)
        expected = tv.CenterCrop(32)(tv.Resize(40, mode)(picture))
        assert np.array_equal(pretrained.transforms.eval_crop(picture, 40, 32, name), expected)
