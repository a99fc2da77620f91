"""The texts of a published model: its card for every kind of weights, what a Space is made of."""

from huggingface_hub import ModelCard
from support.commands import REPOSITORY

from model import ResNet
from resnet50.data import class_names
from resnet50.export import formats, model_card, space
from resnet50.inference.pretrained import Pretrained


def loaded_of(width: int, num_classes: int, **more: object) -> Pretrained:
    model = ResNet((1, 1, 1, 1), width, num_classes).eval().requires_grad_(False)
    return Pretrained(model, image_size=64, resize_size=72, name="here", **more)


def card_of(loaded: Pretrained) -> ModelCard:
    result = {"models": [], "conditions": "Not timed."}
    config = formats.config_of(loaded)
    return ModelCard(model_card.card("me/mine", loaded, config, result, ["model.safetensors"]))


def test_the_card_of_an_imagenet_model_names_the_data_and_its_terms():
    folders = list(class_names.imagenet_names())
    card = card_of(loaded_of(64, 1000, folders=folders, kind="EMA", about={"top1": 76.125}))
    assert card.data.datasets == ["ILSVRC/imagenet-1k"] and card.data.library_name == "timm"
    (top1,) = card.data.eval_results
    assert top1.dataset_type == "ILSVRC/imagenet-1k" and top1.metric_value == 76.125
    for text in ("**76.12% top-1**", "non-commercial", "hf-hub:me/mine", "tench", "990 more"):
        assert text in card.text, text


def test_weights_of_others_get_no_license_of_ours():
    card = card_of(loaded_of(8, 3, folders=[], about={}))
    assert card.data.license == "unknown" and card.data.eval_results is None
    assert "MIT" not in card.text and "not known here" in card.text
    about = {"recipe": "torchvision", "top1": 80.858}
    assert card_of(loaded_of(8, 3, folders=[], about=about)).data.license == "bsd-3-clause"


def test_the_space_has_every_module_that_the_page_imports():
    files, packages = space.files_and_packages()
    assert {"app.py", "model.py", "resnet50/inference/grad_cam.py", "resnet50/__init__.py"} <= set(
        files
    )
    assert not {"export.py", "train.py", "resnet50/config/train_config.py"} & set(files)
    assert all((REPOSITORY / name).is_file() for name in files)
    assert {"torch", "PIL", "numpy", "safetensors", "huggingface_hub"} <= packages


def test_init_from_is_a_files_name_only():
    settings = {"epochs": 3, "layers": [1, 1, 1, 1], "run_dir": "/home/someone/runs/x", "old": 1}
    settings["init_from"] = "/home/someone/weights/start.pt"
    expected = {"epochs": 3, "layers": [1, 1, 1, 1], "init_from": "start.pt"}
    assert model_card.recipe_of(settings) == expected
    text = card_of(loaded_of(8, 3, folders=[], kind="trained", settings=settings)).text
    assert "started from the weights `start.pt`" in text and "| layers | 1,1,1,1 |" in text
