"""Other people's checkpoints, built by hand the way their programs save them.

Each is a function of a network's weights and of those of a second network in the file: the
average, or the weights that it averages.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from model import ResNet

State = dict[str, Tensor]
TINY = ((1, 1, 1, 1), 8, 10)
STRIDED = ("conv2", "downsample.0")


def tiny(seed: int, **variant: bool) -> ResNet:
    """A tiny network for ten classes whose answers differ from picture to picture."""
    torch.manual_seed(seed)
    model = ResNet(*TINY, zero_init_gamma=False, **variant).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return model.requires_grad_(False)


def behind(prefix: str, weights: State) -> State:
    return {prefix + key: tensor for key, tensor in weights.items()}


def without_head(weights: State) -> State:
    return {key: tensor for key, tensor in weights.items() if not key.startswith("fc.")}


def head_as(name: str, weights: State) -> State:
    return {f"{name}.weight": weights["fc.weight"], f"{name}.bias": weights["fc.bias"]}


def without_counters(weights: State) -> State:
    return {key: tensor for key, tensor in weights.items() if "num_batches" not in key}


def by_number(weights: State) -> State:
    """As nn.Sequential(*resnet.children()) names them."""
    numbers = {"conv1": "0", "bn1": "1", "fc": "9"} | {f"layer{i}": str(3 + i) for i in range(1, 5)}
    return {
        f"{numbers[first]}.{rest}": tensor
        for (first, _, rest), tensor in ((key.partition("."), t) for key, t in weights.items())
    }


def of_transformers(weights: State) -> State:
    """As ResNetForImageClassification (5.24) names them."""
    kinds = {"conv": "convolution", "bn": "normalization"}
    found = {}
    for key, tensor in weights.items():
        first, *middle, last = key.split(".")
        if first == "fc":
            name = "classifier.1"
        elif not middle:
            name = f"resnet.embedder.embedder.{kinds[first[:-1]]}"
        else:
            name = f"resnet.encoder.stages.{int(first[5]) - 1}.layers.{middle[0]}."
            if middle[1] == "downsample":
                name += f"shortcut.{('convolution', 'normalization')[int(middle[2])]}"
            else:
                name += f"layer.{int(middle[1][-1]) - 1}.{kinds[middle[1][:-1]]}"
        found[f"{name}.{last}"] = tensor
    return found


def blurred(weights: State) -> State:
    """As ffcv-imagenet's BlurPoolConv2d and Composer's BlurConv2d name them."""
    kernel = torch.tensor([1.0, 2.0, 1.0])
    kernel = kernel[:, None] * kernel / 16
    found = {}
    for key, tensor in weights.items():
        name, _, last = key.rpartition(".")
        if name[5:6] in ("2", "3", "4") and name.endswith(STRIDED):
            found[f"{name}.blur_filter"] = kernel.expand(tensor.shape[1], 1, 3, 3).clone()
            found[f"{name}.conv.{last}"] = tensor
        else:
            found[key] = tensor
    return found


def composers(weights: State) -> dict:
    kernel = blurred(weights)["layer2.0.conv2.blur_filter"][:1]
    state = behind("module.", blurred(weights) | {"maxpool.filt2d": kernel})
    return {"state": {"model": state, "timestamp": {"epoch": 3}}}


def moco(weights: State, other: State) -> dict:
    state = behind("module.encoder_q.", without_head(weights))
    state |= behind("module.encoder_k.", without_head(other))
    state |= {"module.encoder_q.fc.0.weight": torch.ones(4, 256), "module.queue": torch.ones(2, 2)}
    return {"epoch": 200, "arch": "resnet50", "state_dict": state}


def lightnings_average(weights: State, other: State) -> dict:
    """Of its WeightAveraging callback (2.6), which swaps the two."""
    return {
        "state_dict": behind("model.", weights),
        "current_model_state": behind("model.", other),
        "averaging_state": {"n_averaged": torch.tensor(3)},
    }


# What loads as is: the file's contents, and part of the note, "" for none.
LOADED: dict[str, tuple[Callable[[State, State], object], str]] = {
    "bare": (lambda w, _: w, ""),
    "own loop with a config": (lambda w, _: {"model": w, "config": {"lr": 0.1}, "epoch": 5}, ""),
    "config in words": (lambda w, _: {"model": w, "config": "resnet50"}, ""),
    "config with two sizes": (
        lambda w, _: {"model": w, "config": {"image_size": [224, 224]}, "step": 3, "data": {}},
        "",
    ),
    "model is a name": (lambda w, _: {"model": "resnet50", "state_dict": w}, ""),
    "pytorch/examples": (
        lambda w, _: {"arch": "resnet50", "state_dict": behind("module.", w), "epoch": 90},
        "",
    ),
    "courses": (lambda w, _: {"model_state_dict": w, "loss": 0.3}, ""),
    "net": (lambda w, _: {"net": behind("module.", w), "acc": 93.0}, ""),
    "network in a network": (lambda w, _: {"checkpoint": {"network": w}}, ""),
    "lightning": (
        lambda w, _: {"state_dict": behind("model.", w) | {"criterion.weight": torch.ones(10)}},
        "not used: criterion",
    ),
    "lightning's average": (lightnings_average, "'state_dict', an average, not 'current_model_st"),
    "torchvision's references": (
        lambda w, other: {
            "model": other,
            "model_ema": {"n_averaged": torch.tensor(3)} | behind("module.", w),
            "args": argparse.Namespace(model="resnet50", lr=0.1),
        },
        "'model_ema', an average, not 'model' (--raw",
    ),
    "timm's saver": (
        lambda w, other: {"arch": "resnet50", "state_dict": other, "state_dict_ema": w},
        "'state_dict_ema', an average, not 'state_dict' (--raw",
    ),
    "an average inside": (
        lambda w, other: behind("model.", other) | behind("ema_model.module.", w),
        "takes the network ema_model.module.*, an average, not model.*",
    ),
    "compiled": (lambda w, _: behind("_orig_mod.module.", w), ""),
    "half precision": (lambda w, _: {k: t.half().float() for k, t in w.items()}, ""),
    "no counters": (lambda w, _: without_counters(w), ""),
    "classifier beside": (
        lambda w, _: behind("backbone.", without_head(w)) | head_as("classifier", w),
        "the classifier is classifier.weight",
    ),
    "behind a dropout": (
        lambda w, _: without_head(w) | head_as("fc.1", w),
        "the classifier is fc.1.weight",
    ),
    "by number": (lambda w, _: behind("features.", by_number(w)), ""),
    "transformers": (lambda w, _: of_transformers(w), "the classifier is classifier.1.weight"),
}
LAYER = "layer1.0"
# What has no classifier: --init_from takes it, the other options refuse it.
HEADLESS: dict[str, Callable[[State, State], object]] = {
    "dino": lambda w, _: without_head(w),
    "moco": moco,
    "moco, first version": lambda w, _: {
        "state_dict": behind("module.encoder_q.", without_head(w) | head_as("fc", w))
    },
    "swav": lambda w, _: behind(
        "module.", without_head(w) | {"projection_head.0.weight": torch.ones(4, 256)}
    ),
    "head of two layers": lambda w, _: (
        without_head(w) | {"fc.0.weight": torch.ones(4, 256), "fc.2.weight": torch.ones(10, 4)}
    ),
}


def with_basic_blocks(weights: State) -> State:
    gone = (".conv3.", ".bn3.")
    return {key: t for key, t in weights.items() if not any(part in key for part in gone)}


def quantized(weights: State) -> State:
    return weights | {"bn1.weight": torch.ones(8, dtype=torch.int8)}


def broken(weights: State, value: float) -> State:
    tensor = weights[f"{LAYER}.bn1.weight"].clone()
    tensor[0] = value
    return weights | {f"{LAYER}.bn1.weight": tensor}


# What resembles a ResNet50: the contents, and how the refusal names it.
REFUSED: dict[str, tuple[Callable[[State], object], str]] = {
    "basic blocks": (with_basic_blocks, "its blocks have two convolutions"),
    "CIFAR's stem": (
        lambda w: w | {"conv1.weight": torch.ones(8, 3, 3, 3)},
        r"a stem for CIFAR: conv1.weight is \(8, 3, 3, 3\), the model has \(8, 3, 7, 7\)",
    ),
    "gray": (
        lambda w: w | {"conv1.weight": torch.ones(8, 1, 7, 7)},
        r"a stem for 1 channels: conv1.weight is \(8, 1, 7, 7\)",
    ),
    "deep stem": (
        lambda w: {("conv1.0.weight" if k == "conv1.weight" else k): t for k, t in w.items()},
        "a deep stem of three 3x3",
    ),
    "shortcuts that average": (
        lambda w: w | {f"{LAYER}.downsample.1.weight": torch.ones(32, 8, 1, 1)},
        "a ResNet-D",
    ),
    "groups": (
        lambda w: w | {f"{LAYER}.conv2.weight": torch.ones(8, 2, 3, 3)},
        "a ResNeXt: its 3x3 convolutions have 4 groups",
    ),
    "SE": (lambda w: w | {f"{LAYER}.se.fc1.weight": torch.ones(2)}, "squeeze-and-excitation"),
    "Zhang's": (lambda w: w | {"layer2.0.conv3.0.filt": torch.ones(2)}, "an anti-aliased ResNet"),
    "group norm": (
        lambda w: {key: t for key, t in w.items() if "running" not in key},
        "no bn1.running_mean",
    ),
    "three stages": (
        lambda w: {key: t for key, t in w.items() if not key.startswith("layer4")},
        "no layer4.0.bn3.bias",
    ),
    "more": (lambda w: w | {"layer1.0.more": torch.ones(2)}, "unexpected layer1.0.more"),
    "named by itself": (lambda w: {"arch": "resnetaa50", "state_dict": w}, "resnetaa50 has a Res"),
    "another network": (lambda _: {"features.0.weight": torch.ones(2)}, "not a ResNet's: .*there"),
    "two networks": (
        lambda w: {"left": w, "right": w},
        "several networks, 'left', 'right': save only",
    ),
    "NaN": (lambda w: broken(w, torch.nan), "layer1.0.bn1.weight has values that are not finite"),
    "negative variances": (
        lambda w: w | {f"{LAYER}.bn1.running_var": -w[f"{LAYER}.bn1.running_var"]},
        "layer1.0.bn1.running_var has negative variances",
    ),
    "float8": (
        lambda w: {key: t.to(torch.float8_e4m3fn) for key, t in w.items()},
        "conv1.weight is torch.float8_e4m3fn: give the weights before quantization",
    ),
    "no values": (
        lambda w: w | {"conv1.weight": w["conv1.weight"].to("meta")},
        "conv1.weight is on the meta device, without values",
    ),
    "nothing in a tensor": (
        lambda w: w | {"conv1.weight": torch.ones(0, 3, 7, 7)},
        r"conv1.weight has the shape \(0, 3, 7, 7\)",
    ),
    "a number for the classifier's biases": (
        lambda w: w | {"fc.bias": torch.tensor(1.0)},
        r"fc.bias has the shape \(\)",
    ),
    "sparse": (
        lambda w: w | {"fc.weight": w["fc.weight"].to_sparse()},
        r"fc.weight is torch.sparse_coo: save it with .to_dense\(\)",
    ),
    "a number in a tensor's place": (
        lambda w: w | {f"{LAYER}.conv2.weight": torch.tensor(1.0)},
        r"layer1.0.conv2.weight",
    ),
    "numbers for biases": (
        lambda w: {k: torch.tensor(0.0) if k.endswith("bn3.bias") else t for k, t in w.items()},
        "bn3.bias",
    ),
    "infinity": (lambda w: {"model": broken(w, torch.inf)}, "layer1.0.bn1.weight has values that"),
    "quantized": (quantized, "bn1.weight is torch.int8"),
    "a list": (lambda w: list(w.values()), "holds a list, not a state dict"),
}
