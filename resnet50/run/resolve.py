"""A run's settings: those stored in its folder, or a recipe's, overridden by the flags."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import dataset_paths
from resnet50.config import recipe
from resnet50.config.fields import AUTO, shown
from resnet50.config.recipes import DEFAULT_RECIPE, RECIPES
from resnet50.config.train_config import TrainConfig
from resnet50.config.train_flags import Request
from resnet50.data import orientation, remedies
from resnet50.records import checkpoint, ownership, run_folder, tensorboard_log
from resnet50.training import build, learning_rate
from resnet50.training.plan import make_plan


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
        settings = {**RECIPES[name].settings, **settings, "recipe": name, "run_dir": run_dir}
        cfg = TrainConfig(**settings)
    else:
        cfg = resumed(stored_config(stored, run_dir), settings)
    if cfg.tensorboard:
        tensorboard_log.check_installed()
    return cfg if world_size == 0 else with_batch_norm_group(cfg, world_size)


def stored_config(stored: Mapping[str, object], run_dir: str) -> TrainConfig:
    """The settings that a run has stored, for this folder. Raises ValueError for unknown ones."""
    # A run from before a setting existed continues with the pixels and the bits it began with.
    before = {"upright": orientation.LEGACY, "fused_optimizer": False}
    return TrainConfig.from_json(before | dict(stored) | {"run_dir": run_dir})


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
        if not fields[name].metadata["may_change"] and value != getattr(stored, name)
    ]
    if differing:
        raise ValueError(
            f"the run in {where or stored.run_dir} cannot be resumed with different settings: "
            f"{', '.join(differing)}. Leave them out to resume it, or give a new {option}"
            f"{consequence(stored, given)}"
        )
    return dataclasses.replace(stored, **given)


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
        before, after = (rate_at(cfg, num_images, step) for cfg in (stored, changed))
    except (ValueError, OSError):
        return ""
    best = folder / checkpoint.BEST
    weights = best if best.exists() else checkpoint.step_path(folder, step)
    jump = ""
    if before != after:
        jump = f" At step {step} the learning rate would jump from {before:.4g} to {after:.4g}."
    return f".{jump} A new run can start from its weights: --init_from {weights} --run_dir NEW"


def rate_at(cfg: TrainConfig, num_images: int, step: int) -> float:
    """The learning rate of a step of a whole run with these settings; 0 after its end."""
    size = cfg.device_batch_size or cfg.total_batch_size
    plan = make_plan(dataclasses.replace(cfg, device_batch_size=size, max_steps=0), num_images)
    if step >= plan.total_steps:
        return 0.0
    return learning_rate.rate_at(build.learning_rate_settings(cfg, plan), step)
