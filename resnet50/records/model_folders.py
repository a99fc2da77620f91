"""config.json beside a model's weights, as export.py, timm and transformers write it.

Each says how its model's pictures are preprocessed, and what its classes are called. What this
program does not support is refused or reported; no default is used silently.

    about = describe(Path("exported/imagenet"))
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

WEIGHTS, CONFIG = "model.safetensors", "config.json"
# Which files of a folder its config.json is about; the first that is there is taken.
WEIGHTS_NAMES = (WEIGHTS, "pytorch_model.bin")
PREPROCESSOR = "preprocessor_config.json"  # transformers'
INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos", "box", "hamming")
# Pillow's numbers for them, which transformers stores.
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
SQUASHED_FROM = 384  # px: transformers' ConvNextImageProcessor crops below only
# timm's names for models with a ResNet50's keys but other computations (1.0.31, resnet.py).
SAME_KEYS = ("resnetblur", "resnetaa")
# timm's model_args: those that the tensors determine or only training uses, and others allowed.
TIMM_FREE = {
    *("layers", "base_width", "num_classes", "zero_init_last"),
    *("drop_rate", "drop_path_rate", "drop_block_rate"),
}
TIMM_FIXED = {
    "in_chans": 3,
    "global_pool": "avg",
    "output_stride": 32,
    "cardinality": 1,
    "stem_type": "",
    "avg_down": False,
    "act_layer": "relu",
    "norm_layer": "batchnorm2d",
}


@dataclass(frozen=True)
class Preprocessing:
    """How pictures are preprocessed: side of the center crop, shorter side before it, in pixels;
    interpolation, as Pillow's names in small letters; mean and std of each channel for values 0-1,
    None: ImageNet's; upright: how training pictures were read (data/orientation.py), "" if that is
    not recorded."""

    image_size: int = 224
    resize_size: int = 256
    interpolation: str = "bilinear"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    upright: str = ""


@dataclass(frozen=True)
class FolderInfo:
    """What config.json tells: preprocessing, class names (empty: not known), which kind of weights,
    figures of the run, arguments of ResNet beyond what keys determine; notes: a line each."""

    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    classes: list[str] = field(default_factory=list)
    kind: str = "weights"
    about: dict[str, object] = field(default_factory=dict)
    variant: dict[str, bool] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def describe(folder: Path) -> FolderInfo:
    """What the folder's config.json tells. Raises ValueError naming the file and what is wrong."""
    config = read_object(folder / CONFIG)
    try:
        if "training" in config:
            return of_export(config)
        if "model_type" in config or "architectures" in config:
            return of_transformers(config, folder)
        if "pretrained_cfg" in config or "architecture" in config:
            return of_timm(config)
    except ValueError as error:
        raise ValueError(f"{CONFIG}: {error}") from None
    note = f"warning: {CONFIG} is from no known program: 224 px of 256, ImageNet's mean"
    return FolderInfo(classes=names_of(config, "label_names"), notes=(note,))


def read_object(path: Path) -> dict[str, object]:
    """A JSON object. Raises ValueError naming the file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path.name} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} holds a {type(values).__name__}, not an object")
    return values


def of_export(config: Mapping) -> FolderInfo:
    """From export.py."""
    own = config["training"]
    if not isinstance(own, dict):
        raise ValueError(f'"training" is {json.dumps(own)}, not what export.py writes')
    timms = config.get("pretrained_cfg", {})
    timms = timms if isinstance(timms, dict) else {}
    kind, about = own.get("kind", "weights"), own.get("about", {})
    if not isinstance(kind, str) or not isinstance(about, dict):
        raise ValueError('"training" lacks what export.py writes: kind, about')
    names = ("blurpool", "blur_max_pool", "v1_strides")
    return FolderInfo(
        preprocessing=Preprocessing(
            image_size=pixels(own, "image_size", 224),
            resize_size=pixels(own, "resize_size", 256),
            interpolation=interpolation_of(timms, "bilinear"),
            mean=channels(timms, "mean"),
            std=channels(timms, "std"),
            upright=str(own.get("upright", "")),
        ),
        classes=names_of(config, "label_names"),
        kind=kind,
        about=about,
        variant={name: bool(own[name]) for name in names if name in own},
    )


def of_timm(config: Mapping) -> FolderInfo:
    """From timm's save_for_hf and push_to_hf_hub; before 0.9, settings were at the top level."""
    cfg = config.get("pretrained_cfg", config)
    if not isinstance(cfg, dict):
        raise ValueError(f'"pretrained_cfg" is {json.dumps(cfg)}, not an object')
    architecture = str(config.get("architecture", cfg.get("architecture", "")))
    refuse_same_keys(architecture)
    arguments = config.get("model_args") or {}
    if not isinstance(arguments, dict):
        raise ValueError(f'"model_args" is {json.dumps(arguments)}, not an object')
    for name, value in [("global_pool", config.get("global_pool")), *arguments.items()]:
        if name not in TIMM_FREE and value not in (None, TIMM_FIXED.get(name)):
            raise ValueError(f'"{name}" is {json.dumps(value)}, which is not supported')
    image_size = side_of(cfg, "input_size", 224)
    share = share_of(cfg, "crop_pct", 0.875)
    ignored = (
        [f"crop_mode {cfg['crop_mode']}"] if cfg.get("crop_mode") in ("squash", "border") else []
    )
    found = Preprocessing(
        image_size=image_size,
        resize_size=math.floor(image_size / share),
        interpolation=interpolation_of(cfg, "bicubic"),
        mean=channels(cfg, "mean"),
        std=channels(cfg, "std"),
    )
    notes = [f"pictures as {CONFIG} says: {shown(found)}"]
    notes += [f"warning: {CONFIG}'s {what} is ignored: cut from the center" for what in ignored]
    if cfg.get("test_input_size") and (test := side_of(cfg, "test_input_size", 0)) != image_size:
        resize = math.floor(test / share_of(cfg, "test_crop_pct", share))
        notes.append(
            f"{CONFIG} has another size for testing: --image_size {test} --resize_size {resize}"
        )
    names = names_of(config, "label_names") or names_of(cfg, "label_names")
    return FolderInfo(preprocessing=found, classes=names, notes=tuple(notes))


def refuse_same_keys(architecture: str) -> None:
    """Raise ValueError for another network with a ResNet50's keys."""
    if architecture.lower().removeprefix("timm/").startswith(SAME_KEYS):
        raise ValueError(
            f"{architecture} has a ResNet50's tensors but computes differently (blurred or "
            "averaged strides), which is not supported"
        )


def of_transformers(config: Mapping, folder: Path) -> FolderInfo:
    """From transformers' save_pretrained."""
    if config.get("model_type") != "resnet":
        raise ValueError(f"a {config.get('model_type')} of transformers, not a ResNet")
    expected = {
        "layer_type": "bottleneck",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
    }
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise ValueError(f'"{key}" is {json.dumps(config[key])}, not {json.dumps(value)}')
    labels = config.get("id2label") or {}
    if not isinstance(labels, dict):
        raise ValueError('"id2label" is not an object of class names by number')
    classes = [labels.get(str(number), "") for number in range(len(labels))]
    if not all(isinstance(n, str) and n and not n.startswith("LABEL_") for n in classes):
        classes = []
    found = Preprocessing()
    notes = []
    if (folder / PREPROCESSOR).exists():
        found, notes = of_processor(read_object(folder / PREPROCESSOR))
    else:
        notes = [f"warning: no {PREPROCESSOR} beside it: 224 px of 256, ImageNet's mean"]
    variant = {"v1_strides": bool(config.get("downsample_in_bottleneck", False))}
    return FolderInfo(found, classes, variant=variant, notes=tuple(notes))


def of_processor(values: Mapping) -> tuple[Preprocessing, list[str]]:
    """Of transformers' ConvNextImageProcessor, which its ResNets have."""
    size = values.get("size", {})
    size = size.get("shortest_edge") if isinstance(size, dict) else size
    image_size = pixels({"size": size}, "size", 224)
    share = share_of(values, "crop_pct", 224 / 256)
    resize_size = int(image_size / share)
    notes = []
    if image_size >= SQUASHED_FROM:
        resize_size = image_size
        notes = [f"warning: {PREPROCESSOR} squashes pictures to a square: cut from the center"]
    resample = values.get("resample", 3)
    if not isinstance(resample, int) or resample not in RESAMPLE:
        raise ValueError(f'{PREPROCESSOR}: "resample" is {json.dumps(resample)}: 0 to 5 are known')
    means = channels(values, "image_mean"), channels(values, "image_std")
    found = Preprocessing(image_size, resize_size, RESAMPLE[resample], *means)
    return found, [f"pictures as {PREPROCESSOR} says: {shown(found)}", *notes]


def shown(found: Preprocessing) -> str:
    """A preprocessing in words."""
    text = f"{found.image_size} px of {found.resize_size}, {found.interpolation}"
    for name in ("mean", "std"):
        if values := getattr(found, name):
            text += f", {name} {' '.join(f'{value:g}' for value in values)}"
    return text


def is_number(value: object) -> bool:
    """Whether it may be a size, mean, or share: not NaN, infinite, or astronomical."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e9 < value < 1e9


def pixels(values: Mapping, key: str, default: int) -> int:
    """A number of pixels. Raises ValueError."""
    value = values.get(key, default)
    if not is_number(value) or value != int(value) or value < 1:
        raise ValueError(f'"{key}" is {json.dumps(value)}: a number of pixels is needed')
    return int(value)


def side_of(values: Mapping, key: str, default: int) -> int:
    """N of a size [3, N, N] in pixels. Raises ValueError."""
    size = values.get(key, [3, default, default])
    if not isinstance(size, list) or len(size) != 3 or size[1] != size[2]:
        raise ValueError(f'"{key}" is {json.dumps(size)}: this program takes [3, N, N]')
    return pixels({key: size[1]}, key, default)


def share_of(values: Mapping, key: str, default: float) -> float:
    """The part of a resized picture's shorter side that is cut out of it. Raises ValueError."""
    share = values.get(key)
    if share is None:
        return default
    # Less than a tenth would enlarge every picture more than tenfold, which nobody trains with.
    if not is_number(share) or not 0.1 <= share <= 1:
        raise ValueError(f'"{key}" is {json.dumps(share)}: this program takes 0.1 to 1')
    return share


def channels(values: Mapping, key: str) -> tuple[float, ...] | None:
    """A number for each of three channels; None if it is not there. Raises ValueError."""
    value = values.get(key)
    if value is None:
        return None
    is_right = isinstance(value, list) and len(value) == 3 and all(map(is_number, value))
    if not is_right or (key.endswith("std") and min(value) <= 0):
        raise ValueError(f'"{key}" is {json.dumps(value)}: three numbers are needed')
    return tuple(map(float, value))


def interpolation_of(values: Mapping, default: str) -> str:
    """How pictures are resized. Raises ValueError for what Pillow does not have."""
    value = values.get("interpolation", default)
    if value not in INTERPOLATIONS:
        known = ", ".join(INTERPOLATIONS)
        raise ValueError(f'"interpolation" is {json.dumps(value)}: known are {known}')
    return value


def names_of(values: Mapping, key: str) -> list[str]:
    """Class names, empty if they are not there. Raises ValueError if invalid."""
    names = values.get(key) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f'"{key}" is not a list of names')
    return names
