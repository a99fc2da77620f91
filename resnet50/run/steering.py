"""A run with a budget, on its way: now and then the controller looks how long the money lasts.

All ranks take the same course: rank 0 decides, puts the event on the disk, and tells the others. It
takes effect at a step that no rank's loaders have begun, so that no image is decoded twice.
"""

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from resnet50.run import budget_events
from resnet50.training import distributed
from resnet50.training.course import Course, Event

if TYPE_CHECKING:
    from resnet50.run.start import Run

EVERY_S = 2.0
WARN_EVERY_S = 60.0
SAVING_SHARE = 0.05  # of the time: what checkpoints may take that are made since an end has moved


class Controller(Protocol):
    """Decides when the end of a run has to be moved."""

    def observe(self, step: int, course: Course, paid_s: float) -> None:
        """Called at every step, before anything else happens there."""

    def decide(self, step: int, course: Course, paid_s: float, first_step: int) -> Event | None:
        """An event, or None to stay on course.

        step: batches done; paid_s: seconds of machine time so far; first_step: the first batch that
        may be taken at another position, below course.end_step; the event is there or later.
        """


def is_due(run: "Run") -> bool:
    """Whether rank 0 wants to look now; other ranks return False.

    After a resume it does not before the events that were decided in the attempt before.
    """
    if run.controller is None:
        return False
    step, plan = run.parts.state.step, run.parts.plan
    run.controller.observe(step, plan.course, run.log.paid_s)
    if time.monotonic() < run.steer_due_s:
        return False
    run.steer_due_s = time.monotonic() + EVERY_S
    return not plan.events or step >= plan.events[-1].step


def steer(run: "Run") -> None:
    """Have the controller decide, and bend the plan as it says. Every rank must call it."""
    parts, log = run.parts, run.log
    first_step = max(distributed.gather(parts.keys.next_step, parts.ranks))
    before = parts.plan.course
    if first_step >= before.end_step:
        return
    event = decide(run, first_step) if parts.ranks.is_main else None
    event = distributed.gather(event, parts.ranks)[0]
    if event is None:
        return
    parts.bend(event)
    log.replan(parts.plan)
    run.save_sooner(SAVING_SHARE)  # a resume that goes back before it may be too late to be in time
    pace = "faster" if event.end_step < before.end_step else "slower"
    why = f" ({event.why})" if event.why else ""
    log.event(
        parts.state.step,
        f"budget: from step {event.step} on the schedule goes {pace}, to end at step "
        f"{event.end_step} instead of {before.end_step}{why}",
    )


def decide(run: "Run", first_step: int) -> Event | None:
    """What the controller decides, once that is on the disk; None if it cannot be put there."""
    plan, step, paid_s = run.parts.plan, run.parts.state.step, run.log.paid_s
    event = run.controller.decide(step, plan.course, paid_s, first_step)
    if event is None:
        return None
    event = replace(event, paid_s=round(paid_s, 2))
    plan.course.bent(event)  # raises while it is not on the disk yet
    try:
        budget_events.append(run.log.run_dir, event)
    except OSError as error:
        warn(run, error)
        return None
    return event


def warn(run: "Run", error: OSError) -> None:
    """Say now and then, not every time, that a change cannot be put on the disk."""
    if time.monotonic() < run.steer_warned_s + WARN_EVERY_S:
        return
    run.steer_warned_s = time.monotonic()
    run.log.event(
        run.parts.state.step,
        f"warning: {run.log.run_dir}: {error.strerror}: the schedule stays as it is until its "
        "change can be written down",
    )
