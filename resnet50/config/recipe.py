"""What a named recipe is, and how it reads: for the terminal, and as a table for the pages."""

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from resnet50.config import size_stages

WIDTH = 100  # columns


@dataclass(frozen=True)
class Recipe:
    """Settings of `TrainConfig` by name, and the result that somebody published for them.

    top1, top5: percent, None if unknown; evaluated: at which size and how; source: who published
    it and where; gpu_hours: published GPU-hours of training and evaluation; gpu: on which GPUs;
    differs: what this code does differently.
    """

    summary: str
    settings: Mapping[str, object]
    top1: float | None
    top5: float | None
    evaluated: str
    source: str
    gpu_hours: float | None = None
    gpu: str = ""
    differs: str = ""

    @property
    def result(self) -> str:
        """The published result, in one line."""
        if self.top1 is None:
            return "no figure yet"
        top5 = "" if self.top5 is None else f", top-5 {self.top5:g}"
        return f"top-1 {self.top1:g}{top5} ({self.evaluated})"


def sizes(recipe: Recipe) -> str:
    """Sides of training and evaluation crops in pixels, such as 160->192 px, tested at 256 px."""
    settings = recipe.settings
    size = settings["image_size"]
    start = settings.get("start_image_size")
    train = f"{start}->{size} px" if start else f"{size} px"
    if stages := size_stages.parse(settings.get("size_stages", size_stages.NONE)):
        train = f"{'->'.join(str(side) for side, _ in stages)} px"
    return f"{train}, tested at {settings.get('eval_image_size') or size} px"


def describe(recipes: Mapping[str, Recipe], default: str) -> str:
    """All recipes in paragraphs of at most 100 columns; ends with a newline. default: its name."""
    first_with: dict[str, str] = {}
    paragraphs = []
    for name, recipe in recipes.items():
        first = first_with.setdefault(recipe.differs, name)
        differs = recipe.differs if first == name else f"as {first}"
        title = f"{name} (default)" if name == default else name
        paragraphs.append(_paragraph(title, recipe, differs if recipe.differs else ""))
    return "\n".join(paragraphs)


def _paragraph(title: str, recipe: Recipe, differs: str) -> str:
    hours = "" if recipe.gpu_hours is None else f"; {recipe.gpu_hours:g} GPU-hours ({recipe.gpu})"
    epochs, batch = recipe.settings["epochs"], recipe.settings["total_batch_size"]
    lines = [
        _wrapped(f"{title}: {recipe.summary}", ""),
        _wrapped(f"{epochs} epochs of batch {batch}, {sizes(recipe)}", "    "),
        _wrapped(f"result: {recipe.result}{hours}", "    "),
        _wrapped(f"source: {recipe.source}", "    "),
    ]
    if differs:
        lines.append(_wrapped(f"differs: {differs}", "    "))
    return "\n".join(lines) + "\n"


def _wrapped(text: str, indent: str) -> str:
    # Paths and addresses are for copying: they stay whole.
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent or "    ",
        break_on_hyphens=False,
        break_long_words=False,
    )


def as_markdown(recipes: Mapping[str, Recipe], default: str) -> str:
    """A table for the pages: who published it, not where or what differs; ends with a newline."""
    lines = [
        "| recipe | what | px | top-1 / top-5 % | GPU-hours there | published by |",
        "|---|---|---|---|---|---|",
    ]
    for name, recipe in recipes.items():
        mark = " (default)" if name == default else ""
        figures = f"{_figure(recipe.top1)} / {_figure(recipe.top5)} ({recipe.evaluated})"
        figures = "-" if recipe.top1 is None else figures
        hours = "-" if recipe.gpu_hours is None else f"{recipe.gpu_hours:g} {recipe.gpu}"
        px = sizes(recipe).partition(" px")[0]
        lines.append(
            f"| `{name}`{mark} | {recipe.summary} | {px} | {figures} | {hours} "
            f"| {re.split('[,;:(]', recipe.source)[0].strip()} |"
        )
    return "\n".join(lines) + "\n"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
