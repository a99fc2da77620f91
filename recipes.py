"""Named settings, each with its published result and where that was published.

    python train.py --recipe onecycle50 --data_dir /mnt/imagenet

A recipe is a difference to the defaults of `config.TrainConfig`; flags on the command line win
over it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

DEFAULT_RECIPE = "onecycle50"


@dataclass(frozen=True)
class Recipe:
    """settings: names and values of `TrainConfig`; result: what was reached; source: by whom."""

    summary: str
    settings: Mapping[str, object]
    result: str
    source: str


RECIPES: Mapping[str, Recipe] = {
    "onecycle50": Recipe(
        summary="ImageNet-1K, 50 epochs at 224 px, batch 256, OneCycleLR to 0.175",
        settings={
            "epochs": 50,
            "image_size": 224,
            "total_batch_size": 256,
            "max_lr": 0.175,
            "momentum": 0.9,
            "weight_decay": 1e-4,
        },
        result="top-1 74.99, top-5 92.42 on ImageNet's validation images, published by others",
        source="the run that this project set out from; shared by its user, not repeated by us",
    ),
    "demo": Recipe(
        summary="Fashion-MNIST at 32 px, minutes on a laptop's CPU",
        # Whole pictures, and a third of the usual rate: on 20,000 images OneCycleLR to 0.03 gave
        # 81.1%, to 0.1 80.0% and to 0.01 79.9%.
        settings={
            "epochs": 2,
            "image_size": 32,
            "eval_resize_size": 32,
            "min_crop_scale": 1.0,
            "total_batch_size": 128,
            "max_lr": 0.03,
            "nesterov": True,
            "weight_decay": 5e-4,
            "label_smoothing": 0.1,
            "ema_decay": 0.95,
            "max_minutes": 11.0,
        },
        result="top-1 88.01, top-5 99.70 on its test images; one run, bf16 on 2 CPU cores",
        source="this project",
    ),
    "tiny": Recipe(
        summary="a ResNet of 0.1 M parameters at 32 px, for tests that kill it again and again",
        settings={
            "layers": (1, 1, 1, 1),
            "width": 8,
            "epochs": 2,
            "image_size": 32,
            "eval_resize_size": 32,
            "total_batch_size": 16,
            "device_batch_size": 8,
            "max_lr": 0.05,
            "num_workers": 0,
        },
        result="none: it exists for the tests",
        source="this project",
    ),
}
