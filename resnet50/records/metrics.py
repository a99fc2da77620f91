"""How a row of metrics.csv looks: as CSV, as a table to read, as one line on the terminal."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from resnet50.records.results import Results

COLUMNS = (
    "epoch",
    "step",
    "seconds",
    "lr",
    "train_loss",
    "train_top1",
    "train_top5",
    "val_loss",
    "val_top1",
    "val_top5",
    "images_per_s",
    "data_wait_pct",
    "cost_usd",
)


def as_csv(rows: Sequence[dict], columns: Sequence[str] = COLUMNS) -> str:
    """Rows under a header; empty fields where an epoch was not evaluated."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, seconds = divmod(round(min(seconds, 1e9)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def dollars(amount: float) -> str:
    return f"${amount:.2f}" if amount >= 1 else f"${amount:.4f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def epoch_line(row: dict, epochs: float) -> str:
    return (
        f"epoch {row['epoch']:g}/{epochs:g}: train loss {row['train_loss']:.3f} top-1 "
        f"{row['train_top1']:.2f}%, validation top-1 {_percent(row['val_top1'])}% top-5 "
        f"{_percent(row['val_top5'])}%, {row['images_per_s']:.0f} img/s, waiting "
        f"{row['data_wait_pct']:.1f}%, {clock(row['seconds'])}"
    )


def as_markdown(rows: list[dict]) -> str:
    """The table epoch, minutes, loss, top-1, top-5 for train and validation."""
    lines = [
        "| epoch | minutes | train loss | top-1 % | top-5 % | val loss | top-1 % | top-5 % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        loss = "-" if row["val_loss"] is None else f"{row['val_loss']:.3f}"
        lines.append(
            f"| {row['epoch']:g} | {row['seconds'] / 60:.1f} | {row['train_loss']:.3f} "
            f"| {_percent(row['train_top1'])} | {_percent(row['train_top5'])} | {loss} "
            f"| {_percent(row['val_top1'])} | {_percent(row['val_top5'])} |"
        )
    return "\n".join(lines) + "\n"


def summary(results: Results, paid_s: float, price_per_hour: float, run_dir: Path) -> str:
    """The summary of a finished run; paid_s: seconds of machine time."""
    last = results.rows[-1]
    best = results.best
    average = ""
    if last["epoch"] >= 1:  # a part of one says little: most of its time may be an evaluation's
        average = f", {clock(last['seconds'] / last['epoch'])} an epoch on average"
    lines = [
        f"done: {last['epoch']:g} epochs in {clock(paid_s)}{average}",
        f"final top-1 {last['val_top1']:.2f}%, top-5 {last['val_top5']:.2f}%",
        f"best top-1 {best['val_top1']:.2f}% after epoch {best['epoch']:g}",
    ]
    if price_per_hour:
        cost = dollars(paid_s / 3600 * price_per_hour)
        lines.append(f"cost {cost} at {dollars(price_per_hour)} an hour")
    lines += [f"curves: {run_dir / 'curves.png'}", f"weights: {run_dir / 'checkpoints/best.pt'}"]
    return "\n".join(lines)
