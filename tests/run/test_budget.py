"""A budget is met: what is planned, and what happens when the host is not what was measured."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support import purses

from resnet50.config.recipes import RECIPES
from resnet50.config.train_config import TrainConfig
from resnet50.run import budget, budget_plan
from resnet50.training.host_times import HostTimes, sizes_to_measure, slowest
from resnet50.training.plan import epoch_sizes, image_size_at, make_plan

FIXED = budget_plan.Fixed(paid_s=60.0, import_s=5.0, rest_s=10.0)
TIMES = HostTimes({160: 1.0, 192: 1.4}, evaluation_s=20.0, save_s=0.5, start_s=8.0)


def recipe(name: str, **changes: object) -> TrainConfig:
    limits = {"max_minutes": 0.0, "device_batch_size": 16}
    return TrainConfig(**(RECIPES[name].settings | {"recipe": name} | limits | changes))


def within_budget(num_histories: int) -> tuple[list[float], list[float]]:
    """How far off the generated histories ended, and how far those that missed."""
    offs = []

    def note(outcome: purses.Outcome) -> None:
        skipped = outcome.skipped
        assert skipped == sorted(skipped)  # so the rate never jumps up
        last = outcome.plan.stop_step - 1
        assert outcome.plan.course.position(last) == outcome.plan.total_steps - 1
        offs.append(outcome.off)

    @settings(
        max_examples=num_histories,
        phases=[Phase.generate],
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(purses.histories())
    def run(history: purses.History) -> None:
        purses.endings(note)(history)

    run()
    return offs, [off for off in offs if abs(off) > 1]


def test_whatever_happens_the_run_ends_with_its_budget():
    offs, missed = within_budget(100)
    assert len(offs) > 50
    assert len(missed) <= 1, missed


@pytest.mark.long
def test_of_two_thousand_histories_99_percent_end_with_their_budget():
    offs, missed = within_budget(2600)
    assert len(offs) >= 2000
    assert len(missed) <= 0.01 * len(offs), missed
