"""The way of a run through its schedule: one position a batch, until a budget cuts it short.

`step` counts batches: the order of the data, augmentation and the names of checkpoints read it. The
schedule (learning rate, size of the images) reads `position(step)`, which is the step itself until
something slows the run down and its money would end before the schedule does. An event then makes
the positions go faster, so that the last batch that can be paid for gets the schedule's last rate.
If the money lasts longer after all, another one makes them go slower again, down to one a batch.
Positions never go back and skipped ones are never caught up, so the rate never jumps up.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Event:
    """From batch `step` on, positions go evenly, the last one falling to batch end_step - 1.

    step, end_step: batches, counted from 0. paid_s: seconds of machine time when it was decided;
    why: for people. Two events with equal steps do the same.
    """

    step: int
    end_step: int
    paid_s: float = field(default=0.0, compare=False)
    why: str = field(default="", compare=False)


class Course:
    """The position of every batch in a schedule of total_steps positions; never changed, but bent.

    Without events, position(step) is step. Raises ValueError for events that would change the past,
    or give two batches one position.
    """

    def __init__(self, total_steps: int, events: Iterable[Event] = ()) -> None:
        self.total_steps = total_steps
        self.events: tuple[Event, ...] = ()
        self._before: tuple[int, ...] = ()  # position of the batch before each event
        for event in events:
            self._refuse(event)
            before = self.position(event.step - 1)
            self.events += (event,)
            self._before += (before,)

    @property
    def end_step(self) -> int:
        """Batches that the run will have done at its end."""
        return self.events[-1].end_step if self.events else self.total_steps

    def position(self, step: int) -> int:
        """The schedule's position of a batch, below total_steps up to batch end_step - 1.

        From there on, where no batch is taken, it goes on by one a step; -1 belongs to step -1.
        """
        for event, before in zip(reversed(self.events), reversed(self._before), strict=True):
            if step >= event.end_step:
                return self.total_steps + step - event.end_step
            if step >= event.step:
                # Integers, since the size of a batch's images must be the same everywhere.
                left, batches = self.total_steps - 1 - before, event.end_step - event.step
                return before + (step - event.step + 1) * left // batches
        return step

    def skipped(self, step: int) -> int:
        """Positions that have been left out up to this batch; never decreases."""
        return self.position(step) - step

    def latest_end(self, step: int) -> int:
        """Where the run may end at the latest by an event at this step: a batch for each position
        that is left."""
        return step + self.total_steps - 1 - self.position(step - 1)

    def bent(self, event: Event) -> "Course":
        """The course with one more event. Raises ValueError as the constructor does."""
        return Course(self.total_steps, (*self.events, event))

    def _refuse(self, event: Event) -> None:
        """Raise ValueError if this event cannot follow those that are there."""
        text = f"the event at step {event.step} that ends the run at step {event.end_step}"
        # Batch 0 has the schedule's first rate: another course for all batches is another plan.
        last_step = self.events[-1].step if self.events else 1
        if event.step < last_step:
            raise ValueError(f"{text} must be at step {last_step} or later")
        if event.end_step <= event.step:
            raise ValueError(f"{text} leaves no batch between the two")
        latest = self.latest_end(event.step)
        if event.end_step > latest:
            raise ValueError(
                f"{text} is later than step {latest}, where the schedule ends with a batch for "
                "each position that is left"
            )
