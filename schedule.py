"""Steps and image sizes. Here epochs become steps, once; everywhere else time is steps.

`step` counts batches consumed, which is also the position in the schedule. A checkpoint of step
1200 continues with batch 1200 (counted from 0). A step that gradient scaling skips counts.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """The arithmetic of a run, derived once from settings, data and number of ranks."""

    num_images: int
    epochs: int
    total_batch_size: int
    device_batch_size: int
    world_size: int
    stop_step: int  # where this start ends: total_steps, or --max_steps if that is less

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch; the rest, other images every epoch, is left out."""
        return self.num_images // self.total_batch_size

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches in a step, over all ranks."""
        return self.total_batch_size // self.device_batch_size

    @property
    def micro_batches_per_rank(self) -> int:
        return self.num_micro_batches // self.world_size

    def epoch_of(self, step: int) -> float:
        """Epochs behind `step`, as a fraction."""
        return step / self.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        return step > 0 and step % self.steps_per_epoch == 0

    def evaluates_at(self, step: int, every_epochs: int, early_end: bool = True) -> bool:
        """Whether validation follows this step: every so many epochs, 0 being none, and in the end.

        early_end: whether an end by --max_steps counts as one.
        """
        if step == (self.stop_step if early_end else self.total_steps):
            return True
        epoch = step // self.steps_per_epoch
        return self.ends_epoch(step) and every_epochs > 0 and epoch % every_epochs == 0

    def images_left(self, step: int, image_size_at: Callable[[int], int]) -> float:
        """Training images from `step` to stop_step, each counting by its area against this epoch's.

        image_size_at: side of an epoch's crops; time goes with their area.
        """
        now, left = step // self.steps_per_epoch, 0.0
        for epoch in range(now, -(-self.stop_step // self.steps_per_epoch)):
            first = max(step, epoch * self.steps_per_epoch)
            last = min(self.stop_step, (epoch + 1) * self.steps_per_epoch)
            left += max(last - first, 0) * (image_size_at(epoch) / image_size_at(now)) ** 2
        return left * self.total_batch_size

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
            f"{self.describe_batch()}; {self.steps_per_epoch} steps an epoch, {self.epochs} "
            f"epochs, {self.total_steps} steps; may go on with {sizes} ranks"
        )


def image_size_at(
    epoch: int, start_size: int, size: int, grow_start: float, grow_end: float, multiple: int
) -> int:
    """Side of the training crops in an epoch, in pixels: small at first, since that is cheaper.

    start_size up to epoch grow_start, then linearly to `size` at grow_end, rounded to a multiple;
    start_size 0: `size` always. Progressive resizing as in ffcv-imagenet's rn50_configs, where 160
    to 192 px saves a fifth of the pixels, and in Composer (88 to 176 px in steps of 4).
    """
    if not start_size or epoch >= grow_end:
        return size
    if epoch <= grow_start:
        return start_size
    share = (epoch - grow_start) / (grow_end - grow_start)
    grown = multiple * round((start_size + share * (size - start_size)) / multiple)
    return min(max(grown, start_size), size)


def possible_world_sizes(num_micro_batches: int) -> list[int]:
    """Numbers of ranks that give every rank the same number of micro-batches."""
    return [n for n in range(1, num_micro_batches + 1) if num_micro_batches % n == 0]


def make_plan(
    num_images: int,
    epochs: int,
    total_batch_size: int,
    device_batch_size: int,
    world_size: int,
    max_steps: int = 0,
) -> Plan:
    """Check that the batch divides over the ranks and the data fill it at least once.

    Raises ValueError naming the option, the value and what would do.
    """
    if total_batch_size % device_batch_size:
        raise ValueError(
            f"--total_batch_size {total_batch_size} does not split into micro-batches of "
            f"{device_batch_size}: choose a multiple of it"
        )
    num_micro_batches = total_batch_size // device_batch_size
    if num_micro_batches % world_size:
        possible = ", ".join(map(str, possible_world_sizes(num_micro_batches)))
        raise ValueError(
            f"--total_batch_size {total_batch_size} in micro-batches of {device_batch_size} does "
            f"not divide over {world_size} ranks: start {possible} of them (CUDA_VISIBLE_DEVICES "
            "picks GPUs), or choose another --device_batch_size for a new run"
        )
    if num_images < total_batch_size:
        raise ValueError(
            f"--total_batch_size {total_batch_size} is more than the {num_images} training images: "
            "choose a smaller one"
        )
    total_steps = num_images // total_batch_size * epochs
    stop_step = min(max_steps, total_steps) if max_steps else total_steps
    return Plan(num_images, epochs, total_batch_size, device_batch_size, world_size, stop_step)
