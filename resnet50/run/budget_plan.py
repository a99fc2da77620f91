"""From a budget to a schedule that ends with it: how many steps, how many epochs, which sizes when.

All of it is arithmetic on what was measured (run/measure.py), and ends up in config.json: a resume
reads that and does not plan again.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from resnet50.config import size_stages
from resnet50.config.fields import AUTO
from resnet50.config.recipes import RECIPES
from resnet50.config.train_config import TrainConfig
from resnet50.records.metrics import clock, dollars
from resnet50.run.budget import END_S, FASTER, reserve_s, tolerance_s
from resnet50.training.host_times import HostTimes, num_evaluations, training_s
from resnet50.training.plan import image_size_at

STRETCHED = 2  # times a recipe's epochs, the most unless --epochs says so
MOST_EPOCHS = 2000  # that are worth naming
LEAST_STEPS = 10
LEAST_SHARE = 0.1  # of the recipe; or one epoch, if that is less
RANGE_TEST_STEPS = 100  # training/range_test.py; fewer if the loss explodes before
MEASURING, MEASURING_S = 0.1, 60.0  # the most that measuring may take: share of a budget, seconds
NOISE = 1.05  # a start that is refused and the next one do not measure quite the same
SAME_NETWORK = ("layers", "width", "base_width")
# What the planner changes: a resume with the same words must not call them changed.
CHANGED = (
    "epochs",
    "eval_every_epochs",
    "num_steps",
    "grow_start_epoch",
    "grow_end_epoch",
    "warmup_epochs",
    "step_epochs",
    "plateau_epochs",
)


@dataclass(frozen=True)
class Choice:
    """What a budget buys.

    cfg: the settings, with num_steps; likely_steps: at the measured speed, less than num_steps
    where the schedule leaves room for a faster host; seconds: of machine time at the end, from the
    start of the run; left_s: of the budget beyond that.
    """

    cfg: TrainConfig
    likely_steps: int
    seconds: float
    left_s: float
    affordable_epochs: int = 0  # if something is left: whole epochs that would spend it
    fits: str = ""  # and a longer recipe that would fit


@dataclass(frozen=True)
class Fixed:
    """What a run pays beside its steps, in seconds.

    paid_s: already; import_s: from the start of a command to the start of its measuring; rest_s:
    from now on, without evaluations before the last one.
    """

    paid_s: float
    import_s: float
    rest_s: float


def measuring_s(cfg: TrainConfig) -> float:
    """Seconds that a run with this budget may measure for."""
    return min(MEASURING * cfg.budget_s, MEASURING_S)


def fixed_costs(cfg: TrainConfig, times: HostTimes, paid_s: float, import_s: float) -> Fixed:
    """With the range test, at the first size, that --max_lr auto takes before the first step."""
    rest_s = times.start_s + times.evaluation_s + times.save_s + END_S
    if cfg.max_lr == AUTO:
        rest_s += RANGE_TEST_STEPS * times.step_at(image_size_at(cfg, 0))
    return Fixed(paid_s, import_s, rest_s)


def recipe_of(cfg: TrainConfig) -> TrainConfig:
    """The settings over the epochs of their recipe, which those that count in epochs are for.

    Without its plateau phase, which follows the losses of whole epochs and has no end to fit.
    """
    recipe = RECIPES.get(cfg.recipe)
    epochs = recipe.settings["epochs"] if recipe else cfg.epochs
    return dataclasses.replace(
        cfg, epochs=max(epochs - cfg.plateau_epochs, 1), plateau_epochs=0, num_steps=0
    )


def stretched(base: TrainConfig, num_steps: int, steps_per_epoch: int) -> TrainConfig:
    """A recipe over num_steps: what it counts in epochs keeps its share of the run.

    A warm-up gets no longer, since it is as long as the rate needs, not the run (Composer does not
    scale its own). Raises ValueError if the settings do not fit into so few epochs.
    """
    share = num_steps / (base.epochs * steps_per_epoch)
    return dataclasses.replace(
        base,
        num_steps=num_steps,
        epochs=math.ceil(num_steps / steps_per_epoch),
        grow_start_epoch=round(base.grow_start_epoch * share, 6),
        grow_end_epoch=round(base.grow_end_epoch * share, 6),
        warmup_epochs=round(base.warmup_epochs * min(share, 1), 6),
        step_epochs=max(1, round(base.step_epochs * share)),
    )


def plan_s(cfg: TrainConfig, steps_per_epoch: int, times: HostTimes) -> float:
    """Seconds of a run's steps and evaluations; the last evaluation is among the fixed costs."""
    evaluations = num_evaluations(cfg, cfg.num_steps, steps_per_epoch) - 1
    return training_s(cfg, cfg.num_steps, steps_per_epoch, times) + evaluations * times.evaluation_s


def fewest_steps(base: TrainConfig, steps_per_epoch: int) -> int:
    """Steps of the shortest run in which each of --size_stages has an epoch; 0 without stages."""
    epochs = size_stages.fewest_epochs(size_stages.parse(base.size_stages))
    return max(epochs - 1, 0) * steps_per_epoch + 1 if epochs else 0


def longest(
    base: TrainConfig, steps_per_epoch: int, times: HostTimes, seconds: float, most_steps: int
) -> int:
    """Most steps, up to most_steps, that train in these seconds; 0 if not even one does, and with
    --size_stages the fewest that there are."""
    low, high = min(fewest_steps(base, steps_per_epoch), most_steps), most_steps
    while low < high:
        middle = (low + high + 1) // 2
        if plan_s(stretched(base, middle, steps_per_epoch), steps_per_epoch, times) <= seconds:
            low = middle
        else:
            high = middle - 1
    return low


def least_s(
    base: TrainConfig, steps_per_epoch: int, times: HostTimes, fixed: Fixed
) -> tuple[float, float]:
    """The least budget that makes sense, in seconds: at least a tenth of the recipe or an epoch,
    whichever is less, and as much time for training as for all that comes before and after.

    Second, the least for another start in this folder, which has this one to pay for, and measures
    again.
    """
    num_steps = min(steps_per_epoch, math.ceil(LEAST_SHARE * base.epochs * steps_per_epoch))
    num_steps = max(num_steps, LEAST_STEPS, fewest_steps(base, steps_per_epoch))
    costs = fixed.import_s + fixed.rest_s
    training = plan_s(stretched(base, num_steps, steps_per_epoch), steps_per_epoch, times)
    whole = (costs + max(training, costs)) / (1 - MEASURING)
    # Measuring may have taken longer than it should, with steps of a minute each.
    needed = max(whole, fixed.paid_s + fixed.rest_s + training)
    spent_s = fixed.paid_s + END_S
    again = max(
        NOISE * whole,
        (spent_s + NOISE * (costs + training)) / (1 - MEASURING),
        2 * spent_s + NOISE * (fixed.rest_s + training),
    )
    restart_s = fixed.import_s + times.start_s
    return needed + reserve_s(needed, restart_s), again + reserve_s(again, restart_s)


def choose(
    cfg: TrainConfig,
    given: Mapping[str, object],
    steps_per_epoch: int,
    times: HostTimes,
    fixed: Fixed,
) -> Choice:
    """The settings whose schedule ends as the budget does.

    given: the options that were given by hand, of which --epochs is the most epochs and
    --eval_every_epochs stays. Raises ValueError if the budget is too small for anything sensible,
    saying what the least would be.
    """
    base, total_s = recipe_of(cfg), cfg.budget_s
    if "eval_every_epochs" not in given and times.evaluation_s > tolerance_s(total_s) / 3:
        # One such evaluation more or less would already miss the end.
        base = dataclasses.replace(base, eval_every_epochs=0)
    needed, again = least_s(base, steps_per_epoch, times, fixed)
    if total_s < needed:
        raise ValueError(too_little(cfg, again, fixed))
    most_epochs = int(given.get("epochs", STRETCHED * base.epochs))
    most_steps = most_epochs * steps_per_epoch
    seconds = (
        total_s - fixed.paid_s - fixed.rest_s - reserve_s(total_s, fixed.import_s + times.start_s)
    )
    likely = longest(base, steps_per_epoch, times, seconds, most_steps)
    num_steps = longest(base, steps_per_epoch, times.faster(FASTER), seconds, most_steps)
    if base.schedule == "onecycle" and base.pct_start * num_steps == 1:
        num_steps -= 1  # torch's OneCycleLR divides by zero there
    likely_cfg = stretched(base, likely, steps_per_epoch)
    # As long as in the likely run, which passes over some of the positions.
    warmup_epochs = round(likely_cfg.warmup_epochs * num_steps / max(likely, 1), 6)
    chosen = dataclasses.replace(
        stretched(base, num_steps, steps_per_epoch), warmup_epochs=warmup_epochs
    )
    end_s = fixed.paid_s + fixed.rest_s + plan_s(likely_cfg, steps_per_epoch, times)
    left_s = max(total_s - end_s, 0.0) if likely == most_steps else 0.0
    if not left_s:
        return Choice(chosen, likely, end_s, left_s)
    more = longest(base, steps_per_epoch, times, seconds, MOST_EPOCHS * steps_per_epoch)
    fits = longer_recipe(base, steps_per_epoch, times, seconds)
    return Choice(chosen, likely, end_s, left_s, more // steps_per_epoch, fits)


def too_little(cfg: TrainConfig, needed_s: float, fixed: Fixed) -> str:
    """Why a budget buys nothing sensible, and what the least would be, rounded up."""
    return (
        f"{described(cfg)} is too little for {cfg.recipe or 'these settings'} on this machine: "
        f"starting, the last evaluation and saving take {clock(fixed.import_s + fixed.rest_s)} "
        f"beside the training. The least that makes sense is {least_flag(cfg, needed_s)}"
    )


def least_flag(cfg: TrainConfig, seconds: float) -> str:
    """The option that gives at least these seconds."""
    hours = seconds / 3600
    if cfg.budget_usd:
        return f"--budget_usd {math.ceil(hours * cfg.price_per_hour * 100) / 100:.2f}"
    return f"--budget_hours {math.ceil(hours * 1000) / 1000:.3f}"


def described(cfg: TrainConfig) -> str:
    """The budget as it was given."""
    if cfg.budget_usd:
        return f"--budget_usd {cfg.budget_usd:g} at {dollars(cfg.price_per_hour)} an hour"
    return f"--budget_hours {cfg.budget_hours:g}"


def longer_recipe(base: TrainConfig, steps_per_epoch: int, times: HostTimes, seconds: float) -> str:
    """The recipe with the most time in it that still fits into these seconds, for the same network
    and data, if it takes longer than `base` may be stretched; empty without one.

    Its steps are taken to cost what this recipe's do per image and pixel.
    """
    taken_s, name = whole_s(base, steps_per_epoch, times, base) * STRETCHED, ""
    for other, recipe in RECIPES.items():
        there = TrainConfig(**recipe.settings)
        if not is_like(there, base):
            continue
        needed_s = whole_s(there, steps_per_epoch, times, base)
        if taken_s < needed_s <= seconds:
            taken_s, name = needed_s, other
    return name


def is_like(one: TrainConfig, other: TrainConfig) -> bool:
    """Whether two recipes train the same network for pictures of about the same size."""
    same = all(getattr(one, key) == getattr(other, key) for key in SAME_NETWORK)
    return same and 0.5 <= one.image_size / other.image_size <= 2


def whole_s(
    cfg: TrainConfig, steps_per_epoch: int, times: HostTimes, measured_with: TrainConfig
) -> float:
    """Seconds of a whole recipe's steps and evaluations, if a step's time is in proportion to its
    images. steps_per_epoch: with the batch of measured_with."""
    images = steps_per_epoch * measured_with.total_batch_size
    steps = max(images // cfg.total_batch_size, 1)
    share = cfg.total_batch_size / measured_with.total_batch_size
    run = dataclasses.replace(cfg, num_steps=steps * cfg.epochs, plateau_epochs=0)
    return plan_s(run, steps, times.faster(1 / share))
