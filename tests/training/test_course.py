"""A course whose end is moved: never back, always to the schedule's end, no jump up."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet50.config.train_config import TrainConfig
from resnet50.training import build
from resnet50.training.course import Course, Event
from resnet50.training.learning_rate import LearningRate, LearningRateSettings, rate_at
from resnet50.training.plan import make_plan

FIXED = ("onecycle", "warmup_cosine", "step")


def latest_end(course: Course, step: int) -> int:
    """The last end that an event at this step may have: a batch for each position left."""
    return step + sum(course.position(step - 1) < p for p in range(course.total_steps))


@st.composite
def courses(draw: st.DrawFn, least: int = 2, most: int = 300) -> Course:
    """Up to five events, sooner or later than what the ones before had left."""
    course = Course(draw(st.integers(least, most)))
    step = 1
    for _ in range(draw(st.integers(0, 5))):
        if step >= course.end_step:
            break
        step = draw(st.integers(step, course.end_step - 1))
        end_step = draw(st.integers(step + 1, latest_end(course, step)))
        course = course.bent(Event(step, end_step))
    return course


def test_without_events_the_position_is_the_step():
    course = Course(12)
    assert [course.position(step) for step in range(-1, 15)] == list(range(-1, 15))
    assert course.end_step == 12 and not any(map(course.skipped, range(15)))


@given(courses())
def test_positions_go_forward_and_end_exactly_where_the_schedule_does(course):
    positions = [course.position(step) for step in range(course.end_step)]
    assert positions[0] == 0 and all(a < b for a, b in itertools.pairwise(positions))
    assert positions[-1] == course.total_steps - 1
    assert course.position(course.end_step) == course.total_steps
    skipped = [course.skipped(step) for step in range(course.end_step + 1)]
    assert skipped == sorted(skipped) and skipped[0] == 0


@given(courses(), st.data())
def test_an_event_leaves_what_came_before_it_alone(course, data):
    first = course.events[-1].step if course.events else 1
    if first >= course.end_step:
        return
    step = data.draw(st.integers(first, course.end_step - 1))
    bent = course.bent(Event(step, data.draw(st.integers(step + 1, latest_end(course, step)))))
    assert [bent.position(s) for s in range(step)] == [course.position(s) for s in range(step)]


@given(courses())
def test_positions_go_evenly_after_the_last_event(course):
    """No two batches there differ by more than one in how many positions they pass."""
    if course.events:
        event = course.events[-1]
        positions = map(course.position, range(event.step - 1, event.end_step))
        strides = {b - a for a, b in itertools.pairwise(positions)}
        assert max(strides) - min(strides) <= 1


@pytest.mark.parametrize(
    "events, message",
    [
        ([Event(0, 10)], "must be at step 1 or later"),
        ([Event(5, 12), Event(4, 10)], "at step 4 .* must be at step 5 or later"),
        ([Event(5, 5)], "leaves no batch"),
        ([Event(5, 21)], "step 21 is later than step 20"),
        ([Event(5, 12), Event(6, 20)], "step 20 is later than step 19"),
    ],
)
def test_what_would_change_the_past_or_stand_still_is_refused(events, message):
    with pytest.raises(ValueError, match=message):
        Course(20, events)


def test_a_known_course():
    """By hand: batches 3 to 7 share positions 3 to 11."""
    course = Course(12, [Event(3, 8, paid_s=1.5, why="slow")])
    assert [course.position(s) for s in range(10)] == [0, 1, 2, 3, 5, 7, 9, 11, 12, 13]
    assert course.events == (Event(3, 8),)
    # Put off as far as it goes: a batch for each of the positions 6 to 11.
    course = course.bent(Event(5, 11))
    assert [course.position(s) for s in range(12)] == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12]


def settings_of(num_steps: int, **more: object) -> LearningRateSettings:
    """Of a run with five steps an epoch, the last of which may be a partial one."""
    batch = {"total_batch_size": 16, "device_batch_size": 16}
    epochs = math.ceil(num_steps / 5)
    cfg = TrainConfig(**batch, num_steps=num_steps, epochs=epochs, step_epochs=2, **more)
    return build.learning_rate_settings(cfg, make_plan(cfg, 5 * 16))


def taken(course: Course, s: LearningRateSettings) -> list[tuple[float, float]]:
    """Rate and momentum of every batch of a course."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0, momentum=0.9)
    learning_rate = LearningRate(optimizer, s, course)
    found = []
    for step in range(1, course.end_step + 1):
        group = optimizer.param_groups[0]
        found.append((group["lr"], group["momentum"]))
        optimizer.step()
        learning_rate.advance(step)
    return found


@settings(max_examples=60)
@given(courses(least=8, most=80), st.sampled_from(FIXED), st.sampled_from(["cos", "linear"]))
def test_the_rate_never_jumps_up_and_ends_where_the_schedule_ends(course, schedule, strategy):
    """It takes the schedule's own values, in their order: it rises only where the schedule does."""
    warmup = {} if schedule == "onecycle" else {"warmup_epochs": 1.0}
    s = settings_of(course.total_steps, schedule=schedule, anneal_strategy=strategy, **warmup)
    plain, found = taken(Course(course.total_steps), s), taken(course, s)
    assert found == [plain[course.position(step)] for step in range(course.end_step)]
    assert found[-1] == plain[-1]
    peak = plain.index(max(plain))
    falling = [rate for step, rate in enumerate(found) if course.position(step) >= peak]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize("schedule", FIXED)
def test_a_rate_is_a_function_of_its_position(schedule):
    course, s = Course(30, [Event(10, 22), Event(15, 20)]), settings_of(30, schedule=schedule)
    expected = [rate_at(s, course.position(step)) for step in range(20)]
    assert [rate for rate, _ in taken(course, s)] == expected


def test_the_momentum_of_a_cycle_follows_the_position():
    s = settings_of(30, cycle_momentum=True)
    plain, found = taken(Course(30), s), taken(Course(30, [Event(4, 9)]), s)
    assert found[-1] == plain[-1] and found[-1][1] == pytest.approx(0.95, abs=1e-3)
