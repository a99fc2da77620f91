"""curves.png: how a run went, in six panels.

Blue is training, orange validation, in every panel (Okabe and Ito's colour-blind safe palette).
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only; a training host has no screen

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

BLUE, ORANGE = "#0072B2", "#D55E00"


def draw(path: Path, rows: Sequence[dict], steps: Sequence[dict], title: str) -> None:
    """Draw the rows of metrics.csv and the training records of log.jsonl into one picture."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), dpi=100, layout="constrained")
    figure.suptitle(title)
    (loss, top1, top5), (by_step, rate, speed) = axes
    epochs = [row["epoch"] for row in rows]
    for axis, name, unit in (
        (loss, "loss", "cross-entropy"),
        (top1, "top1", "top-1, %"),
        (top5, "top5", "top-5, %"),
    ):
        _line(axis, epochs, [row[f"train_{name}"] for row in rows], BLUE, "train")
        _line(axis, epochs, [row[f"val_{name}"] for row in rows], ORANGE, "validation")
        axis.set(xlabel="epoch", ylabel=unit)
        axis.legend()
    numbers = [record["step"] for record in steps]
    _line(by_step, numbers, [record["top1"] for record in steps], BLUE, "train, single batches")
    _line(by_step, [row["step"] for row in rows], [row["val_top1"] for row in rows], ORANGE, "val")
    by_step.set(xlabel="step", ylabel="top-1, %")
    by_step.legend()
    _line(rate, numbers, [record["lr"] for record in steps], BLUE, "")
    rate.set(xlabel="step", ylabel="learning rate")
    _line(speed, epochs, [row["images_per_s"] for row in rows], BLUE, "images/s")
    speed.set(xlabel="epoch", ylabel="training images/s", ylim=(0, None))
    durations = speed.twinx()
    seconds = [row["seconds"] for row in rows]
    lengths = [b - a for a, b in zip([0.0, *seconds], seconds, strict=False)]
    _line(durations, epochs, lengths, ORANGE, "seconds")
    durations.set(ylabel="seconds an epoch, all in", ylim=(0, None))
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    partial = path.with_name(f"{path.name}.partial")
    figure.savefig(partial, format="png")
    plt.close(figure)
    partial.replace(path)


def _line(axis: Axes, x: Sequence, y: Sequence, color: str, label: str) -> None:
    """Points joined by a line, without the epochs that were not evaluated."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
    marker = "o" if len(points) < 30 else None
    xs, ys = [a for a, _ in points], [b for _, b in points]
    axis.plot(xs, ys, color=color, label=label, marker=marker, markersize=3)
