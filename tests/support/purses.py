"""A run on a budget with the clock handed in: what a host does to it, and when it then ends."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from resnet50.config.recipes import RECIPES
from resnet50.config.train_config import TrainConfig
from resnet50.run import budget, budget_plan, steering
from resnet50.run.budget import Controller
from resnet50.training.course import Event
from resnet50.training.host_times import HostTimes
from resnet50.training.plan import Plan, epoch_sizes, image_size_at_step, make_plan

NAMES = ("fast16", "mild28", "onecycle50", "classic90", "small", "tiny")


@dataclass(frozen=True)
class History:
    """What happens to a run; all times are shares of its budget unless they end in _s.

    speed: of the host, 1 as measured; neighbors: begin, length, and the speed that they leave;
    kills, stalls: when, and for stalls how many seconds; fits: of the recipe's epochs, how many
    the budget would pay for if it paid for steps only.
    """

    total_s: float
    recipe: str
    steps_per_epoch: int
    fits: float
    speed: float
    neighbors: tuple[tuple[float, float, float], ...]
    kills: tuple[float, ...]
    stalls: tuple[tuple[float, float], ...]
    evaluation: float  # of an epoch's time
    start_s: float
    save_s: float  # by which a checkpoint holds up the steps, as on one core
    save_every_s: float


@dataclass(frozen=True)
class Outcome:
    """off: how far from the budget it ended, 1 being what is tolerated, early if negative."""

    off: float
    plan: Plan
    skipped: list[int]  # of every step in turn, as the last attempt took it


@st.composite
def histories(draw: st.DrawFn) -> History:
    """A restart takes at most half of what the end may be off, a stall a whole one."""
    share = st.floats(0, 1)
    total_s = 10 ** draw(st.floats(2.5, 5))
    most_s = budget.tolerance_s(total_s)
    neighbors = st.tuples(share, st.floats(0.02, 0.6), st.floats(0.4, 0.95))
    stalls = st.tuples(share, st.floats(1, min(most_s, 300)))
    return History(
        total_s=total_s,
        recipe=draw(st.sampled_from(NAMES)),
        steps_per_epoch=draw(st.integers(30, 120)),
        fits=draw(st.floats(0.3, 1.8)),
        speed=draw(st.floats(0.6, 1.8)),
        neighbors=tuple(draw(st.lists(neighbors, max_size=3))),
        kills=tuple(sorted(draw(st.lists(share, max_size=2)))),
        stalls=tuple(sorted(draw(st.lists(stalls, max_size=2)))),
        evaluation=draw(st.floats(0, 0.1)),
        start_s=draw(st.floats(1, min(most_s / 2, 20))),
        save_s=draw(st.floats(0.1, min(most_s / 10, 5))),
        save_every_s=draw(st.floats(30, 300)),
    )


class Purse:
    """The run of a history, to its end. Raises ValueError if its budget is too small."""

    def __init__(self, history: History) -> None:
        self.history = history
        recipe = TrainConfig(**RECIPES[history.recipe].settings, recipe=history.recipe)
        batch = recipe.total_batch_size
        cfg = replace(
            recipe,
            max_minutes=0.0,
            device_batch_size=batch,
            budget_hours=history.total_s / 3600,
        )
        self.times = measured(cfg, history)
        self.import_s = min(2.0, history.start_s)
        self.paid_s = self.import_s + min(0.1 * history.total_s, 60.0)
        fixed = budget_plan.fixed_costs(cfg, self.times, self.paid_s, self.import_s)
        self.choice = budget_plan.choose(cfg, {}, history.steps_per_epoch, self.times, fixed)
        self.cfg = self.choice.cfg
        self.plan = make_plan(self.cfg, history.steps_per_epoch * batch)
        self._due_s = 0.0
        self._to_come = [
            *((share * history.total_s, None) for share in history.kills),
            *((share * history.total_s, seconds) for share, seconds in history.stalls),
        ]
        self._to_come.sort(key=lambda event: event[0])

    def run(self) -> Outcome:
        step, saved, skipped = 0, (0, None), []
        save_due_s, begun_s, controller = 0.0, -float("inf"), self._start()
        self.paid_s += self.times.start_s
        while True:
            if self._is_killed():
                step, known = saved
                controller = self._start()
                if known:
                    controller.learn(known)
                self.paid_s += self.import_s + self.times.start_s
            controller.observe(step, self.plan.course, self.paid_s)
            if all(event.step <= step for event in self.plan.events):
                event = self._decide(controller, step)
                if event:
                    self.plan = self.plan.bent(event)
                    sooner_s = begun_s + self.times.save_s / steering.SAVING_SHARE
                    save_due_s = min(save_due_s, sooner_s)
            if self.plan.evaluates_at(step, self.cfg.eval_every_epochs):
                self.paid_s += self.times.evaluation_s * 1.1
            if step >= self.plan.stop_step:
                break
            if self.paid_s >= save_due_s or self.plan.ends_epoch(step):
                saved, begun_s = (step, controller.to_json()), self.paid_s
                save_due_s = self.paid_s + self.history.save_every_s
                self.paid_s += self.times.save_s
            del skipped[step:]
            skipped.append(self.plan.course.skipped(step))
            self._take(step)
            step += 1
        end_s = self.paid_s + self.times.save_s + budget.END_S
        off = (end_s - self.history.total_s) / budget.tolerance_s(self.history.total_s)
        return Outcome(off, self.plan, skipped)

    def _start(self) -> Controller:
        restart_s = self.import_s + self.times.start_s
        return Controller(self.cfg, self.plan, self.history.total_s, self.times, restart_s)

    def _decide(self, controller: Controller, step: int) -> Event | None:
        """Every two seconds, as train.py's loop asks it."""
        if self.paid_s < self._due_s or step + 1 >= self.plan.course.end_step:
            return None
        self._due_s = self.paid_s + steering.EVERY_S
        return controller.decide(step, self.plan.course, self.paid_s, step + 1)

    def _is_killed(self) -> bool:
        """Whether a kill is due now; a stall that is due is spent."""
        while self._to_come and self._to_come[0][0] <= self.paid_s:
            stall_s = self._to_come.pop(0)[1]
            if stall_s is None:
                return True
            self.paid_s += stall_s
        return False

    def _take(self, step: int) -> None:
        speed, share = self.history.speed, self.paid_s / self.history.total_s
        for begin, length, left in self.history.neighbors:
            speed *= left if begin <= share < begin + length else 1
        # Steps differ a little, and the same ones in every run of the history.
        noise = 0.97 + 0.06 * (step * 7919 % 101) / 100
        size = image_size_at_step(self.cfg, self.plan, step)
        self.paid_s += self.times.step_at(size) / speed * noise


def measured(cfg: TrainConfig, history: History) -> HostTimes:
    """Times of a host on which the budget pays for `fits` of the recipe's epochs."""
    sizes = epoch_sizes(cfg)
    largest = max(sizes)
    work = {size: 0.2 + 0.8 * size**2 / largest**2 for size in {min(sizes), largest}}
    one = HostTimes(work)
    whole = sum(one.step_at(size) for size in sizes) * history.steps_per_epoch
    step_s = 0.9 * history.total_s / (history.fits * whole)
    return HostTimes(
        {size: step_s * share for size, share in work.items()},
        evaluation_s=history.evaluation * step_s * history.steps_per_epoch,
        save_s=history.save_s,
        start_s=history.start_s,
    )


def endings(each: Callable[[Outcome], None]) -> Callable[[History], None]:
    """What a test does with a history: runs it, unless the money is too little or too much."""

    def run(history: History) -> None:
        try:
            purse = Purse(history)
        except ValueError:
            return
        # With all epochs that may be, a faster host ends with them, not with the money.
        likely, num_steps = purse.choice.likely_steps, purse.cfg.num_steps
        has_room = num_steps >= 1.05 * history.speed * likely
        # With so few steps, a single one may be longer than what is tolerated.
        if not has_room or likely < 130:
            return
        each(purse.run())

    return run
