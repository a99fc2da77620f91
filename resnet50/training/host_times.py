"""How long the parts of a run take on a host: measured at a few sizes, interpolated at all others.

An epoch of images of one size takes a fixed time an image, and a time a pixel, so that between two
sizes time grows with the area.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace

from resnet50.config.train_config import TrainConfig
from resnet50.training.plan import image_size_at

MOST_SIZES = 4  # measured ones: Composer's "mild" has 23 sizes, and each takes seconds


@dataclass(frozen=True)
class HostTimes:
    """Seconds that the parts of a run take.

    step_s: of a training step, by side of its crops in pixels, at least one; evaluation_s: of the
    whole validation split; save_s: of a checkpoint; start_s: from nothing to the first step's
    start, on the same command's next start too.
    """

    step_s: Mapping[int, float]
    evaluation_s: float = 0.0
    save_s: float = 0.0
    start_s: float = 0.0

    def step_at(self, size: int) -> float:
        """Seconds of a step with crops of this many pixels a side.

        Linear in the area between measured sizes. Beyond them along the same line, but never below
        a time in proportion to the area, which small crops do not reach, nor above one, which large
        crops do not exceed: what does not depend on the size takes some time.
        """
        if size in self.step_s:
            return self.step_s[size]
        sizes = sorted(self.step_s)
        nearest = min(sizes, key=lambda known: abs(known**2 - size**2))
        in_proportion = self.step_s[nearest] * size**2 / nearest**2
        if len(sizes) == 1:
            return in_proportion
        # The two measured sizes around it, or the two at the end that it lies beyond.
        above = min(max(sum(known < size for known in sizes), 1), len(sizes) - 1)
        low, high = sizes[above - 1 : above + 1]
        slope = (self.step_s[high] - self.step_s[low]) / (high**2 - low**2)
        on_line = self.step_s[low] + slope * (size**2 - low**2)
        if size < sizes[0]:
            return max(on_line, in_proportion)
        if size > sizes[-1]:
            return min(max(on_line, self.step_s[nearest]), in_proportion)
        return on_line

    def faster(self, factor: float) -> "HostTimes":
        """The times of a host that takes this many times as many steps a second."""
        return replace(self, step_s={size: s / factor for size, s in self.step_s.items()})

    def to_json(self) -> dict[str, object]:
        return asdict(self) | {"step_s": {str(size): s for size, s in self.step_s.items()}}

    @classmethod
    def from_json(cls, values: Mapping) -> "HostTimes":
        """The inverse of `to_json`. Raises ValueError for anything else."""
        try:
            times = {int(size): float(seconds) for size, seconds in values["step_s"].items()}
            rest = {name: float(values[name]) for name in ("evaluation_s", "save_s", "start_s")}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not the times of a host: {error!r}") from None
        if not times or not all(0 < seconds < math.inf for seconds in times.values()):
            raise ValueError("not the times of a host: no positive times of steps")
        return cls(times, **rest)


def slowest(times: Iterable[HostTimes]) -> HostTimes:
    """What takes as long as the slowest of several ranks, which wait for each other.

    All with the same measured sizes, or some without those that one had no time for.
    """
    times = list(times)
    sizes = set.intersection(*(set(one.step_s) for one in times))
    return HostTimes(
        {size: max(one.step_s[size] for one in times) for size in sorted(sizes)},
        *(max(getattr(one, name) for one in times) for name in ("evaluation_s", "save_s")),
        max(one.start_s for one in times),
    )


def sizes_to_measure(sizes: Iterable[int]) -> list[int]:
    """At most four of a recipe's sizes: the ends, and others spread evenly over the areas.

    The largest first, whose lack of memory is to show at once, then the smallest.
    """
    left = sorted(set(sizes))
    if len(left) > MOST_SIZES:
        low, high = left[0] ** 2, left[-1] ** 2
        wanted = [low + (high - low) * part / (MOST_SIZES - 1) for part in range(MOST_SIZES)]
        left = sorted({min(left, key=lambda size: abs(size**2 - area)) for area in wanted})
    return [*left[-1:], *left[:1], *left[1:-1]] if len(left) > 1 else left


def training_s(cfg: TrainConfig, num_steps: int, steps_per_epoch: int, times: HostTimes) -> float:
    """Seconds of the first num_steps steps, without evaluations."""
    total = 0.0
    for epoch in range(math.ceil(num_steps / steps_per_epoch)):
        steps = min(steps_per_epoch, num_steps - epoch * steps_per_epoch)
        total += steps * times.step_at(image_size_at(cfg, epoch))
    return total


def num_evaluations(cfg: TrainConfig, num_steps: int, steps_per_epoch: int) -> int:
    """Evaluations in a run of num_steps, of which the last one follows its last step."""
    every = cfg.eval_every_epochs * steps_per_epoch
    return 1 + ((num_steps - 1) // every if every else 0)
