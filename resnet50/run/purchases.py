"""What so many dollars buy on this host, recipe by recipe, before any of them is spent: bench.py.

A projection: the times of a step by size are measured with one recipe and taken to be in proportion
to the images for the others, and a top-1 is what others published for the nearest recipe, which is
not what this host would reach.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from resnet50.config.recipes import IMAGENET, RECIPES
from resnet50.config.train_config import TrainConfig
from resnet50.records.metrics import dollars
from resnet50.run import budget_plan
from resnet50.training.host_times import HostTimes

USD = (5.0, 10.0, 20.0)
IMAGENET_IMAGES = 1_000_000  # at least: some copies lack hundreds
SAME_FAMILY = ("schedule", "optimizer", "loss", "total_batch_size", "max_lr")


def purchases(
    measured: TrainConfig,
    times: HostTimes,
    import_s: float,
    num_train: int,
    num_classes: int,
    usd: Sequence[float] = USD,
) -> list[dict[str, object]]:
    """A row for each recipe and budget; none without a price.

    measured: the settings that were measured, with the price; times: of its steps; import_s: that
    starting a command takes. The recipes are those for the same network: all of ImageNet's on
    ImageNet, else the measured one alone.
    """
    if not measured.price_per_hour:
        return []
    is_imagenet = num_classes == 1000 and num_train >= IMAGENET_IMAGES
    names = IMAGENET if is_imagenet else [measured.recipe]
    rows = []
    for name in names:
        cfg = recipe_settings(name, measured)
        is_same = all(
            getattr(cfg, key) == getattr(measured, key) for key in budget_plan.SAME_NETWORK
        )
        if is_same and num_train >= cfg.total_batch_size:
            rows += [row(cfg, x, measured, times, import_s, num_train) for x in usd]
    return rows


def recipe_settings(name: str, measured: TrainConfig) -> TrainConfig:
    """A recipe with its own epochs; the measured one with what was changed by hand."""
    limits = {"max_minutes": 0.0, "max_steps": 0, "price_per_hour": measured.price_per_hour}
    if name == measured.recipe:
        return replace(measured, **limits)
    return TrainConfig(**{**RECIPES[name].settings, "recipe": name, **limits})


def row(
    cfg: TrainConfig,
    usd: float,
    measured: TrainConfig,
    times: HostTimes,
    import_s: float,
    num_train: int,
) -> dict[str, object]:
    """What a budget buys of one recipe."""
    cfg = replace(cfg, budget_usd=usd)
    # The same images a second: a larger batch takes longer, larger validation crops as well.
    scaled = times.faster(measured.total_batch_size / cfg.total_batch_size)
    area = (cfg.eval_crop / measured.eval_crop) ** 2
    scaled = replace(scaled, evaluation_s=times.evaluation_s * area)
    paid_s = import_s + budget_plan.measuring_s(cfg)
    fixed = budget_plan.fixed_costs(cfg, scaled, paid_s, import_s)
    steps_per_epoch = num_train // cfg.total_batch_size
    values: dict[str, object] = {"recipe": cfg.recipe, "budget_usd": usd}
    try:
        choice = budget_plan.choose(cfg, {}, steps_per_epoch, scaled, fixed)
    except ValueError as error:
        return values | {"steps": 0, "too_little": str(error)}
    epochs = choice.likely_steps / steps_per_epoch
    return values | {
        "steps": choice.likely_steps,
        "epochs": round(epochs, 2),
        "hours": choice.seconds / 3600,
        "cost_usd": choice.seconds / 3600 * cfg.price_per_hour,
        "nearest": nearest(cfg, epochs),
    }


def nearest(cfg: TrainConfig, epochs: float) -> dict[str, object] | None:
    """Of the recipes that differ from this one in length only, the one whose length is nearest and
    whose result is published; None without one."""
    found = []
    for name, recipe in RECIPES.items():
        other = TrainConfig(**recipe.settings)
        is_same = all(getattr(other, key) == getattr(cfg, key) for key in SAME_FAMILY)
        if is_same and recipe.top1 is not None:
            ratio = abs(math.log(other.epochs / epochs))
            found.append((ratio, name, other.epochs, recipe.top1))
    if not found:
        return None
    _, name, there, top1 = min(found)
    return {"recipe": name, "epochs": there, "top1": top1}


def describe(rows: Sequence[Mapping], price_per_hour: float) -> str:
    """The rows as a table; without any, how to get them."""
    if not rows:
        return (
            "what $5, $10 and $20 buy on this host: give --price_per_hour X, this machine's price "
            "in dollars"
        )
    lines = [
        f"projection: what train.py --budget_usd buys here, at {dollars(price_per_hour)} an hour",
        "recipe            budget      steps   epochs    hours   dollars  top-1 elsewhere",
    ]
    for values in rows:
        begin = f"{values['recipe']:16} {dollars(values['budget_usd']):>7} "
        if not values["steps"]:
            least = values["too_little"].rpartition("is ")[2]
            lines.append(f"{begin}{'-':>10}   too little: at least {least}")
            continue
        reference = values["nearest"]
        text = "none for a recipe like it"
        if reference:
            text = f"{reference['top1']:g}% in {reference['epochs']} epochs ({reference['recipe']})"
        lines.append(
            f"{begin}{values['steps']:10,} {values['epochs']:8.1f} {values['hours']:8.2f} "
            f"{dollars(values['cost_usd']):>9}  {text}"
        )
    lines.append(
        "  from this measurement; a recipe takes at most twice its epochs unless --epochs says so, "
        "the rest is left over"
    )
    return "\n".join(lines)
