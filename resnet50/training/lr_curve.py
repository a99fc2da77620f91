"""What a learning-rate range test shows: suggestions and pictures from the curve of loss over lr.

N is the number of iterations of the test, whose rate grows from each to the next. `lrs`:
float (N,), increasing, above zero; `losses`: float (N,), of each batch before its update, which may
end in non-finite values.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from resnet50.system import figures, files
from resnet50.system.figures import Axes, Figure

MIN_POINTS = 20  # finite losses; with fewer the smoothed curve is hardly more than its first values
SKIP_END = 5  # points: fastai's lr_find
DIVERGED = 4  # times the best smoothed loss: fastai's LRFinder
# Standard error of the moving average, whose beta is 0.98, as a part of one loss's deviation.
SMOOTHED_NOISE = math.sqrt((1 - 0.98) / (1 + 0.98))
CLEAR_FALL = 3  # standard errors of the smoothed curve's start
FAR_APART = 10
Floats = Sequence[float] | np.ndarray

BLUE = "#0072B2"
LINES = {  # label, color (Okabe and Ito's color-blind safe palette, and a gray), dashes, width
    "recommended": ("recommended", "#D55E00", "-", 3.5),
    "minimum_tenth": ("minimum/10", "#009E73", "--", 2),
    "steepest": ("steepest", "#E69F00", "-.", 2),
    "valley": ("valley", "#CC79A7", (0, (7, 2)), 2),
    "anchor": ("linear rule", "#444444", ":", 2.5),
}


@dataclass(frozen=True)
class Suggestions:
    """Learning rates, all above zero, for the whole batch and as the peak of a schedule.

    minimum_tenth: a tenth of the rate where the smoothed loss is lowest; steepest: where it falls
    fastest over log10(lr), None if it does not inside the range; valley: fastai's default; anchor:
    the linear rule's, 0.1 * batch / 256, None if the rule does not hold; recommended: the one to
    use, 3 significant digits.
    """

    minimum_tenth: float
    steepest: float | None
    valley: float
    anchor: float | None
    recommended: float
    warnings: tuple[str, ...]

    def as_dict(self) -> dict:
        """The fields as JSON has them."""
        return {**asdict(self), "warnings": list(self.warnings)}

    def __str__(self) -> str:
        steepest = "none" if self.steepest is None else f"{self.steepest:.3g}"
        anchor = f", linear rule 0.1 x batch/256 {self.anchor:.3g}" if self.anchor else ""
        return (
            f"minimum/10 {self.minimum_tenth:.3g}, steepest {steepest}, valley {self.valley:.3g}"
            + anchor
        )


def smooth(losses: np.ndarray, beta: float = 0.98) -> np.ndarray:
    """Exponential moving average without the bias of its start at zero: fastai's AvgSmoothLoss.

    Returns float64 (N,); 0 <= beta < 1. From the first non-finite loss on nothing is finite.
    """
    average = 0.0
    smoothed = []
    for count, loss in enumerate(np.asarray(losses, dtype=np.float64).tolist(), start=1):
        average = beta * average + (1 - beta) * loss
        smoothed.append(average / (1 - beta**count))
    return np.array(smoothed)


def diverged(loss: float, best: float) -> bool:
    """Whether a loss, smoothed or not, has exploded, best being the lowest smoothed one so far."""
    return not math.isfinite(loss) or loss > DIVERGED * best


def suggest(lrs: Floats, losses: Floats, total_batch_size: int | None) -> Suggestions:
    """Which learning rates the curve suggests; total_batch_size: None without the linear rule.

    Recommends minimum / 10. Among the rules tried on a small ResNet (6 seeds; runs at fixed rates
    were best at 0.3-1) it stayed in 0.20-0.31, the median of the three rules in 0.14-0.31, the
    steepest point in 0.14-1.97, the valley in 0.05-0.11. For the same reason only the recommended
    rate, not each of the three, is compared with the anchor. The minimum of a flat bottom is its
    high end, where the loss begins to rise for good: with small batches it hardly falls before
    that (docs/recipes.md, "A learning rate"). If the loss neither fell nor exploded, the curve
    shows nothing and the anchor is recommended. The moving average lags: on synthetic curves it put
    the minimum 1.2 to 1.7 times too high if the loss then jumps, up to 5 times if it rises slowly.

    The first tenth and the last 5 points are left out, as in fastai's lr_find: the moving average
    starts with single batches, and the end is the explosion. Raises ValueError if fewer than
    MIN_POINTS are finite.
    """
    kept_lrs, kept = _finite(lrs, losses)
    smoothed = smooth(kept)
    start = len(kept) // 10
    inner_lrs, inner = kept_lrs[start:-SKIP_END], smoothed[start:-SKIP_END]
    noise = _noise(kept)
    lowest = int(np.flatnonzero(inner <= inner.min() + noise * SMOOTHED_NOISE)[-1])
    fell = inner[0] - inner.min() > CLEAR_FALL * noise / math.sqrt(start + 1)

    tenth = float(inner_lrs[lowest]) / 10
    valley = float(inner_lrs[_valley(inner)])
    steepest = _steepest(inner_lrs, inner, lowest) if fell else None
    # Goyal et al. 2017, "Accurate, Large Minibatch SGD": 0.1 for every 256 images of a batch.
    anchor = None if total_batch_size is None else 0.1 * total_batch_size / 256
    # If it exploded within the points left out, the minimum is known well enough.
    exploded = len(kept) < len(losses) or diverged(kept[-SKIP_END:].max(), smoothed.min())
    chosen = float(f"{tenth if fell or exploded or anchor is None else anchor:.3g}")
    found = Suggestions(tenth, steepest, valley, anchor, chosen, warnings=())
    falling = not exploded and smoothed.argmin() >= len(kept) - SKIP_END
    return replace(found, warnings=_warnings(found, fell, exploded, lowest == 0, falling))


def as_csv(lrs: Floats, losses: Floats) -> str:
    """One row an iteration, the first being 1; floats in full, so that they read back the same."""
    columns = (np.asarray(lrs, np.float64), np.asarray(losses, np.float64), smooth(losses))
    rows = np.stack(columns, axis=1).tolist()
    lines = [",".join(map(repr, (i, *row))) for i, row in enumerate(rows, start=1)]
    return "\n".join(("iteration,lr,loss,smoothed_loss", *lines, ""))


def draw(
    folder: Path, lrs: Floats, losses: Floats, suggestions: Suggestions, title: str
) -> list[Path]:
    """Draw full_range.png, high_range.png, mid_range.png, 1200x700 px, into an existing folder.

    Everything; from half a decade below the recommendation up to the end; a decade either side of
    it. ValueError as in `suggest`.
    """
    lrs, losses = _finite(lrs, losses)
    rates = {key: value for key, value in asdict(suggestions).items() if key in LINES and value}
    everything = (min(lrs[0], *rates.values()), max(lrs[-1], *rates.values()))
    chosen = suggestions.recommended
    first = lrs[0]
    last = lrs[-1]
    pictures = (
        ("full_range", "everything", *everything),
        ("high_range", "from the recommendation up", max(chosen / 10**0.5, first), last),
        ("mid_range", "around the recommendation", max(chosen / 10, first), min(chosen * 10, last)),
    )
    paths = []
    for name, words, left, right in pictures:
        shown = (lrs >= left) & (lrs <= right)
        if shown.sum() < SKIP_END:  # a recommendation outside the range, where the loss never fell
            (left, right), shown[:] = everything, True
        figure = Figure(figsize=(12, 7), dpi=100)
        figure.text(0.08, 0.955, f"{title}: {words}", fontsize=15, va="center")
        axis = figure.add_axes((0.08, 0.1, 0.89, 0.71))  # above it is room for the lines' labels
        axis.set(xscale="log", xlim=(left, right))
        _curve(axis, lrs, losses, shown)
        _lines(axis, {name: rate for name, rate in rates.items() if left <= rate <= right})
        paths.append(folder / f"{name}.png")
        with files.replaced(paths[-1], "wb", sync=False) as file:
            figures.save(figure, file)
    return paths


def _finite(lrs: Floats, losses: Floats) -> tuple[np.ndarray, np.ndarray]:
    """Rates and losses up to the first that is not finite; ValueError if these are too few."""
    lrs, losses = np.asarray(lrs, np.float64), np.asarray(losses, np.float64)
    bad = np.flatnonzero(~np.isfinite(losses))
    end = int(bad[0]) if len(bad) else len(losses)
    if end == 0 and len(losses):
        raise ValueError("the loss was not finite from the first iteration on: lower --start_lr")
    if end < MIN_POINTS:
        until = " before the loss was not finite" if len(bad) else ""
        remedy = "lower --start_lr or give more iterations" if len(bad) else "give more iterations"
        needed = f"{end} points{until} are too few for a curve, which needs {MIN_POINTS}"
        raise ValueError(f"{needed}: {remedy} (--num_iter)")
    return lrs[:end], losses[:end]


def _warnings(
    found: Suggestions, fell: bool, exploded: bool, low_end: bool, high_end: bool
) -> tuple[str, ...]:
    """What to know before using the recommendation; *_end: where the range cut the curve off."""
    chosen = found.recommended
    anchor = found.anchor or found.recommended
    by_rule = found.anchor is not None and not exploded
    far_apart = max(chosen / anchor, anchor / chosen) > FAR_APART
    steepest = "none" if found.steepest is None else f"{found.steepest:.3g}"
    texts = {
        f"the loss never fell, so the recommended {chosen:g} is just the linear rule's": (
            not fell and by_rule
        ),
        f"the loss hardly fell, so the recommended {chosen:g} is just a tenth of where it began to "
        "rise: more --num_iter would tell more": not fell and not by_rule,
        "the loss is lowest at the low end of the range: lower --start_lr": low_end,
        "the loss was still falling at the high end of the range: raise --end_lr": high_end,
        f"the recommended {chosen:g} and the linear rule's {anchor:.3g} are more than {FAR_APART}x "
        f"apart (minimum/10 {found.minimum_tenth:.3g}, steepest {steepest}, valley "
        f"{found.valley:.3g}): look at the pictures": far_apart,
    }
    return tuple(text for text, holds in texts.items() if holds)


def _noise(losses: np.ndarray) -> float:
    """Standard deviation of the loss from batch to batch, robust to slope and to a few outliers."""
    bends = np.abs(np.diff(losses, n=2))  # of sqrt(1 + 4 + 1) times the deviation of one point
    rounding = 1e-9 * float(np.abs(losses).max())  # or a constant curve would seem to fall by it
    return float(np.median(bends)) / (0.6745 * math.sqrt(6)) + rounding


def _steepest(lrs: np.ndarray, smoothed: np.ndarray, lowest: int) -> float | None:
    """Where the loss falls fastest left of its minimum, unless that is at an edge.

    An edge is an artifact of the smoothing or of the range, and so are its neighbors' slopes.
    """
    slopes = np.gradient(smoothed, np.log10(lrs))[: lowest + 1]
    index = int(slopes.argmin())
    at_edge = index in (0, len(smoothed) - 1)
    return None if at_edge or slopes[index] >= 0 else float(lrs[index])


def _valley(smoothed: np.ndarray) -> int:
    """Index a third plus a sixth into the longest falling subsequence: fastai 2.8's `valley`."""
    lengths = np.ones(len(smoothed), dtype=np.int64)
    for i in range(1, len(smoothed)):
        lengths[i] += lengths[:i][smoothed[:i] > smoothed[i]].max(initial=0)
    end = int(lengths.argmax())
    start = end - int(lengths[end]) if end else 0  # a length, not the subsequence's true start
    third = (end - start) / 3
    return start + int(third) + int(third / 2)


def _curve(axis: Axes, lrs: np.ndarray, losses: np.ndarray, shown: np.ndarray) -> None:
    """The points and the smoothed line, with the y axis scaled to what is shown (bool (N,))."""
    smoothed = smooth(losses)
    axis.plot(lrs, losses, "o", color=BLUE, alpha=0.35, markersize=5, label="loss of one batch")
    axis.plot(lrs, smoothed, color=BLUE, linewidth=2.5, label="smoothed")
    low, top = losses[shown].min(), losses[shown].max()
    if not shown.all():  # the few points of an explosion would flatten the rest
        top = max(np.percentile(losses[shown], 90), smoothed[shown].max())
    margin = 0.06 * (top - low) or 0.1
    axis.set_ylim(low - margin, top + margin)
    axis.set_xlabel("learning rate (log scale)", fontsize=13)
    axis.set_ylabel("training loss (cross-entropy, nats)", fontsize=13)
    if lrs[shown][-1] < 1000 * lrs[shown][0]:
        axis.xaxis.get_major_locator().set_params(subs=(1, 2, 5))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=12)


def _lines(axis: Axes, rates: dict[str, float]) -> None:
    """A vertical line for each rate, its label above the axes and clear of the others."""
    names = sorted(rates, key=lambda name: rates[name])
    to_axes = (axis.transData + axis.transAxes.inverted()).transform
    places = _apart([to_axes((rates[name], 1))[0] for name in names], gap=0.14)
    for name, place in zip(names, places, strict=True):
        label, color, dashes, width = LINES[name]
        axis.axvline(rates[name], color=color, linestyle=dashes, linewidth=width, alpha=0.9)
        text = f"{label}\n{rates[name]:.3g}"
        leader = {"arrowstyle": "-", "color": color, "relpos": (0.5, 0), "shrinkB": 0}
        foot = (rates[name], 1)
        frame = axis.get_xaxis_transform()
        style = {"ha": "center", "fontsize": 12, "color": color, "weight": "bold"}
        axis.annotate(text, foot, (place, 1.07), frame, "axes fraction", leader, **style)


def _apart(places: Floats, gap: float) -> list[float]:
    """Sorted places between 0 and 1, moved so that neighbors are at least `gap` apart."""
    places = list(places)
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    limit = 1 - gap / 2
    for i in reversed(range(len(places))):
        places[i] = min(places[i], limit)
        limit = places[i] - gap
    return places
