"""Order, augmentation and the share of each rank are pure functions."""

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sampling


def test_order_is_a_permutation_and_differs_by_epoch_and_seed():
    orders = [sampling.epoch_order(seed, epoch, 1000) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(1000))
    for one, other in itertools.combinations(orders, 2):
        assert (one == other).mean() < 0.02
    assert np.array_equal(orders[0], sampling.epoch_order(0, 0, 1000))


def test_order_and_draws_never_change():
    """A run started today resumes under any later version of this program or of numpy."""
    order = sampling.epoch_order(7, 3, 10_000).astype("<i8").tobytes()
    assert hashlib.sha256(order).hexdigest()[:16] == "26b0fe0729d6daad"
    draws = sampling.uniforms(7, 3, np.arange(100), 23).astype("<f8").tobytes()
    assert hashlib.sha256(draws).hexdigest()[:16] == "47c30377ea6008ab"


def test_draws_are_uniform_and_independent():
    draws = sampling.uniforms(0, 0, np.arange(20_000), 8)
    assert draws.min() >= 0 and draws.max() < 1
    for column in draws.T:  # chi-square over 100 bins; 99 +- 14 expected, 185 is beyond 1e-6
        counts = np.histogram(column, bins=100, range=(0, 1))[0]
        assert ((counts - 200) ** 2 / 200).sum() < 185
    correlation = np.corrcoef(np.concatenate([draws[:-1], draws[1:]], axis=1), rowvar=False)
    assert np.abs(correlation - np.eye(16)).max() < 0.04


@given(st.integers(0, 2**63 - 1), st.integers(0, 1000), st.lists(st.integers(0, 2**40), min_size=1))
def test_draws_of_an_image_do_not_depend_on_its_batch(seed, epoch, indices):
    together = sampling.uniforms(seed, epoch, np.array(indices), 5)
    alone = [sampling.uniforms(seed, epoch, np.array([index]), 5)[0] for index in indices]
    assert np.array_equal(together, np.stack(alone))


def size_of(epoch: int) -> int:
    return 32 + 4 * epoch


def keys_of(num_images: int, world_size: int, first: int, last: int) -> list[list[tuple]]:
    """Micro-batches as (epoch, size, indices), per step, in the order m of the step."""
    per_rank = [
        list(sampling.train_keys(num_images, 5, 24, 2, size_of, first, last, rank, world_size))
        for rank in range(world_size)
    ]
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


def test_an_epoch_takes_every_image_once_but_for_the_rest():
    steps = keys_of(100, 1, 0, 8)
    for epoch in (0, 1):
        batches = [indices for e, _, indices in itertools.chain(*steps) if e == epoch]
        images = list(itertools.chain(*batches))
        assert len(images) == len(set(images)) == 96


@given(st.integers(1, 400), st.integers(1, 50), st.integers(1, 9))
def test_evaluation_takes_every_image_exactly_once(num_images, batch_size, world_size):
    ranks = [
        sampling.eval_keys(num_images, batch_size, 32, r, world_size) for r in range(world_size)
    ]
    taken = np.concatenate([key.indices for rank in ranks for key in rank])
    assert np.array_equal(np.sort(taken), np.arange(num_images))
    alone = {tuple(key.indices) for key in sampling.eval_keys(num_images, batch_size, 32)}
    assert {tuple(key.indices) for rank in ranks for key in rank} == alone  # whole batches
