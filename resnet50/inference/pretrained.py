"""A trained model with everything that belongs to it: class names, sizes, origin.

    loaded = pretrained.load("runs/imagenet")                    # a run's best checkpoint
    loaded = pretrained.load("exported/imagenet")                # what export.py wrote
    loaded = pretrained.load("USER/NAME")                        # the same on Hugging Face
    loaded = pretrained.load("torchvision")                      # the public weights

Needs torch, torchvision, Pillow and safetensors only, so that a Hugging Face Space can use it.
"""

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model import ResNet, architecture_of, load_weights
from resnet50.data import orientation, transforms
from resnet50.data.batch import normalize
from resnet50.data.class_names import default_names, imagenet_names, readable
from resnet50.inference import class_order
from resnet50.records import checkpoint

TORCHVISION = "torchvision"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# What each figure of `about` is called in a checkpoint's last row.
FIGURES = {"top1": "val_top1", "top5": "val_top5", "epochs": "epoch", "hours": "seconds"}


@dataclass(frozen=True)
class Pretrained:
    """A model to predict with.

    model: float32, in evaluation mode, on the CPU; folders: the name that each logit's class had in
    the data, empty if that is not known; image_size, resize_size: side of the center crop and
    shorter side before it, in pixels; kind: "EMA" for averaged weights, "trained", or "weights" of
    unknown origin; blurpool: of the model; about: recipe, epochs, top1 and top5 in percent, hours,
    as far as known; settings: of the run, empty for a foreign file; upright: how its pictures were
    read (data/orientation.py), AUTO if that is not known.
    """

    model: ResNet
    folders: list[str]
    image_size: int
    resize_size: int
    name: str
    kind: str = "weights"
    blurpool: bool = False
    about: dict[str, object] = field(default_factory=dict)
    settings: dict[str, object] = field(default_factory=dict)
    upright: str = orientation.AUTO

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

        names, where: the data's class folders and their place. Those of a run must be the same, in
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
        return transforms.eval_crop(picture, self.resize_size, self.image_size)

    def pixels(self, picture: Image.Image) -> Tensor:
        """A picture as the model takes it: float32 (1, 3, S, S), normalized."""
        return normalized(self.crop(picture))


def normalized(crop: np.ndarray) -> Tensor:
    """A crop, uint8 (S, S, 3), as a model takes it: float32 (1, 3, S, S)."""
    return normalize(torch.from_numpy(crop.copy())[None])


def load(source: str, raw: bool = False) -> Pretrained:
    """Load a checkpoint, a run folder, an exported folder, a Hugging Face repository or
    `torchvision`.

    raw: the trained weights of a checkpoint, not their average. Raises ValueError naming the source
    and what to do; OSError without a network.
    """
    if source == TORCHVISION:
        return from_torchvision()
    path = Path(source)
    if path.is_dir() and (path / CONFIG).exists() and (path / WEIGHTS).exists():
        return from_export(path, source)
    if path.is_dir():
        path = checkpoint_in(path)
    if path.suffix == ".safetensors":
        return from_export(path.parent, source)
    if path.exists():
        return from_file(path, raw)
    is_file_name = path.suffix in (".pt", ".pth", ".safetensors")
    if HUB_NAME.fullmatch(source) and not path.parent.is_dir() and not is_file_name:
        return from_export(download(source), source)
    raise ValueError(
        f"--weights {source}: no such file or folder, nor a repository's name (USER/NAME)"
    )


def checkpoint_in(run_dir: Path) -> Path:
    """The best checkpoint of a run, else its newest."""
    folder = run_dir / "checkpoints"
    step = checkpoint.newest_step(folder) if folder.is_dir() else -1
    if (folder / "best.pt").exists():
        return folder / "best.pt"
    if step < 0:
        raise ValueError(
            f"--weights {run_dir} is neither a run with a checkpoint nor an export ({CONFIG} and "
            f"{WEIGHTS})"
        )
    return checkpoint.step_path(folder, step)


def from_file(path: Path, raw: bool) -> Pretrained:
    """A checkpoint of this project, or a file of torchvision's keys."""
    state = checkpoint.load_weights_file(path)
    trained = state.get("config", {})
    weights, kind = checkpoint.weights_of(state, raw)
    image_size = trained.get("eval_image_size") or trained.get("image_size", 224)
    about = describe(state) if trained else {}
    if kind == "trained" and state.get("ema") is not None:  # the run measured the averaged ones
        about = {key: value for key, value in about.items() if key not in ("top1", "top5")}
    return build(
        weights,
        name=str(path),
        kind=kind,
        folders=list(state.get("classes", [])) if "model" in state else [],
        blurpool=trained.get("blurpool", False),
        image_size=image_size,
        resize_size=trained.get("eval_resize_size") or round(image_size * 256 / 224),
        about=about,
        settings=trained,
        upright=trained.get("upright", orientation.LEGACY if trained else orientation.AUTO),
    )


def describe(state: dict) -> dict[str, object]:
    """What a checkpoint says about its run: figures of the last row that has them."""
    trained, rows = state["config"], state.get("rows", [])
    row = next((row for row in reversed(rows) if row.get("val_top1") is not None), {})
    figures = {name: row[key] for name, key in FIGURES.items() if key in row}
    if "hours" in figures:
        figures["hours"] = round(figures["hours"] / 3600, 3)
    return {
        "recipe": trained.get("recipe"),
        "data": Path(trained.get("data_dir", "")).name,
        "num_train_images": state.get("data", {}).get("train", {}).get("num_images"),
        "step": state["step"],
        "commit": state.get("commit"),
        **figures,
    }


def build(
    weights: dict[str, Tensor], *, name: str, folders: list[str], blurpool: bool, **more: object
) -> Pretrained:
    """Put the weights into a model. Raises ValueError if they or the classes do not fit."""
    try:
        architecture = architecture_of(weights)
        model = ResNet(**architecture, blurpool=blurpool)
        load_weights(model, weights)
    except ValueError as error:
        raise ValueError(f"--weights {name}: {error}") from None
    num_classes = architecture["num_classes"]
    if folders and len(folders) != num_classes:
        raise ValueError(f"--weights {name}: {len(folders)} class names for {num_classes} classes")
    model.eval().requires_grad_(False)
    return Pretrained(model, folders, name=name, blurpool=blurpool, **more)


def from_export(folder: Path, name: str) -> Pretrained:
    """What export.py wrote: model.safetensors beside config.json."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / CONFIG).read_text())
        weights = load_file(folder / WEIGHTS)
    except OSError as error:
        raise ValueError(f"--weights {name}: {error.filename}: {error.strerror}") from error
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"--weights {name} is damaged: {error}") from error
    own = config.get("training", {})
    return build(
        weights,
        name=name,
        kind=own.get("kind", "weights"),
        folders=config.get("label_names", []),
        blurpool=own.get("blurpool", False),
        image_size=own.get("image_size", 224),
        resize_size=own.get("resize_size", 256),
        about=own.get("about", {}),
        upright=own.get("upright", orientation.LEGACY if own else orientation.AUTO),
    )


def from_torchvision() -> Pretrained:
    """torchvision's ResNet50 weights of 2021 (80.86% top-1 at 224 px), downloaded once."""
    from torchvision.models import ResNet50_Weights

    weights = ResNet50_Weights.IMAGENET1K_V2
    measured = weights.meta["_metrics"]["ImageNet-1K"]
    about = {"recipe": "torchvision", "data": "imagenet", "num_train_images": 1_281_167}
    about |= {"top1": measured["acc@1"], "top5": measured["acc@5"]}
    try:
        state = weights.get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        raise ValueError(
            f"--weights {TORCHVISION} cannot be downloaded: {error}. Without a network give a file"
        ) from error
    return build(
        state,
        name="torchvision IMAGENET1K_V2",
        folders=weights.meta["categories"],
        blurpool=False,
        image_size=224,
        resize_size=232,
        about=about,
    )


def download(name: str) -> Path:
    """The cache folder of a Hugging Face repository. Raises ValueError if it cannot be fetched."""
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError
    except ImportError:
        message = "needs a package: pip install huggingface_hub"
        raise ValueError(f"--weights {name}: {message}") from None
    problem = None
    try:  # asked once, since hf_hub_download keeps trying for 39 s without a network
        get_hf_file_metadata(hf_hub_url(name, CONFIG))
    except (HTTPError, OSError) as error:
        problem = error
    try:
        hf_hub_download(name, CONFIG, local_files_only=problem is not None)
        return Path(hf_hub_download(name, WEIGHTS, local_files_only=problem is not None)).parent
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = (str(problem or error).strip() or repr(problem or error)).splitlines()[0]
        raise ValueError(
            f"--weights {name}: cannot be downloaded from Hugging Face: {reason}"
        ) from None
