"""Weights to predict with or to start from, wherever they come from: one loader for all commands.

    found = load("runs/imagenet")                   # a run's best checkpoint
    found = load("model_best.pth.tar")              # other people's files (foreign_keys.py)
    found = load("exported/imagenet")               # folders of export.py, timm, transformers
    found = load("USER/NAME")                       # the same on Hugging Face
    found = load("torchvision")                     # the public weights

No model is built, and no code from a file is run. Messages name option, source and remedy.
"""

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from resnet50.records import checkpoint, foreign_keys, model_folders, weight_files
from resnet50.records.model_folders import CONFIG, PREPROCESSOR, WEIGHTS_NAMES, Preprocessing

TORCHVISION = "torchvision"
WEIGHTS = model_folders.WEIGHTS
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
MAX_NAME = 255  # bytes of a file's name on most disks
# Names that end like this are files, and are never looked up on the Hub.
FILE_ENDS = (
    *(".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".tar", ".pkl", ".pickle", ".h5", ".onnx"),
    *(".zip", ".npz", ".pack", ".json", ".model", ".engine", ".pb", ".t7"),
)
# Common folder names: what begins with one is a path, not a Hub user's name.
FOLDERS = {
    *("runs", "exported", "weights", "checkpoints", "ckpt", "models", "pretrained", "data", "logs"),
    *("output", "outputs", "out", "results", "tmp", "home", "mnt", ".", ".."),
}
# What a checkpoint of a run of ours has, and some of the settings in it.
OUR_KEYS = {"model", "config", "step", "data"}
OUR_SETTINGS = {"image_size", "layers", "width", "total_batch_size", "max_lr", "seed"}
EMA, TRAINED, FOREIGN = "EMA", "trained", "weights"
# The names that the figures of `about` have in a checkpoint's last row.
FIGURES = {"top1": "val_top1", "top5": "val_top5", "epochs": "epoch", "hours": "seconds"}
VARIANTS = ("blurpool", "blur_max_pool", "v1_strides")
# File names of networks with a ResNet50's tensors but other computations, recognizable only so.
SUSPECT_NAME = re.compile(r"(?<![a-z])(resnet(?:blur|aa)\d+)", re.IGNORECASE)
V1_NAME = re.compile(r"(?<!imagenet1k)[_-]v1(?!\.\d|[a-z0-9])|caffe|msra", re.IGNORECASE)


@dataclass(frozen=True)
class Weights:
    """A network's weights and all that came with them.

    tensors: torchvision's keys, fc.* only if there is a linear classifier, else no_head says why
    not; name: the file; kind: "EMA" for averaged weights of ours, "trained", or "weights" for
    others'; classes: names of the logits' classes, empty if not known; variant: arguments of
    ResNet that keys do not tell; about: recipe, epochs, top1 and top5 in percent, hours, as far as
    known; settings: of the run, empty for a foreign file; place: where in the file they were;
    is_average: whether a foreign file has the trained ones too; notes: what the user should know,
    a line each.
    """

    tensors: dict[str, Tensor]
    name: str
    kind: str = FOREIGN
    classes: list[str] = field(default_factory=list)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    variant: dict[str, bool] = field(default_factory=dict)
    about: dict[str, object] = field(default_factory=dict)
    settings: dict[str, object] = field(default_factory=dict)
    no_head: str = ""
    place: str = ""
    is_average: bool = False
    notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of the classifier's classes; 0 without one."""
        return len(self.tensors["fc.bias"]) if "fc.bias" in self.tensors else 0


def load(source: str, option: str = "--weights", raw: bool = False) -> Weights:
    """Load a checkpoint, a run folder, an exported folder, other people's files and folders, a
    Hugging Face repository or `torchvision`.

    option: of the command line, for messages; raw: the trained weights, not their average. Raises
    ValueError naming option, source and what to do; OSError when offline.
    """
    if source == TORCHVISION:
        return from_torchvision(option)
    path = Path(source)
    # Path's own methods would raise OSError for these.
    if any(len(os.fsencode(part)) > MAX_NAME for part in path.parts):
        raise ValueError(f"{option} {source[:40]}...: too long to be a file, folder or repository")
    if path.is_dir():
        return from_folder(path, source, option, raw)
    if path.exists():
        return from_file(path, option, raw)
    refuse_mistyped(source, option)
    return from_folder(download(source, option), source, option, raw)


def refuse_mistyped(source: str, option: str) -> None:
    """Raise ValueError for a local path, or what was meant to be one, without asking the Hub."""
    path, here = Path(source), Path.cwd()
    no_such = f"{option} {source}: no such file or folder"
    parent = path.parent
    if parent.is_dir() and str(parent) not in ("", "."):
        near = difflib.get_close_matches(path.name, os.listdir(parent), n=1)
        hint = f"; there is {parent / near[0]}" if near else ""
        raise ValueError(no_such + hint)
    is_file = path.name.lower().endswith(FILE_ENDS)
    first = path.parts[0] if path.parts else ""
    if HUB_NAME.fullmatch(source) and not is_file and first.lower() not in FOLDERS:
        near = difflib.get_close_matches(first, os.listdir(here), n=1, cutoff=0.8)
        if not near:
            return
        raise ValueError(f"{no_such}; there is {near[0]} in {here}. The Hub was not asked")
    if HUB_NAME.fullmatch(source):
        raise ValueError(
            f"{no_such}: there is no {parent} in {here}. It looks like a path, so the Hub was not "
            "asked"
        )
    raise ValueError(f"{no_such}, nor a repository's name (USER/NAME)")


def from_folder(folder: Path, name: str, option: str, raw: bool) -> Weights:
    """A run's best checkpoint, or the weights beside a config.json."""
    weights = next((folder / n for n in WEIGHTS_NAMES if (folder / n).exists()), None)
    if weights and (folder / CONFIG).exists():
        return from_described(weights, name, option, raw)
    checkpoints = folder / "checkpoints"
    step = checkpoint.newest_step(checkpoints)
    if (checkpoints / checkpoint.BEST).exists():
        return from_file(checkpoints / checkpoint.BEST, option, raw)
    if step >= 0:
        return from_file(checkpoint.step_path(checkpoints, step), option, raw)
    files = sorted(path.name for path in folder.iterdir() if path.name.endswith(FILE_ENDS[:6]))
    hint = f": name a file in it, such as {folder / files[0]}" if files else ""
    raise ValueError(
        f"{option} {name} is neither a run with a checkpoint nor an export ({CONFIG} and "
        f"{WEIGHTS}){hint}"
    )


def from_described(path: Path, name: str, option: str, raw: bool = False) -> Weights:
    """The weights that the config.json beside them is about."""
    try:
        info = model_folders.describe(path.parent)
    except ValueError as error:
        raise ValueError(f"{option} {name}: {error}") from None
    found = found_in(weight_files.read(path, option), name, option, raw)
    return replace(
        found,
        kind=info.kind,
        classes=info.classes,
        preprocessing=info.preprocessing,
        variant=found.variant | info.variant,
        about=info.about,
        notes=(*found.notes, *info.notes),
    )


def from_file(path: Path, option: str, raw: bool) -> Weights:
    """A checkpoint of ours, or a file of anyone's."""
    if path.name in WEIGHTS_NAMES and (path.parent / CONFIG).exists():
        return from_described(path, str(path), option, raw)
    contents = weight_files.read(path, option)
    if is_ours(contents):
        found = from_checkpoint(contents, str(path), option, raw)
        if checkpoint.has_trailer(path):
            return found
        note = (
            "warning: this checkpoint does not end with its sha256, so it could not be verified: "
            "it was cut, or saved again by another program"
        )
        return replace(found, notes=(*found.notes, note))
    found = found_in(contents, str(path), option, raw)
    names, notes = names_in(contents, found.num_classes), list(found.notes)
    if found.is_average and option == "--weights":  # the commands that have --raw
        notes[0] += " (--raw takes that)"
    if (path.parent / CONFIG).exists() and path.suffix == ".safetensors":
        notes.append(f"{CONFIG} beside it describes {WEIGHTS}, and is not used")
    if suspect := SUSPECT_NAME.search(path.name):
        notes.append(
            f"warning: a {suspect[1]} has a ResNet50's tensors but computes differently: if "
            "these weights are from one, the answers are wrong"
        )
    elif V1_NAME.search(path.name):
        notes.append(
            "warning: a ResNet v1 (stride in the first 1x1 convolution) has v1.5's tensors: if "
            "these are from one, give --v1_strides"
        )
    return replace(found, classes=names, notes=tuple(notes))


def found_in(contents: Mapping, name: str, option: str, raw: bool) -> Weights:
    """Other people's weights. Raises ValueError naming them."""
    refuse_other_architecture(contents, name, option)
    try:
        found = foreign_keys.find(contents, raw)
    except ValueError as error:
        raise ValueError(f"{option} {name}: {error}") from None
    return Weights(
        found.tensors,
        name,
        variant=found.variant,
        no_head=found.no_head,
        place=found.place,
        is_average=found.is_average,
        notes=tuple(found.notes),
    )


def refuse_other_architecture(contents: Mapping, name: str, option: str) -> None:
    """Raise ValueError if the file itself says that it is another network with the same keys."""
    places = [contents, *(contents.get(key) for key in ("args", "hyper_parameters", "config"))]
    # A Namespace, as argparse makes it, is read like a dictionary.
    places = [place if isinstance(place, Mapping) else vars_of(place) for place in places]
    keys = ("arch", "architecture", "model", "model_name")
    for architecture in (place.get(key) for place in places for key in keys):
        if isinstance(architecture, str):
            try:
                model_folders.refuse_same_keys(architecture)
            except ValueError as error:
                raise ValueError(f"{option} {name}: {error}") from None


def vars_of(value: object) -> Mapping:
    return vars(value) if hasattr(value, "__dict__") else {}


def is_ours(contents: Mapping) -> bool:
    """Whether a file is a checkpoint of this program, by keys that only ours have together."""
    config = contents.get("config")
    return (
        contents.keys() >= OUR_KEYS
        and isinstance(config, dict)
        and config.keys() >= OUR_SETTINGS
        and isinstance(config["image_size"], int)
        and isinstance(contents["step"], int)
        and isinstance(contents["data"], dict)
        and isinstance(contents["model"], dict)
    )


def from_checkpoint(contents: Mapping, name: str, option: str, raw: bool) -> Weights:
    """A checkpoint of ours: its average where there is one, unless `raw`."""
    is_average = contents.get("ema") is not None and not raw
    weights, trained = contents["ema" if is_average else "model"], contents["config"]
    found = found_in(weights, name, option, raw)
    about = describe(contents)
    if not is_average and contents.get("ema") is not None:  # the run measured the averaged ones
        about = {key: value for key, value in about.items() if key not in ("top1", "top5")}
    image_size = trained.get("eval_image_size") or trained["image_size"]
    resize_size = trained.get("eval_resize_size") or round(image_size * 256 / 224)
    return replace(
        found,
        kind=EMA if is_average else TRAINED,
        classes=list(contents.get("classes", [])),
        preprocessing=Preprocessing(image_size, resize_size, upright=trained.get("upright", "")),
        variant={key: bool(trained[key]) for key in VARIANTS if key in trained},
        about=about,
        settings=trained,
    )


def describe(contents: Mapping) -> dict[str, object]:
    """What our checkpoint tells about its run: figures of the last row that has them."""
    trained = contents["config"]
    rows = contents.get("rows") or []
    row = next((row for row in reversed(rows) if row.get("val_top1") is not None), {})
    figures = {name: row[key] for name, key in FIGURES.items() if key in row}
    if "hours" in figures:
        figures["hours"] = round(figures["hours"] / 3600, 3)
    return {
        "recipe": trained.get("recipe"),
        "data": Path(trained.get("data_dir", "")).name,
        "num_train_images": contents["data"].get("train", {}).get("num_images"),
        "step": contents["step"],
        "commit": contents.get("commit"),
        **figures,
    }


def names_in(contents: Mapping, num_classes: int) -> list[str]:
    """Class names that a foreign file holds, as many programs write them; empty if there are none
    that fit."""
    names = contents.get("classes", contents.get("class_names"))
    by_name = contents.get("class_to_idx")
    numbers = list(by_name.values()) if isinstance(by_name, dict) else [None]
    if all(isinstance(n, int) for n in numbers) and sorted(numbers) == list(range(len(numbers))):
        names = sorted(by_name, key=by_name.__getitem__)
    is_right = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return list(names) if is_right and len(names) == num_classes else []


def from_torchvision(option: str) -> Weights:
    """torchvision's ResNet50 weights of 2021 (80.86% top-1 at 224 px), downloaded once."""
    from torchvision.models import ResNet50_Weights

    weights = ResNet50_Weights.IMAGENET1K_V2
    measured = weights.meta["_metrics"]["ImageNet-1K"]
    about = {"recipe": TORCHVISION, "data": "imagenet", "num_train_images": 1_281_167}
    about |= {"top1": measured["acc@1"], "top5": measured["acc@5"]}
    try:
        state = weights.get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        raise ValueError(
            f"{option} {TORCHVISION} cannot be downloaded: {error}. Offline, give a file"
        ) from error
    return replace(
        found_in(state, "torchvision IMAGENET1K_V2", option, raw=False),
        classes=weights.meta["categories"],
        preprocessing=Preprocessing(224, 232),
        about=about,
    )


def download(name: str, option: str) -> Path:
    """A repository of the Hugging Face Hub, in its cache. Raises ValueError if it is not there."""
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError
    except ImportError:
        message = "no such file or folder; Hugging Face needs pip install huggingface_hub"
        raise ValueError(f"{option} {name}: {message}") from None
    problem = None
    try:  # once, since hf_hub_download alone tries for 39 s where there is no network
        get_hf_file_metadata(hf_hub_url(name, CONFIG))
    except (HTTPError, OSError) as error:
        problem = error
    try:
        config = hf_hub_download(name, CONFIG, local_files_only=problem is not None)
        folder = Path(hf_hub_download(name, WEIGHTS, local_files_only=problem is not None)).parent
        if "architectures" in model_folders.read_object(Path(config)):  # transformers'
            hf_hub_download(name, PREPROCESSOR, local_files_only=problem is not None)
        return folder
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = (str(problem or error).strip() or repr(problem or error)).splitlines()[0]
        raise ValueError(
            f"{option} {name}: cannot be downloaded from Hugging Face: {reason}; and there is no "
            f"such file or folder in {Path.cwd()}"
        ) from None
