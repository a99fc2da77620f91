"""Find what limits this host before you pay for a run: its cores, its disk, or its device.

    python bench.py --data_dir DIR
    python bench.py --data_dir DIR --recipe onecycle50 --price_per_hour 1.2 --json bench.json
    python bench.py --data_dir DIR --image_size 128 224 --total_batch_size 64 --seconds 5

Measures the loader alone, the model alone, the model beside a loader at full load whose batches it
does not wait for (what such neighbors cost a step), and both together as in train.py's loop, at the
image sizes that the recipe uses or at the ones given; and the disk, on a sample of the images
dropped from the page cache. Then projects hours and dollars for the recipe on this data, at the
largest size given, if any; and what $5, $10 and $20 would buy (train.py --budget_usd), with
--price_per_hour. Writes no file except --json. Exit codes: 0 done, 2 change something, 130
interrupted.
"""

import resnet50.system.preflight  # noqa: F401 (first: it reports what this Python lacks)

# isort: split
import argparse
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from resnet50.config import train_flags
from resnet50.config.command_line import Parser, print_error
from resnet50.config.recipes import DEFAULT_RECIPE, RECIPES
from resnet50.config.train_config import TrainConfig
from resnet50.records import metrics, paid_clock
from resnet50.run import instance_price, purchases
from resnet50.run.resolve import with_data
from resnet50.system import limits, outputs
from resnet50.system.interruption import Interrupted
from resnet50.training import batch_fit, throughput
from resnet50.training.host_times import HostTimes
from resnet50.training.plan import ONE_SIZE, epoch_sizes

BUSY = 0.25  # load per core above which other programs are using the machine
NO_SETTINGS = ("image_size", "seconds", "json")  # flags that do not go into TrainConfig unchanged
REMEDIES = {
    "cpu": "more cores per GPU, or smaller pictures: prepare_data.py --long_side 400",
    "disk": "more memory, a faster volume, or a smaller pack: prepare_data.py --long_side 400",
    "device": "the loader and the disk keep up with it",
}


def find_limit(loader: float, model: float, disk: float | None, fits_in_memory: bool) -> str:
    """The slowest part, by images/s; the disk counts if every epoch has to read the split."""
    rates = {"device": model, "cpu": loader}
    if disk is not None and not fits_in_memory:
        rates["disk"] = disk
    return min(rates, key=rates.__getitem__)


def project(
    cfg: TrainConfig,
    num_train: int,
    num_val: int,
    rates: Mapping[int, float],
    disk: Mapping[str, object],
    eval_images_per_s: float | None,
) -> dict[str, object]:
    """Hours that the recipe takes on num_train and num_val images, and dollars if a price is known.

    rates: images/s of the loop by size in pixels. An epoch that reads the disk is no faster than
    the disk: that is the first epoch, or all of them if the split does not fit into memory.
    """
    sizes = epoch_sizes(cfg)
    images = num_train // cfg.total_batch_size * cfg.total_batch_size
    disk_rate = disk["images_per_s"] or math.inf
    train_s = sum(
        images / (rates[size] if disk["fits_in_memory"] and epoch else min(rates[size], disk_rate))
        for epoch, size in enumerate(sizes)
    )
    evaluations = math.ceil(cfg.epochs / (cfg.eval_every_epochs or cfg.epochs)) if num_val else 0
    eval_s = evaluations * num_val / eval_images_per_s if evaluations else 0.0
    hours = (train_s + eval_s) / 3600
    return {
        "name": cfg.recipe,
        "epochs": cfg.epochs,
        "epochs_by_size": {str(size): count for size, count in Counter(sizes).items()},
        "images_per_epoch": images,
        "train_s": train_s,
        "evaluations": evaluations,
        "num_val_images": num_val,
        "eval_images_per_s": eval_images_per_s,
        "eval_s": eval_s,
        "hours": hours,
        "cost_usd": hours * cfg.price_per_hour if cfg.price_per_hour else None,
    }


def bench_host(cfg: TrainConfig, sizes: Sequence[int], seconds: float) -> dict[str, object]:
    """Measure everything; returns the object for --json. Raises ValueError for bad settings."""
    load_before = os.getloadavg()[0]
    started_s = time.monotonic()
    bench = throughput.set_up(cfg, seconds)
    start_s = time.monotonic() - started_s
    with closing(bench.parts.loader):
        disk = throughput.measure_disk(bench)
        rows = []
        for size in sorted(
            sizes, reverse=True
        ):  # largest first: running out of memory shows at once
            with throughput.memory_advice(cfg, size):
                rows.append(throughput.measure_size(bench, size))
        eval_images_per_s = throughput.measure_evaluation(bench) if bench.val_set else None
    for row in rows:
        loader, model = row["loader_images_per_s"], row["model_images_per_s"]
        row["limit"] = find_limit(loader, model, disk["images_per_s"], disk["fits_in_memory"])
    num_train, num_val = len(bench.parts.splits.train), len(bench.val_set or ())
    num_gpus = torch.cuda.device_count()

    def projected(rate: Callable[[dict], float]) -> dict[str, object]:
        rates = {row["image_size"]: rate(row) for row in rows}
        return project(cfg, num_train, num_val, rates, disk, eval_images_per_s)

    def both(row: dict) -> float:
        return row["both_images_per_s"]

    def on_all_gpus(row: dict) -> float:  # computed, not measured
        return min(num_gpus * row["model_images_per_s"], row["loader_images_per_s"])

    rates = {row["image_size"]: (on_all_gpus if num_gpus > 1 else both)(row) for row in rows}
    evaluation_s = num_val / eval_images_per_s / max(num_gpus, 1) if num_val else 0.0
    times = host_times(cfg, rates, disk, evaluation_s, start_s)
    import_s = started_s - paid_clock.start_of_command("bench.py")
    classes = bench.parts.splits.train.classes
    bought = purchases.purchases(cfg, times, import_s, num_train, len(classes))
    return {
        **rows[0],
        "sizes": rows[::-1],
        "disk": disk,
        "recipe": projected(both),
        "all_gpus": None if num_gpus < 2 else projected(on_all_gpus),
        "purchases": bought,
        "data": {"num_train_images": num_train, "num_val_images": num_val},
        "settings": cfg.to_json(),
        "seconds": seconds,
        "machine": {
            "cpu": limits.cpu_name(),
            "cores": limits.num_cores(),
            "gpu": torch.cuda.get_device_name(bench.parts.ranks.device) if num_gpus else None,
            "num_gpus": num_gpus,
            "torch": str(torch.__version__),
            "num_workers": bench.num_workers,
            "precision": bench.parts.precision.name,
            "load_before": load_before,
        },
    }


def host_times(
    cfg: TrainConfig,
    rates: Mapping[int, float],
    disk: Mapping[str, object],
    evaluation_s: float,
    start_s: float,
) -> HostTimes:
    """What a budget is planned with, from images/s by size; the disk counts in every epoch if the
    split does not fit into memory."""
    most = math.inf if disk["fits_in_memory"] else disk["images_per_s"] or math.inf
    step_s = {size: cfg.total_batch_size / min(rate, most) for size, rate in rates.items()}
    return HostTimes(step_s, evaluation_s, start_s=start_s)


def describe(result: Mapping[str, object]) -> str:
    """The result on one screen."""
    about = result["data"]
    settings = result["settings"]
    machine = result["machine"]
    per_step = settings["total_batch_size"] // settings["device_batch_size"]
    lines = [
        f"{settings['data_dir']}: {about['num_train_images']:,} training and "
        f"{about['num_val_images']:,} validation images",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['gpu'] or 'no GPU'}, torch "
        f"{machine['torch']}, {machine['precision']}; loader processes: {machine['num_workers']}, "
        f"batch {settings['total_batch_size']} = {per_step} x {settings['device_batch_size']}",
        "",
        "size px  loader alone  model alone    beside      both  waiting  limit",
    ]
    lines += [
        f"{row['image_size']:7}  {row['loader_images_per_s']:12.1f}  "
        f"{row['model_images_per_s']:11.1f}  {beside(row)}  {row['both_images_per_s']:8.1f}  "
        f"{row['data_wait_pct']:6.1f}%  {row['limit']}"
        for row in result["sizes"]
    ]
    chunks = [count for row in result["sizes"] for count in row["num_chunks"]]
    lines.append(
        f"images/s, each the median of {min(chunks)} or more chunks in about "
        f"{result['seconds']:g} s; waiting: for data, % of the time in `both`"
    )
    if machine["num_workers"]:
        lines.append(describe_neighbors(result["sizes"], machine["num_workers"]))
    if machine["load_before"] > BUSY * machine["cores"]:
        load = f"{machine['load_before']:.1f}"
        lines.append(f"warning: other programs kept {load} cores busy: the figures are too low")
    if not machine["gpu"]:
        lines.append(
            f"no GPU: loader and model share these {machine['cores']} cores, so each is faster "
            "alone than in a run"
        )
    lines += ["", describe_disk(result["disk"])]
    lines += [
        f"limit at {result['image_size']} px: {result['limit']} ({REMEDIES[result['limit']]})",
        "",
        describe_projection(result["recipe"], result["sizes"], settings["price_per_hour"]),
    ]
    if result["all_gpus"]:
        num_gpus, hours = machine["num_gpus"], result["all_gpus"]["hours"]
        lines.append(
            f"  measured on one of {num_gpus} GPUs; computed from min({num_gpus} x model, loader): "
            f"{hours:.2f} hours{dollars(result['all_gpus']['cost_usd'])} on all of them"
        )
    lines += ["", purchases.describe(result["purchases"], settings["price_per_hour"])]
    return "\n".join(lines)


def beside(row: Mapping[str, object]) -> str:
    """A cell of the table: the model beside the loader at full load."""
    rate = row["beside_images_per_s"]
    return f"{'-':>8}" if rate is None else f"{rate:8.1f}"


def describe_neighbors(rows: Sequence[Mapping], num_workers: int) -> str:
    """What loader processes at full load cost the model's step."""
    costs = ", ".join(
        f"{row['model_images_per_s'] / row['beside_images_per_s']:.2f} times as long at "
        f"{row['image_size']} px"
        for row in rows
    )
    who = "1 loader process" if num_workers == 1 else f"{num_workers} loader processes"
    return f"neighbors: beside {who} at full load, a step takes {costs} (`beside`)"


def describe_disk(disk: Mapping[str, object]) -> str:
    """The disk's speed, and in which epochs it matters."""
    if disk["images_per_s"]:
        speed = (
            f"{disk['images_per_s']:.0f} images/s, {disk['mb_per_s']:.0f} MB/s, for "
            f"{disk['num_images']:,} images dropped from the page cache"
        )
    else:
        speed = "not measured: the kernel would not drop the images from the page cache"
    counts = "in the first epoch only" if disk["fits_in_memory"] else "in every epoch"
    return (
        f"disk: {speed}\n  the split has {disk['split_bytes'] / 1e9:.2f} GB, "
        f"{disk['available_bytes'] / 1e9:.1f} GB of memory are free: the disk matters {counts}"
    )


def describe_projection(
    plan: Mapping[str, object], rows: Sequence[Mapping], price_per_hour: float
) -> str:
    """The arithmetic of the projection, term by term."""
    rates = {str(row["image_size"]): row["both_images_per_s"] for row in rows}
    epochs = " + ".join(
        f"{count} epochs x {plan['images_per_epoch']:,} images / {rates[size]:.1f} ({size} px)"
        for size, count in plan["epochs_by_size"].items()
    )
    text = f"projection of {plan['name']}: {epochs} = {metrics.clock(plan['train_s'])}"
    if plan["evaluations"]:
        text += (
            f"; {plan['evaluations']} evaluations x {plan['num_val_images']:,} / "
            f"{plan['eval_images_per_s']:.1f} = {metrics.clock(plan['eval_s'])}"
        )
    price = f" at {metrics.dollars(price_per_hour)} an hour" if price_per_hour else ""
    return (
        f"{text}\n  in total {plan['hours']:.2f} hours{dollars(plan['cost_usd'])}{price}; at the "
        "disk's rate where it matters and is slower; start-up and checkpoints not included"
    )


def dollars(cost_usd: float | None) -> str:
    """A price to append to other text; empty if none is known."""
    return "" if cost_usd is None else f", {metrics.dollars(cost_usd)}"


def build_parser() -> argparse.ArgumentParser:
    """The command line. Settings of TrainConfig that are not given are left out of the result."""
    parser = Parser("bench.py", __doc__, argument_default=argparse.SUPPRESS)
    add = parser.add_argument
    add(
        "--data_dir", metavar="DIR", help="folder with train and perhaps val [as train.py finds it]"
    )
    add("--recipe", choices=list(RECIPES), default=DEFAULT_RECIPE, help=f"[{DEFAULT_RECIPE}]")
    add("--image_size", type=int, nargs="+", default=[], metavar="N", help="px [the recipe's]")
    add("--num_workers", type=int, metavar="N", help="loader processes; -1: from the cores [-1]")
    add("--total_batch_size", type=int, metavar="N", help="images per step [the recipe's]")
    add(
        "--device_batch_size",
        type=int,
        metavar="N",
        help="images per micro-batch [the recipe's, or all]",
    )
    add("--amp", choices=("auto", "bf16", "fp16", "fp32"), help="precision [the recipe's]")
    add(
        "--price_per_hour",
        type=train_flags.or_auto(float),
        metavar="X|auto",
        help="price of this machine in dollars; auto: on an EC2 instance, what its type costs on "
        "demand",
    )
    add("--seconds", type=float, default=10.0, metavar="X", help="length of a measurement [10]")
    add("--json", type=Path, default=None, metavar="FILE", help="file for the figures")
    return parser


def read_settings(args: argparse.Namespace) -> TrainConfig:
    """The settings of the run to measure. Raises ValueError if the user must change something."""
    if not 0 < args.seconds < math.inf:
        raise ValueError(f"--seconds {args.seconds:g}: must be above 0")
    outputs.check({"json": args.json}, {"json": ("machine", "sizes")})
    given = {name: value for name, value in vars(args).items() if name not in NO_SETTINGS}
    settings = {**RECIPES[args.recipe].settings, **given}
    if args.image_size:
        settings["image_size"] = max(args.image_size)
        settings |= ONE_SIZE
    if not settings.get("device_batch_size"):
        settings["device_batch_size"] = settings["total_batch_size"]
    cfg, said = instance_price.settled(with_data(TrainConfig(**settings)), given)
    if said:
        print(said, flush=True)
    for size in args.image_size:
        replace(cfg, image_size=size)  # raises if it is too small
    return cfg


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write --json."""
    args = build_parser().parse_args(argv)
    try:
        cfg = read_settings(args)
        # Mistakes in the data are reported before anything is measured, which takes a minute.
        throughput.open_data(Path(cfg.data_dir), cfg.upright)
        cfg = batch_fit.fit_batch_size_alone(cfg)
        result = bench_host(cfg, set(args.image_size or epoch_sizes(cfg)), args.seconds)
    except (KeyboardInterrupt, Interrupted):
        print("bench.py: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        return print_error("bench.py", error)
    print(describe(result))
    if not args.json:
        return 0

    def write(path: Path) -> None:
        path.write_text(json.dumps(result, indent=2) + "\n")

    problem = outputs.write_or_keep("json", args.json, write)
    return print_error("bench.py", problem) if problem else 0


if __name__ == "__main__":
    sys.exit(main())
