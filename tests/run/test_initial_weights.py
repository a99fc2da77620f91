"""What a new run takes from --init_from, and what it reports."""

import json

import pytest
import torch
from safetensors.torch import save_file
from support import foreign
from support.foreign import HEADLESS, LOADED, tiny

from resnet50.config.recipes import RECIPES
from resnet50.config.train_config import TrainConfig
from resnet50.data.class_names import imagenet_names
from resnet50.records import weights
from resnet50.run import initial_weights

W = tiny(1).state_dict()
NAMES = [f"name {number}" for number in range(10)]
OTHERS = [*NAMES[:7], "dog", *NAMES[8:]]
OURS = {
    "config": dict.fromkeys(weights.OUR_SETTINGS, 1) | {"blurpool": False, "v1_strides": False},
    "model": foreign.tiny(2).state_dict(),
    "ema": W,
    "step": 1200,
    "data": {},
    "classes": NAMES,
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder, made the current one."""
    monkeypatch.chdir(tmp_path)


def read(source: str, classes: list[str] = NAMES, **settings: object) -> tuple[dict, list[str]]:
    settings = {**RECIPES["tiny"].settings, "init_from": source, **settings}
    return initial_weights.read(TrainConfig(**settings), classes)


def write_exported() -> None:
    save_file(W, "model.safetensors")
    config = {"training": {"kind": "EMA"}, "label_names": NAMES}
    with open("config.json", "w") as file:
        json.dump(config, file)


CLASSES = {
    "the same": (OURS, NAMES, "averaged weights (EMA) of step 1200; the classifier too, of 10"),
    "others in the same number": (
        OURS,
        OTHERS,
        "a new classifier for 10 classes, since the names differ: class 7 is name 7 there, dog ",
    ),
    "another order": (OURS, NAMES[::-1], "since the names differ: class 0 is name 0 there, name"),
    "another number": (OURS, NAMES[1:], "a new classifier for 9 classes, since the old one has 10"),
    "not known": ({"net": W}, NAMES, "weights under 'net'; the classifier too, of 10 classes, w"),
    "known, foreign": ({"model": W, "classes": NAMES}, OTHERS, "since the names differ: class 7"),
    "none": (HEADLESS["dino"](W, W), NAMES, "a new classifier for 10 classes, since it has no hea"),
}


@pytest.mark.parametrize("kind", CLASSES)
def test_the_classifier_is_taken_where_its_classes_are_the_datas(kind):
    contents, classes, text = CLASSES[kind]
    torch.save(contents, "a.pt")
    tensors, (line, *_) = read("a.pt", classes)
    assert line.startswith("--init_from a.pt: ") and text in line, line
    assert ("fc.weight" in tensors) == ("classifier too" in text)
    assert all(torch.equal(tensors[key], W[key]) for key in tensors)


def test_an_export_is_taken_by_its_folder_and_by_its_file():
    write_exported()
    for source in (".", "model.safetensors"):
        tensors, lines = read(source)
        assert tensors.keys() == W.keys() and "averaged weights (EMA); the classi" in lines[0]
        assert "since the names differ: class 7" in read(source, OTHERS)[1][0]


def test_imagenets_words_are_its_ids_in_any_spelling():
    model = W | {"fc.weight": torch.zeros(1000, 256), "fc.bias": torch.zeros(1000)}
    torch.save({"model": model, "classes": [f"word {n}" for n in range(1000)]}, "a.pt")
    assert "fc.weight" in read("a.pt", list(imagenet_names()))[0]
    assert "fc.weight" not in read("a.pt", [f"mine {n}" for n in range(1000)])[0]


def test_what_was_chosen_and_what_differs_is_said():
    torch.save(LOADED["torchvision's references"][0](W, OURS["model"]), "a.pt")
    assert "'model_ema', an average, not 'model'" in read("a.pt")[1][1]
    assert "--raw" not in "".join(read("a.pt")[1]), "which train.py has not"
    torch.save(foreign.blurred(W), "ffcv.pt")
    assert "warning: they are from a network built with --blurpool" in read("ffcv.pt")[1][-1]
    assert "their max pool is not blurred" in read("ffcv.pt", blurpool=True)[1][-1]
    torch.save(OURS, "ours.pt")
    assert "built with --no_v1_strides" in read("ours.pt", v1_strides=True)[1][-1]
    torch.save(W, "resnet50_v1.pt")
    assert "give --v1_strides" in read("resnet50_v1.pt")[1][-1]
    assert len(read("resnet50_v1.pt", v1_strides=True)[1]) == 1


def test_without_the_option_nothing_is_read():
    assert read("") == (None, [])
