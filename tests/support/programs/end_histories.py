"""How far off their budgets runs with generated histories end: a list, as JSON.

usage: end_histories.py NUMBER

A program, since what hypothesis draws, derandomized or not, depends on the modules that are loaded.
"""

import json
import sys

from hypothesis import HealthCheck, Phase, given, settings
from support import purses

offs = []


def note(outcome: purses.Outcome) -> None:
    skipped = outcome.skipped
    assert skipped == sorted(skipped)  # so the rate never jumps up
    last = outcome.plan.stop_step - 1
    assert outcome.plan.course.position(last) == outcome.plan.total_steps - 1
    offs.append(outcome.off)


@settings(
    max_examples=int(sys.argv[1]),
    phases=[Phase.generate],
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(purses.histories())
def end(history: purses.History) -> None:
    purses.endings(note)(history)


end()
print(json.dumps(offs))
