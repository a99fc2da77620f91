"""train.py as a rank whose controller moves the end at steps that are given.

usage: steer_train.py SCRIPT [FLAGS of train.py]

SCRIPT: "5:20,9:18" looks at every step, and asks for an end at batch 20 once 5 steps are done, and
for one at 18 once 9 are; "5:20,9:24" puts it off again. "5:20!" is killed, with its loaders, as
soon as the event is on the disk.
"""

import os
import signal
import sys

import train
from resnet50.run import budget_events, rank, start, steering
from resnet50.training.course import Course, Event

script, *flags = sys.argv[1:]
wishes = [tuple(map(int, wish.strip("!").split(":"))) for wish in script.split(",")]


class Scripted:
    """Follows the script."""

    def observe(self, step: int, course: Course, paid_s: float) -> None:
        assert paid_s > 0

    def decide(self, step: int, course: Course, paid_s: float, first_step: int) -> Event | None:
        assert step < first_step < course.end_step and paid_s > 0
        asked = [end_step for at, end_step in wishes if step >= at]
        if not asked or asked[-1] == course.end_step:
            return None
        return Event(first_step, asked[-1], why="as the script says")

    def to_json(self) -> dict[str, object]:
        return {}


def steered(*arguments: object) -> start.Run:
    run = start.start(*arguments)
    run.controller = Scripted()
    return run


def append_and_die(*arguments: object) -> None:
    append(*arguments)
    os.killpg(0, signal.SIGKILL)


rank.start, steering.EVERY_S, append = steered, 0.0, budget_events.append
if "!" in script:
    budget_events.append = append_and_die
sys.exit(train.main(flags))
