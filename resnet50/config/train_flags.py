"""The command line of train.py, made from the settings of train_config.py.

python train.py --help
python train.py --recipe demo --epochs 3 --print_config
"""

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from resnet50.config.command_line import Parser
from resnet50.config.fields import AUTO, shown
from resnet50.config.train_config import TrainConfig

# The first setting of each group in --help.
GROUPS = {
    "data_dir": "what and where",
    "layers": "model",
    "image_size": "images",
    "epochs": "optimization",
    "schedule": "learning rate",
    "amp": "arithmetic",
    "num_workers": "the run",
}
COMMANDS = {
    "list_recipes": "print the recipes, their results and where those were published, and exit",
    "print_config": "print all settings and exit",
    "fresh": "start over; refused if the folder holds a run already",
    "overwrite": "with --fresh: delete the run in that folder",
}

CPU = "cpu"
ON_END = "--on_end"
ON_END_HELP = """run this once, with bash, when the run is done (also by a limit, or with its
budget), has diverged, has crashed in a way that a restart does not fix, or has failed so that you
must change something; not after an interruption. It finds $TRAIN_STATE, $TRAIN_REASON, $TRAIN_TOP1,
$TRAIN_COST_USD, $TRAIN_STEP, and $TRAIN_RUN_DIR, and is killed after 60 s. Only `python train.py`
can do that, not torchrun by hand"""
METAVARS = {"size_stages": "SIZE:PERCENT,..."}  # where the type does not say enough


class Request(NamedTuple):
    """What a command line asks for: the settings given explicitly, and what to do with them."""

    settings: dict[str, object]
    list_recipes: bool = False
    print_config: bool = False
    fresh: bool = False
    overwrite: bool = False
    device: str = AUTO
    on_end: str = ""


def _int_tuple(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def or_auto(kind: type) -> Callable[[str], object]:
    """For argparse: reads such a value, or `auto`."""

    def read(text: str) -> object:
        return AUTO if text == AUTO else kind(text)

    read.__name__ = f"{kind.__name__} or {AUTO}"  # argparse names it in its error
    return read


def add_settings(parser: argparse.ArgumentParser, presets: Mapping[str, str]) -> None:
    """One flag a field of TrainConfig, in groups; `presets` maps recipe names to summaries."""
    recipes = "; ".join(f"{name}: {summary}" for name, summary in presets.items())
    group = parser
    for item in dataclasses.fields(TrainConfig):
        group = parser.add_argument_group(GROUPS[item.name]) if item.name in GROUPS else group
        text = item.metadata["text"].replace("%", "%%")
        rules = item.metadata
        if item.name == "recipe":
            group.add_argument("--recipe", choices=list(presets), help=f"preset. {recipes}")
        elif isinstance(item.default, bool):
            _add_switch(group, item.name, item.default, text)
        else:
            kind = _int_tuple if isinstance(item.default, tuple) else type(item.default)
            metavar = {int: "N", float: "X", _int_tuple: "N,N,N,N"}.get(kind, item.name.upper())
            metavar = METAVARS.get(item.name, metavar)
            metavar = "|".join(rules["choices"]) or metavar + "|auto" * rules["may_be_auto"]
            kind = or_auto(kind) if rules["may_be_auto"] else kind
            text = f"{text} [{shown(item.default)}]" if item.default != "" else text
            group.add_argument(f"--{item.name}", type=kind, metavar=metavar, help=text)


def build_parser(presets: Mapping[str, str], epilog: str) -> argparse.ArgumentParser:
    """The command line of train.py: its settings, and what else it can do with a run."""
    parser = Parser(
        "train.py",
        "Train a ResNet50 on a folder of images. The same command resumes it.",
        usage="train.py [--data_dir DIR] [--run_dir DIR] [--recipe NAME] [--FLAG VALUE ...]",
        epilog=epilog,
        argument_default=argparse.SUPPRESS,
    )
    for name, text in COMMANDS.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_argument(
        "--device",
        choices=(AUTO, CPU),
        help="cpu: use no GPU; a run trained on a GPU resumes without one only if told to "
        f"[{AUTO}]",
    )
    # No setting: a run's files must not hold what may be a secret, nor make a resume run it.
    parser.add_argument(ON_END, metavar="COMMAND", help=ON_END_HELP)
    add_settings(parser, presets)
    return parser


def _add_switch(parser: argparse.ArgumentParser, name: str, default: bool, text: str) -> None:
    """`--name` and `--no_name`; the help shows the one that changes something."""
    on = argparse.SUPPRESS if default else f"{text} [off]"
    off = f"not: {text}" if default else argparse.SUPPRESS
    parser.add_argument(f"--{name}", dest=name, action="store_true", help=on)
    parser.add_argument(f"--no_{name}", dest=name, action="store_false", help=off)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> Request:
    """Read a command line; ends the program with exit code 2 and the usage on a mistake."""
    given = vars(parser.parse_args(argv))
    commands = {name: given.pop(name, False) for name in COMMANDS}
    device, on_end = given.pop("device", AUTO), given.pop("on_end", "")
    if commands["overwrite"] and not commands["fresh"]:
        parser.error("--overwrite needs --fresh: without it a run is resumed, not replaced")
    return Request(given, **commands, device=device, on_end=on_end)


def for_ranks(argv: Sequence[str]) -> list[str]:
    """The words of a command line, with underscores, without those that the ranks must not get:
    what deletes, and what is done once at the end."""
    words, skips = [], False
    for word in argv:
        is_value, skips = skips, word == ON_END
        if not (is_value or skips or word in ("--fresh", "--overwrite")):
            words += [word] if not word.startswith(f"{ON_END}=") else []
    return words
