"""curves.png: how a run went, in six panels.

Blue is training, orange validation (Okabe and Ito's color-blind safe palette).
"""

from collections.abc import Sequence
from pathlib import Path

from resnet50.system import figures, files
from resnet50.system.figures import Axes, Figure

BLUE, ORANGE = "#0072B2", "#D55E00"


def draw(path: Path, rows: Sequence[dict], steps: Sequence[dict], title: str) -> None:
    """Draw the rows of metrics.csv and the training records of log.jsonl into one picture.

    A row of less than half an epoch, where a limit ended the run, shows its validation only: the
    training figures of a few steps would be a spike.
    """
    figure = Figure(figsize=(13, 7), dpi=100, layout="constrained")
    axes = figure.subplots(2, 3)
    figure.suptitle(figures.plain(title))
    (loss, top1, top5), (by_step, rate, speed) = axes
    spans = _differences([row["epoch"] for row in rows])
    whole = [row for row, span in zip(rows, spans, strict=True) if span >= 0.5 or len(rows) == 1]
    for axis, name, unit in (
        (loss, "loss", "cross-entropy"),
        (top1, "top1", "top-1, %"),
        (top5, "top5", "top-5, %"),
    ):
        _line(axis, whole, "epoch", f"train_{name}", BLUE, "train")
        _line(axis, rows, "epoch", f"val_{name}", ORANGE, "validation")
        axis.set(xlabel="epoch", ylabel=unit)
        axis.legend()
    _line(by_step, steps, "step", "top1", BLUE, "train, single batches")
    _line(by_step, rows, "step", "val_top1", ORANGE, "validation")
    by_step.set(xlabel="step", ylabel="top-1, %")
    by_step.legend()
    _line(rate, steps, "step", "lr", BLUE, "")
    rate.set(xlabel="step", ylabel="learning rate")
    _line(speed, whole, "epoch", "images_per_s", BLUE, "images/s")
    speed.set(xlabel="epoch", ylim=(0, None))
    speed.set_ylabel("training images/s", color=BLUE)
    times = [
        {"epoch": row["epoch"], "seconds": seconds / span}
        for row, seconds, span in zip(
            rows, _differences([row["seconds"] for row in rows]), spans, strict=True
        )
        if row in whole
    ]
    seconds_axis = speed.twinx()
    _line(seconds_axis, times, "epoch", "seconds", ORANGE, "seconds")
    seconds_axis.set(ylim=(0, None))
    seconds_axis.set_ylabel("seconds an epoch, evaluation included", color=ORANGE)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    with files.replaced(path, "wb", sync=False) as file:
        figures.save(figure, file)


def _differences(numbers: Sequence[float]) -> list[float]:
    """Each number less the one before it, the first less zero."""
    return [b - a for a, b in zip([0.0, *numbers], numbers, strict=False)]


def _line(axis: Axes, rows: Sequence[dict], x: str, y: str, color: str, label: str) -> None:
    """Points joined by a line, without the rows that have no value there."""
    points = [(row[x], row[y]) for row in rows if row[y] is not None]
    marker = "o" if len(points) < 30 else None
    xs, ys = [a for a, _ in points], [b for _, b in points]
    axis.plot(xs, ys, color=color, label=label, marker=marker, markersize=3)
