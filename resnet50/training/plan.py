"""The arithmetic of a run: steps, image sizes, and which images come when.

Epochs become steps here, once; everywhere else time is measured in steps. `step` counts batches
consumed, which is also the position in the schedule, unless a budget moves the schedule's end
(training/course.py). A checkpoint of step 1200 continues with batch 1200 (counted from 0).
A step that gradient scaling skips still counts.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from resnet50.config import size_stages
from resnet50.config.train_config import TrainConfig
from resnet50.data.sampling import BatchKey, epoch_order
from resnet50.training.course import Course, Event

# In place of an epoch's number: the order of the sizes is drawn apart from those of the images.
SIZES = 2**32


@dataclass(frozen=True)
class Plan:
    """The arithmetic of a run, derived once from settings, data and number of ranks."""

    num_images: int
    epochs: int
    total_batch_size: int
    device_batch_size: int
    world_size: int
    max_steps: int  # where this start ends at the latest: --max_steps, or all steps
    num_steps: int = 0  # of the schedule, the last epoch being a partial one; 0: whole epochs
    events: tuple[Event, ...] = ()  # that moved the schedule's end

    @functools.cached_property
    def course(self) -> Course:
        """The schedule's position of every batch."""
        return Course(self.total_steps, self.events)

    def bent(self, *events: Event) -> "Plan":
        """The plan with more events. Raises ValueError as Course does."""
        bent = replace(self, events=self.events + events)
        _ = bent.course  # raises now, not when it is asked for
        return bent

    @property
    def stop_step(self) -> int:
        """Where this start ends: the course's end, or --max_steps if that is less."""
        return min(self.max_steps, self.course.end_step)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch; the rest, different images every epoch, is left out."""
        return self.num_images // self.total_batch_size

    @property
    def total_steps(self) -> int:
        """Positions of the schedule, and steps unless events end it sooner."""
        return self.num_steps or self.steps_per_epoch * self.epochs

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches in a step, over all ranks."""
        return self.total_batch_size // self.device_batch_size

    @property
    def micro_batches_per_rank(self) -> int:
        return self.num_micro_batches // self.world_size

    def epoch_of(self, step: int) -> float:
        """Epochs completed at `step`, as a fraction."""
        return step / self.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        return step > 0 and step % self.steps_per_epoch == 0

    def evaluates_at(self, step: int, every_epochs: int, early_end: bool = True) -> bool:
        """Whether validation follows this step: every few epochs (0: never), and at the end.

        early_end: whether an end by --max_steps, or one that a budget moved, counts as one.
        """
        if step == (self.stop_step if early_end else self.total_steps):
            return True
        epoch = step // self.steps_per_epoch
        return self.ends_epoch(step) and every_epochs > 0 and epoch % every_epochs == 0

    def schedule_epoch(self, step: int) -> int:
        """Number of the epoch that the schedule, and so the images' size, has reached at `step`."""
        return self.course.position(step) // self.steps_per_epoch

    def images_left(self, step: int, image_size_at: Callable[[int], int]) -> float:
        """Training images from `step` to stop_step, weighted by area relative to those of now.

        image_size_at: side of an epoch's crops; time is proportional to their area.
        """
        position, stop = self.course.position(step), self.course.position(self.stop_step)
        if position >= stop:
            return 0.0
        now = self.schedule_epoch(step)
        left = 0.0
        for epoch in range(now, math.ceil(stop / self.steps_per_epoch)):
            first = max(position, epoch * self.steps_per_epoch)
            last = min(stop, (epoch + 1) * self.steps_per_epoch)
            left += max(last - first, 0) * (image_size_at(epoch) / image_size_at(now)) ** 2
        # Where positions are skipped, they are so evenly: almost exact, and exact without events.
        steps_per_position = (self.stop_step - step) / (stop - position)
        return left * steps_per_position * self.total_batch_size

    def describe_batch(self) -> str:
        """How a step's images are split up."""
        return (
            f"batch {self.total_batch_size} = {self.world_size} ranks x "
            f"{self.micro_batches_per_rank} micro-batches x {self.device_batch_size} images"
        )

    def describe(self) -> str:
        """The arithmetic in one line, for the start of the log."""
        sizes = ", ".join(map(str, possible_world_sizes(self.num_micro_batches)))
        return (
            f"{self.describe_batch()}; {self.steps_per_epoch} steps per epoch, "
            f"{self.num_epochs:g} epochs, {self.total_steps} steps; can resume on {sizes} ranks"
        )

    @property
    def num_epochs(self) -> float:
        """Epochs until the course's end, to two digits after the point."""
        return round(self.epoch_of(self.course.end_step), 2)


def possible_world_sizes(num_micro_batches: int) -> list[int]:
    """Numbers of ranks that give every rank the same number of micro-batches."""
    return [n for n in range(1, num_micro_batches + 1) if num_micro_batches % n == 0]


def make_plan(cfg: TrainConfig, num_images: int, world_size: int = 1) -> Plan:
    """Check that the batch divides over the ranks and the training images fill it at least once.

    The last epoch is a partial one if num_steps says so. cfg: with a number for device_batch_size.
    Raises ValueError naming the option, the value and what would work.
    """
    total, device = cfg.total_batch_size, cfg.device_batch_size
    num_micro_batches = total // device
    if num_micro_batches % world_size:
        possible = ", ".join(map(str, possible_world_sizes(num_micro_batches)))
        raise ValueError(
            f"--total_batch_size {total} in micro-batches of {device} does not divide over "
            f"{world_size} ranks: start {possible} of them (CUDA_VISIBLE_DEVICES picks GPUs), or "
            "choose another --device_batch_size for a new run"
        )
    if num_images < total:
        raise ValueError(
            f"--total_batch_size {total} is more than the {num_images} training images: choose a "
            "smaller one"
        )
    check_num_steps(cfg, num_images // total)
    total_steps = cfg.num_steps or num_images // total * cfg.epochs
    max_steps = cfg.max_steps or total_steps
    return Plan(num_images, cfg.epochs, total, device, world_size, max_steps, cfg.num_steps)


def check_num_steps(cfg: TrainConfig, steps_per_epoch: int) -> None:
    """Raise ValueError unless --num_steps end in the last of the epochs: settings that count in
    epochs, such as --size_stages and --ema_rescale, are made for their number."""
    needed = math.ceil(cfg.num_steps / steps_per_epoch)
    if cfg.num_steps and needed != cfg.epochs:
        raise ValueError(
            f"--num_steps {cfg.num_steps} with {steps_per_epoch} steps an epoch ends in epoch "
            f"{needed}, but --epochs is {cfg.epochs}: give --epochs {needed} too, or from "
            f"{steps_per_epoch * (cfg.epochs - 1) + 1} to {steps_per_epoch * cfg.epochs} steps"
        )
    if cfg.num_steps and round(cfg.warmup_epochs * steps_per_epoch) >= cfg.num_steps:
        raise ValueError(
            f"--warmup_epochs {cfg.warmup_epochs:g} of {steps_per_epoch} steps each must be below "
            f"--num_steps {cfg.num_steps}"
        )


def image_size_at(cfg: TrainConfig, epoch: int) -> int:
    """Side of the training crops in an epoch, in pixels: small at first, since that is cheaper.

    As size_stages says, if it says anything. Else start_image_size up to grow_start_epoch, then
    linearly to image_size at grow_end_epoch, rounded to a multiple; without a start_image_size
    always image_size. Progressive resizing as in ffcv-imagenet's rn50_configs, where 160 to 192 px
    saves a fifth of the pixels, and in Composer (88 to 176 px in steps of 4).
    """
    if stages := size_stages.parse(cfg.size_stages):
        sizes = size_stages.epoch_sizes(stages, cfg.epochs)
        order = epoch_order(cfg.seed, SIZES, cfg.epochs) if cfg.shuffle_sizes else range(cfg.epochs)
        return sizes[order[min(epoch, cfg.epochs - 1)]]
    start, size, multiple = cfg.start_image_size, cfg.image_size, cfg.image_size_multiple
    if not start or epoch >= cfg.grow_end_epoch:
        return size
    if epoch <= cfg.grow_start_epoch:
        return start
    share = (epoch - cfg.grow_start_epoch) / (cfg.grow_end_epoch - cfg.grow_start_epoch)
    grown = multiple * round((start + share * (size - start)) / multiple)
    return min(max(grown, start), size)


# Settings to measure a recipe at a size of one's own: image_size in all epochs and in evaluations.
ONE_SIZE = {
    **dict.fromkeys(("start_image_size", "eval_image_size", "eval_resize_size"), 0),
    "size_stages": size_stages.NONE,
    "shuffle_sizes": False,
}


def epoch_sizes(cfg: TrainConfig) -> list[int]:
    """Side of the training crops in every epoch, in pixels."""
    return [image_size_at(cfg, epoch) for epoch in range(cfg.epochs)]


def image_size_at_step(cfg: TrainConfig, plan: Plan, step: int) -> int:
    """Side of the training crops of a batch, in pixels."""
    return image_size_at(cfg, plan.schedule_epoch(step))


class TrainKeys:
    """Iterator over a rank's micro-batches from first_step up to, but without, last_step.

    last_step: None for the end of the plan's course. Micro-batch m of a step belongs to rank
    m % world_size, whatever the number of ranks. `plan` may be replaced by one that is bent at
    `next_step` or later, since nobody has asked for the images of those steps.
    """

    def __init__(
        self,
        cfg: TrainConfig,
        plan: Plan,
        rank: int,
        first_step: int,
        last_step: int | None = None,
    ) -> None:
        self.plan = plan
        self.next_step = first_step
        self._cfg, self._rank, self._last_step = cfg, rank, last_step
        self._keys = self._generate()

    def __iter__(self) -> Iterator[BatchKey]:
        return self

    def __next__(self) -> BatchKey:
        return next(self._keys)

    def _generate(self) -> Iterator[BatchKey]:
        total, device = self.plan.total_batch_size, self.plan.device_batch_size
        order = None
        order_epoch = -1
        while self.next_step < self._end_step():
            step = self.next_step
            self.next_step += 1
            epoch, batch = divmod(step, self.plan.steps_per_epoch)
            if epoch != order_epoch:
                order = epoch_order(self._cfg.seed, epoch, self.plan.num_images)
                order_epoch = epoch
            size = image_size_at_step(self._cfg, self.plan, step)
            first = batch * total + self._rank * device
            for start in range(first, (batch + 1) * total, self.plan.world_size * device):
                yield BatchKey(epoch, order[start : start + device], size)

    def _end_step(self) -> int:
        return self.plan.course.end_step if self._last_step is None else self._last_step


def train_keys(
    cfg: TrainConfig, plan: Plan, rank: int, first_step: int, last_step: int
) -> Iterator[BatchKey]:
    """A rank's micro-batches for the steps from first_step up to, but without, last_step."""
    return TrainKeys(cfg, plan, rank, first_step, last_step)


def eval_keys(
    num_images: int, batch_size: int, image_size: int, rank: int = 0, world_size: int = 1
) -> list[BatchKey]:
    """A rank's evaluation batches: every image in exactly one batch of exactly one rank.

    Ranks take whole batches in turn, so that an image's result does not depend on their number.
    Every rank gets equally many, since after each they agree to continue: the last may be empty.
    """
    rounds = math.ceil(num_images / (batch_size * world_size))
    starts = [(number * world_size + rank) * batch_size for number in range(rounds)]
    return [
        BatchKey(-1, np.arange(start, max(start, min(start + batch_size, num_images))), image_size)
        for start in starts
    ]
