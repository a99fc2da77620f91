"""What a model gets wrong: class by class, pair by pair, picture by picture.

Colors are from cividis and from Okabe and Ito's palette, which color-blind people can tell apart.
"""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from resnet50.records import metrics
from resnet50.system import figures
from resnet50.system.figures import Figure
from resnet50.system.outputs import may_replace

ORANGE = "#D55E00"
CLASS_COLUMNS = ("class", "images", "top1", "top5", "mostly_taken_for", "times")
PAIR_COLUMNS = ("class", "taken_for", "times", "pct_of_class")
MOST_PAIRS, MOST_CLASSES, MOST_PICTURES = 50, 20, 12
FILES = (
    "per_class.csv",
    "confused_pairs.csv",
    "confusion.png",
    "worst_classes.png",
    "mistakes.png",
)
MOST_NAMED = 30  # classes of which a matrix still shows the names
NAME_LENGTH = 22  # characters of a class's name in a picture


def confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """int64 (K, K): how often images of each class (row) were taken for each (column)."""
    pairs = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def per_class(
    classes: Sequence[str], labels: np.ndarray, top: np.ndarray
) -> list[dict[str, object]]:
    """A row for every class, the worst first.

    labels: int64 (N,); top: int64 (N, up to 5), the best class first. top1 and top5 are percent;
    mostly_taken_for: the wrong class most often put first, empty where there was none.
    """
    matrix = confusion(labels, top[:, 0], len(classes))
    hits5 = np.bincount(labels, weights=(top == labels[:, None]).any(1), minlength=len(classes))
    counts = matrix.sum(1)
    rows = []
    for number, name in enumerate(classes):
        if not counts[number]:
            continue
        wrong = matrix[number].copy()
        wrong[number] = 0
        rows.append(
            {
                "class": name,
                "images": int(counts[number]),
                "top1": round(100 * matrix[number, number] / counts[number], 2),
                "top5": round(100 * hits5[number] / counts[number], 2),
                "mostly_taken_for": classes[wrong.argmax()] if wrong.any() else "",
                "times": int(wrong.max()),
            }
        )
    return sorted(rows, key=lambda row: (row["top1"], row["class"]))


def confused_pairs(classes: Sequence[str], matrix: np.ndarray) -> list[dict[str, object]]:
    """The pairs of classes most often confused, each direction by itself, by share of the class."""
    wrong = matrix * (1 - np.eye(len(matrix), dtype=np.int64))
    part = 100 * wrong / np.maximum(matrix.sum(1, keepdims=True), 1)
    worst = np.argsort(-part, axis=None, kind="stable")[:MOST_PAIRS]
    return [
        {
            "class": classes[true],
            "taken_for": classes[other],
            "times": int(wrong[true, other]),
            "pct_of_class": round(part[true, other], 2),
        }
        for true, other in zip(*np.unravel_index(worst, wrong.shape), strict=True)
        if wrong[true, other]
    ]


def confident_mistakes(
    labels: np.ndarray, predicted: np.ndarray, confidences: np.ndarray
) -> np.ndarray:
    """Numbers of the misclassified images, the most confident first."""
    wrong = np.flatnonzero(labels != predicted)
    return wrong[np.argsort(-confidences[wrong], kind="stable")][:MOST_PICTURES]


def foreign_file(folder: Path) -> Path | None:
    """A file there that a report would replace, if the folder holds no earlier report."""
    table = folder / FILES[0]
    is_report = table.is_file() and may_replace(table, ",".join(CLASS_COLUMNS).encode())
    there = (folder / name for name in FILES if (folder / name).exists())
    return None if is_report else next(there, None)


def write_report(
    folder: Path,
    classes: Sequence[str],
    labels: np.ndarray,
    top: np.ndarray,
    confidences: np.ndarray,
    picture: Callable[[int], np.ndarray],
) -> list[Path]:
    """Write tables and pictures of an evaluation into an existing folder; returns the files.

    Prints a note if the fonts of this machine cannot show the classes' names.

    labels: int64 (N,); top: int64 (N, up to 5); confidences: float (N, up to 5), 0-1;
    picture: number of an image -> uint8 (S, S, 3), what the model saw of it.
    """
    matrix = confusion(labels, top[:, 0], len(classes))
    rows = per_class(classes, labels, top)
    (folder / "per_class.csv").write_text(metrics.as_csv(rows, CLASS_COLUMNS), "utf-8")
    pairs = confused_pairs(classes, matrix)
    (folder / "confused_pairs.csv").write_text(metrics.as_csv(pairs, PAIR_COLUMNS), "utf-8")
    has_glyphs = draw_confusion(folder / "confusion.png", classes, matrix)
    has_glyphs &= draw_worst(folder / "worst_classes.png", rows)
    surest = confident_mistakes(labels, top[:, 0], confidences[:, 0])
    captions = [
        f"{short(classes[labels[i]])}\ntaken for {short(classes[top[i, 0]])}\n"
        f"{100 * confidences[i, 0]:.0f}% sure"
        for i in surest
    ]
    pictures = [picture(int(i)) for i in surest]
    has_glyphs &= draw_pictures(folder / "mistakes.png", pictures, captions)
    if not has_glyphs:
        print(
            "note: the pictures have boxes for characters that no installed font has; a font such "
            "as Debian's fonts-noto-cjk has them",
            file=sys.stderr,
        )
    return [folder / name for name in FILES]


def short(name: str) -> str:
    """A name that fits under a picture."""
    return figures.plain(name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…")


def draw_confusion(path: Path, classes: Sequence[str], matrix: np.ndarray) -> bool:
    """Percent of each class taken for each; with names and numbers where there are few classes.

    Like the other two, returns whether the fonts had all characters.
    """
    part = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    is_named = len(classes) <= MOST_NAMED
    side = 4 + 0.35 * len(classes) if is_named else 9
    figure = Figure(figsize=(side + 1, side), dpi=100, layout="constrained")
    axis = figure.subplots()
    # The diagonal would leave no colors for the rest of a large matrix.
    top = 100 if is_named else max(np.quantile(part[part > 0], 0.99), 1)
    image = axis.imshow(part, cmap="cividis", vmin=0, vmax=top)
    figure.colorbar(
        image, label="% of the class", shrink=0.8, extend="neither" if is_named else "max"
    )
    axis.set(xlabel="taken for", ylabel="class")
    if is_named:
        names = [short(name) for name in classes]
        axis.set_xticks(range(len(names)), names, rotation=90)
        axis.set_yticks(range(len(names)), names)
        for row, column in np.argwhere(part >= 0.5):
            color = "black" if part[row, column] > 50 else "white"
            text = f"{part[row, column]:.0f}"
            axis.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    return figures.save(figure, path)


def draw_worst(path: Path, rows: Sequence[dict]) -> bool:
    """Top-1 of the worst classes, with what they are mostly taken for."""
    worst = rows[:MOST_CLASSES]
    height = 1.5 + 0.32 * len(worst)
    figure = Figure(figsize=(9, height), dpi=100, layout="constrained")
    axis = figure.subplots()
    axis.barh(range(len(worst)), [row["top1"] for row in worst], color=ORANGE)
    axis.set_yticks(range(len(worst)), [short(row["class"]) for row in worst])
    axis.invert_yaxis()
    axis.set(xlabel="top-1, %", xlim=(0, 100), title="worst classes, and what they are taken for")
    for place, row in enumerate(worst):
        if row["mostly_taken_for"]:
            text = f" {short(row['mostly_taken_for'])}, {row['times']} of {row['images']}"
            inside = row["top1"] > 60
            axis.text(
                row["top1"],
                place,
                text,
                va="center",
                ha="right" if inside else "left",
                color="white" if inside else "black",
                fontsize=8,
            )
    axis.grid(axis="x", alpha=0.3)
    return figures.save(figure, path)


def draw_pictures(path: Path, pictures: Sequence[np.ndarray], captions: Sequence[str]) -> bool:
    """Pictures in rows of four, each under its caption; a line of text if there are none."""
    rows = max(1, math.ceil(len(pictures) / 4))
    figure = Figure(figsize=(11, 3.4 * rows), dpi=100, layout="constrained")
    axes = figure.subplots(rows, 4, squeeze=False)
    figure.suptitle("the surest mistakes" if len(pictures) else "no mistakes")
    for axis in axes.flat:
        axis.axis("off")
    for axis, pixels, caption in zip(axes.flat, pictures, captions, strict=False):
        axis.imshow(pixels)
        axis.set_title(caption, fontsize=9)
    return figures.save(figure, path)
