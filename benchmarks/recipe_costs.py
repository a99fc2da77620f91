"""Hours and dollars of every ImageNet recipe on four rented machines: projections, no measurements.

    python benchmarks/recipe_costs.py
    python benchmarks/recipe_costs.py --json costs.json
    python benchmarks/recipe_costs.py --picture images/recipes.png

Nothing is run. Images/s at 224 px are published training figures; other sizes go by their pixels,
rate(size) = rate(224) x (224 / size)^2, each epoch with its own size. An epoch is 1,281,167 images;
an evaluation 50,000, at three times the training rate of its size (assumed: no backward pass).
Data loading is assumed to keep up; the images/s that this requires are printed too. The table shows
what recipes took where they were published, next to what this arithmetic gives for them: real runs
were slower, more so with small images. bench.py measures instead of projecting.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from resnet50.config.recipes import RECIPES, Recipe
from resnet50.config.train_config import TrainConfig
from resnet50.system import figures
from resnet50.system.figures import Figure
from resnet50.training.plan import epoch_sizes

TRAIN_IMAGES, EVAL_IMAGES = 1_281_167, 50_000
EVAL_SPEED = 3  # times the training rate at the same size; an assumption
REFERENCE_SIZE = 224  # px, of the published rates
LEVELS = range(70, 90)  # top-1 in percent, for `advice`
PRICES = (
    "On demand, Linux, us-east-1, from SkyPilot's catalog v8 (catalogs/v8/aws/vms.csv; after AWS's "
    "cut of June 2025, day not recorded): look up today's"
)


@dataclass(frozen=True)
class Host:
    """An instance type; rate: training images/s at 224 px, all its GPUs together."""

    instance: str
    gpus: int
    gpu: str
    rate: float
    price: float  # dollars per hour
    cores: int  # virtual
    source: str  # of the rate


# One of each family, with 8 and more virtual cores a GPU, since those have to decode: g5.xlarge and
# g6.xlarge have 4 (g5.xlarge costs 1.006).
HOSTS = (
    Host(
        "g4dn.2xlarge",
        1,
        "T4",
        250,
        0.752,
        8,
        "mosaicml/composer issue 136: about 2,000 on 8 GPUs (g4dn.metal), channels_last",
    ),
    Host(
        "g5.4xlarge",
        1,
        "A10G",
        810,
        1.624,
        16,
        "a training log of 185 epochs on g5.xlarge: fp16, channels_last, DALI (Sagar063, "
        "imagenet1kfull_g5x_1gpu_dali_nvme)",
    ),
    Host(
        "g6.12xlarge",
        4,
        "L4",
        4 * 810 * 300 / 600,
        4.6016,
        48,
        "ASSUMED, no training figure found: the A10G's x 300 / 600, the GB/s of their memories, "
        "and 4 GPUs four times as fast as one",
    ),
    Host(
        "p4d.24xlarge",
        8,
        "A100",
        16_621,
        21.9576,
        96,
        "NVIDIA DeepLearningExamples, resnet50v1.5 README: 8 GPUs, AMP, DALI (one GPU: 2,470)",
    ),
)


@dataclass(frozen=True)
class Cost:
    """A recipe on a host; a projection. needs: images/s of decoding in its fastest epoch."""

    recipe: str
    host: Host
    hours: float
    needs: float

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.host.gpus

    @property
    def dollars(self) -> float:
        return self.hours * self.host.price


def imagenet_recipes() -> dict[str, Recipe]:
    """Those whose summary says so, and that have a result."""
    return {
        name: recipe
        for name, recipe in RECIPES.items()
        if "ImageNet-1K" in recipe.summary and recipe.top1 is not None
    }


def rate_at(size: int, rate: float) -> float:
    """Images/s at a size in pixels, from those at 224 px."""
    return rate * (REFERENCE_SIZE / size) ** 2


def project(name: str, host: Host) -> Cost:
    """Hours of training and evaluation."""
    cfg = TrainConfig(**RECIPES[name].settings)
    sizes = epoch_sizes(cfg)
    train_s = sum(TRAIN_IMAGES / rate_at(size, host.rate) for size in sizes)
    evaluations = math.ceil(cfg.epochs / (cfg.eval_every_epochs or cfg.epochs))
    eval_s = evaluations * EVAL_IMAGES / (EVAL_SPEED * rate_at(cfg.eval_crop, host.rate))
    return Cost(name, host, (train_s + eval_s) / 3600, rate_at(min(sizes), host.rate))


def table(costs: Sequence[Cost]) -> list[str]:
    """Markdown: one row per recipe, one column per host, and published GPU-hours beside ours."""
    hosts = " | ".join(f"{host.instance}: {host.gpus}x {host.gpu}" for host in HOSTS)
    lines = [
        f"| recipe | top-1 % | {hosts} | A100-hours: projected | published |",
        "|---|---|" + "---|" * (len(HOSTS) + 2),
    ]
    for name, recipe in imagenet_recipes().items():
        row = [cost for cost in costs if cost.recipe == name]
        cells = " | ".join(f"{cost.hours:.1f} h, ${cost.dollars:.2f}" for cost in row)
        ours = next(cost.gpu_hours for cost in row if cost.host.gpu == "A100")
        there = recipe.gpu_hours
        published = "-" if there is None else f"{there:g} ({there / ours:.2f} x)"
        lines.append(f"| `{name}` | {recipe.top1:g} | {cells} | {ours:.1f} | {published} |")
    return lines


def needs_table(costs: Sequence[Cost]) -> list[str]:
    """Markdown: the largest rate of any recipe on every host, which the data must keep up with."""
    lines = ["| machine | the fastest epoch needs | of each virtual core |", "|---|---|---|"]
    for host in HOSTS:
        most = max((cost for cost in costs if cost.host == host), key=lambda cost: cost.needs)
        lines.append(
            f"| {host.instance} | `{most.recipe}` needs {most.needs:,.0f} images/s of decoding "
            f"| {most.needs / host.cores:,.0f} |"
        )
    return lines


def arithmetic(name: str, host: Host) -> str:
    """One projection with its numbers, for checking by hand."""
    cfg = TrainConfig(**RECIPES[name].settings)
    sizes = epoch_sizes(cfg)
    train = " + ".join(
        f"{sizes.count(size)} x {TRAIN_IMAGES:,} / {rate_at(size, host.rate):,.0f} ({size} px)"
        for size in sorted(set(sizes))
    )
    evaluations = math.ceil(cfg.epochs / (cfg.eval_every_epochs or cfg.epochs))
    eval_rate = EVAL_SPEED * rate_at(cfg.eval_crop, host.rate)
    cost = project(name, host)
    return (
        f"`{name}` on {host.instance}: {train} + {evaluations} x {EVAL_IMAGES:,} / "
        f"{eval_rate:,.0f} ({cfg.eval_crop} px) = {3600 * cost.hours:,.0f} s = {cost.hours:.1f} h; "
        f"x ${host.price:g} = ${cost.dollars:.2f}"
    )


def advice(costs: Sequence[Cost]) -> list[str]:
    """What to take for a budget: for every whole percent of top-1 the recipe that is cheapest on
    one GPU, one sentence per recipe."""
    single = [cost for cost in costs if cost.host.gpus == 1]
    choices: dict[str, tuple[int, Cost]] = {}
    for level in LEVELS:
        enough = [cost for cost in single if RECIPES[cost.recipe].top1 >= level]
        if enough:
            best = min(enough, key=lambda cost: cost.dollars)
            choices[best.recipe] = level, best  # the highest level that it is for
    sentences = []
    for name, (level, best) in choices.items():
        rows = [cost for cost in costs if cost.recipe == name]
        fastest = min(rows, key=lambda cost: cost.hours)
        sentences.append(
            f"* {level}% and less: `{name}`, {RECIPES[name].result}; {on(best)}, or {on(fastest)}."
        )
    return sentences


def on(cost: Cost) -> str:
    """Dollars and hours on a host."""
    return f"${cost.dollars:.2f} and {cost.hours:.1f} h on {cost.host.instance}"


def published_advice() -> str:
    """The recipes in the order of their published, measured hours, which need no projection."""
    known = [(r.gpu_hours, name, r) for name, r in imagenet_recipes().items() if r.gpu_hours]
    listed = ", ".join(
        f"`{name}` {hours:g} for {r.top1:g}%"
        for hours, name, r in sorted(known, key=lambda k: k[0])
    )
    return (
        f"* By published A100-hours: {listed}. Composer's runs (mild) waited for decoding at "
        "88 px, 32,500 images/s on 8 GPUs."
    )


def page(costs: Sequence[Cost]) -> str:
    """All of it as Markdown."""
    rates = [
        f"* {host.instance}: {host.rate:,.0f} images/s at 224 px on {host.gpus}x {host.gpu}, "
        f"${host.price:g}/h. {host.source}."
        for host in HOSTS
    ]
    parts = [
        ["**Projections, not measurements**: hours and dollars of one run, if the data keep up."],
        table(costs),
        needs_table(costs),
        rates + [f"* Prices: {PRICES}."],
        [
            f"rate(size) = rate(224) x (224 / size)^2; {TRAIN_IMAGES:,} images an epoch; "
            f"evaluation of {EVAL_IMAGES:,} at {EVAL_SPEED} x the training rate (assumed). "
            + arithmetic("fast16", HOSTS[1])
            + "."
        ],
        ["What to take for a budget:"] + advice(costs) + [published_advice()],
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def to_json(costs: Sequence[Cost]) -> list[dict[str, object]]:
    """One object a recipe and host."""
    return [
        {
            "recipe": cost.recipe,
            "instance": cost.host.instance,
            "gpu": cost.host.gpu,
            "gpus": cost.host.gpus,
            "hours": cost.hours,
            "gpu_hours": cost.gpu_hours,
            "dollars": cost.dollars,
            "needs_images_per_s": cost.needs,
            "is_projection": True,
        }
        for cost in costs
    ]


def draw(path: Path, costs: Sequence[Cost]) -> None:
    """Published top-1 over projected dollars, a point a recipe, on one A10G and on eight A100s."""
    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    axes = figure.subplots()
    for gpu, color, marker in (("A10G", "#0072B2", "o"), ("A100", "#D55E00", "s")):
        row = [cost for cost in costs if cost.host.gpu == gpu]
        host = row[0].host
        points = [(cost.dollars, RECIPES[cost.recipe].top1) for cost in row]
        label = f"{host.gpus}x {gpu} ({host.instance})"
        axes.plot(*zip(*points, strict=True), marker, color=color, label=label)
        for cost, point in zip(row, points, strict=True):
            if gpu == "A10G":
                axes.annotate(
                    cost.recipe, point, (0, 6), textcoords="offset points", ha="center", fontsize=9
                )
    axes.set(
        xscale="log",
        xlabel="dollars a run: a projection, not a measurement",
        ylabel="published top-1 on ImageNet-1K, %",
    )
    axes.set_xticks([5, 10, 20, 50, 100, 200, 500], labels=map(str, [5, 10, 20, 50, 100, 200, 500]))
    axes.minorticks_off()
    axes.margins(x=0.12)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    figures.save(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the page, and write it as JSON where asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw dollars and top-1")
    args = parser.parse_args(argv)
    for path in filter(None, (args.json, args.picture)):
        if path.is_dir() or not path.parent.is_dir():
            parser.error(f"{path} cannot be written: give a file in a folder")
    costs = [project(name, host) for name in imagenet_recipes() for host in HOSTS]
    print(page(costs), end="")
    if args.picture:
        draw(args.picture, costs)
    if args.json:
        args.json.write_text(json.dumps(to_json(costs), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
