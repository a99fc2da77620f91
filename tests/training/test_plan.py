"""Epochs become steps, images grow, and every rank has its share of the micro-batches."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet50.config.train_config import TrainConfig
from resnet50.training.course import Event
from resnet50.training.plan import (
    Plan,
    TrainKeys,
    eval_keys,
    image_size_at,
    make_plan,
    possible_world_sizes,
    train_keys,
)


def plan_of(
    images: int, epochs: int, total: int, device: int, world_size: int = 1, max_steps: int = 0
) -> Plan:
    cfg = TrainConfig(
        epochs=epochs, total_batch_size=total, device_batch_size=device, max_steps=max_steps
    )
    return make_plan(cfg, images, world_size)


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
    plan = plan_of(images, epochs, total, device, world_size, max_steps)
    assert (plan.steps_per_epoch, plan.stop_step) == (steps_per_epoch, stop_step)
    assert plan.micro_batches_per_rank * world_size * device == total


def partial(num_steps: int, **more: object) -> Plan:
    """Of epochs of four steps."""
    batch = {"total_batch_size": 16, "device_batch_size": 8}
    return make_plan(TrainConfig(num_steps=num_steps, **{"epochs": 3} | batch | more), 66)


def test_the_last_epoch_may_be_a_partial_one_and_is_evaluated():
    plan = partial(9)
    assert (plan.total_steps, plan.stop_step, plan.num_epochs) == (9, 9, 2.25)
    assert "2.25 epochs, 9 steps" in plan.describe()
    assert [step for step in range(10) if plan.evaluates_at(step, 1)] == [4, 8, 9]
    assert [step for step in range(10) if plan.evaluates_at(step, 0)] == [9]
    assert len(list(TrainKeys(SHARED_HALF, plan, 0, 7))) == 4
    assert partial(9, max_steps=6).stop_step == 6
    assert partial(12) != partial(0) and partial(12).total_steps == partial(0).total_steps


@pytest.mark.parametrize("num_steps, needed", [(8, 2), (1, 1), (13, 4)])
def test_a_number_of_steps_must_end_in_the_last_epoch(num_steps, needed):
    message = f"--num_steps {num_steps} with 4 steps .* give --epochs {needed} too, or from 9 to 12"
    with pytest.raises(ValueError, match=message):
        partial(num_steps)


def test_a_warm_up_must_end_within_the_steps():
    partial(9, schedule="warmup_cosine", warmup_epochs=2.0)
    with pytest.raises(ValueError, match=r"--warmup_epochs 2.25 of 4 steps .* --num_steps 9"):
        partial(9, schedule="warmup_cosine", warmup_epochs=2.25)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((1000, 1, 100, 64), "--total_batch_size 100 does not split into micro-batches of .* 64"),
        ((1000, 1, 96, 32, 2), r"does not divide over 2 ranks: start 1, 3 of them"),
        ((50, 1, 64, 64, 1), "--total_batch_size 64 is more than the 50 training images"),
    ],
)
def test_batches_that_do_not_divide_are_refused_with_what_would(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan_of(*arguments)


@given(st.integers(1, 64), st.integers(1, 64))
def test_possible_world_sizes_are_exactly_the_accepted_ones(num_micro_batches, world_size):
    total = 4 * num_micro_batches
    possible = possible_world_sizes(num_micro_batches)
    try:
        plan_of(1000, 1, total, 4, world_size)
        assert world_size in possible
    except ValueError:
        assert world_size not in possible


def test_evaluation_comes_every_so_many_epochs_and_at_the_end():
    plan = plan_of(66, 5, 16, 8, 1)
    steps = [step for step in range(plan.total_steps + 1) if plan.evaluates_at(step, 2)]
    assert steps == [8, 16, 20]
    assert plan_of(66, 5, 16, 8, 1, max_steps=6).evaluates_at(6, 2)


def size_at(epoch: int, start: int, size: int, first: float, last: float, multiple: int) -> int:
    """image_size_at for a start size, the size, and the epochs between which it grows."""
    cfg = TrainConfig(
        start_image_size=start,
        image_size=size,
        grow_start_epoch=first,
        grow_end_epoch=last,
        image_size_multiple=multiple,
    )
    return image_size_at(cfg, epoch)


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
    ours = size_at(epoch, *sizes, start, start + length, 32)
    assert ours == ffcv_resolution(epoch, *sizes, start, start + length)


def test_images_grow_within_their_bounds_and_only_if_asked_to():
    sizes = [size_at(epoch, 88, 176, 6.4, 12.8, 4) for epoch in range(16)]
    assert sizes == [88] * 7 + [96, 112, 124, 136, 152, 164] + [176] * 3
    assert {size_at(epoch, 0, 224, 3, 9, 32) for epoch in range(12)} == {224}
    assert [size_at(e, 100, 110, 0, 4, 32) for e in range(5)] == [100] * 4 + [110]


def test_evaluation_may_come_at_the_end_only_and_an_early_end_can_be_told_apart():
    plan = plan_of(66, 5, 16, 8, 1, max_steps=8)
    assert [step for step in range(21) if plan.evaluates_at(step, 0)] == [8]
    assert [step for step in range(21) if plan.evaluates_at(step, 0, early_end=False)] == [20]
    assert [s for s in range(21) if plan.evaluates_at(s, 3, early_end=False)] == [12, 20]


@given(st.integers(0, 20), st.integers(1, 20), st.lists(st.integers(1, 9), min_size=5, max_size=5))
def test_images_left_count_by_their_area(step, stop, sizes):
    """Against a sum over single steps; four steps an epoch."""
    plan = plan_of(66, 5, 16, 8, 1, max_steps=stop)
    now = sizes[min(step // 4, 4)]
    single = [16 * (sizes[s // 4] / now) ** 2 for s in range(step, stop)]
    image_size_at = [*sizes, 1].__getitem__
    assert plan.images_left(step, image_size_at) == pytest.approx(sum(single))


# Sizes of 32, 36, 40 ... px in the epochs from 0 on.
SHARED = TrainConfig(
    epochs=9,
    total_batch_size=24,
    device_batch_size=2,
    seed=5,
    start_image_size=32,
    image_size=68,
    grow_end_epoch=9.0,
    image_size_multiple=4,
)


# Of two micro-batches a step.
SHARED_HALF = TrainConfig(epochs=3, total_batch_size=16, device_batch_size=8)


def keys_of(num_images: int, world_size: int, first: int, last: int) -> list[list[tuple]]:
    """Micro-batches as (epoch, size, indices), per step, in the order m of the step."""
    plan = make_plan(SHARED, num_images, world_size)
    per_rank = [list(train_keys(SHARED, plan, rank, first, last)) for rank in range(world_size)]
    merged = [per_rank[m % world_size][m // world_size] for m in range(12 * (last - first))]
    plain = [(key.epoch, key.image_size, tuple(key.indices.tolist())) for key in merged]
    return [plain[i : i + 12] for i in range(0, len(plain), 12)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 12])
def test_any_number_of_ranks_shares_the_same_micro_batches(world_size):
    assert keys_of(100, world_size, 0, 9) == keys_of(100, 1, 0, 9)


@settings(max_examples=30)
@given(st.integers(24, 200), st.integers(0, 12), st.sampled_from([1, 2, 3]))
def test_starting_at_a_step_is_skipping_to_it(num_images, first, world_size):
    assert keys_of(num_images, world_size, first, 14) == keys_of(num_images, 1, 0, 14)[first:]


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_plan_bent_ahead_of_the_loaders_changes_sizes_and_end_and_no_image(world_size):
    """As if the event had been known from the start; the rest of the images stays the same."""
    straight, event = make_plan(SHARED, 100, world_size), Event(7, 25)
    known = list(TrainKeys(SHARED, straight.bent(event), 0, 0))
    keys = TrainKeys(SHARED, straight, 0, 0)
    per_step = straight.micro_batches_per_rank
    first = list(itertools.islice(keys, 6 * per_step + 1))
    assert keys.next_step == 7
    keys.plan = straight.bent(event)
    found = [*first, *keys]
    assert [key.image_size for key in found] == [key.image_size for key in known]
    assert len(found) == 25 * per_step and found[-1].image_size == 64 > found[0].image_size
    unbent = list(TrainKeys(SHARED, straight, 0, 0))
    assert unbent[-1].image_size == 64 and len(unbent) == 36 * per_step
    for one, other, third in zip(found, known, unbent, strict=False):
        assert one.epoch == other.epoch == third.epoch
        assert np.array_equal(one.indices, other.indices)
        assert np.array_equal(one.indices, third.indices)


def test_a_bent_plan_ends_sooner_and_says_what_is_left():
    plan = plan_of(66, 5, 16, 8).bent(Event(8, 14))
    assert (plan.total_steps, plan.stop_step, plan.num_epochs) == (20, 14, 3.5)
    assert [step for step in range(15) if plan.evaluates_at(step, 2)] == [8, 14]
    assert plan.images_left(8, lambda _: 32) == pytest.approx(16 * 6)
    assert plan.images_left(14, lambda _: 32) == 0
    # Positions 7 to 19 in six batches: twice as many of the last epochs' larger images.
    sizes = [32, 32, 32, 64, 64].__getitem__
    assert plan.images_left(8, sizes) == pytest.approx(16 * 6 * (3 + 4 * 8) / 11, rel=0.1)
    assert plan_of(66, 5, 16, 8, max_steps=10).bent(Event(8, 14)).stop_step == 10


def test_an_epoch_takes_every_image_once_but_for_the_rest():
    steps = keys_of(100, 1, 0, 8)
    for epoch in (0, 1):
        batches = [indices for e, _, indices in itertools.chain(*steps) if e == epoch]
        images = list(itertools.chain(*batches))
        assert len(images) == len(set(images)) == 96


@given(st.integers(1, 400), st.integers(1, 50), st.integers(1, 9))
def test_evaluation_takes_every_image_exactly_once(num_images, batch_size, world_size):
    ranks = [eval_keys(num_images, batch_size, 32, r, world_size) for r in range(world_size)]
    assert len({len(keys) for keys in ranks}) == 1  # all agree after each whether to continue
    taken = np.concatenate([key.indices for rank in ranks for key in rank])
    assert np.array_equal(np.sort(taken), np.arange(num_images))
    alone = {tuple(key.indices) for key in eval_keys(num_images, batch_size, 32)}
    assert {tuple(key.indices) for rank in ranks for key in rank} - {()} == alone  # whole batches
