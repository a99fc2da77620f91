"""Steps and learning rates."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import schedule


@pytest.mark.parametrize(
    "images, epochs, total, device, world_size, max_steps, steps_per_epoch, stop_step",
    [
        (1_281_167, 50, 256, 256, 1, 0, 5004, 250_200),
        (1_281_167, 50, 256, 32, 8, 0, 5004, 250_200),
        (3068, 10, 64, 64, 1, 0, 47, 470),
        (66, 3, 16, 8, 2, 5, 4, 5),
        (66, 3, 16, 8, 2, 99, 4, 12),
        (16, 1, 16, 16, 1, 0, 1, 1),
    ],
)
def test_epochs_become_steps(
    images, epochs, total, device, world_size, max_steps, steps_per_epoch, stop_step
):
    plan = schedule.make_plan(images, epochs, total, device, world_size, max_steps)
    assert (plan.steps_per_epoch, plan.stop_step) == (steps_per_epoch, stop_step)
    assert plan.micro_batches_per_rank * world_size * device == total


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((1000, 1, 100, 64, 1), "--total_batch_size 100 does not split into micro-batches of 64"),
        ((1000, 1, 96, 32, 2), r"does not divide over 2 ranks: start 1, 3 of them"),
        ((50, 1, 64, 64, 1), "--total_batch_size 64 is more than the 50 training images"),
    ],
)
def test_batches_that_do_not_divide_are_refused_with_what_would(arguments, message):
    with pytest.raises(ValueError, match=message):
        schedule.make_plan(*arguments)


@given(st.integers(1, 64), st.integers(1, 64))
def test_possible_world_sizes_are_exactly_the_accepted_ones(num_micro_batches, world_size):
    total = 4 * num_micro_batches
    possible = schedule.possible_world_sizes(num_micro_batches)
    try:
        schedule.make_plan(1000, 1, total, 4, world_size)
        assert world_size in possible
    except ValueError:
        assert world_size not in possible


def test_evaluation_comes_every_so_many_epochs_and_at_the_end():
    plan = schedule.make_plan(66, 5, 16, 8, 1)
    steps = [step for step in range(plan.total_steps + 1) if plan.evaluates_at(step, 2)]
    assert steps == [8, 16, 20]
    assert schedule.make_plan(66, 5, 16, 8, 1, max_steps=6).evaluates_at(6, 2)


def ffcv_resolution(epoch: int, min_res: int, max_res: int, start_ramp: int, end_ramp: int) -> int:
    """get_resolution of libffcv/ffcv-imagenet's train_imagenet.py."""
    if epoch <= start_ramp:
        return min_res
    if epoch >= end_ramp:
        return max_res
    interp = np.interp([epoch], [start_ramp, end_ramp], [min_res, max_res])
    return int(np.round(interp[0] / 32)) * 32


@given(st.integers(1, 6), st.integers(0, 4), st.integers(0, 60), st.integers(1, 30), st.data())
def test_images_grow_as_ffcvs_do(small, growth, start, length, data):
    epoch = data.draw(st.integers(0, 100))
    sizes = 32 * small, 32 * (small + growth)
    ours = schedule.image_size_at(epoch, *sizes, start, start + length, 32)
    assert ours == ffcv_resolution(epoch, *sizes, start, start + length)


def test_images_grow_within_their_bounds_and_only_if_asked_to():
    sizes = [schedule.image_size_at(epoch, 88, 176, 6.4, 12.8, 4) for epoch in range(16)]
    assert sizes == [88] * 7 + [96, 112, 124, 136, 152, 164] + [176] * 3
    assert {schedule.image_size_at(epoch, 0, 224, 3, 9, 32) for epoch in range(12)} == {224}
    assert [schedule.image_size_at(e, 100, 110, 0, 4, 32) for e in range(5)] == [100] * 4 + [110]


def test_evaluation_may_come_at_the_end_only_and_an_early_end_can_be_told_apart():
    plan = schedule.make_plan(66, 5, 16, 8, 1, max_steps=8)
    assert [step for step in range(21) if plan.evaluates_at(step, 0)] == [8]
    assert [step for step in range(21) if plan.evaluates_at(step, 0, early_end=False)] == [20]
    assert [s for s in range(21) if plan.evaluates_at(s, 3, early_end=False)] == [12, 20]


@given(st.integers(0, 20), st.integers(1, 20), st.lists(st.integers(1, 9), min_size=5, max_size=5))
def test_images_left_count_by_their_area(step, stop, sizes):
    """Against a sum over single steps; four steps an epoch."""
    plan = schedule.make_plan(66, 5, 16, 8, 1, max_steps=stop)
    now = sizes[min(step // 4, 4)]
    single = [16 * (sizes[s // 4] / now) ** 2 for s in range(step, stop)]
    image_size_at = [*sizes, 1].__getitem__
    assert plan.images_left(step, image_size_at) == pytest.approx(sum(single))
