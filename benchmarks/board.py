"""Check the records of finished runs, and rank them beside published figures.

    python benchmarks/board.py
    python benchmarks/board.py runs/first/record.json --data_dir data/imagenet

train.py writes record.json at the end of a run. A record is refused, with all that does not fit, if
it is incomplete or contradicts itself: its settings, steps, curve, dollars, a top-1 that is no
whole number of images, more pixels a second than such a machine can train on. With --data_dir, the
top-1 of the weights beside it (checkpoints/best.pt) is computed again. The tables show when a run
first reached the goal, on its own clock, which counts evaluations, checkpoints, and earlier
attempts, but not imports and the packing of the data. The records in benchmarks/records are
this project's own.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

from gpu_rates import published

from resnet50.config import instance_prices
from resnet50.config.command_line import print_error
from resnet50.config.train_config import TrainConfig
from resnet50.records.metrics import clock, dollars
from resnet50.records.record import FORMAT
from resnet50.training.plan import image_size_at

HERE = Path(__file__).parent
SOURCE = (
    "MLPerf Training, mlcommons/training_results_{round} on GitHub, closed division unless it says "
    "otherwise: from run_start to run_stop, mean without the best and the worst of three or more"
)
SHAPE = {
    "format": int,
    "ended": str,
    "settings": dict,
    "commit": str,
    "versions": dict,
    "gpus": list,
    "device": str,
    "precision": str,
    "host": dict,
    "data": dict,
    "steps_per_epoch": int,
    "price_per_hour": float,
    "seconds": float,
    "cost_usd": float,
    "curve": list,
}
POINT = dict.fromkeys(("epoch", "seconds", "cost_usd", "top1", "top5"), float) | {"step": int}
RESNET50 = ((3, 4, 6, 3), 64)  # layers and width
# Pixels a second, about twice what anything is known to train a ResNet50 at: the fastest of
# published_times.csv, 7,950 images of 224 px on an H200; and a core with AMX.
MOST_PER_GPU, MOST_PER_CORE = 2 * 7950 * 224**2, 4e6
TOLERANCE = 0.1  # points of top-1: other machines round differently


class Goal(NamedTuple):
    """What is ranked. by: key of the curve; val_images, classes: of the data that it is about."""

    title: str
    top1: float
    by: str
    val_images: int
    classes: int
    cores: int | None = None


FASHION = Goal("time to 88% on Fashion-MNIST on 2 cores", 88.0, "seconds", 10_000, 10, cores=2)
IMAGENET = Goal("dollars to 75.9% on ImageNet", 75.9, "cost_usd", 50_000, 1000)


def is_like(value: object, kind: type) -> bool:
    """Whether a value from JSON is of this kind; int: at least 1; float: finite, at least 0."""
    if kind not in (int, float):
        return isinstance(value, kind)
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        return False
    return math.isfinite(value) and value >= (1 if kind is int else 0)


def shape_problems(record: Mapping[str, object]) -> Iterator[str]:
    """What is missing, or of another kind than train.py writes."""
    for name, kind in SHAPE.items():
        if not is_like(record.get(name), kind):
            yield f"{name} is {json.dumps(record.get(name))[:40]}"
    curve = record.get("curve")
    for number, point in enumerate(curve if isinstance(curve, list) else ()):
        for name, kind in POINT.items():
            if not isinstance(point, dict) or not is_like(point.get(name), kind):
                yield f"point {number + 1} of the curve has no {name}"
    if curve == []:
        yield "the curve has no point"
    for split in ("train", "val"):
        part = (record.get("data") or {}).get(split) if is_like(record.get("data"), dict) else None
        for name in ("num_images", "num_classes"):
            if not isinstance(part, dict) or not is_like(part.get(name), int):
                yield f"data has no {name} of {split}"
    if is_like(record.get("host"), dict):
        for name in ("cores", "ranks"):
            if not is_like(record["host"].get(name), int):
                yield f"host has no {name}"


def problems(record: Mapping[str, object]) -> list[str]:
    """All that does not fit in a record; empty for one as train.py writes it."""
    if is_like(record.get("format"), int) and record["format"] > FORMAT:
        return [f"its format is {record['format']}, and this clone reads {FORMAT}: git pull"]
    if found := list(shape_problems(record)):
        return found
    try:
        cfg = TrainConfig.from_json(record["settings"])
    except (TypeError, ValueError) as error:
        return [f"its settings are not those of a run: {error}"]
    return list(curve_problems(record, cfg)) or list(clock_problems(record, cfg))


def curve_problems(record: Mapping[str, object], cfg: TrainConfig) -> Iterator[str]:
    """Steps, epochs, and accuracies that contradict each other, the settings, or the data."""
    steps_per_epoch, curve = record["steps_per_epoch"], record["curve"]
    of_data = record["data"]["train"]["num_images"] // cfg.total_batch_size
    if steps_per_epoch != of_data:
        yield f"{steps_per_epoch} steps per epoch, but its data and batch make {of_data}"
    for one, other in pairwise(curve):
        for name in ("step", "seconds"):
            if not one[name] < other[name]:
                yield f"{name} {other[name]:g} of the curve comes after {one[name]:g}"
        if other["cost_usd"] < one["cost_usd"]:
            yield f"dollars {other['cost_usd']:g} of the curve come after {one['cost_usd']:g}"
    num_images = record["data"]["val"]["num_images"]
    for point in curve:
        where = f"at step {point['step']:g} of the curve"
        if abs(point["step"] / steps_per_epoch - point["epoch"]) > 1e-3:
            yield f"epoch {point['epoch']:g} {where} is not {point['step'] / steps_per_epoch:.4f}"
        if not point["top1"] <= point["top5"] <= 100:
            yield f"top-1 {point['top1']:g}% and top-5 {point['top5']:g}% {where}"
        for name in ("top1", "top5"):
            hits = point[name] * num_images / 100
            if abs(hits - round(hits)) > 1e-3:
                yield f"{name} {point[name]:g}% {where} is {hits:.3f} of {num_images} images"
    if curve[-1]["step"] > steps_per_epoch * cfg.epochs:
        yield f"step {curve[-1]['step']:g}, but --epochs {cfg.epochs} end before"


def clock_problems(record: Mapping[str, object], cfg: TrainConfig) -> Iterator[str]:
    """Seconds and dollars that contradict each other, or are too few for the work."""
    price, curve = record["price_per_hour"], record["curve"]
    if record["seconds"] < curve[-1]["seconds"]:
        yield f"{record['seconds']:g} s in all, but the curve ends at {curve[-1]['seconds']:g} s"
    for point in (*curve, record):
        cost = point["seconds"] / 3600 * price
        if abs(cost - point["cost_usd"]) > 1e-4 + 1e-4 * cost:
            yield (
                f"${point['cost_usd']:g} after {point['seconds']:g} s, which at ${price:g} an hour "
                f"are ${cost:.4f}"
            )
    try:
        if datetime.fromisoformat(record["ended"]) > datetime.now(UTC):
            yield f"it ended at {record['ended']}, which is still to come"
    except (ValueError, TypeError):
        yield f"ended is {record['ended']!r}, not a time with its zone"
    if (cfg.layers, cfg.width) != RESNET50:
        return  # a smaller model may be faster
    on_gpus = record["device"] == "cuda"
    most = record["host"]["ranks"] * MOST_PER_GPU if on_gpus else 0
    most += 0 if on_gpus else max(record["host"]["cores"], record["host"]["ranks"]) * MOST_PER_CORE
    start = {"step": 0, "seconds": 0.0}
    for one, other in pairwise((start, *curve)):
        pixels = pixels_of(cfg, record["steps_per_epoch"], one["step"], other["step"])
        seconds = max(other["seconds"] - one["seconds"], 1e-9)
        if pixels / seconds > most:
            yield (
                f"steps {one['step']:g} to {other['step']:g} in {seconds:.0f} s are "
                f"{pixels / seconds / most:.1f} times as fast as this machine can be"
            )


def pixels_of(cfg: TrainConfig, steps_per_epoch: int, first: int, last: int) -> int:
    """Pixels of the training crops from one step up to another."""
    pixels = 0
    for epoch in range(first // steps_per_epoch, math.ceil(last / steps_per_epoch)):
        begin, end = max(first, epoch * steps_per_epoch), min(last, (epoch + 1) * steps_per_epoch)
        pixels += (end - begin) * cfg.total_batch_size * image_size_at(cfg, epoch) ** 2
    return pixels


def top1_of_weights(weights: Path, data_dir: Path, minutes: float) -> float:
    """Percent, computed again by evaluate.py. Raises ValueError if that fails."""
    with tempfile.TemporaryDirectory() as work:
        found = Path(work) / "result.json"
        command = [sys.executable, HERE.parent / "evaluate.py", f"--data_dir={data_dir}"]
        command += [f"--weights={weights}", f"--json={found}"]
        try:
            done = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=60 * minutes,
            )
        except subprocess.TimeoutExpired:
            raise ValueError(f"evaluate.py took longer than --minutes {minutes:g}") from None
        if done.returncode:
            raise ValueError(f"evaluate.py failed: {done.stdout.strip().splitlines()[-1]}")
        return json.loads(found.read_text())["top1"]


def read(path: Path) -> dict[str, object]:
    """A record. Raises ValueError if it is not one, or contradicts itself."""
    if path.is_dir():
        path /= "record.json"
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{path} is not a record, but a {type(record).__name__}")
    if found := problems(record):
        raise ValueError("\n  ".join([f"{path} does not fit:", *found]))
    return record


def check_weights(path: Path, record: Mapping[str, object], args: argparse.Namespace) -> str:
    """What the weights beside a record say. Raises ValueError if they are other weights'."""
    weights = (path if path.is_dir() else path.parent) / "checkpoints" / "best.pt"
    if not weights.exists():
        return "no weights beside it"
    if args.data_dir is None:
        return f"--data_dir DIR computes the top-1 of {weights} again"
    best = max(point["top1"] for point in record["curve"])
    again = top1_of_weights(weights, args.data_dir, args.minutes)
    if abs(again - best) > TOLERANCE:
        raise ValueError(
            f"{path} does not fit:\n  its best top-1 is {best:.2f}%, but {weights} has {again:.2f}%"
        )
    return f"its weights have {again:.2f}% top-1, as it says"


def is_about(record: Mapping[str, object], goal: Goal) -> bool:
    val = record["data"]["val"]
    same_data = (val["num_images"], val["num_classes"]) == (goal.val_images, goal.classes)
    return same_data and goal.cores in (None, record["host"]["cores"])


def table(goal: Goal, records: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Markdown: who reached the goal, the best first; published figures in order among them."""
    rows = [row for name, record in records.items() if (row := row_of(goal, name, record))]
    if goal is IMAGENET:
        rows += published_rows()
    rows.sort(key=lambda row: row[0])
    lines = [f"## {goal.title}", ""]
    if not rows:
        return [*lines, "no run yet", ""]
    lines += ["| run | machine | time | GPU-hours | dollars |", "|---" * 5 + "|"]
    return [*lines, *("| " + " | ".join(cells) + " |" for _, cells in rows), ""]


def row_of(
    goal: Goal, name: str, record: Mapping[str, object]
) -> tuple[tuple[float, float], list[str]] | None:
    """What it is ranked by, and its cells; None for a run that is about something else."""
    reached = next((point for point in record["curve"] if point["top1"] >= goal.top1), None)
    if not is_about(record, goal) or reached is None:
        return None
    gpus = record["gpus"]
    machine = f"{len(gpus)}x {gpus[0]}" if gpus else f"{record['host']['cores']} cores"
    machine += f", {record['host'].get('cpu', '')}, {record['precision']}"
    gpu_hours = len(gpus) * reached["seconds"] / 3600
    cost = dollars(reached["cost_usd"]) if record["price_per_hour"] else "no price given"
    what = f"{name}: {record['settings'].get('recipe')}, {reached['top1']:.2f}%"
    amount = reached["cost_usd"] if goal.by == "cost_usd" else 0.0
    is_unknown = goal.by == "cost_usd" and not record["price_per_hour"]
    cells = [what, machine, clock(reached["seconds"]), f"{gpu_hours:.2f}" if gpus else "-", cost]
    return (math.inf if is_unknown else amount, reached["seconds"]), cells


def published_rows() -> Iterator[tuple[tuple[float, float], list[str]]]:
    """Rows of published_times.csv; dollars: their GPU-hours at the least that EC2 asks for such a
    GPU, where it has it."""
    prices = instance_prices.cheapest_per_gpu()
    for row in published():
        hours, minutes = float(row["gpu_hours"]), float(row["minutes"])
        on = prices.get(row["gpu"])
        price = on.usd_per_hour / on.gpus if on else 0.0
        cost = f"{dollars(hours * price)} (x ${price:.2f}, {on.instance})" if on else "-"
        key = (hours * price if on else math.inf, hours)
        machine = f"{row['gpus']}x {row['gpu']}"
        what = f"published: {row['submitter']}, MLPerf {row['round']}"
        yield key, [what, machine, clock(60 * minutes), f"{hours:.2f}", cost]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="board.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("records", type=Path, nargs="*", metavar="RECORD", help="record.json, or a run's folder")
    add("--data_dir", type=Path, metavar="DIR", help="compute the top-1 of the weights again")
    add("--minutes", type=float, default=60.0, metavar="X", help="for that, at most [%(default)g]")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Check the records, print the tables; 2 if a record does not fit."""
    args = build_parser().parse_args(argv)
    ours = sorted((HERE / "records").glob("*.json"))
    records, failed = {}, False
    for path in (*ours, *args.records):
        name = path.stem if path in ours else str(path)
        try:
            record = read(path)
            if path not in ours:
                print(f"{path}: complete; {check_weights(path, record, args)}", flush=True)
            records[name] = record
        except ValueError as error:
            print_error("board.py", error)
            failed = True
    for goal in (FASHION, IMAGENET):
        print("\n".join(table(goal, records)))
    print(f"Published: {SOURCE.format(round='vX.Y')}. Dollars of published rows: GPU-hours times a")
    terms = next(iter(instance_prices.read().values())).terms
    print(f"price for one GPU ({terms}). A projection: nobody has paid it for these runs.")
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
