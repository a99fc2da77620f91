"""What takes training steps: data, loader processes, ranks, model, optimizer, put together.

The order matters and is the point of this file: the loader processes are forked before CUDA, the
process group and any thread exist, and begin to work at once; the optimizer exists before the
learning rate's schedule.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import torch
from torch import nn

import data
import distributed
import engine
import feeding
import losses
import optimization
import packed_images
import sampling
import schedule
from config import TrainConfig
from distributed import Ranks
from engine import TrainState
from learning_rate import LearningRate, LearningRateSettings
from model import ResNet, architecture_of, load_backbone
from packed_images import PackedImages
from settings import AUTO, shown
from slots import Batch

TRAIN, EVAL = range(2)  # the streams of a feeder


@dataclass
class Trainer:
    """Everything that a training step works with."""

    cfg: TrainConfig
    ranks: Ranks
    plan: schedule.Plan
    precision: engine.Precision
    train_set: data.Split
    val_set: data.Split
    feeder: feeding.Feeder
    batches: Iterator[Batch]
    state: TrainState
    network: nn.Module  # state.model, compiled and replicated


def make_plan(cfg: TrainConfig, train_set: data.Split, ranks: Ranks) -> schedule.Plan:
    """The run's arithmetic. Raises ValueError if settings, data and ranks do not go together."""
    settings = train_set.settings if isinstance(train_set, PackedImages) else {}
    side = settings.get("short_side") or settings.get("long_side") or cfg.image_size
    if settings.get("store") == packed_images.TILES and side < cfg.image_size:
        raise ValueError(
            f"--image_size {cfg.image_size} is more than {train_set.root} holds, whose pictures "
            f"were shrunk to {side} px: choose a smaller one, or pack the data again"
        )
    return schedule.make_plan(
        len(train_set), cfg.epochs, cfg.total_batch_size, cfg.device_batch_size,
        ranks.world_size, cfg.max_steps,
    )  # fmt: skip


def set_up(
    cfg: TrainConfig,
    ranks: Ranks,
    train_set: data.Split,
    val_set: data.Split,
    plan: schedule.Plan,
    keys: Iterator[sampling.BatchKey],
    weights: dict | None = None,
) -> Trainer:
    """Fork the loaders and have them begin with `keys`, join the other ranks, build the model.

    weights: contents of the file of --init_from, where it counts. Raises ValueError for everything
    that the user must change.
    """
    feeder = start_feeder(cfg, ranks, train_set, val_set)
    batches = feeder.batches(TRAIN, keys)
    # Later than the supervisor's own look at the run, which tells more of a hang.
    distributed.connect(ranks, timedelta(minutes=1.5 * cfg.hang_minutes))
    engine.set_up_device(ranks.device, cfg.deterministic)
    state = build_state(cfg, ranks, len(train_set.classes), plan, weights)
    model = torch.compile(state.model) if cfg.compile else state.model
    return Trainer(
        cfg=cfg,
        ranks=ranks,
        plan=plan,
        precision=engine.choose_precision(cfg.amp, ranks.device),
        train_set=train_set,
        val_set=val_set,
        feeder=feeder,
        batches=batches,
        state=state,
        network=distributed.replicate(model, ranks),
    )


def start_feeder(
    cfg: TrainConfig, ranks: Ranks, train_set: data.Split, val_set: data.Split
) -> feeding.Feeder:
    """Fork the loader processes of the whole run, for training and for every evaluation."""
    on_gpu = ranks.device.type == "cuda"
    augmentation = data.Augmentation(
        cfg.min_crop_scale, cfg.flip, cfg.trivial_augment, cfg.random_erasing
    )
    return feeding.Feeder(
        [
            data.TrainImages(train_set, cfg.seed, augmentation),
            data.EvalImages(val_set, cfg.eval_resize),
        ],
        cfg.device_batch_size,
        max(cfg.image_size, cfg.eval_crop),
        feeding.choose_num_workers(cfg.num_workers, ranks.local_world_size, on_gpu),
        ranks.device,
    )


def image_size_at(cfg: TrainConfig, epoch: int) -> int:
    """Side of the training crops in an epoch, in pixels."""
    return schedule.image_size_at(
        epoch, cfg.start_image_size, cfg.image_size, cfg.grow_start_epoch, cfg.grow_end_epoch,
        cfg.image_size_multiple,
    )  # fmt: skip


def train_keys(
    cfg: TrainConfig, ranks: Ranks, plan: schedule.Plan, first_step: int, last_step: int
) -> Iterator[sampling.BatchKey]:
    """This rank's micro-batches from a step up to and without another."""
    image_size = partial(image_size_at, cfg)
    return sampling.train_keys(
        plan.num_images, cfg.seed, cfg.total_batch_size, cfg.device_batch_size, image_size,
        first_step, last_step, ranks.rank, ranks.world_size,
    )  # fmt: skip


def build_state(
    cfg: TrainConfig,
    ranks: Ranks,
    num_classes: int,
    plan: schedule.Plan,
    weights: dict | None = None,
) -> TrainState:
    """A model fresh from the seed, or from `weights`, and what trains it.

    Only the model's weights draw from torch's generator. Without a max_lr there is no schedule yet.
    """
    torch.manual_seed(cfg.seed)
    layout = torch.channels_last if cfg.channels_last else torch.contiguous_format
    model = ResNet(
        cfg.layers, cfg.width, num_classes, cfg.zero_init_gamma, cfg.blurpool, cfg.base_width
    )
    if cfg.loss == "bce":
        losses.start_bias_at_log_constant(model.fc)
    if weights is not None:
        init_from(model, weights, cfg)
    model = model.to(ranks.device, memory_format=layout)
    optimizer = optimization.build_optimizer(model, cfg)
    learning_rate = None
    if cfg.max_lr != AUTO:
        learning_rate = LearningRate(optimizer, learning_rate_settings(cfg, plan))
    is_fp16 = engine.choose_precision(cfg.amp, ranks.device).dtype == torch.float16
    return TrainState(
        model=model,
        optimizer=optimizer,
        learning_rate=learning_rate,
        scaler=torch.amp.GradScaler(ranks.device.type, enabled=is_fp16),
        ema=optimization.MovingAverage(model, cfg.ema_update_decay) if cfg.ema_decay else None,
        epoch_sums=torch.zeros(5, dtype=torch.int64, device=ranks.device),
    )


def init_from(model: ResNet, contents: dict, cfg: TrainConfig) -> None:
    """Take the weights of a checkpoint, averaged where they are, or of a file of torchvision's
    keys; a classifier for other classes stays fresh.

    Raises ValueError if they are another network's.
    """
    weights = (contents.get("ema") or contents["model"]) if "model" in contents else contents
    try:
        check_architecture(weights, cfg)
        load_backbone(model, weights)
    except ValueError as error:
        raise ValueError(f"--init_from {cfg.init_from}: {error}") from None


def check_architecture(weights: dict, cfg: TrainConfig) -> None:
    """Raise ValueError naming the options that would make these weights fit."""
    theirs = architecture_of(weights)
    differing = [
        f"--{name} {shown(theirs[name])}"
        for name in ("layers", "width", "base_width")
        if theirs[name] != getattr(cfg, name)
    ]
    if differing:
        raise ValueError(f"weights of another network: give {' '.join(differing)} too")


def settle_learning_rate(trainer: Trainer) -> None:
    """Give a trainer whose max_lr has been found its optimizer and its schedule."""
    state, cfg = trainer.state, trainer.cfg
    state.optimizer = optimization.build_optimizer(state.model, cfg)
    settings = learning_rate_settings(cfg, trainer.plan)
    state.learning_rate = LearningRate(state.optimizer, settings)


def learning_rate_settings(cfg: TrainConfig, plan: schedule.Plan) -> LearningRateSettings:
    """What fixes the learning rate of every step: the settings, epochs turned into steps."""
    names = {item.name for item in dataclasses.fields(LearningRateSettings)}
    settings = {name: value for name, value in dataclasses.asdict(cfg).items() if name in names}
    warmup_steps = round(cfg.warmup_epochs * plan.steps_per_epoch)
    on_plateau = cfg.schedule == "plateau"
    settings["plateau_lr"] = cfg.plateau_lr or cfg.max_lr / (1 if on_plateau else 10)
    curve_steps = warmup_steps if on_plateau else cfg.curve_epochs * plan.steps_per_epoch
    return LearningRateSettings(
        **settings,
        warmup_steps=warmup_steps,
        curve_steps=curve_steps,
        total_steps=plan.total_steps,
        steps_per_epoch=plan.steps_per_epoch,
    )
