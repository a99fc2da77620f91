"""Puts together what takes training steps: data, loader processes, ranks, model, optimizer.

The order matters and is the point of this file: the loader processes are forked before CUDA, the
process group and any thread exist, and begin to work at once; the optimizer exists before the
learning rate's schedule.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import nn

from model import ResNet, architecture_of, load_backbone
from resnet50.config.fields import AUTO, shown
from resnet50.config.train_config import TrainConfig
from resnet50.data import crops
from resnet50.data.batch import Batch
from resnet50.data.loader import Loader, choose_num_workers
from resnet50.data.splits import Split, Splits
from resnet50.training import distributed, losses, optimization
from resnet50.training.course import Event
from resnet50.training.device import Precision, check_compiler, choose_precision, set_up_device
from resnet50.training.distributed import Ranks
from resnet50.training.engine import StepContext, TrainState
from resnet50.training.learning_rate import LearningRate, LearningRateSettings
from resnet50.training.matrix_convolution import use_matrix_products
from resnet50.training.plan import Plan, TrainKeys, epoch_sizes, make_plan

TRAIN, EVAL = range(2)  # the streams of a loader
TOTAL_STRIDE = 32  # side in pixels of a picture per pixel of the last feature map


@dataclass
class Parts:
    """Everything that training works with."""

    cfg: TrainConfig
    ranks: Ranks
    plan: Plan
    precision: Precision
    splits: Splits
    loader: Loader
    keys: TrainKeys  # of the batches, as far as the loaders have been asked for them
    batches: Iterator[Batch]
    state: TrainState
    network: nn.Module  # state.model, compiled and replicated

    @property
    def context(self) -> StepContext:
        return StepContext(self.cfg, self.precision, self.ranks, self.network)

    def bend(self, event: Event) -> None:
        """Move the schedule's end; the event is at keys.next_step of all ranks or later,
        so that neither the images nor the rate of a batch that has begun would be others."""
        assert event.step >= self.keys.next_step, f"batch {event.step} has begun"
        self.plan = self.keys.plan = self.plan.bent(event)
        self.state.learning_rate.course = self.plan.course


def set_up(
    cfg: TrainConfig,
    ranks: Ranks,
    splits: Splits,
    first_step: int | None = None,
    weights: dict | None = None,
    events: Sequence[Event] = (),
) -> Parts:
    """Fork the loaders, join the other ranks, build the model: the only order that works.

    first_step: the loaders start to work on it at once; None: they wait for another request.
    weights: those of --init_from, without fc.* for a fresh classifier. events: that have moved
    the schedule's end. Raises ValueError if the user must change something.
    """
    # Mistakes are reported first, before any process is started or GPU memory is allocated.
    plan = make_plan(cfg, len(splits.train), ranks.world_size).bent(*events)
    refuse_enlarging(cfg, splits.train)
    refuse_single_values(cfg)
    if cfg.compile:
        check_compiler(ranks.device)

    # Forked before CUDA exists in this process, since a fork of a CUDA process cannot use CUDA; and
    # before the process group's threads, since a fork inherits their locks but not the threads.
    loader = start_loader(cfg, ranks, splits)
    # Without a first step the stream is empty: a range test asks for its own batches.
    first_step = plan.course.end_step if first_step is None else first_step
    keys = TrainKeys(cfg, plan, ranks.rank, first_step)
    # The workers decode while the model is being built.
    batches = loader.batches(TRAIN, keys)

    # Longer than hang_minutes, so that in a hang the supervisor acts first, and has the ranks print
    # where they are.
    distributed.connect(ranks, timedelta(minutes=1.5 * cfg.hang_minutes))
    set_up_device(ranks.device, cfg.deterministic)
    state = build_state(cfg, ranks, len(splits.train.classes), plan, weights)
    model = torch.compile(state.model) if cfg.compile else state.model
    return Parts(
        cfg=cfg,
        ranks=ranks,
        plan=plan,
        precision=choose_precision(cfg.amp, ranks.device),
        splits=splits,
        loader=loader,
        keys=keys,
        batches=batches,
        state=state,
        network=distributed.replicate(model, ranks),
    )


def refuse_enlarging(cfg: TrainConfig, train_set: Split) -> None:
    """Raise ValueError if a pack's pictures were shrunk below the crops that are asked for."""
    side = train_set.largest_side or cfg.image_size
    if side < cfg.image_size:
        raise ValueError(
            f"--image_size {cfg.image_size} is more than {train_set.root} holds, whose pictures "
            f"were shrunk to {side} px: choose a smaller one, or pack the data again"
        )


def refuse_single_values(cfg: TrainConfig) -> None:
    """Raise ValueError if the last batch norms would see one value per channel: one image that the
    strides reduce to one pixel. It has no variance, and torch refuses it."""
    side = min(epoch_sizes(cfg))
    if cfg.device_batch_size == 1 and side <= TOTAL_STRIDE:
        raise ValueError(
            f"--device_batch_size 1 of {side} px leaves batch norm one value per channel, with "
            "no variance: take 2 or more images, on fewer ranks if need be, or larger ones"
        )


def start_loader(cfg: TrainConfig, ranks: Ranks, splits: Splits) -> Loader:
    """Fork the loader processes of the whole run, for training and for every evaluation."""
    on_gpu = ranks.device.type == "cuda"
    augmentation = crops.Augmentation(
        cfg.min_crop_scale,
        cfg.flip,
        cfg.trivial_augment,
        cfg.random_erasing,
        cfg.alternate_flips,
    )
    # One loader for both streams, each with its own slots: an evaluation leaves alone the training
    # batches that are ready, and needs no fork while CUDA is running.
    return Loader(
        [
            crops.TrainImages(splits.train, cfg.seed, augmentation),
            crops.EvalImages(splits.val, cfg.eval_resize),
        ],
        cfg.device_batch_size,
        max(cfg.image_size, cfg.eval_crop),
        choose_num_workers(cfg.num_workers, ranks.local_world_size, on_gpu),
        ranks.device,
    )


def build_state(
    cfg: TrainConfig,
    ranks: Ranks,
    num_classes: int,
    plan: Plan,
    weights: dict | None = None,
) -> TrainState:
    """A model initialized from the seed, or from `weights`, and what trains it.

    Only the model's weights draw from torch's generator. Without a max_lr there is no schedule yet.
    """
    # On the CPU, whose generator gives the same weights on every machine; then moved.
    torch.manual_seed(cfg.seed)
    # NHWC, which tensor cores prefer and which the loader's bytes have anyway.
    layout = torch.channels_last if cfg.channels_last else torch.contiguous_format
    model = ResNet(
        cfg.layers,
        cfg.width,
        num_classes,
        cfg.zero_init_gamma,
        cfg.blurpool,
        cfg.base_width,
        cfg.v1_strides,
    )
    if cfg.loss == "bce":
        losses.start_bias_at_log_constant(model.fc)
    if weights is not None:
        init_from(model, weights, cfg)
    model = model.to(ranks.device, memory_format=layout)
    if ranks.device.type == "cpu" and cfg.channels_last:
        use_matrix_products(model)  # cuDNN has kernels for few pixels, too
    # After the move: an optimizer keeps the tensors that it was given.
    optimizer = optimization.build_optimizer(model, cfg)
    # Without a max_lr a range test comes first, which sets the rate itself.
    learning_rate = None
    if cfg.max_lr != AUTO:
        learning_rate = LearningRate(optimizer, learning_rate_settings(cfg, plan), plan.course)
    # bf16 has the exponents of fp32, so that gradients cannot underflow: only fp16 needs scaling.
    is_fp16 = choose_precision(cfg.amp, ranks.device).dtype == torch.float16
    return TrainState(
        model=model,
        optimizer=optimizer,
        learning_rate=learning_rate,
        scaler=torch.amp.GradScaler(ranks.device.type, enabled=is_fp16),
        ema=optimization.MovingAverage(model, cfg.ema_update_decay) if cfg.ema_decay else None,
        epoch_sums=torch.zeros(5, dtype=torch.int64, device=ranks.device),
    )


def init_from(model: ResNet, weights: dict, cfg: TrainConfig) -> None:
    """Load the weights of --init_from; without fc.* among them the classifier stays fresh.

    Raises ValueError if they are another network's.
    """
    try:
        # This names the options; torch's own error would list the shapes of a hundred tensors.
        check_architecture({"fc.weight": model.fc.weight} | weights, cfg)
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
        raise ValueError(f"the weights are of another network: give {' '.join(differing)} too")


def set_max_lr(parts: Parts, max_lr: float) -> None:
    """Now that max_lr has been found, add the optimizer, the schedule and the batches."""
    cfg = parts.cfg = dataclasses.replace(parts.cfg, max_lr=max_lr)
    state, plan = parts.state, parts.plan
    state.optimizer = optimization.build_optimizer(state.model, cfg)
    rates = learning_rate_settings(cfg, plan)
    state.learning_rate = LearningRate(state.optimizer, rates, plan.course)
    parts.keys = TrainKeys(cfg, plan, parts.ranks.rank, 0)
    parts.batches = parts.loader.batches(TRAIN, parts.keys)


def learning_rate_settings(cfg: TrainConfig, plan: Plan) -> LearningRateSettings:
    """What determines the learning rate of every step: the settings, with epochs as steps."""
    # The settings of the same names, and then what only the plan knows: numbers of steps.
    names = {item.name for item in dataclasses.fields(LearningRateSettings)}
    settings = {name: value for name, value in dataclasses.asdict(cfg).items() if name in names}
    warmup_steps = round(cfg.warmup_epochs * plan.steps_per_epoch)
    on_plateau = cfg.schedule == "plateau"
    # A plateau alone starts at the peak; one after a curve, at a tenth of it.
    settings["plateau_lr"] = cfg.plateau_lr or cfg.max_lr / (1 if on_plateau else 10)
    # --num_steps go without a plateau, so that all of them belong to the curve.
    curve_steps = cfg.num_steps or cfg.curve_epochs * plan.steps_per_epoch
    curve_steps = warmup_steps if on_plateau else curve_steps
    return LearningRateSettings(
        **settings,
        warmup_steps=warmup_steps,
        curve_steps=curve_steps,
        total_steps=plan.total_steps,
        steps_per_epoch=plan.steps_per_epoch,
    )
