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
from torch.nn import functional
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

import distributed
import schedule
import transforms
from config import TrainConfig
from distributed import Ranks
from slots import Batch

LOSS_UNIT = 2.0**-20
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


def build_optimizer(model: nn.Module, cfg: TrainConfig) -> torch.optim.SGD:
    """SGD; weight decay on the weights of convolutions and linear layers only.

    Goes by module type: names miss the batch norms called `downsample.1` (ffcv-imagenet's filter
    does).
    """
    decayed = [
        module.weight for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    known = {id(weight) for weight in decayed}
    others = [parameter for parameter in model.parameters() if id(parameter) not in known]
    return torch.optim.SGD(
        [
            {"params": decayed, "weight_decay": cfg.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=cfg.max_lr,
        momentum=cfg.momentum,
        nesterov=cfg.nesterov,
    )


def build_ema(model: nn.Module, decay: float) -> AveragedModel | None:
    """Exponential moving average of parameters and floating buffers; None for decay 0."""
    if not decay:
        return None

    @torch.no_grad()
    def average(averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor) -> None:
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - decay)
        else:  # batch norm's counters have no average
            torch._foreach_copy_(averaged, current)

    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


@dataclass
class TrainState:
    """Everything that a training step changes; what a checkpoint holds of it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler
    ema: AveragedModel | None
    epoch_sums: Tensor  # int64 (5,), of this rank, since the epoch began
    step: int = 0

    @property
    def eval_model(self) -> nn.Module:
        """The model that is evaluated and published: the average where there is one."""
        return self.model if self.ema is None else self.ema.module

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def state_dict(self) -> dict[str, object]:
        """Tensors and plain values. The epoch's sums are rank-local: the caller adds them up."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "num_averaged": 0 if self.ema is None else int(self.ema.n_averaged),
        }

    def load_state_dict(self, state: dict) -> None:
        """The inverse; build the scheduler before it: building one resets the learning rate."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
            self.ema.n_averaged.fill_(state["num_averaged"])
        assert self.scheduler.get_last_lr()[0] == self.lr, "scheduler and optimizer disagree"


def batch_sums(logits: Tensor, labels: Tensor, losses: Tensor) -> Tensor:
    """What is counted of a batch, on its device, without waiting for it.

    logits: (B, K); labels: int64 (B,); losses: float32 (B,), one an image.
    Returns int64 (5,): loss in LOSS_UNIT, top-1 and top-5 hits, images, batches of non-finite loss.
    """
    ranking = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    loss = losses.sum()
    finite = torch.isfinite(loss)
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
            logits, losses = forward(network, batch, precision, cfg.label_smoothing)
            state.scaler.scale(losses.mean() / len(micro_batches)).backward()
        sums += batch_sums(logits.detach(), batch.labels, losses.detach())
    if cfg.clip_grad_norm:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), cfg.clip_grad_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad()
    if state.ema is not None:
        state.ema.update_parameters(state.model)
    return sums


def forward(
    network: nn.Module, batch: Batch, precision: Precision, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Batch from the loader -> float32 logits (B, K) and losses (B,) on the device."""
    inputs = transforms.normalize(batch.images, batch.flips)
    with precision.autocast():
        logits = network(inputs)
    logits = logits.float()
    losses = functional.cross_entropy(
        logits, batch.labels, reduction="none", label_smoothing=label_smoothing
    )
    return logits, losses


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch | None],
    num_images: int,
    precision: Precision,
    ranks: Ranks,
    should_stop: Callable[[Batch | None], bool] = lambda batch: False,
) -> Tensor | None:
    """Count hits over a split, exactly: every image once on any number of ranks.

    batches: this rank's share, with None where a rank has no batch in the last round.
    should_stop: called after every round on all ranks, with one answer for all.
    Returns the summed `batch_sums` of all ranks, or None if it was told to stop.
    """
    model.eval()
    sums = torch.zeros(5, dtype=torch.int64, device=precision.device)
    for batch in batches:
        if batch is not None:
            logits, losses = forward(model, batch, precision)
            sums += batch_sums(logits, batch.labels, losses)
        if should_stop(batch):
            return None
    total = distributed.sum_over_ranks(sums, ranks)
    assert total[COUNT] == num_images, f"counted {total[COUNT]} of {num_images} images"
    return total


def all_finite(model: nn.Module) -> bool:
    """Whether no parameter or buffer holds NaN or infinity. Waits for the device."""
    tensors = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


def advance(state: TrainState, sums: Tensor, total_steps: int) -> None:
    """Book a finished step: its sums, the step count, the next learning rate."""
    state.epoch_sums += sums
    state.step += 1
    schedule.advance(state.scheduler, state.step, total_steps)


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
