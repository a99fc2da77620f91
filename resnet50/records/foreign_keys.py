"""Other people's state dicts -> torchvision's keys, or a refusal that says what differs.

    found = find(contents, raw=False)

looks for the network in whatever was saved: under `state_dict`, `model`, `model_ema` and the like,
behind `module.`, `backbone.`, `encoder_q.` and the like, as Hugging Face's transformers names it,
or as the children of a torchvision ResNet by number. Only differences that cannot change
an output are silent: prefixes, missing num_batches_tracked, dtypes. All else is in `notes`, or
refused.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from resnet50.records.tensor_checks import is_number, refuse_bad_numbers, refuse_unusable
from resnet50.records.weight_files import PLACES, is_average

# These keys mark a network: the first block's first convolution, under any prefix.
ANCHOR = "layer1.0.conv1.weight"
TRANSFORMERS_ANCHOR = "encoder.stages.0.layers.0.layer.0.convolution.weight"
NUMBERED_ANCHOR = "4.0.conv1.weight"  # nn.Sequential(*resnet.children())
NUMBERED = {"0": "conv1", "1": "bn1", "9": "fc"} | {str(3 + i): f"layer{i}" for i in range(1, 5)}
MAX_DEPTH = 4  # of dictionaries in dictionaries
# Common names of a classifier, and of what self-supervised methods put in its place.
HEADS = {"fc", "classifier", "head", "last_linear", "linear", "logits"}
PROJECTIONS = {"projection_head", "projector", "predictor", "prototypes", "mlp", "projection"}
# Encoders whose fc is a projection, even where it is one linear layer (MoCo v1: 128 numbers).
QUERIES = {"encoder_q", "base_encoder", "online_encoder", "query_encoder"}
# Encoders that only follow another one, which is the network that was trained.
FOLLOWERS = {
    *("encoder_k", "key_encoder", "momentum_encoder", "encoder_momentum", "base_momentum"),
    *("target", "target_encoder"),
}
LIGHTNINGS_AVERAGE = {"state_dict", "current_model_state", "averaging_state"}
STAGE_KEY = re.compile(r"layer[1-4]\.\d+\.(conv[123]|bn[123]|downsample\.[01])\.\w+")
STEM_KEY = re.compile(r"(conv1|bn1)\.\w+")
BLOCKS = {(2, 2, 2, 2): "ResNet18", (3, 4, 6, 3): "ResNet34"}
OURS = "this program has ResNets of bottlenecks (50, 101, 152, Wide)"


@dataclass
class Found:
    """A network's weights among what a file holds.

    tensors: under torchvision's keys, fc.* only if there is one linear classifier; place: where in
    the file, empty for its top; variant: arguments of ResNet that the keys determine,
    besides `architecture_of`'s; no_head: why there is no fc.*; is_average: whether an average was
    taken although the trained weights are there too, then notes[0] says so; notes: what was chosen
    or ignored, a line each.
    """

    tensors: dict[str, Tensor]
    place: str = ""
    variant: dict[str, bool] = field(default_factory=dict)
    no_head: str = ""
    is_average: bool = False
    notes: list[str] = field(default_factory=list)


def find(contents: Mapping, raw: bool = False) -> Found:
    """The ResNet in a file's contents, its average where there is one, unless `raw`.

    Raises ValueError saying what is there instead, or what differs from a ResNet50.
    """
    place, table, notes = choose_table(contents, raw)
    table = {key: value for key, value in table.items() if isinstance(key, str)}
    tensors = {key: value for key, value in table.items() if isinstance(value, Tensor)}
    prefix, others, prefix_notes = choose_prefix(tensors, raw)
    refuse_unusable(tensors, prefix)
    nested = tuple(other for other in others if other.startswith(prefix))
    inside = {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors.items()
        if key.startswith(prefix) and not key.startswith(nested)
    }
    # For a module that contains the network, without prefixes of the whole module.
    wrapper = prefix.rpartition(".")[0].rpartition(".")[0]
    outside = {
        key.removeprefix(f"{wrapper}."): tensor
        for key, tensor in tensors.items()
        if not key.startswith((prefix, *others))
    }
    inside = from_transformers(from_numbers(inside))
    inside, variant = without_blurs(inside)
    refuse_other_networks(inside)
    found = Found({}, place=place, variant=variant, notes=[*notes, *prefix_notes])
    found.is_average = bool(found.notes) and ", an average, " in found.notes[0]
    rest = {}
    for key, tensor in inside.items():
        is_ours = STAGE_KEY.fullmatch(key) or STEM_KEY.fullmatch(key)
        (found.tensors if is_ours else rest)[key] = tensor
    rest.pop("n_averaged", None)  # torch's AveragedModel counts its updates there
    outside.pop("n_averaged", None)
    if QUERIES.isdisjoint(prefix.split(".")):
        take_head(found, rest, outside)
    else:
        found.no_head = "its head is a projection, not a classifier"
        left_aside(found, {*rest, *outside})
    for key in [key for key in found.tensors if key.endswith("running_mean")]:
        # A counter since PyTorch 0.4.1 that does not affect outputs.
        counter = key.replace("running_mean", "num_batches_tracked")
        count = found.tensors.get(counter)
        found.tensors[counter] = count if is_number(count) else torch.tensor(0)
    refuse_bad_numbers(found.tensors)
    if has_nameless_average(contents):
        found.notes.append(
            "an average in a list without names (shadow_params, as torch_ema keeps it) is not used"
        )
    return found


def has_nameless_average(contents: Mapping, depth: int = 0) -> bool:
    """Whether a list of averaged tensors is anywhere in nested dictionaries."""
    if "shadow_params" in contents:
        return True
    inner = (value for value in contents.values() if isinstance(value, Mapping))
    return depth < MAX_DEPTH and any(has_nameless_average(value, depth + 1) for value in inner)


def choose_table(contents: Mapping, raw: bool) -> tuple[str, Mapping, list[str]]:
    """The place of the weights in nested dictionaries, their dictionary, and what was not taken."""
    tables = dict(tables_in(contents))
    if not tables:
        keys = [str(key) for key in contents][:3]
        more = f"; there are {', '.join(keys)}" if keys else ""
        raise ValueError(
            "these weights are not a ResNet's: no tensor conv1.weight with layer1.0.* beside it"
            + more
        )
    averages = {place for place in tables if is_average(place)}
    if contents.keys() >= LIGHTNINGS_AVERAGE:  # its WeightAveraging callback swaps them
        averages = {"state_dict"} & tables.keys()
    place = preferred(tables, averages, raw, lambda place: rank(place, PLACES))
    left = sorted(set(tables) - {place})
    if not left:
        return place, tables[place], []
    kind = ", an average" if place in averages else ""
    note = f"takes the weights under {place!r}{kind}, not {', '.join(map(repr, left))}"
    return place, tables[place], [note]


def tables_in(contents: Mapping, place: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping]]:
    """Every dictionary that holds a ResNet's tensors, with the keys that lead there."""
    if any(isinstance(value, Tensor) and is_anchor(key) for key, value in contents.items()):
        yield place, contents
    for key, value in contents.items() if depth < MAX_DEPTH else ():
        if isinstance(value, Mapping):
            yield from tables_in(value, f"{place}.{key}" if place else str(key), depth + 1)


def is_anchor(key: object) -> bool:
    """Whether a key is one that only a ResNet has, after any prefix."""
    ends = (ANCHOR, TRANSFORMERS_ANCHOR, NUMBERED_ANCHOR)
    return isinstance(key, str) and any(key == end or key.endswith(f".{end}") for end in ends)


def rank(place: str, names: Sequence[str]) -> int:
    """How likely a place is to hold the network, 0 the likeliest; by its last name."""
    last = place.rpartition(".")[2]
    return names.index(last) if last in names else len(names)


def preferred(
    places: Iterable[str], averages: set[str], raw: bool, order: Callable[[str], int]
) -> str:
    """The average, or with `raw` the weights it averages; the likeliest of several.

    Raises ValueError if two are equally likely.
    """
    places = list(places)
    wanted = [place for place in places if (place in averages) != raw] if averages else places
    wanted = wanted or places
    first, *others = sorted(wanted, key=lambda place: (order(place), len(place)))
    if others and order(first) == order(others[0]) == len(PLACES):
        names = ", ".join(map(repr, sorted(wanted)))
        raise ValueError(f"holds several networks, {names}: save only the one you mean")
    return first


def choose_prefix(tensors: Mapping[str, Tensor], raw: bool) -> tuple[str, list[str], list[str]]:
    """The prefix of every key of the network, "module.encoder_q.", and of others, and a note
    on the choice."""
    prefixes = {}
    for key in filter(is_anchor, tensors):
        end = next(e for e in (ANCHOR, TRANSFORMERS_ANCHOR, NUMBERED_ANCHOR) if key.endswith(e))
        prefixes[key.removesuffix(end)] = None
    trained = [p for p in prefixes if FOLLOWERS.isdisjoint(p.split("."))] or list(prefixes)
    averages = {prefix for prefix in trained if is_average(prefix)}
    order = ("", "module", "model", "encoder_q", *PLACES)
    prefix = preferred(
        trained,
        averages,
        raw,
        lambda p: min(rank(p.rstrip("."), order), len(PLACES)),
    )
    left = sorted(set(prefixes) - {prefix})
    if not left:
        return prefix, [], []
    kind = ", an average" if prefix in averages else ""
    note = f"takes the network {prefix}*{kind}, not {', '.join(f'{p}*' for p in left)}"
    return prefix, left, [note]


def from_numbers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keys of nn.Sequential(*resnet.children()) by their names; others as they are."""
    if NUMBERED_ANCHOR not in tensors:
        return tensors
    parts = ((key.partition("."), tensor) for key, tensor in tensors.items())
    return {f"{NUMBERED.get(first, first)}.{rest}": tensor for (first, _, rest), tensor in parts}


def from_transformers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keys of transformers' ResNetForImageClassification by torchvision's names."""
    if TRANSFORMERS_ANCHOR not in tensors:
        return tensors
    return {torchvisions_key(key): tensor for key, tensor in tensors.items()}


def torchvisions_key(key: str) -> str:
    """A key of transformers' ResNet by torchvision's name; any other as it is."""
    kind = r"(convolution|normalization)"
    stage = r"encoder\.stages\.(\d+)\.layers\.(\d+)\."
    if match := re.fullmatch(rf"embedder\.embedder\.{kind}\.(\w+)", key):
        return f"{'conv1' if match[1] == 'convolution' else 'bn1'}.{match[2]}"
    if match := re.fullmatch(rf"{stage}shortcut\.{kind}\.(\w+)", key):
        number = 0 if match[3] == "convolution" else 1
        return f"layer{int(match[1]) + 1}.{match[2]}.downsample.{number}.{match[4]}"
    if match := re.fullmatch(rf"{stage}layer\.(\d+)\.{kind}\.(\w+)", key):
        name = "conv" if match[4] == "convolution" else "bn"
        return f"layer{int(match[1]) + 1}.{match[2]}.{name}{int(match[3]) + 1}.{match[5]}"
    return key


def without_blurs(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, bool]]:
    """The weights of convolutions with a blur before them, as ffcv-imagenet and Composer wrap them,
    under their usual keys, and the arguments of ResNet that build the same."""
    filters = {key: t for key, t in tensors.items() if key.endswith((".blur_filter", ".filt2d"))}
    if not filters:
        return tensors, {}
    usual = torch.tensor([1.0, 2.0, 1.0])
    usual = usual[:, None] * usual / 16
    kept = {}
    for key, tensor in tensors.items():
        kept[re.sub(r"(conv\d|downsample\.0)\.conv\.", r"\1.", key)] = tensor
    for key, blur in filters.items():
        del kept[key]
        name = key.rpartition(".")[0]
        weight = kept.get(f"{name}.weight")
        is_before = weight is None or blur.shape[0] == weight.shape[1]
        if blur.shape[-2:] != (3, 3) or not torch.allclose(blur.float(), usual, atol=1e-3):
            raise ValueError(f"{key} is not the blur (1 2 1; 2 4 2; 1 2 1) / 16")
        if not is_before:
            raise ValueError(f"{key} blurs after its convolution: this program blurs before")
    blurred = {key.rpartition(".")[0] for key in filters} - {"maxpool"}
    strided = {
        f"layer{stage}.0.{name}" for stage in (2, 3, 4) for name in ("conv2", "downsample.0")
    }
    if blurred != strided:
        raise ValueError(
            f"blurs before {', '.join(sorted(blurred)[:3])}: this program blurs before every "
            "strided convolution but the first"
        )
    return kept, {"blurpool": True, "blur_max_pool": "maxpool.filt2d" in filters}


def refuse_other_networks(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError naming the architecture, or what differs, of what resembles a ResNet50."""
    refuse_other_stems(tensors)
    stages = {key: t for key, t in tensors.items() if re.match(r"layer\d+\.", key)}
    if "layer1.0.conv3.weight" not in tensors and not any("conv3." in key for key in stages):
        blocks = tuple(
            len({k.split(".")[1] for k in stages if k[5] == str(i)}) for i in range(1, 5)
        )
        name = BLOCKS.get(blocks, "a small ResNet")
        raise ValueError(f"{name}: its blocks have two convolutions; {OURS}")
    others = {
        r"\.filt$": "an anti-aliased ResNet (antialiased-cnns), which blurs after convolutions",
        r"\.se\w*\.|\.fc[12]\.": "blocks with squeeze-and-excitation (SE)",
        r"\.attn\w*\.|\.ca\.|\.sa\.|\.cbam\.": "blocks with attention",
        r"layer\d\.\d+\.conv\d\.bias$": "biases in its convolutions: fold them into the batch norm",
    }
    for pattern, what in others.items():
        if key := next((key for key in stages if re.search(pattern, key)), None):
            raise ValueError(f"has {what} ({key}); {OURS}")
    shortcut = tensors.get("layer1.0.downsample.1.weight")
    if shortcut is not None and shortcut.dim() == 4:
        raise ValueError(f"a ResNet-D: its shortcuts average before they convolve; {OURS}")
    weight = tensors.get("layer1.0.conv2.weight")
    if weight is not None and weight.dim() == 4 and weight.shape[1] < weight.shape[0]:
        groups = weight.shape[0] // weight.shape[1]
        raise ValueError(f"a ResNeXt: its 3x3 convolutions have {groups} groups; {OURS}")
    if "bn1.running_mean" not in tensors:
        raise ValueError(
            "no bn1.running_mean: its normalization is not batch norm, or the statistics were left "
            "out when it was saved"
        )
    for stage in range(1, 5):
        if f"layer{stage}.0.bn3.bias" not in tensors:
            raise ValueError(f"these weights are not a ResNet's: no layer{stage}.0.bn3.bias")
    if unknown := [key for key in stages if not STAGE_KEY.fullmatch(key)]:
        raise ValueError(
            f"these weights are not this model's: unexpected {', '.join(unknown[:3])}; {OURS}"
        )


def refuse_other_stems(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless the first convolution is 7x7 on three channels."""
    if any(key.startswith("conv1.0.") for key in tensors):
        raise ValueError("a deep stem of three 3x3 convolutions (ResNet-C, -D; resnet50d), not 7x7")
    if "conv1.weight" not in tensors:
        raise ValueError("these weights are not a ResNet's: no tensor conv1.weight")
    shape = tuple(tensors["conv1.weight"].shape)
    if len(shape) == 4 and shape[1:] != (3, 7, 7):
        what = "a stem for CIFAR" if shape[2:] == (3, 3) else "another stem"
        what = f"a stem for {shape[1]} channels" if shape[1] != 3 else what
        expected = (shape[0], 3, 7, 7)
        raise ValueError(f"{what}: conv1.weight is {shape}, the model has {expected}")


def take_head(found: Found, rest: dict[str, Tensor], outside: dict[str, Tensor]) -> None:
    """Give `found` the one linear classifier as fc.*, or say why there is none.

    rest: tensors beside the network's own; outside: everything in the file without the network's
    prefix. Raises ValueError for parts that may affect the outputs.
    """
    features = max(t.shape[0] for key, t in found.tensors.items() if key.endswith("bn3.bias"))
    if bad := [key for key in rest if _first(key) not in HEADS | PROJECTIONS]:
        raise ValueError(
            f"these weights are not this model's: unexpected {', '.join(bad[:3])}; {OURS}"
        )
    heads = {key: t for key, t in rest.items() if _first(key) in HEADS}
    if not heads:  # a custom module: self.backbone and self.classifier side by side
        heads = {key: t for key, t in outside.items() if not HEADS.isdisjoint(key.split("."))}
        heads = {key: t for key, t in heads.items() if t.dim() in (1, 2)}
    weights = [key for key in heads if key.endswith("weight")]
    biases = [key for key in heads if key.endswith("bias")]
    is_linear = len(weights) == 1 and len(weights) + len(biases) == len(heads) <= 2
    if is_linear and heads[weights[0]].dim() == 2 and heads[weights[0]].shape[1] == features:
        found.tensors["fc.weight"] = heads[weights[0]]
        num_classes = heads[weights[0]].shape[0]
        found.tensors["fc.bias"] = heads[biases[0]] if biases else torch.zeros(num_classes)
        if not biases:
            found.notes.append(f"zeros for the missing bias of {weights[0]}")
        if weights != ["fc.weight"]:
            found.notes.append(f"the classifier is {weights[0]}")
        used = set(heads)
    else:
        names = ", ".join(
            sorted({*map(_first, rest)} or {".".join(k.split(".")[:-1]) for k in heads})
        )
        found.no_head = f"its head is not one linear layer ({names})" if names else "it has no head"
        used = set()
    left_aside(found, {*rest, *outside} - used)


def left_aside(found: Found, keys: Iterable[str]) -> None:
    """Note what is in the file and not used."""
    left = sorted(set(map(_first, keys)))
    if left:
        more = f" and {len(left) - 4} more" if len(left) > 4 else ""
        found.notes.append(f"not used: {', '.join(left[:4])}{more}")


def _first(key: str) -> str:
    return key.partition(".")[0]
