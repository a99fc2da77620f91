"""A run's settings: those stored in its folder, or a recipe's, overridden by the flags."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import dataset_paths
from resnet50.config import recipe
from resnet50.config.fields import AUTO, shown
from resnet50.config.recipes import DEFAULT_RECIPE, RECIPES
from resnet50.config.train_config import TrainConfig
from resnet50.config.train_flags import Request
from resnet50.data import orientation, remedies
from resnet50.records import checkpoint, ownership, run_folder, status, tensorboard_log
from resnet50.records.metrics import clock
from resnet50.training import build, learning_rate
from resnet50.training.course import Event
from resnet50.training.plan import make_plan

BUDGETS = ("budget_usd", "budget_hours")


def answer(request: Request) -> str:
    """What --list_recipes or --print_config print. Raises ValueError for impossible settings."""
    if request.list_recipes:
        return recipe.describe(RECIPES, DEFAULT_RECIPE)
    return json.dumps(resolve(request).to_json(), indent=2) + "\n"


def resolve(request: Request, world_size: int = 0) -> TrainConfig:
    """The settings of the run: those in its folder, else its recipe's, overridden by the flags.

    Without any flags, the run is the newest unfinished one, else the default recipe's. world_size:
    the number of ranks, if it is known; the batch-norm group of a new run depends on it.
    Raises ValueError for settings that a resume cannot change, and for a folder of another program.
    """
    settings = dict(request.settings)
    refuse_empty_budget(settings)
    name = settings.get("recipe", DEFAULT_RECIPE)
    newest = None if settings else run_folder.newest_unfinished()
    run_dir = str(settings.pop("run_dir", newest or run_folder.RUNS / name))
    if Path(run_dir).exists() and not Path(run_dir).is_dir():
        raise ValueError(f"--run_dir {run_dir} is a file: give a new folder, or a run's")
    stored = None
    if not request.fresh:
        ownership.refuse_foreign(Path(run_dir))
        stored = run_folder.read_settings(Path(run_dir))
    if stored is None:
        own = recipe_settings(name, settings)
        cfg = TrainConfig(**{**own, **settings, "recipe": name, "run_dir": run_dir})
    else:
        given = not_planned(settings, run_folder.read_budget(Path(run_dir)))
        cfg = resumed(stored_config(stored, run_dir), given)
    if cfg.tensorboard:
        tensorboard_log.check_installed()
    return cfg if world_size == 0 else with_batch_norm_group(cfg, world_size)


def not_planned(given: Mapping[str, object], budget: Mapping[str, object]) -> dict[str, object]:
    """Settings without those that a budget's plan has changed since: by the same command, they are
    no change. budget: of the run's config.json."""
    before = budget.get("before", {})
    return {key: value for key, value in given.items() if before.get(key) != value}


def stored_config(stored: Mapping[str, object], run_dir: str) -> TrainConfig:
    """The settings that a run has stored, for this folder. Raises ValueError for unknown ones."""
    # A run from before a setting existed continues with the pixels and the bits it began with.
    before = {"upright": orientation.LEGACY, "fused_optimizer": False}
    return TrainConfig.from_json(before | dict(stored) | {"run_dir": run_dir})


def refuse_empty_budget(settings: Mapping[str, object]) -> None:
    """Raise ValueError for a budget of nothing, and for one that cannot choose the steps."""
    for name in BUDGETS:
        if name in settings and not settings[name]:
            raise ValueError(
                f"--{name} {settings[name]:g} pays for nothing: give more, or leave it out for a "
                "run without a budget"
            )
        if name in settings and settings.get("num_steps"):
            raise ValueError(
                f"--num_steps {settings['num_steps']} is what --{name} {settings[name]:g} chooses: "
                "leave out one of them"
            )


def recipe_settings(name: str, given: Mapping[str, object]) -> dict[str, object]:
    """Those of a recipe, without its limits if a budget is given, which says when the run ends."""
    limits = ("max_steps", "max_minutes") if any(given.get(budget) for budget in BUDGETS) else ()
    return {key: value for key, value in RECIPES[name].settings.items() if key not in limits}


def with_batch_norm_group(cfg: TrainConfig, world_size: int) -> TrainConfig:
    """The settings with a number for --device_batch_size 0: a rank's share of the batch."""
    if cfg.device_batch_size not in (0, AUTO):
        return cfg
    if cfg.total_batch_size % world_size:
        raise ValueError(
            f"--total_batch_size {cfg.total_batch_size} does not divide over {world_size} "
            "ranks: choose a multiple, or fewer GPUs (CUDA_VISIBLE_DEVICES picks them)"
        )
    if cfg.device_batch_size == AUTO:  # found when the run starts (training/batch_fit.py)
        return cfg
    return dataclasses.replace(cfg, device_batch_size=cfg.total_batch_size // world_size)


def with_data(cfg: TrainConfig) -> TrainConfig:
    """The settings with a data folder that exists. Raises ValueError if there is none."""
    if not cfg.data_dir:
        cfg = dataclasses.replace(cfg, data_dir=str(dataset_paths.find_data_dir()))
    if not Path(cfg.data_dir).is_dir():
        raise ValueError(remedies.no_such_folder(Path(cfg.data_dir)))
    return cfg


def resumed(
    stored: TrainConfig, settings: Mapping[str, object], where: str = "", option: str = "--run_dir"
) -> TrainConfig:
    """The stored settings of a run, with those explicit ones that a resume may change.

    where, option: where the run lies, and the option that says so; its run_dir, if not given.
    Raises ValueError naming every other explicit setting that differs from the stored one, and what
    would happen to the learning rate.
    """
    fields = {item.name: item for item in dataclasses.fields(TrainConfig)}
    given = {  # `auto` keeps the value that was found at the start of the run
        name: value
        for name, value in settings.items()
        if not (fields[name].metadata["may_be_auto"] and value == AUTO)
    }
    differing = [
        f"--{name} {shown(value)} (the run has {shown(getattr(stored, name))})"
        for name, value in given.items()
        if may_not_change(stored, fields[name]) and value != getattr(stored, name)
    ]
    if differing:
        raise ValueError(
            f"the run in {where or stored.run_dir} cannot be resumed with different settings: "
            f"{', '.join(differing)}. Leave them out to resume it, or give a new {option}"
            f"{budget_ends(stored, given)}{consequence(stored, given)}"
        )
    return dataclasses.replace(stored, **given)


def may_not_change(stored: TrainConfig, item: dataclasses.Field) -> bool:
    """Whether a resume would become another run. A price that turns dollars into the time of a
    schedule may not change either."""
    is_price = item.name == "price_per_hour" and stored.budget_usd > 0
    return is_price or not item.metadata["may_change"]


def budget_ends(stored: TrainConfig, given: Mapping[str, object]) -> str:
    """When the schedule ends, and when it would with another budget; empty without one."""
    names = {*BUDGETS, "price_per_hour"} & given.keys()
    state = status.known_status(Path(stored.run_dir))
    try:
        budget = {"max_steps": 0, "max_minutes": 0.0} | {name: given[name] for name in names}
        changed = dataclasses.replace(stored, **budget)
    except ValueError:
        return ""
    if changed.budget_s == stored.budget_s:
        return ""
    step = status.numbers(state).get("stop_step")
    at_step = f" at step {step:,}" if step else ""
    if state.get("state") == status.DONE:
        return f". That run is done{at_step}: its schedule has ended, and a budget cannot move that"
    ends = f"after {clock(stored.budget_s)} of machine time" if stored.budget_s else "by its epochs"
    return (
        f". The schedule's end was planned once, {ends}{at_step}; with the new budget it would be "
        f"after {clock(changed.budget_s)}, and the learning rate would jump"
    )


def consequence(stored: TrainConfig, given: Mapping[str, object]) -> str:
    """What the newest checkpoint's learning rate would jump to, and what to do instead; empty if
    there is no checkpoint, or no run is possible with the settings.

    This is how runs are lost: a scheduler built for other epochs and loaded from a checkpoint jumps
    (vLAR-group/GrowSP#11, deepinsight/insightface#2143, Lightning-AI/pytorch-lightning#15462).
    """
    folder = run_folder.checkpoints_dir(Path(stored.run_dir))
    try:
        step = checkpoint.newest_step(folder)
        contents = checkpoint.load(checkpoint.step_path(folder, step))
        num_images = contents["schedule"]["num_train_images"]
        changed = dataclasses.replace(stored, **given)
        events = [Event(**values) for values in contents.get("events", [])]
        before, after = (rate_at(cfg, num_images, step, events) for cfg in (stored, changed))
    except (ValueError, OSError):
        return ""
    best = folder / checkpoint.BEST
    weights = best if best.exists() else checkpoint.step_path(folder, step)
    jump = ""
    if before != after:
        jump = f" At step {step} the learning rate would jump from {before:.4g} to {after:.4g}."
    return f".{jump} A new run can start from its weights: --init_from {weights} --run_dir NEW"


def rate_at(cfg: TrainConfig, num_images: int, step: int, events: Sequence[Event] = ()) -> float:
    """The learning rate of a step of a whole run with these settings; 0 after its end."""
    size = cfg.device_batch_size or cfg.total_batch_size
    plan = make_plan(dataclasses.replace(cfg, device_batch_size=size, max_steps=0), num_images)
    position = plan.bent(*events).course.position(step)
    if position >= plan.total_steps:
        return 0.0
    return learning_rate.rate_at(build.learning_rate_settings(cfg, plan), position)
