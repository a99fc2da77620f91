"""Operations equal torchvision's bit for bit; erased boxes equal a plain loop's and its
distribution."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomErasing, v2

from resnet50.data import augment, sampling, transforms
from resnet50.data.augment import NUM_BINS, OPERATIONS
from resnet50.data.batch import normalize

NAMES = [operation.name for operation in OPERATIONS]
BELOW_ONE = np.nextafter(1.0, 0.0)


def picture(size: int, seed: int = 0) -> np.ndarray:
    """Coarse colors with grain, not using the whole range: every operation shows."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(30, 200, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
    return (smooth + rng.integers(0, 20, smooth.shape)).clip(0, 240).astype(np.uint8)


def draws_for(operation: int, magnitude_bin: int, negative: bool) -> np.ndarray:
    places = (operation + 0.5) / len(OPERATIONS), (magnitude_bin + 0.5) / NUM_BINS
    return np.array([*places, 0.25 if negative else 0.75])


def torchvisions(image: np.ndarray, name: str, magnitude_bin: int, negative: bool) -> np.ndarray:
    """TrivialAugmentWide.forward of torchvision 0.29 with the random numbers given."""
    reference = v2.TrivialAugmentWide()
    make_magnitudes, signed = reference._AUGMENTATION_SPACE[name]
    magnitudes = make_magnitudes(reference.num_magnitude_bins, *image.shape[:2])
    magnitude = 0.0 if magnitudes is None else float(magnitudes[magnitude_bin])
    result = reference._apply_image_or_video_transform(
        Image.fromarray(image),
        name,
        -magnitude if signed and negative else magnitude,
        interpolation=reference.interpolation,
        fill=reference._fill,
    )
    return np.asarray(result)


def test_operations_are_torchvisions_in_its_order():
    reference = v2.TrivialAugmentWide()
    assert list(reference._AUGMENTATION_SPACE) == NAMES
    assert reference.num_magnitude_bins == NUM_BINS
    for name, (_, signed) in reference._AUGMENTATION_SPACE.items():
        assert OPERATIONS[NAMES.index(name)].signed == signed


@pytest.mark.parametrize("name", NAMES)
def test_every_magnitude_and_sign_is_torchvisions(name):
    for size in (56, 63):
        image = picture(size)
        for magnitude_bin in range(NUM_BINS):
            for negative in (False, True):
                draws = draws_for(NAMES.index(name), magnitude_bin, negative)
                expected = torchvisions(image, name, magnitude_bin, negative)
                assert np.array_equal(augment.trivial_augment(image, draws), expected)


@settings(max_examples=200)
@given(
    st.integers(1, 230),
    st.integers(0, 2**32),
    st.sampled_from(NAMES),
    st.integers(0, NUM_BINS - 1),
    st.booleans(),
)
def test_any_picture_is_treated_as_by_torchvision(size, seed, name, magnitude_bin, negative):
    image = picture(size, seed)
    draws = draws_for(NAMES.index(name), magnitude_bin, negative)
    ours = augment.trivial_augment(image, draws)
    assert np.array_equal(ours, torchvisions(image, name, magnitude_bin, negative))


@pytest.mark.parametrize("name", NAMES)
def test_the_input_is_left_alone_and_may_have_any_memory_order(name):
    planar = np.ascontiguousarray(picture(40).transpose(2, 0, 1))
    image, before = planar.transpose(1, 2, 0)[::-1], picture(40)[::-1]
    draws = draws_for(NAMES.index(name), NUM_BINS - 1, negative=True)
    result = augment.trivial_augment(image, draws)
    assert np.array_equal(image, before) and not np.shares_memory(result, image)
    assert result.shape == image.shape and result.dtype == np.uint8
    again = augment.trivial_augment(np.ascontiguousarray(image), draws)
    assert np.array_equal(result, again)
    assert np.array_equal(result, image) == (name == "Identity")


def test_draws_choose_operations_magnitudes_and_signs_uniformly(monkeypatch):
    chosen = []
    recording = tuple(
        operation._replace(apply=lambda image, m, i=i: chosen.append((i, m)) or image)
        for i, operation in enumerate(OPERATIONS)
    )
    monkeypatch.setattr(augment, "OPERATIONS", recording)
    per_operation, image = 2000, picture(2)
    draws = sampling.uniforms(3, 5, np.arange(len(NAMES) * per_operation), augment.TRIVIAL_DRAWS)
    for row in draws:
        augment.trivial_augment(image, row)
    numbers, magnitudes = np.array(chosen).T
    counts = np.bincount(numbers.astype(int), minlength=len(NAMES))
    assert np.all(np.abs(counts - per_operation) < 4.5 * math.sqrt(per_operation))
    rotations = magnitudes[numbers == NAMES.index("Rotate")]
    assert len(np.unique(np.abs(rotations))) == NUM_BINS
    assert abs((rotations < 0).sum() - (rotations > 0).sum()) < 4.5 * math.sqrt(len(rotations))
    _, per_bin = np.unique(np.abs(rotations).round(3), return_counts=True)
    expected = len(rotations) / NUM_BINS
    assert np.all(np.abs(per_bin - expected) < 4.5 * math.sqrt(expected))


@pytest.mark.parametrize("draw", [0.0, BELOW_ONE])
def test_the_ends_of_the_draws_are_operations(draw):
    draws = np.full(augment.TRIVIAL_DRAWS, draw)
    expected = torchvisions(picture(20), *((NAMES[0], 0) if draw == 0 else (NAMES[-1], 30)), False)
    assert np.array_equal(augment.trivial_augment(picture(20), draws), expected)


@pytest.mark.parametrize("name", NAMES)
def test_an_operation_mirrored_is_itself_or_has_the_other_sign(name):
    image, number = picture(100), NAMES.index(name)
    turns = name in ("ShearX", "ShearY", "TranslateX", "Rotate")
    for magnitude_bin in (10, 20, 30):
        after = augment.trivial_augment(image, draws_for(number, magnitude_bin, False))[:, ::-1]
        before = augment.trivial_augment(image[:, ::-1], draws_for(number, magnitude_bin, turns))
        if name == "ShearY":  # the docstring's exception: all columns shift differently
            rows = round(100 * OPERATIONS[number].magnitudes[magnitude_bin])
            after, before = after[:-rows], before[rows:]
        assert (after != before).any(axis=2).mean() < 0.02  # ties of nearest sampling


def plain_box(draws: np.ndarray, size: int, probability: float) -> list[int]:
    """RandomErasing.get_params of torchvision 0.29 with the random numbers given."""
    if draws[0] >= probability:
        return [0, 0, 0, 0]
    for i in range(10):
        area = size * size * (0.02 + (0.33 - 0.02) * draws[1 + i])
        ratio = math.exp(math.log(0.3) + (math.log(3.3) - math.log(0.3)) * draws[11 + i])
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if h < size and w < size:
            left, top = int(draws[21] * (size - w + 1)), int(draws[22] * (size - h + 1))
            return [left, top, left + w, top + h]
    return [0, 0, 0, 0]


@settings(max_examples=300)
@given(st.integers(1, 400), st.floats(0, 1), st.integers(0, 2**32))
def test_erasing_boxes_are_torchvisions_rule_and_inside(size, probability, seed):
    draws = np.random.default_rng(seed).random((8, augment.ERASING_DRAWS))
    draws[0, 1:], draws[1, 1:] = 0, BELOW_ONE  # the last one fits in no attempt
    boxes = augment.erasing_boxes(draws, size, probability)
    assert boxes.shape == (8, 4) and boxes.dtype == np.int64
    for row, (left, top, right, bottom) in zip(draws, boxes.tolist(), strict=True):
        assert [left, top, right, bottom] == plain_box(row, size, probability)
        assert 0 <= left <= right <= size and 0 <= top <= bottom <= size
        assert right - left < size and bottom - top < size


def shares(boxes: np.ndarray, size: int) -> np.ndarray:
    """Area fraction, log ratio, and the relative place of the two free corners, (B, 4)."""
    left, top, right, bottom = boxes.T.astype(float)
    width, height = right - left, bottom - top
    log_ratio = np.log(height / width)
    places = left / (size - width), top / (size - height)
    return np.stack([width * height / size**2, log_ratio, *places], axis=1)


def test_erasing_is_distributed_as_torchvisions():
    size, count = 64, 4000
    draws = sampling.uniforms(1, 2, np.arange(count), augment.ERASING_DRAWS)
    ours = augment.erasing_boxes(draws, size, 1.0)
    image = torch.zeros(3, size, size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rows = [
            RandomErasing.get_params(image, (0.02, 0.33), (0.3, 3.3), [0]) for _ in range(count)
        ]
    theirs = np.array([(left, top, left + w, top + h) for top, left, h, w, _ in rows])
    for mine, other in zip(shares(ours, size).T, shares(theirs, size).T, strict=True):
        # Kolmogorov and Smirnov's distance; with 4000 against 4000 it passes 0.044 in 0.1%.
        points = np.concatenate([mine, other])
        below = [np.searchsorted(np.sort(x), points, "right") / count for x in (mine, other)]
        assert np.abs(below[0] - below[1]).max() < 0.044


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
def test_erased_share_is_the_probability(probability):
    count = 20000
    draws = sampling.uniforms(4, 0, np.arange(count), augment.ERASING_DRAWS)
    erased = augment.erasing_boxes(draws, 176, probability).any(axis=1).mean()
    tolerance = 4 * math.sqrt(probability * (1 - probability) / count)
    assert abs(erased - probability) <= tolerance


@settings(max_examples=100)
@given(st.integers(1, 40), st.integers(0, 2**32), st.floats(0, 1))
def test_erasing_touches_only_the_boxes(size, seed, probability):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (5, size, size, 3), dtype=np.uint8)
    before = images.copy()
    boxes = augment.erasing_boxes(rng.random((5, augment.ERASING_DRAWS)), size, probability)
    augment.erase(images, boxes)
    rows = np.arange(size)
    for image, old, (left, top, right, bottom) in zip(images, before, boxes, strict=True):
        inside = ((rows >= top) & (rows < bottom))[:, None] & (rows >= left) & (rows < right)
        assert np.all(image[inside] == augment.ERASED)
        assert np.array_equal(image[~inside], old[~inside])


def test_the_erased_color_is_zero_after_normalizing():
    images = np.zeros((1, 4, 4, 3), dtype=np.uint8)
    augment.erase(images, np.array([[0, 0, 4, 4]]))
    half_a_level = 0.5 / 255 / min(transforms.IMAGENET_STD)
    assert normalize(torch.from_numpy(images)).abs().max() <= half_a_level
