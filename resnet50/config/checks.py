"""Settings that exclude or need each other. Each check raises ValueError naming both."""

import math
from typing import TYPE_CHECKING

from resnet50.config import size_stages
from resnet50.config.fields import AUTO

if TYPE_CHECKING:
    from resnet50.config.train_config import TrainConfig


def check(cfg: "TrainConfig") -> None:
    """Raise ValueError naming the options, their values and what to do."""
    check_widths(cfg)
    check_batch(cfg)
    check_sizes(cfg)
    check_optimizer(cfg)
    check_budget(cfg)
    check_schedule(cfg)
    check_plateau(cfg)
    if cfg.budget_events and not cfg.num_steps:
        raise ValueError(
            f"--budget_events {cfg.budget_events} needs --num_steps: give that run's, which its "
            "config.json has"
        )


def check_widths(cfg: "TrainConfig") -> None:
    """Every block has a whole number of channels inside."""
    if cfg.width * cfg.base_width % 64:
        raise ValueError(
            f"--base_width {cfg.base_width} 64ths of --width {cfg.width} is not a whole number of "
            "channels: use a multiple of "
            f"{64 // math.gcd(64, cfg.width)}"
        )


def check_batch(cfg: "TrainConfig") -> None:
    """Micro-batches make up the batch, and mixing needs more than one image in each."""
    total, device = cfg.total_batch_size, cfg.device_batch_size
    if device not in (0, AUTO) and total % device:
        raise ValueError(
            f"--total_batch_size {total} does not split into micro-batches of "
            f"--device_batch_size {device}: use a multiple, such as "
            f"{device * (total // device + 1)}"
        )
    if device == 1 and (cfg.mixup_alpha or cfg.cutmix_alpha):
        raise ValueError(
            "--mixup_alpha and --cutmix_alpha mix the images of a micro-batch: --device_batch_size "
            "1 has none to mix, use 2 or more"
        )


def check_sizes(cfg: "TrainConfig") -> None:
    """Images grow within bounds, and the evaluation crop fits into its picture."""
    if stages := size_stages.parse(cfg.size_stages):
        check_stages(cfg, stages)
    elif cfg.shuffle_sizes:
        raise ValueError("--shuffle_sizes needs --size_stages, whose epochs it shuffles")
    start = cfg.start_image_size
    if start and not 32 <= start <= cfg.image_size:
        raise ValueError(
            f"--start_image_size {start}: must be from 32 to --image_size {cfg.image_size}"
        )
    if start and not cfg.grow_end_epoch > cfg.grow_start_epoch:
        raise ValueError(
            f"--start_image_size {start} needs epochs to grow in: --grow_end_epoch "
            f"{cfg.grow_end_epoch:g} must be above --grow_start_epoch {cfg.grow_start_epoch:g}"
        )
    if cfg.alternate_flips and not cfg.flip:
        raise ValueError("--alternate_flips needs --flip: it says which images are mirrored when")
    if cfg.eval_resize < cfg.eval_crop:
        raise ValueError(
            f"--eval_resize_size {cfg.eval_resize} is smaller than the crop of {cfg.eval_crop} px "
            f"cut from it: use at least {cfg.eval_crop}"
        )


def check_stages(cfg: "TrainConfig", stages: list[tuple[int, float]]) -> None:
    """Sizes are at least 32, the largest is image_size, and each gets an epoch."""
    sizes = [size for size, _ in stages]
    if cfg.start_image_size:
        raise ValueError(
            f"--size_stages {cfg.size_stages} and --start_image_size {cfg.start_image_size} "
            f"exclude each other: give --start_image_size 0, or --size_stages {size_stages.NONE}"
        )
    if min(sizes) < 32 or max(sizes) != cfg.image_size:
        raise ValueError(
            f"--size_stages {cfg.size_stages}: sizes must be at least 32, and the largest one "
            f"--image_size, which is {cfg.image_size}: give --image_size {max(sizes)}, or "
            "other sizes"
        )
    for size in set(sizes) - set(size_stages.epoch_sizes(stages, cfg.epochs)):
        raise ValueError(
            f"--size_stages {cfg.size_stages}: of --epochs {cfg.epochs} none would be of {size} "
            "px: give that stage more percent, or leave it out"
        )


def check_optimizer(cfg: "TrainConfig") -> None:
    """Momentum, decay and averages belong to the optimizer that has them."""
    if cfg.nesterov and not cfg.momentum:
        raise ValueError("--nesterov needs --momentum above 0")
    if cfg.optimizer == "adamw":
        for name in ("nesterov", "decoupled_weight_decay"):
            if getattr(cfg, name):
                raise ValueError(
                    f"--{name} is for --optimizer sgd (AdamW always decouples its decay): leave "
                    "out one of them"
                )
        if cfg.momentum == 1:
            raise ValueError("--momentum 1: as AdamW's first beta it must be below 1")
    for name, is_set in (("rescale", cfg.ema_rescale), ("every_steps", cfg.ema_every_steps > 1)):
        if is_set and not cfg.ema_decay:
            raise ValueError(f"--ema_{name} needs --ema_decay above 0: else there is no average")
    if not 0 <= cfg.ema_update_decay < 1:
        raise ValueError(
            f"--ema_rescale turns --ema_decay {cfg.ema_decay:g} into a decay of "
            f"{cfg.ema_update_decay:.4g} for batches of {cfg.total_batch_size} and {cfg.epochs} "
            "epochs: give a larger --ema_decay or a smaller --ema_every_steps"
        )


def check_schedule(cfg: "TrainConfig") -> None:
    """Every schedule has its own settings, and their parts fit into the epochs."""
    if cfg.schedule != "onecycle":
        for name in ("three_phase", "cycle_momentum"):
            if getattr(cfg, name):
                raise ValueError(f"--{name} is for --schedule onecycle, not {cfg.schedule}")
    elif cfg.warmup_epochs:
        raise ValueError(
            f"--warmup_epochs {cfg.warmup_epochs:g} is for the other schedules: onecycle rises in "
            "--pct_start of its steps"
        )
    if cfg.three_phase and cfg.pct_start > 0.5:
        raise ValueError(
            f"--pct_start {cfg.pct_start:g} leaves --three_phase no third phase: use 0.5 or less"
        )
    if cfg.schedule == "warmup_cosine" and cfg.max_lr != AUTO and cfg.min_lr > cfg.max_lr:
        raise ValueError(
            f"--min_lr {cfg.min_lr:g} is above --max_lr {cfg.max_lr:g}: the rate would rise to it"
        )
    if cfg.warmup_epochs and cfg.warmup_epochs >= cfg.curve_epochs:
        raise ValueError(
            f"--warmup_epochs {cfg.warmup_epochs:g} must be below the {cfg.curve_epochs} epochs "
            "that the schedule has"
        )


def check_plateau(cfg: "TrainConfig") -> None:
    """A plateau phase needs evaluations, and a fall at its very end would change nothing."""
    if cfg.schedule == "plateau" and cfg.plateau_epochs:
        raise ValueError(
            f"--plateau_epochs {cfg.plateau_epochs} follow another schedule, but --schedule "
            "plateau has no other: leave out one of them"
        )
    if cfg.schedule != "plateau" and not cfg.plateau_epochs:
        return
    if cfg.num_steps:
        phase = "--schedule plateau" if cfg.schedule == "plateau" else "--plateau_epochs"
        raise ValueError(
            f"--num_steps {cfg.num_steps} may end in mid-epoch, but {phase} follows the validation "
            "loss of whole epochs: leave out one of them"
        )
    if cfg.plateau_epochs >= cfg.epochs:
        raise ValueError(
            f"--plateau_epochs {cfg.plateau_epochs} leave no other epochs of --epochs "
            f"{cfg.epochs}: use fewer, or --schedule plateau"
        )
    begins = cfg.curve_epochs if cfg.plateau_epochs else cfg.warmup_epochs
    every = cfg.eval_every_epochs
    needed = cfg.plateau_patience + 2
    count = (cfg.epochs - 1) // every - int(begins // every) if every else 0
    if count < needed:
        raise ValueError(
            f"--eval_every_epochs {every} leaves {count} evaluations on the plateau before the "
            "last epoch's end, too few for the learning rate to fall: --plateau_patience "
            f"{cfg.plateau_patience} needs {needed} or more"
        )


def check_budget(cfg: "TrainConfig") -> None:
    """One budget, that can be turned into time, and nothing else that says when the run ends."""
    if not cfg.budget_usd and not cfg.budget_hours:
        return
    if cfg.budget_usd and cfg.budget_hours:
        raise ValueError(
            f"--budget_usd {cfg.budget_usd:g} and --budget_hours {cfg.budget_hours:g} both say "
            "when the run ends: give one of them"
        )
    if cfg.budget_usd and not cfg.price_per_hour:
        raise ValueError(
            f"--budget_usd {cfg.budget_usd:g} needs --price_per_hour X, what this machine costs in "
            "dollars: time is what can be planned. Or give --budget_hours"
        )
    name = "budget_usd" if cfg.budget_usd else "budget_hours"
    budget = f"--{name} {getattr(cfg, name):g}"
    for limit in ("max_steps", "max_minutes"):
        if value := getattr(cfg, limit):
            raise ValueError(
                f"--{limit} {value:g} would end the run with its learning rate still high, but "
                f"{budget} fits the schedule to its end: leave out one of them"
            )
    if cfg.schedule == "plateau":
        raise ValueError(
            f"--schedule plateau follows the validation loss, so it has no end that {budget} could "
            "be fitted to: choose another schedule, or leave the budget out"
        )
