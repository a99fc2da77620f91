"""One optimizer step, one evaluation, and the sums that both count in: what training is made of.

Sums over images are integers (loss in units of 2**-20), since integers add up to the same total in
any order: on any number of ranks, and whether or not a run was interrupted in between.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resnet50.config.train_config import TrainConfig
from resnet50.data.batch import Batch, normalize
from resnet50.training import distributed, losses
from resnet50.training.device import Precision
from resnet50.training.distributed import Ranks
from resnet50.training.learning_rate import LearningRate
from resnet50.training.optimization import MovingAverage

LOSS_UNIT = 2.0**-20
# Limit of a batch's summed loss; a larger one counts as infinite, and could overflow an int64.
LARGEST_LOSS = 2.0**32
LOSS, TOP1, TOP5, COUNT, NON_FINITE = range(5)  # what `batch_sums` sums, int64 (5,)


@dataclass(frozen=True)
class StepContext:
    """What a run's steps need, the same for all of them."""

    cfg: TrainConfig
    precision: Precision
    ranks: Ranks
    network: nn.Module  # the state's model, as compiled and replicated


@dataclass
class TrainState:
    """Everything that a training step changes: what a checkpoint must hold."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    learning_rate: LearningRate | None  # None in a range test, which sets it itself
    scaler: torch.amp.GradScaler
    ema: MovingAverage | None
    epoch_sums: Tensor  # int64 (5,), of this rank, since the epoch began
    step: int = 0

    @property
    def eval_model(self) -> nn.Module:
        """The model that is evaluated and published: the average where there is one."""
        return self.model if self.ema is None else self.ema.module

    @property
    def num_classes(self) -> int:
        return self.model.fc.out_features

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]


def batch_sums(logits: Tensor, labels: Tensor, image_losses: Tensor) -> Tensor:
    """Sums over a batch, on its device, without waiting for it.

    logits: (B, K); labels: int64 (B,); image_losses: float32 (B,), one an image.
    Returns int64 (5,): loss in LOSS_UNIT, top-1 and top-5 hits, images, batches of non-finite loss.
    """
    ranking = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    loss = image_losses.sum()
    # `where` instead of an `if`: asking the GPU whether a loss is finite would wait for the step.
    finite = loss.abs() < LARGEST_LOSS
    return torch.stack(
        [
            (torch.where(finite, loss, 0).double() / LOSS_UNIT).round().long(),
            ranking[:, 0].sum(),
            ranking.sum(),
            torch.full_like(labels[0], len(labels)),
            (~finite).long(),
        ]
    )


def means(sums: Tensor) -> dict[str, float]:
    """Loss, top-1 and top-5 in percent, from summed `batch_sums`."""
    loss, top1, top5, count, _ = sums.tolist()  # waits for the GPU
    count = max(count, 1)
    return {
        "loss": loss * LOSS_UNIT / count,
        "top1": 100 * top1 / count,
        "top5": 100 * top5 / count,
    }


def track_running_statistics(model: nn.Module, enabled: bool) -> None:
    """Set whether training forwards update the batch norms' running mean and variance."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = enabled


def train_step(state: TrainState, micro_batches: Sequence[Batch], context: StepContext) -> Tensor:
    """One optimizer step from this rank's micro-batches; the caller steps the scheduler.

    Gradients are means over all images of the step. Returns this rank's `batch_sums` of the step.
    """
    cfg, ranks, network = context.cfg, context.ranks, context.network
    network.train()
    sums = torch.zeros_like(state.epoch_sums)
    for i, batch in enumerate(micro_batches):
        # Running statistics come from the step's first micro-batch alone, which rank 0 has, so
        # that they do not depend on the number of ranks.
        track_running_statistics(state.model, ranks.is_main and i == 0)
        # Gradients go over the network once per step, in the last micro-batch's backward pass.
        is_last = i == len(micro_batches) - 1
        with nullcontext() if is_last or ranks.world_size == 1 else network.no_sync():
            # This micro-batch's number in the step, whatever rank it is on: mixing then draws the
            # same numbers on any number of GPUs.
            key = (cfg.seed, state.step, i * ranks.world_size + ranks.rank)
            logits, labels, image_losses = forward(batch, context, state.num_classes, key)
            # Gradients add up over micro-batches: divided here, their sum is the mean.
            state.scaler.scale(image_losses.mean() / len(micro_batches)).backward()
        sums += batch_sums(logits.detach(), labels, image_losses.detach())
    if cfg.clip_grad_norm:
        # Unscaled first: in fp16 gradients carry the loss scale, 65,536 at the start.
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), cfg.clip_grad_norm)
    # With fp16 this skips the step if a gradient overflowed; it counts as a step all the same.
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad()
    # Not at every step: an update of the average is a pass over all weights.
    if state.ema is not None and (state.step + 1) % cfg.ema_every_steps == 0:
        state.ema.update()
    return sums


def forward(
    batch: Batch, context: StepContext, num_classes: int, key: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """A training batch from the loader -> float32 logits (B, K), labels (B,) and losses (B,).

    key: seed, step and micro-batch; all randomness here is a function of it. The label of a mixed
    image is that of its larger part.
    """
    cfg = context.cfg
    # Bytes came over the bus, a quarter of the size of floats; the GPU converts them to floats.
    images = normalize(batch.images, batch.flips)
    targets = batch.labels
    if cfg.mixup_alpha or cfg.cutmix_alpha:
        images, targets = losses.mix(
            images, targets, num_classes, cfg.mixup_alpha, cfg.cutmix_alpha, key
        )
    with context.precision.autocast():
        logits = context.network(images)
    # In bf16 the loss would have two or three digits.
    logits = logits.float()
    image_losses = losses.losses_of(logits, targets, cfg.loss, cfg.label_smoothing)
    # A mixed image counts for the accuracy by its larger part; its loss uses both.
    labels = targets if targets is batch.labels else targets.argmax(1)
    return logits, labels, image_losses


def predict(
    model: nn.Module,
    batch: Batch,
    precision: Precision,
    with_flip: bool = False,
    normalize: Callable[[Tensor, Tensor], Tensor] = normalize,
) -> Tensor:
    """Batch from the loader -> float32 logits (B, K); with_flip: mean over it and its mirror image.

    normalize: makes the model's input from pixels and flips. ffcv-imagenet's published figures use
    such flip averaging; it takes twice the time.
    """
    images = normalize(batch.images, batch.flips)
    with precision.autocast():
        logits = model(images).float()
        return (logits + model(images.flip(3)).float()) / 2 if with_flip else logits


@torch.inference_mode()
def evaluate(
    predict: Callable[[Batch], Tensor],
    batches: Iterable[Batch],
    num_images: int,
    ranks: Ranks,
    should_stop: Callable[[], bool] = lambda: False,
) -> Tensor | None:
    """Count hits over a split, exactly: every image once on any number of ranks.

    predict: batch from the loader -> float32 logits (B, K), by a model in evaluation mode; batches:
    this rank's, as many as the others have (plan.eval_keys); should_stop: called after every batch,
    must return the same on all ranks.
    Returns the summed `batch_sums` of all ranks, or None if should_stop ended it.
    """
    sums = torch.zeros(5, dtype=torch.int64, device=ranks.device)
    for batch in batches:
        # A rank with fewer batches than the others gets an empty one, and still takes part below.
        if len(batch.labels):
            logits = predict(batch)
            sums += batch_sums(logits, batch.labels, losses.losses_of(logits, batch.labels))
        if should_stop():
            return None
    total = distributed.sum_over_ranks(sums, ranks)
    assert total[COUNT] == num_images, f"counted {total[COUNT]} of {num_images} images"
    return total


def all_finite(model: nn.Module) -> bool:
    """Whether no parameter or buffer holds NaN or infinity. Waits for the device."""
    tensors = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


def advance(state: TrainState, sums: Tensor) -> None:
    """Record a finished step: its sums, the step count, the next learning rate."""
    state.epoch_sums += sums
    state.step += 1
    state.learning_rate.advance(state.step)
