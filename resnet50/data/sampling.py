"""The order of an epoch and the random numbers of its images: pure functions.

    order of an epoch   = function of (seed, epoch)
    crop and flip       = function of (seed, epoch, index)

Nothing else is random, so no loader has state to save, any number of ranks and loader processes
gives the same pixels, and a resume starts at a batch number (training/plan.py), without replaying.
"""

from typing import NamedTuple

import numpy as np


class BatchKey(NamedTuple):
    """What makes a micro-batch. epoch: -1 for evaluation; indices: (B,) int64; image_size: the
    side of the crops in pixels."""

    epoch: int
    indices: np.ndarray
    image_size: int


def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """Permutation of all images, int64 (num_images,).

    Sorts 64-bit random numbers instead of asking numpy to shuffle: the raw Philox stream is fixed
    by its paper (Salmon et al. 2011), numpy's shuffling may change between versions (NEP 19).
    """
    keys = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(num_images)
    return np.argsort(keys, kind="stable")


def _mix(numbers: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer (Steele et al. 2014): every bit of a uint64 depends on every bit."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def uniforms(seed: int, epoch: int, indices: np.ndarray, num_draws: int) -> np.ndarray:
    """Counter hash of (seed, epoch, index, draw): float64 (B, num_draws), uniform in [0, 1).

    One hash for a whole batch; a generator per image would cost more than its crop.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    state = np.full(1, seed, dtype=np.uint64)
    for number in (np.full(1, epoch, dtype=np.uint64), indices.astype(np.uint64)):
        state = _mix(_mix(state + golden) ^ number)
    counters = np.arange(1, num_draws + 1, dtype=np.uint64) * golden
    return (_mix(state[:, None] + counters) >> np.uint64(11)) * 2.0**-53
