"""A budget while the run runs: when the schedule's end must be brought forward, and how far.

A plan meets a host that is slower than when it was measured: a restart, a neighbor, a slow disk.
The controller compares what is left to do with what is left to spend, once a step on rank 0, and
answers with an event (training/course.py). It is a function of what it is told: it reads no clock.

An end that was brought forward cannot be put off again. So a slow stretch is not taken to last: as
long as most of the budget is left, the end is only moved by what has been lost for good, and by
more as the end comes near.
"""

import statistics
from collections import deque
from collections.abc import Mapping

from resnet50.config.train_config import TrainConfig
from resnet50.records.metrics import clock
from resnet50.training.course import Event
from resnet50.training.host_times import HostTimes
from resnet50.training.plan import Plan, image_size_at

TOLERANCE, TOLERANCE_S = 0.03, 10.0  # how far from its budget a run may end: the larger one
END_S = 2.0  # from the last save to the end of the last process
BLOCK, LEAST_BLOCK_S = 0.01, 1.0  # of the budget: the speed is measured in such blocks
RECENT_BLOCKS, LEAST_BLOCKS = 6, 3  # the speed now is the median of so many
RECENT_EVALUATIONS = 5
EARLY = 0.1  # share of the budget in which a host may still prove faster than measured
TRUSTED = 0.8  # share of it in which it may still come up to what was measured
FASTER = 1.1  # than measured: as run/budget_plan.py plans
BETTER = 1.02  # than in its fastest block so far a host may still do


def budget_s(cfg: TrainConfig) -> float:
    """Seconds of machine time that the budget pays for; 0 without one.

    Raises ValueError for dollars without a price.
    """
    if cfg.budget_hours:
        return 3600 * cfg.budget_hours
    if not cfg.budget_usd:
        return 0.0
    if not isinstance(cfg.price_per_hour, float | int) or not cfg.price_per_hour > 0:
        raise ValueError(
            f"--budget_usd {cfg.budget_usd:g} needs --price_per_hour X, what this machine costs in "
            "dollars, to become time; or give --budget_hours"
        )
    return 3600 * cfg.budget_usd / cfg.price_per_hour


def tolerance_s(total_s: float) -> float:
    """Seconds by which a run with a budget of total_s may end early or late."""
    return max(TOLERANCE * total_s, TOLERANCE_S)


class Controller:
    """Decides when a run's schedule must end sooner. One for each attempt, on rank 0.

    total_s: the budget in seconds of machine time; times: of this host, as measured before the run;
    None, if that is lost: then only what the run itself shows counts; restart_s: what another
    start would cost.
    """

    def __init__(
        self, cfg: TrainConfig, total_s: float, times: HostTimes | None, restart_s: float = 0.0
    ) -> None:
        self._every_epochs = cfg.eval_every_epochs
        self._total_s, self._is_measured = total_s, times is not None
        times = times or HostTimes({cfg.image_size: 1.0})
        self._save_s = times.save_s
        self._evaluations = deque([times.evaluation_s], maxlen=RECENT_EVALUATIONS)
        sizes = (image_size_at(cfg, epoch) for epoch in range(cfg.epochs))
        self._epoch_step_s = [times.step_at(size) for size in sizes]  # as measured
        self._target_s = total_s - min(2 * restart_s, tolerance_s(total_s) / 3)
        self._speeds: deque[float] = deque(maxlen=RECENT_BLOCKS)  # 1: as measured
        self._fastest = 0.0
        self._block_planned_s = self._block_spent_s = 0.0
        self._last: tuple[int, float] | None = None  # step and paid_s of the last call
        self._evaluated_before = False  # whether an evaluation followed the last call
        self._due_s = 0.0

    def decide(self, step: int, next_step: int, plan: Plan, paid_s: float) -> Event | None:
        """What must happen now, before anything else does at `step`; to be called at every step.

        next_step: the first batch that no loader has begun, at which an event can begin; plan: the
        present one, bent by earlier events; paid_s: seconds of machine time in all attempts.
        """
        self._observe(step, plan, paid_s)
        first, end_step = max(step, next_step), plan.course.end_step
        if first + 1 >= end_step or paid_s < self._due_s:
            return None
        left_s = self._target_s - paid_s
        self._due_s = paid_s + min(0.0025 * self._total_s, max(left_s, 0) / 50)
        # A start's first steps are slow, and say little: wait for some blocks, if there is time.
        if len(self._speeds) < LEAST_BLOCKS and left_s > EARLY * self._total_s:
            return None
        speed = statistics.median(self._speeds) if self._speeds else 1.0
        best = BETTER * max(speed, self._best_speed(paid_s))
        # What the host has shown that it can do, it may do again; so the end is not moved to where
        # it would then come too early by more than a part of what is tolerated.
        early_s = 0.4 * tolerance_s(self._total_s)
        num_steps = max(
            self._steps_within(step, plan, left_s, speed),
            self._steps_within(step, plan, left_s - early_s, best),
            first + 1 - step,
        )
        end = step + num_steps
        behind_s = (end_step - end) * self._mean_step_s(step, plan) / speed
        # Few large events rather than many small ones; all that is left to move, near the end.
        if end >= end_step or behind_s < max(0.08 * left_s, tolerance_s(self._total_s) / 20):
            return None
        needed_s = left_s + behind_s
        why = f"the rest would take {clock(needed_s)}, and {clock(max(left_s, 0))} are left for it"
        return Event(first, end, paid_s=round(paid_s, 2), why=why)

    def to_json(self) -> dict[str, object]:
        """What it has learned of the host, for the next attempt."""
        return {
            "speeds": list(self._speeds),
            "fastest": self._fastest,
            "evaluations": list(self._evaluations),
        }

    def learn(self, known: Mapping[str, object]) -> None:
        """Go on from what an earlier attempt learned (`to_json`): a start's first steps are slow,
        and a host whose past is not known would be taken for a slow one."""
        self._speeds.extend(known["speeds"])
        self._evaluations.extend(known["evaluations"])
        self._fastest = known["fastest"]

    def _observe(self, step: int, plan: Plan, paid_s: float) -> None:
        """Learn from the time since the last call: a step, and an evaluation if one was due."""
        last, self._last = self._last, (step, paid_s)
        evaluated, is_first = self._evaluated_before, last is None
        # A resume begins at a step that was evaluated before it was saved.
        self._evaluated_before = not is_first and plan.evaluates_at(step, self._every_epochs)
        if last is None or last[0] + 1 != step:
            return
        planned_s, spent_s = self._step_s(last[0], plan), paid_s - last[1]
        if evaluated:
            speed = self._speeds[-1] if self._speeds else 1.0
            self._evaluations.append(max(spent_s - planned_s / speed, 0.0))
            return
        self._block_planned_s += planned_s
        self._block_spent_s += spent_s
        if self._block_spent_s >= max(BLOCK * self._total_s, LEAST_BLOCK_S):
            speed = self._block_planned_s / self._block_spent_s
            self._speeds.append(speed)
            self._fastest = max(self._fastest, speed)
            self._block_planned_s = self._block_spent_s = 0.0

    def _best_speed(self, paid_s: float) -> float:
        """The speed that this host may come up to, relative to what was measured."""
        share = paid_s / self._total_s
        if not self._is_measured or share >= TRUSTED:
            return self._fastest
        return max(self._fastest, FASTER if share < EARLY else 1.0)

    def _step_s(self, step: int, plan: Plan) -> float:
        """Seconds that a step takes as measured."""
        return self._epoch_step_s[min(plan.schedule_epoch(step), len(self._epoch_step_s) - 1)]

    def _mean_step_s(self, step: int, plan: Plan) -> float:
        """Seconds of a step as measured, on average over the rest of the schedule."""
        position, spe = plan.course.position(step), plan.steps_per_epoch
        whole = seconds = 0
        for epoch in range(position // spe, len(self._epoch_step_s)):
            end = min((epoch + 1) * spe, plan.total_steps)
            steps = max(end - max(position, epoch * spe), 0)
            whole, seconds = whole + steps, seconds + steps * self._epoch_step_s[epoch]
        return seconds / whole if whole else self._epoch_step_s[-1]

    def _steps_within(self, step: int, plan: Plan, seconds: float, speed: float) -> int:
        """How many steps from here, at this speed, and all that follows them, take these seconds.

        At most those up to the present end. Whatever their number, positions go evenly over them,
        and so do the sizes: a step takes the rest's average time.
        """
        every = self._every_epochs * plan.steps_per_epoch
        step_s = self._mean_step_s(step, plan) / max(speed, 1e-9)
        # The lower one of two, and so on: a stall may have fallen into one of them.
        evaluation_s = statistics.median_low(self._evaluations)
        seconds -= evaluation_s * (1 + self._evaluated_before) + self._save_s + END_S
        low, high = 0, plan.course.end_step - step
        while low < high:
            middle = (low + high + 1) // 2
            evaluations = (step + middle - 1) // every - step // every if every else 0
            if middle * step_s + evaluations * evaluation_s <= seconds:
                low = middle
            else:
                high = middle - 1
        return low
