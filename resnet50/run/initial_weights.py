"""What a new run takes from the weights of --init_from, and what it reports about them.

The classifier is taken if its classes are, or may be, the data's: the same number, and no names
known to differ. Otherwise the run starts with a fresh one.
"""

from collections.abc import Sequence

from torch import Tensor

from resnet50.config.train_config import TrainConfig
from resnet50.data import class_order
from resnet50.data.class_names import imagenet_names, readable
from resnet50.records import weights
from resnet50.records.weights import Weights

OPTION = "--init_from"
HEAD = ("fc.weight", "fc.bias")


def read(cfg: TrainConfig, classes: Sequence[str]) -> tuple[dict[str, Tensor] | None, list[str]]:
    """The tensors to start from, without fc.* for a fresh classifier, and lines for the log; None
    without the option.

    classes: the data's, in the order of the logits. Raises ValueError naming option and source.
    """
    if not cfg.init_from:
        return None, []
    # The averaged weights, if there are any: that run was evaluated with them.
    found = weights.load(cfg.init_from, OPTION)
    reason = why_fresh_head(found, classes)
    tensors = {key: t for key, t in found.tensors.items() if not (reason and key in HEAD)}
    head = f"a new classifier for {len(classes)} classes, since {reason}"
    if not reason:
        unknown = "" if found.classes else ", whose names are unknown"
        head = f"the classifier too, of {found.num_classes} classes{unknown}"
    notes = [note for note in found.notes if not (cfg.v1_strides and "--v1_strides" in note)]
    lines = [f"{what(found)}; {head}", *notes, *differences(found, cfg)]
    return tensors, [f"{OPTION} {found.name}: {line}" for line in lines]


def what(found: Weights) -> str:
    """A description of the weights."""
    step = f" of step {found.about['step']}" if "step" in found.about else ""
    kind = {weights.EMA: "averaged weights (EMA)", weights.TRAINED: "trained weights"}
    place = f" under {found.place!r}" if found.place else ""
    return f"{kind.get(found.kind, 'weights')}{step}{place}"


def why_fresh_head(found: Weights, classes: Sequence[str]) -> str:
    """Why the classifier does not fit the data's classes; empty if it does or may."""
    if not found.num_classes:
        return found.no_head
    if found.num_classes != len(classes):
        return f"the old one has {found.num_classes}"
    theirs, ours = readable(found.classes), readable(classes)
    if theirs == ours:
        return ""
    if not theirs:
        return why_other_order(classes)
    # ImageNet's class names are spelled in many ways; their order is the same.
    if found.kind == weights.FOREIGN and list(classes) == list(imagenet_names()):
        return ""
    number = next(
        i for i, names in enumerate(zip(theirs, ours, strict=True)) if len(set(names)) > 1
    )
    return f"the names differ: class {number} is {theirs[number]} there, {ours[number]} here"


def why_other_order(classes: Sequence[str]) -> str:
    """Why folders without the names of the weights' classes are in another order than these; empty
    if they may be in the same."""
    try:
        labels = class_order.labels_of(classes, (), "the data")
    except ValueError:
        return "nothing says which of its classes each folder is"
    is_same = labels == sorted(labels)
    return "" if is_same else "the folders' numbers are in another order than its classes"


def differences(found: Weights, cfg: TrainConfig) -> list[str]:
    """Warnings of known differences that do not show in the tensors."""
    lines = []
    for name in ("blurpool", "v1_strides"):
        theirs = found.variant.get(name)
        if theirs is not None and theirs != getattr(cfg, name):
            flag = f"--{name}" if theirs else f"--no_{name}"
            lines.append(f"warning: they are from a network built with {flag}")
    if cfg.blurpool and found.variant.get("blurpool") and not found.variant.get("blur_max_pool", 1):
        lines.append("warning: their max pool is not blurred, but this run's is")
    return lines
