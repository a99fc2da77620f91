"""One optimizer step, one evaluation, averaged weights: what training is made of.

Sums over images are integers (loss in units of 2**-20), since integers add up to the same total in
any order: on any number of ranks, and whether or not a run was interrupted in between.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import distributed
import losses
import transforms
from config import TrainConfig
from distributed import Ranks
from learning_rate import LearningRate
from optimization import MovingAverage
from slots import Batch

LOSS_UNIT = 2.0**-20
LARGEST_LOSS = 2.0**32  # of a batch's images together; more is as good as infinite, and overflows
LOSS, TOP1, TOP5, COUNT, NON_FINITE = range(5)  # what `batch_sums` sums, int64 (5,)


@dataclass(frozen=True)
class Precision:
    """How the device computes: where, in which dtype, with or without gradient scaling."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    @property
    def name(self) -> str:
        return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[self.dtype]


def choose_precision(amp: str, device: torch.device) -> Precision:
    """The dtype of `--amp`; auto takes bf16 where the hardware computes it itself.

    Ampere and newer GPUs and CPUs with AMX or AVX512-BF16 do; T4 and V100 only have fp16.
    """
    if amp == "auto":
        if device.type == "cuda":
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            amp = "bf16" if has_bf16 else "fp16"
        else:
            features = torch.cpu.get_capabilities()
            has_bf16 = features.get("amx_bf16") or features.get("avx512_bf16")
            amp = "bf16" if has_bf16 else "fp32"
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    return Precision(device, dtypes[amp])


def set_up_device(device: torch.device, deterministic: bool) -> None:
    """Let cuDNN pick its fastest kernels, or have every kernel repeat its bits."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch's notes on randomness
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = device.type == "cuda" and not deterministic


@dataclass
class TrainState:
    """Everything that a training step changes; what a checkpoint holds of it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    learning_rate: LearningRate | None  # None in a range test, which sets it by itself
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

    def state_dict(self) -> dict[str, object]:
        """Tensors and plain values. The epoch's sums are rank-local: the caller adds them up."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.learning_rate.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "num_averaged": 0 if self.ema is None else self.ema.num_updates,
        }

    def load_state_dict(self, state: dict) -> None:
        """The inverse; build the scheduler before it: building one resets the learning rate."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.learning_rate.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
            self.ema.num_updates = state["num_averaged"]
        assert self.learning_rate.lr == self.lr, "scheduler and optimizer disagree"


def batch_sums(logits: Tensor, labels: Tensor, image_losses: Tensor) -> Tensor:
    """What is counted of a batch, on its device, without waiting for it.

    logits: (B, K); labels: int64 (B,); image_losses: float32 (B,), one an image.
    Returns int64 (5,): loss in LOSS_UNIT, top-1 and top-5 hits, images, batches of non-finite loss.
    """
    ranking = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    loss = image_losses.sum()
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
    loss, top1, top5, count, _ = sums.tolist()
    count = max(count, 1)
    return {
        "loss": loss * LOSS_UNIT / count,
        "top1": 100 * top1 / count,
        "top5": 100 * top5 / count,
    }


def track_running_statistics(model: nn.Module, enabled: bool) -> None:
    """Whether training forwards update the batch norms' running mean and variance."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = enabled


def train_step(
    state: TrainState,
    network: nn.Module,
    micro_batches: Sequence[Batch],
    cfg: TrainConfig,
    precision: Precision,
    ranks: Ranks,
) -> Tensor:
    """One optimizer step from this rank's micro-batches; the scheduler is the caller's.

    network: state.model as replicated and compiled. Gradients are means over all images of the
    step. Returns this rank's `batch_sums` of the step.
    """
    network.train()
    sums = torch.zeros_like(state.epoch_sums)
    for i, batch in enumerate(micro_batches):
        # Running statistics come from the step's first micro-batch alone, which rank 0 has, so
        # that they do not depend on the number of ranks.
        track_running_statistics(state.model, ranks.is_main and i == 0)
        is_last = i == len(micro_batches) - 1
        with nullcontext() if is_last or ranks.world_size == 1 else network.no_sync():
            key = (cfg.seed, state.step, i * ranks.world_size + ranks.rank)
            logits, labels, image_losses = forward(
                network, batch, state.num_classes, cfg, precision, key
            )
            state.scaler.scale(image_losses.mean() / len(micro_batches)).backward()
        sums += batch_sums(logits.detach(), labels, image_losses.detach())
    if cfg.clip_grad_norm:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), cfg.clip_grad_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad()
    if state.ema is not None and (state.step + 1) % cfg.ema_every_steps == 0:
        state.ema.update()
    return sums


def forward(
    network: nn.Module,
    batch: Batch,
    num_classes: int,
    cfg: TrainConfig,
    precision: Precision,
    key: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """A training batch from the loader -> float32 logits (B, K), labels (B,) and losses (B,).

    key: seed, step and micro-batch; what chance does here is a function of it. The label of a mixed
    image is that of its larger part.
    """
    images, targets = transforms.normalize(batch.images, batch.flips), batch.labels
    if cfg.mixup_alpha or cfg.cutmix_alpha:
        images, targets = losses.mix(
            images, targets, num_classes, cfg.mixup_alpha, cfg.cutmix_alpha, key
        )
    with precision.autocast():
        logits = network(images)
    logits = logits.float()
    image_losses = losses.losses_of(logits, targets, cfg.loss, cfg.label_smoothing)
    labels = targets if targets is batch.labels else targets.argmax(1)
    return logits, labels, image_losses


def predict(
    model: nn.Module, batch: Batch, precision: Precision, with_flip: bool = False
) -> Tensor:
    """Batch from the loader -> float32 logits (B, K); with_flip: mean over it and its mirror image.

    Flip averaging is what ffcv-imagenet's published figures have; it costs twice the time.
    """
    images = transforms.normalize(batch.images, batch.flips)
    with precision.autocast():
        logits = model(images).float()
        return (logits + model(images.flip(3)).float()) / 2 if with_flip else logits


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch | None],
    num_images: int,
    precision: Precision,
    ranks: Ranks,
    should_stop: Callable[[Batch | None], bool] = lambda batch: False,
    with_flip: bool = False,
    note_logits: Callable[[Tensor], None] = lambda logits: None,
) -> Tensor | None:
    """Count hits over a split, exactly: every image once on any number of ranks.

    batches: this rank's share, with None where a rank has no batch in the last round.
    should_stop: called after every round on all ranks, with one answer for all; with_flip: see
    `predict`; note_logits: gets the float32 logits (B, K) of every batch of this rank, in order.
    Returns the summed `batch_sums` of all ranks, or None if it was told to stop.
    """
    model.eval()
    sums = torch.zeros(5, dtype=torch.int64, device=precision.device)
    for batch in batches:
        if batch is not None:
            logits = predict(model, batch, precision, with_flip)
            note_logits(logits)
            sums += batch_sums(logits, batch.labels, losses.losses_of(logits, batch.labels))
        if should_stop(batch):
            return None
    total = distributed.sum_over_ranks(sums, ranks)
    assert total[COUNT] == num_images, f"counted {total[COUNT]} of {num_images} images"
    return total


def all_finite(model: nn.Module) -> bool:
    """Whether no parameter or buffer holds NaN or infinity. Waits for the device."""
    tensors = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


def advance(state: TrainState, sums: Tensor) -> None:
    """Book a finished step: its sums, the step count, the next learning rate."""
    state.epoch_sums += sums
    state.step += 1
    state.learning_rate.advance(state.step)


class LateCounter:
    """Reads a device number one step or a few late, so that no step waits for the device."""

    def __init__(self, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._host = torch.zeros((), dtype=torch.int64, pin_memory=on_gpu)
        self._copied = torch.cuda.Event() if on_gpu else None
        self._last = 0

    def read(self, number: Tensor) -> int:
        """The newest value that has arrived; starts the next copy. On a CPU: the value itself."""
        if self._copied is None:
            return int(number)
        if self._copied.query():
            self._last = int(self._host)
            self._host.copy_(number, non_blocking=True)
            self._copied.record()
        return self._last
