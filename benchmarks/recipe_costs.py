"""Hours and dollars of every ImageNet recipe on rented machines: projections, no measurements.

    python benchmarks/recipe_costs.py
    python benchmarks/recipe_costs.py --json costs.json
    python benchmarks/recipe_costs.py --picture images/recipes.png

Nothing is run. Each GPU has the training rates at 224 px that are known for it, with their software
and source: those of published_times.csv are another stack's than ours, a mark to aim at and no
promise; where we measured one ourselves, it stands beside them. Other sizes go by their pixels,
rate(size) = rate(224) x (224 / size)^2, each epoch with its own size; an epoch is 1,281,167 images.
An evaluation is 50,000 at the training rate of its size, which is the slowest that it can be, since
a training step contains a forward pass. Nothing is counted for waiting: the images/s that the data
have to keep up with are printed too. A second table holds this arithmetic against the logs that the
rates are from; another one, against what recipes took where they were published: with small images,
real runs waited. bench.py measures a host instead.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from gpu_rates import A100, Rate, published, rates_of

from resnet50.config import instance_prices
from resnet50.config.instance_prices import Instance
from resnet50.config.recipes import RECIPES, Recipe
from resnet50.config.train_config import TrainConfig
from resnet50.system import figures
from resnet50.system.figures import Figure
from resnet50.training.plan import epoch_sizes

TRAIN_IMAGES, EVAL_IMAGES = 1_281_167, 50_000
REFERENCE_SIZE = 224  # px, of the published rates
LEVELS = range(70, 90)  # top-1 in percent, for `advice`
MLPERF_EPOCHS = (35, 39)  # of the logs' runs, all of them at 224 px; evaluated every 4 epochs
MLPERF_EVAL_EVERY = 4
# One of each GPU that EC2 has and that there is a rate for, with 12 and more virtual cores a GPU,
# since those have to decode.
INSTANCES = ("g5.4xlarge", "g6.4xlarge", "g6e.4xlarge", "p5.4xlarge", "p4de.24xlarge")


@dataclass(frozen=True)
class Cost:
    """A recipe on a machine at one of its rates; a projection.

    needs: images/s of decoding in its fastest epoch.
    """

    recipe: str
    host: Instance
    rate: Rate
    hours: float
    needs: float

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.host.gpus

    @property
    def dollars(self) -> float:
        return self.hours * self.host.usd_per_hour


def hosts() -> list[Instance]:
    """The machines of the table."""
    prices = instance_prices.read()
    return [prices[name] for name in INSTANCES]


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


def seconds(sizes: Sequence[int], evaluations: int, eval_size: int, rate: float) -> float:
    """Of training epochs of these sizes and so many evaluations; rate: images/s at 224 px."""
    train_s = sum(TRAIN_IMAGES / rate_at(size, rate) for size in sizes)
    return train_s + evaluations * EVAL_IMAGES / rate_at(eval_size, rate)


def evaluations_of(cfg: TrainConfig) -> int:
    return math.ceil(cfg.epochs / (cfg.eval_every_epochs or cfg.epochs))


def project(name: str, host: Instance, rate: Rate) -> Cost:
    """Hours of training and evaluation."""
    cfg = TrainConfig(**RECIPES[name].settings)
    sizes, per_s = epoch_sizes(cfg), rate.images_per_s * host.gpus
    hours = seconds(sizes, evaluations_of(cfg), cfg.eval_crop, per_s) / 3600
    return Cost(name, host, rate, hours, rate_at(min(sizes), per_s))


def all_costs() -> list[Cost]:
    """Every recipe on every machine at every rate."""
    return [
        project(name, host, rate)
        for name in imagenet_recipes()
        for host in hosts()
        for rate in rates_of(host.gpu)
    ]


def log_minutes(row: Mapping[str, str], epochs: int) -> float:
    """What this arithmetic gives for a run of published_times.csv, from its rate."""
    rate = float(row["images_per_s"]) * int(row["gpus"])
    evaluations = epochs // MLPERF_EVAL_EVERY + 1
    return seconds([REFERENCE_SIZE] * epochs, evaluations, REFERENCE_SIZE, rate) / 60


def span(low: float, high: float, digits: int, sign: str = "") -> str:
    """ "3.9 to 4.5"; one number where both look the same."""
    texts = [f"{sign}{value:,.{digits}f}" for value in (low, high)]
    return texts[0] if texts[0] == texts[1] else " to ".join(texts)


def cell(costs: Sequence[Cost]) -> str:
    """Hours and dollars of a recipe on a machine, from its fastest to its slowest rate."""
    hours = [cost.hours for cost in costs]
    dollars = [cost.dollars for cost in costs]
    return f"{span(min(hours), max(hours), 1)} h, {span(min(dollars), max(dollars), 2, '$')}"


def table(costs: Sequence[Cost]) -> list[str]:
    """Markdown: one row per recipe, one column per machine, and published GPU-hours beside ours."""
    heads = " | ".join(f"{host.instance}: {host.gpus}x {host.gpu}" for host in hosts())
    lines = [
        f"| recipe | top-1 % | {heads} | A100-hours: projected | published |",
        "|---|---|" + "---|" * (len(INSTANCES) + 2),
    ]
    for name, recipe in imagenet_recipes().items():
        row = [cost for cost in costs if cost.recipe == name]
        cells = " | ".join(cell([cost for cost in row if cost.host == host]) for host in hosts())
        ours = [cost.gpu_hours for cost in row if cost.rate.gpu == A100]
        there = recipe.gpu_hours
        ratios = "" if there is None else span(there / max(ours), there / min(ours), 1)
        at = "-" if there is None else f"{there:g} ({ratios} x)"
        projected = span(min(ours), max(ours), 1)
        lines.append(f"| `{name}` | {recipe.top1:g} | {cells} | {projected} | {at} |")
    return lines


def needs_table(costs: Sequence[Cost]) -> list[str]:
    """Markdown: the largest rate of any recipe on every machine, which the data must keep up
    with."""
    lines = ["| machine | the fastest epoch needs | of each virtual core |", "|---|---|---|"]
    for host in hosts():
        most = max((cost for cost in costs if cost.host == host), key=lambda cost: cost.needs)
        lines.append(
            f"| {host.instance} | `{most.recipe}` needs {most.needs:,.0f} images/s of decoding "
            f"| {most.needs / host.vcpus:,.0f} |"
        )
    return lines


def rates_table() -> list[str]:
    """Markdown: every rate of the machines' GPUs, the fastest first."""
    lines = ["| GPU | images/s at 224 px, each | software | source |", "|---|---|---|---|"]
    for host in hosts():
        lines += [
            f"| {rate.gpu} | {rate.images_per_s:,.0f} | {rate.stack} | {rate.source} |"
            for rate in rates_of(host.gpu)
        ]
    return lines


def logs_table() -> list[str]:
    """Markdown: the logs whose rate is their own, and what this arithmetic makes of it."""
    first, last = MLPERF_EPOCHS
    lines = [
        f"| log | images/s per GPU | minutes there | {first} to {last} epochs by this arithmetic |",
        "|---|---|---|---|",
    ]
    for row in published():
        if row["derived"] == "no":
            minutes = span(log_minutes(row, first), log_minutes(row, last), 1)
            lines.append(
                f"| {row['gpus']}x {row['gpu']}, {row['submitter']} {row['round']} "
                f"| {float(row['images_per_s']):,.0f} | {row['minutes']} | {minutes} |"
            )
    return lines


def arithmetic(cost: Cost) -> str:
    """One projection with its numbers, for checking by hand."""
    cfg = TrainConfig(**RECIPES[cost.recipe].settings)
    sizes, rate = epoch_sizes(cfg), cost.rate.images_per_s * cost.host.gpus
    train = " + ".join(
        f"{sizes.count(size)} x {TRAIN_IMAGES:,} / {rate_at(size, rate):,.0f} ({size} px)"
        for size in sorted(set(sizes))
    )
    return (
        f"`{cost.recipe}` on {cost.host.instance} at {rate:,.0f}: {train} + "
        f"{evaluations_of(cfg)} x {EVAL_IMAGES:,} / {rate_at(cfg.eval_crop, rate):,.0f} "
        f"({cfg.eval_crop} px) = {3600 * cost.hours:,.0f} s = {cost.hours:.1f} h; "
        f"x ${cost.host.usd_per_hour:g} = ${cost.dollars:.2f}"
    )


def slowest(costs: Sequence[Cost]) -> list[Cost]:
    """Of every recipe and machine the projection at the lowest rate."""
    found: dict[tuple[str, str], Cost] = {}
    for cost in costs:
        key = cost.recipe, cost.host.instance
        found[key] = max(found.get(key, cost), cost, key=lambda one: one.hours)
    return list(found.values())


def advice(costs: Sequence[Cost]) -> list[str]:
    """What to take for a budget: for every whole percent of top-1 the recipe that is cheapest on
    one A10G at its slowest rate, one sentence per recipe."""
    # Not on whichever machine looks cheapest: of some GPUs only the other stack's rate is known.
    single = [cost for cost in slowest(costs) if cost.host.instance == INSTANCES[0]]
    choices: dict[str, tuple[int, Cost]] = {}
    for level in LEVELS:
        enough = [cost for cost in single if RECIPES[cost.recipe].top1 >= level]
        if enough:
            best = min(enough, key=lambda cost: cost.dollars)
            choices[best.recipe] = level, best  # the highest level that it is for
    sentences = []
    for name, (level, best) in choices.items():
        rows = [cost for cost in slowest(costs) if cost.recipe == name]
        fastest = min(rows, key=lambda cost: cost.hours)
        sentences.append(
            f"* {level}% and less: `{name}`, {RECIPES[name].result}; {on(best)}, or {on(fastest)}."
        )
    return sentences


def on(cost: Cost) -> str:
    """Dollars and hours on a machine."""
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
    prices = [
        f"* {host.instance}: ${host.usd_per_hour:g} an hour {host.terms}. {host.source}."
        for host in hosts()
    ]
    example = next(c for c in slowest(costs) if (c.recipe, c.rate.gpu) == ("fast16", "A10G"))
    parts = [
        ["**Projections, not measurements**: hours and dollars of one run, if the data keep up."],
        table(costs),
        needs_table(costs),
        rates_table(),
        logs_table(),
        prices,
        [
            f"rate(size) = rate(224) x (224 / size)^2; {TRAIN_IMAGES:,} images an epoch; "
            f"evaluation of {EVAL_IMAGES:,} at the training rate. {arithmetic(example)}."
        ],
        [f"What to take for a budget, on a {INSTANCES[0]} at its slowest rate:"]
        + advice(costs)
        + [published_advice()],
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def to_json(costs: Sequence[Cost]) -> list[dict[str, object]]:
    """One object a recipe, machine, and rate."""
    return [
        {
            "recipe": cost.recipe,
            "instance": cost.host.instance,
            "gpu": cost.host.gpu,
            "gpus": cost.host.gpus,
            "images_per_s_per_gpu": cost.rate.images_per_s,
            "stack": cost.rate.stack,
            "rate_source": cost.rate.source,
            "usd_per_hour": cost.host.usd_per_hour,
            "hours": cost.hours,
            "gpu_hours": cost.gpu_hours,
            "dollars": cost.dollars,
            "needs_images_per_s": cost.needs,
            "is_projection": True,
        }
        for cost in costs
    ]


def draw(path: Path, costs: Sequence[Cost]) -> None:
    """Published top-1 over projected dollars, on one A10G and on eight A100s: a line a recipe from
    the fastest rate to the slowest, with a point there."""
    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    axes = figure.subplots()
    # The second one a little lower, or they would hide each other.
    for gpu, color, marker, lower in (("A10G", "#0072B2", "o", 0), (A100, "#D55E00", "s", 0.14)):
        row = [cost for cost in costs if cost.rate.gpu == gpu]
        for name in imagenet_recipes():
            dollars = [cost.dollars for cost in row if cost.recipe == name]
            top1 = RECIPES[name].top1 - lower
            axes.plot([min(dollars), max(dollars)], [top1, top1], color=color, linewidth=2)
            axes.plot(max(dollars), top1, marker, color=color)
            if gpu == "A10G":
                at, up = (max(dollars), top1), (0, 6)
                axes.annotate(name, at, up, textcoords="offset points", ha="center", fontsize=9)
        label = f"{row[0].host.gpus}x {gpu} ({row[0].host.instance})"
        label += f", drawn {lower:g} lower" if lower else ""
        axes.plot([], [], marker, color=color, label=label)
    axes.set(
        xscale="log",
        xlabel="dollars a run, from the fastest known rate to the slowest: a projection",
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
    costs = all_costs()
    print(page(costs), end="")
    if args.picture:
        draw(args.picture, costs)
    if args.json:
        args.json.write_text(json.dumps(to_json(costs), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
