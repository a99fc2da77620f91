"""The learning rate of every step: one cycle, cosine, steps, plateau.

Time is optimizer steps; the rate of step s is the one that batch s, counted from 0, is taken with.
A curve fixed in advance covers batches 0 to curve_steps - 1. If the run is longer, a plateau phase
follows, in which the rate falls whenever validation stops improving. A course whose end was moved
(training/course.py) reads the curve at positions ahead of the steps.
"""

import math
import warnings
from dataclasses import dataclass

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from resnet50.training.course import Course


@dataclass(frozen=True)
class LearningRateSettings:
    """What determines the rate of every step, together with the losses of a plateau phase.

    Values that only other schedules use are ignored. "onecycle" has no separate warm-up.
    """

    # "onecycle", "warmup_cosine", "step", or "plateau": a warm-up of curve_steps, then the plateau
    schedule: str
    max_lr: float
    curve_steps: int  # steps that the curve covers
    total_steps: int  # all steps; a plateau phase covers those after the curve
    steps_per_epoch: int
    # "warmup_cosine", "step" and "plateau" rise linearly from max_lr * warmup_factor.
    warmup_steps: int
    warmup_factor: float  # 0 to 1; 0.01 is lr_warmup_decay of torchvision's references
    min_lr: float  # "warmup_cosine": reached at curve_steps, one step after the curve's last batch
    # "onecycle": torch's OneCycleLR
    pct_start: float
    anneal_strategy: str
    three_phase: bool
    div_factor: float
    final_div_factor: float
    cycle_momentum: bool
    # "step": times step_factor every step_epochs epochs, counted from step 0
    step_epochs: int
    step_factor: float
    # The plateau phase: its first rate, and times plateau_factor after more than plateau_patience
    # evaluations without improvement
    plateau_lr: float
    plateau_factor: float
    plateau_patience: int


def refuse_impossible(settings: LearningRateSettings) -> None:
    """Raise ValueError, naming setting and value, for what torch refuses obscurely or too late."""
    rising_steps = settings.pct_start * settings.curve_steps
    if settings.schedule == "onecycle" and rising_steps == 1:
        raise ValueError(
            f"--pct_start {settings.pct_start} is exactly one of {settings.curve_steps} steps, "
            "where OneCycleLR divides by zero: choose another"
        )
    # torch would notice only when the curve is over, which may be days into the run.
    if settings.curve_steps < settings.total_steps and not 0 < settings.plateau_factor < 1:
        raise ValueError(f"--plateau_factor {settings.plateau_factor}: must be between 0 and 1")


def curve_rate(settings: LearningRateSettings, step: int) -> float:
    """Rate of a step of the curve, for "warmup_cosine", "step" and "plateau".

    Linear warm-up (Goyal et al. 2017, arXiv:1706.02677), then half a cosine down to min_lr
    (Loshchilov and Hutter 2016, arXiv:1608.03983), steps, or max_lr. A function of the step alone,
    unlike torch's LinearLR, CosineAnnealingLR and StepLR, which multiply the previous rate and
    accumulate rounding errors. `step` counts its drops from step 0, even after a warm-up;
    torchvision, with torch's SequentialLR, from the end of the warm-up.
    """
    rate = settings.max_lr
    if step < settings.warmup_steps:
        start = settings.warmup_factor
        rate *= start + (1 - start) * (step / settings.warmup_steps)
    if settings.schedule == "step":
        rate *= settings.step_factor ** (step // (settings.step_epochs * settings.steps_per_epoch))
    if settings.schedule == "warmup_cosine" and step >= settings.warmup_steps:
        left = (settings.curve_steps - step) / (settings.curve_steps - settings.warmup_steps)
        # (1 + cos(pi * (1 - left))) / 2, but accurate near the end, where that cancels.
        height = math.sin(math.pi / 2 * left) ** 2
        rate = settings.max_lr * height + settings.min_lr * (1 - height)
    return rate


def build_curve(optimizer: Optimizer, settings: LearningRateSettings) -> LRScheduler:
    """torch's scheduler of the curve, for stepping once a step; sets the rate of step 0.

    OneCycleLR is by Smith and Topin 2017, arXiv:1708.07120; with anneal_strategy "linear" it is the
    triangle of ffcv-imagenet.
    """
    if settings.schedule == "onecycle":
        return OneCycleLR(
            optimizer,
            max_lr=settings.max_lr,
            total_steps=settings.curve_steps,
            pct_start=float(settings.pct_start),  # torch refuses a whole 0 or 1
            anneal_strategy=settings.anneal_strategy,
            three_phase=settings.three_phase,
            div_factor=settings.div_factor,
            final_div_factor=settings.final_div_factor,
            cycle_momentum=settings.cycle_momentum,
        )
    for group in optimizer.param_groups:
        group["initial_lr"] = 1.0  # LambdaLR multiplies it; times 1 is exact
    return LambdaLR(optimizer, lambda step: curve_rate(settings, step))


def rate_at(settings: LearningRateSettings, position: int) -> float:
    """Rate at a position of the schedule, computed without those before; on a plateau, before any
    drop."""
    if position >= settings.curve_steps:
        return settings.plateau_lr
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0, momentum=0.9)
    curve = build_curve(optimizer, settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no optimizer step came before: there is nothing to train
        move_to(curve, position)
    return float(curve.get_last_lr()[0])


def move_to(curve: LRScheduler, position: int) -> None:
    """Set the rate of a position: all of our curves are functions of it alone."""
    curve.last_epoch = position - 1  # torch's schedulers count in epochs whatever they count
    curve.step()


class LearningRate:
    """Sets the rate of an optimizer's parameter groups, all alike, from step to step.

    Building one sets the rate of step 0. To resume, build it on the fresh optimizer, then load the
    optimizer's state and this one's: the former has the rate and the momentum, the latter has what
    determines the next ones.

    cycle_momentum moves momentum, or AdamW's first beta, against the rate. When a plateau phase
    begins, it returns to what the optimizer was constructed with, for all groups.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        settings: LearningRateSettings,
        course: Course | None = None,
    ) -> None:
        """course: may be replaced by one that is bent later than the step advanced to."""
        refuse_impossible(settings)
        self.course = course or Course(settings.total_steps)
        self._optimizer, self._settings = optimizer, settings
        self._curve = build_curve(optimizer, settings)
        self._plateau: ReduceLROnPlateau | None = None
        if settings.curve_steps == 0:
            self._start_plateau()

    @property
    def lr(self) -> float:
        """The rate set last; after loading, the saved one, to compare with the optimizer's."""
        return float((self._plateau or self._curve).get_last_lr()[0])

    def advance(self, step: int) -> None:
        """Set the rate of batch `step`, once the step before is done; none is set after the last.

        To be called with every step in turn. OneCycleLR would allow one call more and give a rate
        beyond its end, a negative one when linear.
        """
        settings, position = self._settings, self.course.position(step)
        if position < settings.curve_steps:
            before = self.course.position(step - 1)
            assert self._curve.last_epoch == before, f"step {step} is not the next one"
            with warnings.catch_warnings():
                # torch complains if gradient scaling skips the very first step; here it counts.
                warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
                move_to(self._curve, position)
        elif position == settings.curve_steps < settings.total_steps:
            self._start_plateau()

    def note_val_loss(self, step: int, val_loss: float) -> bool:
        """Report the validation loss after `step` steps; returns whether the rate fell.

        Counts in the plateau phase only: at curve_steps it is still the curve that is measured.
        Report only what an uninterrupted run measures too, each once, or a resumed run will differ:
        no evaluation that happens because of --max_steps or --max_minutes.
        """
        if self._plateau is None or step <= self._settings.curve_steps:
            return False
        before = self.lr
        self._plateau.step(val_loss)
        return self.lr < before

    def state_dict(self) -> dict[str, object]:
        """Plain values: the state of torch's schedulers, None for a phase that has not begun."""
        return {
            "curve": self._curve.state_dict(),
            "plateau": None if self._plateau is None else self._plateau.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """The inverse, for the same settings. Leaves the optimizer alone: it has its own state."""
        self._curve.load_state_dict(state["curve"])
        self._plateau = None
        if state["plateau"] is not None:
            self._plateau = self._build_plateau()
            self._plateau.load_state_dict(state["plateau"])

    def _start_plateau(self) -> None:
        settings, defaults = self._settings, self._optimizer.defaults
        cycled = settings.schedule == "onecycle" and settings.cycle_momentum
        for group in self._optimizer.param_groups:
            group["lr"] = settings.plateau_lr
            if cycled:
                group.update((key, defaults[key]) for key in ("momentum", "betas") if key in group)
        self._plateau = self._build_plateau()

    def _build_plateau(self) -> ReduceLROnPlateau:
        """torch's own threshold: an improvement is a loss lower by 1e-4 of the best one."""
        return ReduceLROnPlateau(
            self._optimizer,
            factor=self._settings.plateau_factor,
            patience=self._settings.plateau_patience,
        )
