"""A trained model with everything that belongs to it: class names, sizes, origin.

    loaded = pretrained.load("runs/imagenet")                    # a run's best checkpoint
    loaded = pretrained.load("exported/imagenet")                # what export.py wrote
    loaded = pretrained.load("USER/NAME")                        # the same on Hugging Face
    loaded = pretrained.load("torchvision")                      # the public weights

Needs torch, torchvision, Pillow and safetensors only, so that a Hugging Face Space can use it.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model import ResNet, architecture_of, load_weights
from resnet50.data import class_order, orientation, transforms
from resnet50.data.batch import normalize
from resnet50.data.class_names import default_names, imagenet_names, readable
from resnet50.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from resnet50.records import weights

TORCHVISION, WEIGHTS, CONFIG = weights.TORCHVISION, weights.WEIGHTS, weights.CONFIG
HUB_NAME = weights.HUB_NAME


@dataclass(frozen=True)
class Pretrained:
    """A model to predict with.

    model: float32, in evaluation mode, on the CPU; folders: the name that each logit's class had in
    the data, empty if that is not known; image_size, resize_size: side of the center crop and
    shorter side before it, in pixels; kind: "EMA" for averaged weights, "trained", or "weights" of
    unknown origin; blurpool, blur_max_pool, v1_strides: of the model; mean, std: of each channel,
    for values 0-1; interpolation: Pillow's name in small letters; about: recipe, epochs, top1 and
    top5 in percent, hours, as far as known; settings: of the run, empty for a foreign file;
    upright: how its pictures were read (data/orientation.py), AUTO if that is not known; notes:
    what the user should know, a line each.
    """

    model: ResNet
    folders: list[str]
    image_size: int
    resize_size: int
    name: str
    kind: str = "weights"
    blurpool: bool = False
    blur_max_pool: bool = True
    v1_strides: bool = False
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    about: dict[str, object] = field(default_factory=dict)
    settings: dict[str, object] = field(default_factory=dict)
    upright: str = orientation.AUTO
    notes: tuple[str, ...] = ()

    @property
    def variant(self) -> dict[str, bool]:
        """The arguments of ResNet that its keys do not determine."""
        return {name: getattr(self, name) for name in weights.VARIANTS}

    @functools.cached_property
    def classes(self) -> list[str]:
        """A name for every logit, for people."""
        return readable(self.folders or default_names(self.model.fc.out_features))

    @property
    def architecture(self) -> str:
        """ResNet50, or the name that another number of blocks gives by the same count."""
        return f"ResNet{3 * sum(architecture_of(self.model.state_dict())['layers']) + 2}"

    @property
    def class_ids(self) -> list[str]:
        """The data's own name for every logit; for foreign weights of a thousand classes, which are
        named in words, WordNet's ids; empty if it is not known."""
        if self.kind != "weights":
            return self.folders
        return list(imagenet_names()) if self.model.fc.out_features == 1000 else []

    def labels_of(self, names: Sequence[str], where: Path) -> list[int]:
        """The number of the logit of each of the data's classes, of which the model's must be some.

        names, where: the data's class folders and their parent. Those of a run must be the same, in
        the same order. Names in foreign weights are words, while those of the data may be WordNet's
        ids or numbers: then see `class_order.labels_of`. Raises ValueError naming what differs.
        """
        num_classes = self.model.fc.out_features
        what = f"--weights {self.name} knows {num_classes} classes, {where} has "
        if num_classes != len(names):
            raise ValueError(f"{what}{len(names)}: give the data it was trained on")
        if self.kind == "weights":
            return class_order.labels_of(names, self.folders, where)
        for number, (ours, theirs) in enumerate(zip(self.folders, names, strict=False)):
            if ours != theirs:
                raise ValueError(f"{what}others: class {number} is {theirs} there, and {ours} here")
        return list(range(num_classes))

    def crop(self, picture: Image.Image) -> np.ndarray:
        """What the model sees of a picture: uint8 (S, S, 3)."""
        return transforms.eval_crop(picture, self.resize_size, self.image_size, self.interpolation)

    def pixels(self, picture: Image.Image) -> Tensor:
        """A picture as the model takes it: float32 (1, 3, S, S), normalized."""
        return self.normalized(self.crop(picture))

    def normalized(self, crop: np.ndarray) -> Tensor:
        """A crop, uint8 (S, S, 3), as the model takes it: float32 (1, 3, S, S)."""
        return normalize(torch.from_numpy(crop.copy())[None], mean=self.mean, std=self.std)


def load(source: str, raw: bool = False, v1_strides: bool = False) -> Pretrained:
    """Load a model from whatever `weights.load` takes.

    raw: the trained weights of a checkpoint, not their average; v1_strides: foreign weights are
    from the paper's network. Raises ValueError naming the source and what to do; OSError when
    offline.
    """
    found = weights.load(source, raw=raw)
    if found.no_head:
        raise ValueError(
            f"--weights {found.name}: {found.no_head}, so it cannot classify: train.py --init_from "
            "starts from it, with a new head"
        )
    variant = found.variant
    if v1_strides and found.kind != weights.FOREIGN:
        raise ValueError(f"--v1_strides: --weights {found.name} is our own model, and records it")
    if v1_strides:
        variant = variant | {"v1_strides": True}
    notes = [note for note in found.notes if not (v1_strides and "--v1_strides" in note)]
    return build(found, variant, notes)


def build(found: weights.Weights, variant: Mapping[str, bool], notes: Sequence[str]) -> Pretrained:
    """Put the weights into a model. Raises ValueError if they or the classes do not fit."""
    try:
        architecture = architecture_of(found.tensors)
        model = ResNet(**architecture, **variant)
        load_weights(model, found.tensors)
    except ValueError as error:
        raise ValueError(f"--weights {found.name}: {error}") from None
    num_classes = architecture["num_classes"]
    folders = found.classes
    if folders and len(folders) != num_classes:
        raise ValueError(
            f"--weights {found.name}: {len(folders)} class names for {num_classes} classes"
        )
    model.eval().requires_grad_(False)
    looks = found.preprocessing
    is_foreign = found.kind == weights.FOREIGN
    return Pretrained(
        model,
        folders,
        image_size=looks.image_size,
        resize_size=looks.resize_size,
        name=found.name,
        kind=found.kind,
        **variant,
        mean=looks.mean or IMAGENET_MEAN,
        std=looks.std or IMAGENET_STD,
        interpolation=looks.interpolation,
        about=found.about,
        settings=found.settings,
        upright=looks.upright or (orientation.AUTO if is_foreign else orientation.LEGACY),
        notes=tuple(notes),
    )
