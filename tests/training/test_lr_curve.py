"""Curves with a known answer give that answer; noise, units and broken ends do not change it."""

import bisect
import csv
import io
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from matplotlib.text import Text
from PIL import Image

from resnet50.training import lr_curve


def curve(lowest, seed=0, *, count=100, start=1e-7, end=10.0, noise=0.1):
    """Loss 7, a fall by 1.5 around a tenth of `lowest`, a leap from there on."""
    lrs = np.geomspace(start, end, count)
    decades = np.log10(lrs / lowest)
    losses = 7 - 1.5 / (1 + np.exp(-4 * (decades + 1))) + 60 * np.clip(decades, 0, None) ** 2
    return lrs, losses + noise * np.random.default_rng(seed).normal(size=count)


def flat(seed=0, noise=0.1, count=100):
    return np.geomspace(1e-7, 10, count), 7 + noise * np.random.default_rng(seed).normal(size=count)


def rates(found):
    """The five learning rates, NaN for a missing one."""
    values = (found.minimum_tenth, found.steepest, found.valley, found.anchor, found.recommended)
    return [math.nan if value is None else value for value in values]


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=60), st.floats(0, 0.999))
def test_smoothing_is_the_weighted_mean_of_all_losses_so_far(losses, beta):
    for i, value in enumerate(lr_curve.smooth(np.array(losses), beta)):
        weights = beta ** np.arange(i, -1, -1.0)
        assert value == pytest.approx(np.average(losses[: i + 1], weights=weights), abs=1e-9)


@pytest.mark.parametrize("count", [100, 300])
@pytest.mark.parametrize("lowest", [0.1, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_tenth_of_the_minimum_is_recommended(count, lowest, seed):
    lrs, losses = curve(lowest, seed, count=count)
    found = lr_curve.suggest(lrs, losses, 256)
    assert lowest / 10 / 3 < found.recommended < lowest / 10 * 3
    assert found.recommended == pytest.approx(found.minimum_tenth, rel=0.005)
    assert found.recommended == float(f"{found.recommended:.3g}")
    assert lowest / 100 < found.steepest < lowest and found.valley < lowest
    assert not found.warnings


def test_the_anchor_is_a_tenth_for_256_images_and_far_from_it_is_said():
    lrs, losses = curve(3.0)
    near, far = (lr_curve.suggest(lrs, losses, batch) for batch in (1024, 8))
    assert near.anchor == pytest.approx(0.4) and far.anchor == pytest.approx(0.1 / 32)
    assert not near.warnings
    (text,) = far.warnings
    values = (far.recommended, far.anchor, far.minimum_tenth, far.steepest, far.valley)
    assert "more than 10x apart" in text and all(f"{value:.3g}" in text for value in values)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("after", [0, 10])
def test_what_comes_after_a_loss_that_is_not_finite_is_kept_out(bad, after):
    lrs, losses = curve(1.0, count=120)
    end = int(np.argmax(lrs > 2.5))
    broken = losses[: end + 1 + after].copy()
    broken[end] = bad
    found = lr_curve.suggest(lrs[: len(broken)], broken, 256)
    assert rates(found) == rates(lr_curve.suggest(lrs[:end], losses[:end], 256))
    assert np.isfinite(rates(found)).all()


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("noise", [0.0, 0.001, 0.3])
@pytest.mark.parametrize("count", [20, 100, 400])
def test_a_loss_that_never_fell_leaves_the_linear_rule(seed, noise, count):
    found = lr_curve.suggest(*flat(seed, noise, count), 512)
    assert found.recommended == 0.2 and found.steepest is None
    assert "never fell" in found.warnings[0] and not any("apart" in text for text in found.warnings)


def test_a_minimum_at_an_end_of_the_range_is_said_and_no_edge_is_the_steepest():
    lrs = np.geomspace(1e-3, 1, 100)
    rising, falling = 5 + np.linspace(0, 1, 100) ** 2, 7 - np.linspace(0, 1, 100) ** 2
    low, high = (lr_curve.suggest(lrs, losses, 256) for losses in (rising, falling))
    assert any("--start_lr" in text for text in low.warnings)
    assert low.steepest is None and low.recommended == 0.1
    # Falls fastest at its very end; still the minimum counts, as the rate that is surely not worse.
    assert any("--end_lr" in text for text in high.warnings)
    assert high.steepest is None and high.recommended == pytest.approx(lrs[-6] / 10, rel=0.005)


def test_a_loss_that_exploded_at_once_needs_no_wider_range():
    lrs, losses = curve(3.0)
    end = int(np.argmax(lrs > 3))
    for explosion in ([math.nan], [40.0], [9.0, 40.0, math.nan]):
        ends = np.concatenate([losses[:end], explosion])
        assert not lr_curve.suggest(lrs[: len(ends)], ends, 256).warnings


@given(st.integers(0, 2**32), st.integers(lr_curve.MIN_POINTS, 200), st.floats(0, 2))
def test_neither_edge_is_ever_the_steepest_point_or_the_valley(seed, count, noise):
    lrs, losses = curve(1.0, seed, count=count, noise=noise)
    found = lr_curve.suggest(lrs, losses, 256)
    inside = lrs[count // 10 : -lr_curve.SKIP_END]
    assert found.steepest is None or inside[0] < found.steepest < inside[-1]
    assert inside[0] <= found.valley <= inside[-1]
    assert inside[0] <= found.minimum_tenth * 10 * (1 + 1e-9)
    assert found.minimum_tenth * 10 <= inside[-1] * (1 + 1e-9)


@given(st.integers(0, 2**32), st.floats(0.01, 100), st.floats(-5, 100))
def test_units_and_offset_of_the_loss_do_not_matter(seed, scale, offset):
    lrs, losses = curve(1.0, seed)
    plain = lr_curve.suggest(lrs, losses, 256)
    for changed in (losses * scale, losses + offset):
        assert rates(lr_curve.suggest(lrs, changed, 256)) == pytest.approx(
            rates(plain), rel=1e-9, nan_ok=True
        )


@given(st.lists(st.integers(0, 30), min_size=3, max_size=40))
def test_the_valley_is_halfway_into_the_longest_fall(losses):
    """By another algorithm (patience sorting), without a table of all pairs."""
    piles, best, end = [], 0, 0
    for i, loss in enumerate(losses):
        place = bisect.bisect_left(piles, -loss)
        piles[place : place + 1] = [-loss]
        if place + 1 > best:
            best, end = place + 1, i
    assume(best > 1)
    third = best / 3
    expected = end - best + math.floor(third) + math.floor(third / 2)
    assert lr_curve._valley(np.array(losses, float)) == expected


def test_too_few_points_say_what_to_do():
    lrs, losses = curve(1.0)
    with pytest.raises(ValueError, match=r"19 points are too few.*more iterations \(--num_iter"):
        lr_curve.suggest(lrs[:19], losses[:19], 256)
    with pytest.raises(ValueError, match="--num_iter"):
        lr_curve.suggest([], [], 256)
    with pytest.raises(ValueError, match=r"7 points .*not finite.*: lower --start_lr .*--num_iter"):
        lr_curve.suggest(lrs, np.where(np.arange(100) < 7, losses, math.nan), 256)
    with pytest.raises(ValueError, match="not finite from the first iteration on: lower --start_l"):
        lr_curve.suggest(lrs, np.full(100, math.nan), 256)
    lr_curve.suggest(lrs[: lr_curve.MIN_POINTS], losses[: lr_curve.MIN_POINTS], 256)


@given(st.floats(0.01, 100))
def test_more_than_four_times_the_best_has_diverged(best):
    assert not lr_curve.diverged(4 * best, best)
    assert lr_curve.diverged(math.nextafter(4 * best, math.inf), best)
    assert all(lr_curve.diverged(loss, best) for loss in (math.nan, math.inf, -math.inf))


def test_a_first_loss_has_not_diverged_from_none():
    assert not lr_curve.diverged(7.0, math.inf) and lr_curve.diverged(math.nan, math.inf)


def test_suggestions_go_through_json():
    found = lr_curve.suggest(*flat(), 8)
    read = json.loads(json.dumps(found.as_dict()))
    assert lr_curve.Suggestions(**{**read, "warnings": tuple(read["warnings"])}) == found


@given(st.lists(st.floats(), max_size=30))
def test_csv_reads_back_exactly(losses):
    lrs = np.geomspace(1e-7, 10, len(losses))
    rows = list(csv.DictReader(io.StringIO(lr_curve.as_csv(lrs, losses))))
    assert [int(row["iteration"]) for row in rows] == list(range(1, len(losses) + 1))
    columns = {"lr": lrs, "loss": losses, "smoothed_loss": lr_curve.smooth(losses)}
    for name, values in columns.items():
        np.testing.assert_array_equal([float(row[name]) for row in rows], values)


@pytest.mark.parametrize(
    "lrs, losses",
    [curve(3.0), flat(), flat(noise=0), curve(1.0, start=0.05, count=40)],
    ids=["usual", "flat", "constant", "linear rule outside the range"],
)
def test_three_different_pictures(tmp_path, lrs, losses):
    losses[-1] = math.nan
    found = lr_curve.suggest(lrs, losses, 8)
    paths = lr_curve.draw(tmp_path, lrs, losses, found, "a test")
    assert [path.name for path in paths] == ["full_range.png", "high_range.png", "mid_range.png"]
    assert sorted(tmp_path.iterdir()) == paths
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    assert {picture.shape for picture in pictures} == {(700, 1200, 3)}
    assert all(picture.std() > 10 for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == 3


def test_every_rate_has_its_line_and_no_labels_touch(tmp_path, monkeypatch):
    """Even when all five rates are nearly the same."""
    figures = []
    save = lr_curve.Figure.savefig

    def keep(figure, *args, **kwargs):
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(lr_curve.Figure, "savefig", keep)
    for rate in (1e-6, 0.1, 9.0):
        found = lr_curve.Suggestions(rate, rate * 1.01, rate * 0.99, rate, rate, ())
        lr_curve.draw(tmp_path, *curve(3.0), found, "a test")
    for figure in figures:
        # A label's own box, without its leader.
        boxes = [Text.get_window_extent(label) for label in figure.axes[0].texts]
        labels = sorted(boxes, key=lambda box: box.x0)
        assert len(labels) == 5
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(labels))
        assert labels[0].x0 > 0 and labels[-1].x1 < 1200
