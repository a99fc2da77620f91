"""A run with a budget before its first step: measured, planned, and said; or resumed as planned.

What was chosen stands in config.json: among the settings, and under "budget" what they were chosen
from, which the controller of every later attempt goes on with.
"""

import json
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path

from resnet50.config.recipes import RECIPES
from resnet50.config.train_config import TrainConfig
from resnet50.data.splits import Splits
from resnet50.records import run_folder
from resnet50.records.metrics import clock, dollars
from resnet50.records.paid_clock import PaidClock
from resnet50.run import budget_plan, consistency, measure
from resnet50.run.budget import Controller
from resnet50.run.budget_plan import Choice, Fixed
from resnet50.system.interruption import Interrupted, Interruption
from resnet50.training import distributed
from resnet50.training.distributed import Ranks
from resnet50.training.host_times import HostTimes, slowest
from resnet50.training.plan import Plan, make_plan

INTERRUPTED = "asked to stop"  # in place of what a rank measured


def prepare(
    cfg: TrainConfig,
    given: Mapping[str, object],
    ranks: Ranks,
    splits: Splits,
    paid_clock: PaidClock | None,
    stop: Interruption,
    say: Callable[[str], None],
) -> tuple[TrainConfig, dict[str, object] | None]:
    """The settings as the budget makes them, and the record of that; both as they are without one.

    given: options that were given by hand; paid_clock: on rank 0. A run that has its number of
    steps was planned when it began. Every rank must call it. Raises ValueError for a budget that is
    too small, and Interrupted.
    """
    if not cfg.budget_s:
        return cfg, None
    if cfg.num_steps:
        record = run_folder.read_budget(Path(cfg.run_dir))
        if paid_clock:
            say(resumed_line(cfg, paid_clock.paid_s))
        return cfg, record
    import_s = paid_clock.attempt_s if paid_clock else 0.0
    paid_s = paid_clock.paid_s if paid_clock else 0.0
    seconds = budget_plan.measuring_s(cfg)
    say(f"{purse_line(cfg, paid_s)}; measuring this machine for up to {seconds:.0f} s")
    times = measured_by_all(cfg, ranks, splits, seconds, stop)
    words = {"import_s": import_s, "paid_s": paid_clock.paid_s if paid_clock else 0.0}
    words = json.loads(distributed.exchange_before_connecting(json.dumps(words), ranks)[0])
    fixed = budget_plan.fixed_costs(cfg, times, words["paid_s"], words["import_s"])
    steps_per_epoch = make_plan(cfg, len(splits.train), ranks.world_size).steps_per_epoch
    choice = budget_plan.choose(cfg, given, steps_per_epoch, times, fixed)
    consistency.check_steps(choice.cfg.num_steps, ranks)
    for line in lines_of(cfg, choice, times, fixed, steps_per_epoch):
        say(line)
    before = {name: getattr(cfg, name) for name in budget_plan.CHANGED}
    record = {
        "times": times.to_json(),
        "import_s": round(fixed.import_s, 2),
        "likely_steps": choice.likely_steps,
        "before": before,
    }
    return choice.cfg, record


def measured_by_all(
    cfg: TrainConfig, ranks: Ranks, splits: Splits, seconds: float, stop: Interruption
) -> HostTimes:
    """What the slowest of all ranks finds; every rank must call it. Raises Interrupted."""
    try:
        word = json.dumps(measure.measure(cfg, ranks, splits, seconds, stop).to_json())
    except Interrupted:
        word = INTERRUPTED  # the other ranks wait for a word
    words = distributed.exchange_before_connecting(word, ranks)
    if INTERRUPTED in words:
        raise Interrupted
    return slowest(HostTimes.from_json(json.loads(word)) for word in words)


def make_controller(cfg: TrainConfig, plan: Plan, record: Mapping[str, object]) -> Controller:
    """The controller of an attempt. record: of config.json, empty if that is lost."""
    try:
        times = HostTimes.from_json(record["times"])
        restart_s = float(record["import_s"]) + times.start_s
    except (KeyError, TypeError, ValueError):
        times, restart_s = None, 0.0
    return Controller(cfg, plan, cfg.budget_s, times, restart_s)


def as_budget(cfg: TrainConfig, seconds: float) -> str:
    """Seconds of machine time, and what they cost if that is known."""
    cost = f", {dollars(seconds / 3600 * cfg.price_per_hour)}" if cfg.price_per_hour else ""
    return f"{clock(seconds)}{cost}"


def purse_line(cfg: TrainConfig, paid_s: float) -> str:
    spent = f", of which {clock(paid_s)} are spent" if paid_s >= 1 else ""
    return (
        f"budget: {budget_plan.described(cfg)} is {clock(cfg.budget_s)} of this machine's time"
        f"{spent}"
    )


def resumed_line(cfg: TrainConfig, paid_s: float) -> str:
    """How a resume stands. An empty purse still pays for one step, and the last evaluation."""
    left_s = cfg.budget_s - paid_s
    if left_s <= 0:
        return f"{purse_line(cfg, paid_s)}: it is empty, and the schedule ends at once"
    return f"{purse_line(cfg, paid_s)}; the schedule ends within the {clock(left_s)} that are left"


def lines_of(
    cfg: TrainConfig, choice: Choice, times: HostTimes, fixed: Fixed, steps_per_epoch: int
) -> list[str]:
    """What was measured, what will happen, and when it will be over."""
    steps = ", ".join(f"{seconds:.3g} s at {size} px" for size, seconds in times.step_s.items())
    restart_s = fixed.import_s + times.start_s
    number = f"{choice.likely_steps / steps_per_epoch:.3g}"
    epochs = f"{number} epoch{'s' if number != '1' else ''}"
    own = RECIPES[cfg.recipe].settings if cfg.recipe in RECIPES else {}
    recipes = f", where {cfg.recipe} has {own['epochs']}" if own else ""
    lines = [
        f"measured: a step takes {steps}, an evaluation {times.evaluation_s:.3g} s, a checkpoint "
        f"{times.save_s:.3g} s, another start {restart_s:.0f} s",
        f"it buys about {choice.likely_steps:,} steps, {epochs}{recipes}",
    ]
    if choice.cfg.num_steps > choice.likely_steps:
        lines.append(
            f"the schedule has {choice.cfg.num_steps:,} steps, for this machine may prove faster "
            "than measured; its end is moved to where the time ends"
        )
    if choice.cfg.eval_every_epochs != cfg.eval_every_epochs:
        lines.append("evaluated at the end only: more would take too much of the time")
    if cfg.plateau_epochs:
        lines.append(f"without the {cfg.plateau_epochs} epochs on a plateau, which have no end")
    lines += [
        f"--{limit} {own[limit]:g} of the recipe {cfg.recipe} does not count: the budget does"
        for limit in ("max_minutes", "max_steps")
        if own.get(limit)
    ]
    left = cfg.budget_s if not choice.left_s else choice.seconds
    over = datetime.now().astimezone() + timedelta(seconds=left - fixed.paid_s)
    lines.append(f"over at about {over:%a %d %b %H:%M %Z}, after {as_budget(cfg, left)}")
    if choice.left_s:
        lines.append(left_over(cfg, choice))
    return [f"budget: {line}" for line in lines]


def left_over(cfg: TrainConfig, choice: Choice) -> str:
    """What is not spent, and what would spend it."""
    more = []
    if choice.affordable_epochs > choice.cfg.epochs:  # or less than an epoch is left
        more.append(f"more, such as --epochs {choice.affordable_epochs}")
    if choice.fits:
        more.append(f"--recipe {choice.fits}, which would fit")
    epochs = "1 epoch is" if choice.cfg.epochs == 1 else f"{choice.cfg.epochs} epochs are"
    return (
        f"{as_budget(cfg, choice.left_s)} are left over: {epochs} the most here"
        f"{'. Give ' if more else ''}{', or '.join(more)}"
    )
