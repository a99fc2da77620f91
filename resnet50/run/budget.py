"""A budget while the run runs: when the schedule's end must be moved, and how far.

A plan meets a host that is not as fast as when it was measured: a restart, a neighbor, a slow disk.
The controller compares what is left to do with what is left to spend, on rank 0, and answers with
an event (training/course.py). It is a function of what it is told: it reads no clock.

It brings the end forward when the money would be spent before, and puts it off again when some
would be left: as long as the host is no faster than was planned for (FASTER), there are enough
positions for that, since a run that keeps its end at that of the money passes over no more.
"""

import statistics
from collections import deque
from collections.abc import Mapping

from resnet50.config.train_config import TrainConfig
from resnet50.records.metrics import clock
from resnet50.training.course import Course, Event
from resnet50.training.host_times import HostTimes
from resnet50.training.plan import Plan, image_size_at

TOLERANCE, TOLERANCE_S = 0.03, 10.0  # how far from its budget a run may end: the larger one
END_S = 2.0  # from the last save to the end of the last process
BLOCK, LEAST_BLOCK_S = 0.01, 1.0  # of the budget: the speed is measured in such blocks
RECENT_BLOCKS, LEAST_BLOCKS = 6, 3  # the speed now is the median of so many
RECENT_EVALUATIONS = 5
PATIENCE = 0.1  # of the budget: a start with more left waits for its own blocks
# Positions can be passed over, but not be added. So a schedule is planned for a host this much
# faster than measured (beside a neighbor, or from a cold disk), and the run's own speed says what
# it really is.
FASTER = 2.0
MOVED = 0.12  # of the time left: few large events rather than many small ones
DOUBTED, LEAST_SPEED = 0.9, 0.5  # share of the budget, and of the fastest block: see `_speed`


def tolerance_s(total_s: float) -> float:
    """Seconds by which a run with a budget of total_s may end early or late."""
    return max(TOLERANCE * total_s, TOLERANCE_S)


def reserve_s(total_s: float, restart_s: float) -> float:
    """Seconds kept back for two restarts, but no more than a third of what the end may be off.

    More would be left over where nothing happens; a restart that takes longer brings the end of
    the schedule forward.
    """
    return min(2 * restart_s, tolerance_s(total_s) / 3)


class Controller:
    """Decides when a run's schedule must end sooner or later. One for each attempt, on rank 0.

    plan: of the run; total_s: the budget in seconds of machine time; times: of this host, as
    measured before the run; None, if that is lost: then only what the run itself shows counts;
    restart_s: what another start would cost.
    """

    def __init__(
        self,
        cfg: TrainConfig,
        plan: Plan,
        total_s: float,
        times: HostTimes | None,
        restart_s: float = 0.0,
    ) -> None:
        self._steps_per_epoch = plan.steps_per_epoch
        self._eval_every_steps = cfg.eval_every_epochs * plan.steps_per_epoch
        self._total_s = total_s
        times = times or HostTimes({cfg.image_size: 1.0})
        self._save_s = times.save_s
        self._evaluations = deque([times.evaluation_s], maxlen=RECENT_EVALUATIONS)
        sizes = (image_size_at(cfg, epoch) for epoch in range(cfg.epochs))
        self._epoch_step_s = [times.step_at(size) for size in sizes]  # as measured
        self._target_s = total_s - reserve_s(total_s, restart_s)
        self._speeds: deque[float] = deque(maxlen=RECENT_BLOCKS)  # 1: as measured
        self._fastest = 0.0  # of all blocks
        self._block_planned_s = self._block_spent_s = 0.0
        self._last: tuple[int, float] | None = None  # step and paid_s of the last observation
        self._evaluates_now = False  # whether an evaluation follows the last observation

    def observe(self, step: int, course: Course, paid_s: float) -> None:
        """Learn from the time since the last call: of a step, or of an evaluation too.

        To be called at every step, before anything else happens there; paid_s: seconds of machine
        time in all attempts.
        """
        last, self._last = self._last, (step, paid_s)
        evaluated, every = self._evaluates_now, self._eval_every_steps
        # Not at the first call: a run resumes after the evaluation of the step that was saved.
        self._evaluates_now = last is not None and every > 0 and step % every == 0
        if last is None or last[0] + 1 != step:
            return
        planned_s, spent_s = self._step_s(course.position(last[0])), paid_s - last[1]
        if evaluated:
            speed = self._speeds[-1] if self._speeds else 1.0
            self._evaluations.append(max(spent_s - planned_s / speed, 0.0))
            return
        self._block_planned_s += planned_s
        self._block_spent_s += spent_s
        if self._block_spent_s >= max(BLOCK * self._total_s, LEAST_BLOCK_S):
            self._speeds.append(self._block_planned_s / self._block_spent_s)
            self._fastest = max(self._fastest, self._speeds[-1])
            self._block_planned_s = self._block_spent_s = 0.0

    def decide(self, step: int, course: Course, paid_s: float, first_step: int) -> Event | None:
        """What must happen now, after `observe` of this step; None to stay on course.

        first_step: the first batch that no loader has begun, at which an event can begin; course:
        the present one, bent by earlier events.
        """
        first, end_step = max(first_step, 1), course.end_step
        left_s = self._target_s - paid_s
        # A start's first steps are slow, and say little: wait for some blocks, if there is time.
        waits = len(self._speeds) < LEAST_BLOCKS and left_s > PATIENCE * self._total_s
        if waits or first + 1 >= end_step:
            return None
        speed = self._speed(paid_s)
        mean_step_s = self._mean_step_s(course.position(step), course.total_steps)
        most = course.latest_end(first) - step
        num_steps = self._steps_within(left_s, mean_step_s / speed, step, most)
        end = step + max(num_steps, first + 1 - step)
        behind_s = (end_step - end) * mean_step_s / speed
        if abs(behind_s) < max(MOVED * left_s, tolerance_s(self._total_s) / 20):
            return None
        left_s = max(left_s, 0.0)
        why = f"the rest would take {clock(left_s + behind_s)}, and {clock(left_s)} are left for it"
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

    def _speed(self, paid_s: float) -> float:
        """Of the host from now on, relative to what was measured.

        A slow stretch is believed when half of the recent blocks show it, a fast one when the last
        two do: what is passed over while it is not yet noticed is lost. So a very slow one is taken
        to be over soon, until little of the budget is left.
        """
        if not self._speeds:
            return 1.0
        recent = list(self._speeds)
        speed = max(statistics.median(recent), min(recent[-2:]))
        if paid_s < DOUBTED * self._total_s:
            speed = max(speed, LEAST_SPEED * self._fastest)
        return speed

    def _step_s(self, position: int) -> float:
        """Seconds that a step at a position of the schedule takes as measured."""
        epoch = position // self._steps_per_epoch
        return self._epoch_step_s[min(epoch, len(self._epoch_step_s) - 1)]

    def _mean_step_s(self, position: int, total_steps: int) -> float:
        """Seconds of a step as measured, on average over the positions from here on."""
        num_positions = seconds = 0.0
        length = self._steps_per_epoch
        for epoch in range(position // length, len(self._epoch_step_s)):
            end = min((epoch + 1) * length, total_steps)
            count = max(end - max(position, epoch * length), 0)
            num_positions += count
            seconds += count * self._epoch_step_s[epoch]
        return seconds / num_positions if num_positions else self._epoch_step_s[-1]

    def _steps_within(self, seconds: float, step_s: float, step: int, most: int) -> int:
        """How many steps from `step` on, up to `most`, take these seconds, with all that follows.

        Whatever their number, positions go evenly over them, and so do the sizes: a step takes
        step_s, the average of the rest.
        """
        every = self._eval_every_steps
        # The lower one of two, and so on: a stall may have fallen into one of them.
        evaluation_s = statistics.median_low(self._evaluations)
        seconds -= evaluation_s * (1 + self._evaluates_now) + self._save_s + END_S
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            evaluations = (step + middle - 1) // every - step // every if every else 0
            if middle * step_s + evaluations * evaluation_s <= seconds:
                low = middle
            else:
                high = middle - 1
        return low
