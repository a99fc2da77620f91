"""Why a run cannot go on with other settings, in figures."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import checkpoint
import learning_rate
import run_folder
import schedule
import stored_config
import trainer
from config import TrainConfig
from settings import AUTO


def resumed(stored: TrainConfig, settings: Mapping[str, object]) -> TrainConfig:
    """`stored_config.resumed`, whose refusal also tells what would become of the learning rate.

    That is how runs are lost: a scheduler built for other epochs and loaded from a checkpoint jumps
    (vLAR-group/GrowSP#11, deepinsight/insightface#2143, Lightning-AI/pytorch-lightning#15462).
    """
    try:
        return stored_config.resumed(stored, settings)
    except ValueError as error:
        raise ValueError(f"{error}{consequence(stored, settings)}") from None


def consequence(stored: TrainConfig, settings: Mapping[str, object]) -> str:
    """What the newest checkpoint's learning rate would jump to, and what to do instead; empty if
    there is no checkpoint, or the settings make no run at all."""
    folder = run_folder.checkpoints_dir(Path(stored.run_dir))
    try:
        step = checkpoint.newest_step(folder)
        num_images = checkpoint.load(checkpoint.step_path(folder, step))["schedule"][
            "num_train_images"
        ]
        known = {name: value for name, value in settings.items() if value != AUTO}
        changed = dataclasses.replace(stored, **known)
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
    plan = schedule.make_plan(num_images, cfg.epochs, cfg.total_batch_size, size, 1)
    if step >= plan.total_steps:
        return 0.0
    return learning_rate.rate_at(trainer.learning_rate_settings(cfg, plan), step)
