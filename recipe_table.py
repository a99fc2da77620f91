"""The recipes to read: for the terminal, and as the README's table."""

import re
import textwrap
from collections.abc import Mapping

from recipes import DEFAULT_RECIPE, Recipe

WIDTH = 100  # columns


def sizes(recipe: Recipe) -> str:
    """Sides of training and evaluation crops in pixels, such as 160->192 px, tested at 256 px."""
    settings = recipe.settings
    size, start = settings["image_size"], settings.get("start_image_size")
    train = f"{start}->{size} px" if start else f"{size} px"
    return f"{train}, tested at {settings.get('eval_image_size') or size} px"


def describe(recipes: Mapping[str, Recipe]) -> str:
    """All recipes in paragraphs of at most 100 columns; ends with a newline."""
    first_with: dict[str, str] = {}
    paragraphs = []
    for name, recipe in recipes.items():
        first = first_with.setdefault(recipe.differs, name)
        differs = recipe.differs if first == name else f"as {first}"
        paragraphs.append(_paragraph(name, recipe, differs if recipe.differs else ""))
    return "\n".join(paragraphs)


def _paragraph(name: str, recipe: Recipe, differs: str) -> str:
    default = " (default)" if name == DEFAULT_RECIPE else ""
    hours = "" if recipe.gpu_hours is None else f"; {recipe.gpu_hours:g} GPU-hours ({recipe.gpu})"
    epochs, batch = recipe.settings["epochs"], recipe.settings["total_batch_size"]
    lines = [
        _wrapped(f"{name}{default}: {recipe.summary}", ""),
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


def as_markdown(recipes: Mapping[str, Recipe]) -> str:
    """The README's table: by whom, but not where, nor what differs; ends with a newline."""
    lines = [
        "| recipe | what | px | top-1 / top-5 % | GPU-hours there | published by |",
        "|---|---|---|---|---|---|",
    ]
    for name, recipe in recipes.items():
        default = " (default)" if name == DEFAULT_RECIPE else ""
        figures = f"{_figure(recipe.top1)} / {_figure(recipe.top5)} ({recipe.evaluated})"
        figures = "-" if recipe.top1 is None else figures
        hours = "-" if recipe.gpu_hours is None else f"{recipe.gpu_hours:g} {recipe.gpu}"
        px = sizes(recipe).partition(" px")[0]
        lines.append(
            f"| `{name}`{default} | {recipe.summary} | {px} | {figures} | {hours} "
            f"| {re.split('[,;:(]', recipe.source)[0].strip()} |"
        )
    return "\n".join(lines) + "\n"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
