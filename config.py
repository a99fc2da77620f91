"""Every setting of a training run: its default, unit and check, and the command line made from it.

    python train.py --help
    python train.py --recipe demo --epochs 3 --print_config

`TrainConfig` is the one list. A field's metadata says what it is for, what it may be, and whether
it may change when a run is resumed: settings that shape the result may not, settings that only say
where, how long or how loudly may.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


def setting(
    default: object,
    text: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    choices: Sequence[str] = (),
    may_change: bool = False,
) -> object:
    """A dataclass field with its help text, its bounds, and whether a resume may change it."""
    rules = {"at_least": at_least, "at_most": at_most, "above": above, "choices": tuple(choices)}
    return field(default=default, metadata={"text": text, "may_change": may_change, **rules})


@dataclass(frozen=True)
class TrainConfig:
    """All settings of one run. Raises ValueError naming the option, its value and what to do."""

    data_dir: str = setting(
        "",
        "folder with train.pack and val.pack, or train/CLASS/* and val/CLASS/* (default: found, "
        "see dataset_paths.py)",
        may_change=True,
    )
    run_dir: str = setting(
        "",
        "folder of this run: checkpoints, log, curves (default: runs/RECIPE; without any flag the "
        "newest unfinished run)",
        may_change=True,
    )
    recipe: str = setting("", "name of the preset these settings started from")

    # Model
    layers: tuple[int, ...] = setting((3, 4, 6, 3), "blocks in each of the four stages", at_least=1)
    width: int = setting(64, "channels after the stem", at_least=8)
    zero_init_gamma: bool = setting(True, "start every residual block as the identity")

    # Images
    image_size: int = setting(224, "side of a training crop in pixels", at_least=32)
    start_image_size: int = setting(
        0, "side of a training crop before grow_start_epoch; 0: image_size all the time", at_least=0
    )
    grow_start_epoch: float = setting(
        0.0, "epochs after which training crops grow from start_image_size", at_least=0
    )
    grow_end_epoch: float = setting(
        0.0, "epochs after which they have reached image_size", at_least=0
    )
    image_size_multiple: int = setting(
        32, "growing sizes are rounded to multiples of this many pixels", at_least=1
    )
    eval_image_size: int = setting(
        0, "side of the evaluation crop in pixels; 0: image_size", at_least=0
    )
    eval_resize_size: int = setting(
        0, "shorter side before the evaluation crop, in pixels; 0: crop * 256 / 224", at_least=0
    )
    min_crop_scale: float = setting(
        0.08, "smallest part of a picture's area that a training crop takes", above=0, at_most=1
    )
    flip: bool = setting(True, "mirror half of the training images")

    # Optimisation
    epochs: int = setting(50, "passes over the training images", at_least=1)
    total_batch_size: int = setting(
        256, "images per optimizer step, over all GPUs and micro-batches", at_least=1
    )
    device_batch_size: int = setting(
        0,
        "images per micro-batch, which is also the batch-norm group; 0: total_batch_size divided "
        "by the number of GPUs of the first start",
        at_least=0,
    )
    max_lr: float = setting(0.175, "peak learning rate", above=0)
    momentum: float = setting(0.9, "SGD momentum", at_least=0, at_most=1)
    nesterov: bool = setting(False, "Nesterov momentum")
    weight_decay: float = setting(
        1e-4, "weight decay of convolutions and classifier; norms and biases have none", at_least=0
    )
    label_smoothing: float = setting(
        0.0, "probability mass spread over all classes", at_least=0, at_most=1
    )
    clip_grad_norm: float = setting(0.0, "largest gradient norm; 0: no clipping", at_least=0)
    ema_decay: float = setting(
        0.0,
        "decay per step of the averaged weights, which are then the ones evaluated; 0: none",
        at_least=0,
        at_most=0.999999,
    )
    seed: int = setting(0, "seed of weights, order and augmentation", at_least=0, at_most=2**63 - 1)

    # Schedule: torch.optim.lr_scheduler.OneCycleLR, stepped once per optimizer step
    pct_start: float = setting(
        0.3, "part of the steps in which the learning rate rises", at_least=0, at_most=1
    )
    anneal_strategy: str = setting("cos", "shape of rise and fall", choices=("cos", "linear"))
    div_factor: float = setting(25.0, "first learning rate is max_lr / this", above=0)
    final_div_factor: float = setting(1e4, "last learning rate is the first one / this", above=0)
    cycle_momentum: bool = setting(
        False, "move momentum against the learning rate, from 0.95 to 0.85 and back"
    )

    # Arithmetic
    amp: str = setting(
        "auto",
        "mixed precision: bf16, fp16 with gradient scaling, fp32; auto: bf16 where the hardware "
        "has it, else fp16 on a GPU and fp32 on a CPU",
        choices=("auto", "bf16", "fp16", "fp32"),
    )
    channels_last: bool = setting(True, "NHWC memory layout, what tensor cores want")
    compile: bool = setting(False, "torch.compile the model (not yet measured on a GPU)")
    deterministic: bool = setting(
        False, "bitwise repeatable on a GPU too, and slower (a CPU always is)", may_change=True
    )

    # The run
    num_workers: int = setting(
        -1, "loader processes per GPU; -1: from the CPU cores", at_least=-1, at_most=1024,
        may_change=True,
    )  # fmt: skip
    max_steps: int = setting(
        0, "stop after this many optimizer steps, schedule unchanged; 0: after all epochs",
        at_least=0, may_change=True,
    )  # fmt: skip
    max_minutes: float = setting(
        0.0, "stop after this much time, schedule unchanged; 0: no limit", at_least=0,
        may_change=True,
    )  # fmt: skip
    eval_every_epochs: int = setting(
        1, "evaluate after every so many epochs, and at the end", at_least=1
    )
    save_every_steps: int = setting(
        0, "checkpoint every so many steps; 0: by time only", at_least=0, may_change=True
    )
    save_every_minutes: float = setting(
        5.0, "checkpoint every so many minutes, besides every epoch's end", above=0, may_change=True
    )
    keep_checkpoints: int = setting(
        3, "newest checkpoints to keep, besides the best", at_least=2, may_change=True
    )
    max_bad_images: int = setting(
        20, "stop when more files than this cannot be decoded", at_least=0, may_change=True
    )
    log_every_steps: int = setting(
        20, "steps between two lines of log.jsonl and updates of the display", at_least=1,
        may_change=True,
    )  # fmt: skip
    log_every_s: float = setting(
        10.0, "seconds between two printed lines where there is no terminal", at_least=0,
        may_change=True,
    )  # fmt: skip
    price_per_hour: float = setting(
        0.0, "price of this machine in dollars per hour, for the dollars so far", at_least=0,
        may_change=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            _check(item, getattr(self, item.name))
        total, device = self.total_batch_size, self.device_batch_size
        if device and total % device:
            multiple = device * (total // device + 1)
            raise ValueError(
                f"--total_batch_size {total} does not split into micro-batches of "
                f"--device_batch_size {device}: take a multiple, such as {multiple}"
            )
        if len(self.layers) != 4:
            raise ValueError(f"--layers needs four numbers, got {_shown(self.layers)}")
        if self.nesterov and not self.momentum:
            raise ValueError("--nesterov needs --momentum above 0")
        if self.start_image_size and not 32 <= self.start_image_size <= self.image_size:
            raise ValueError(
                f"--start_image_size {self.start_image_size}: must be from 32 to --image_size "
                f"{self.image_size}"
            )
        if self.start_image_size and not self.grow_end_epoch > self.grow_start_epoch:
            raise ValueError(
                f"--start_image_size {self.start_image_size}: say when it grows: --grow_end_epoch "
                f"{self.grow_end_epoch:g} must be above --grow_start_epoch "
                f"{self.grow_start_epoch:g}"
            )
        if self.eval_resize < self.eval_crop:
            raise ValueError(
                f"--eval_resize_size {self.eval_resize} is smaller than the crop of "
                f"{self.eval_crop} px cut from it: take at least {self.eval_crop}"
            )

    @property
    def eval_crop(self) -> int:
        """Side of the evaluation crop in pixels."""
        return self.eval_image_size or self.image_size

    @property
    def eval_resize(self) -> int:
        """Shorter side of a picture before the evaluation crop, in pixels."""
        return self.eval_resize_size or round(self.eval_crop * 256 / 224)


class Request(NamedTuple):
    """What a command line asks for: the settings given explicitly, and what to do with them."""

    settings: dict[str, object]
    print_config: bool
    fresh: bool
    overwrite: bool


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _check(item: dataclasses.Field, value: object) -> None:
    """Raise ValueError if `value` has the wrong type or lies outside the field's bounds."""
    rules = item.metadata
    wanted = type(item.default)
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        raise ValueError(f"--{item.name} {value!r}: must be of type {wanted.__name__}")
    if rules["choices"] and value not in rules["choices"]:
        raise ValueError(f"--{item.name} {value}: choose from {', '.join(rules['choices'])}")
    numbers = value if isinstance(value, tuple) else (value,)
    for number in numbers:
        if rules["at_least"] is not None and not number >= rules["at_least"]:
            raise ValueError(f"--{item.name} {_shown(value)}: must be at least {rules['at_least']}")
        if rules["at_most"] is not None and not number <= rules["at_most"]:
            raise ValueError(f"--{item.name} {_shown(value)}: must be at most {rules['at_most']}")
        if rules["above"] is not None and not number > rules["above"]:
            raise ValueError(f"--{item.name} {_shown(value)}: must be above {rules['above']}")


def _int_tuple(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def build_parser(presets: Mapping[str, str], epilog: str) -> argparse.ArgumentParser:
    """The command line: one flag a field; `presets` maps recipe names to summaries."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        usage="train.py [--data_dir DIR] [--run_dir DIR] [--recipe NAME] [--FLAG VALUE ...]",
        description="Train a ResNet50 on a folder of images. The same command resumes it.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    recipes = "; ".join(f"{name}: {summary}" for name, summary in presets.items())
    for item in dataclasses.fields(TrainConfig):
        text = item.metadata["text"].replace("%", "%%")
        if item.name == "recipe":
            parser.add_argument("--recipe", choices=list(presets), help=f"preset. {recipes}")
        elif isinstance(item.default, bool):
            _add_switch(parser, item.name, item.default, text)
        else:
            kind = _int_tuple if isinstance(item.default, tuple) else type(item.default)
            shown = f"{text} [{_shown(item.default)}]" if item.default != "" else text
            metavar = {int: "N", float: "X", _int_tuple: "N,N,N,N"}.get(kind, item.name.upper())
            if item.metadata["choices"]:
                metavar = "|".join(item.metadata["choices"])
            parser.add_argument(f"--{item.name}", type=kind, metavar=metavar, help=shown)
    parser.add_argument("--print_config", action="store_true", help="print all settings and exit")
    parser.add_argument(
        "--fresh", action="store_true", help="start anew; refused where a run lies already"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="with --fresh: delete the run that lies there"
    )
    return parser


def _add_switch(parser: argparse.ArgumentParser, name: str, default: bool, text: str) -> None:
    """`--name` and `--no_name`; the help shows the one that changes something."""
    on = argparse.SUPPRESS if default else f"{text} [off]"
    off = f"not: {text}" if default else argparse.SUPPRESS
    parser.add_argument(f"--{name}", dest=name, action="store_true", help=on)
    parser.add_argument(f"--no_{name}", dest=name, action="store_false", help=off)


def with_underscores(argv: Sequence[str]) -> list[str]:
    """`--max-lr` and `--max_lr` are the same flag; values after `=` or a space are left alone."""

    def spelled(word: str) -> str:
        name, equals, value = word.partition("=")
        return name.replace("-", "_").replace("__", "--", 1) + equals + value

    return [spelled(word) if word.startswith("--") and len(word) > 2 else word for word in argv]


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> Request:
    """Read a command line; ends the program with exit code 2 and the usage on a mistake."""
    given = vars(parser.parse_args(with_underscores(argv)))
    commands = {name: given.pop(name, False) for name in ("print_config", "fresh", "overwrite")}
    if commands["overwrite"] and not commands["fresh"]:
        parser.error("--overwrite goes with --fresh: without it a run is resumed, not replaced")
    return Request(given, **commands)


def resumed(stored: TrainConfig, settings: Mapping[str, object]) -> TrainConfig:
    """The stored settings of a run with those explicit ones that a resume may change.

    Raises ValueError naming every other explicit setting that differs from the stored one.
    """
    fields = {item.name: item for item in dataclasses.fields(TrainConfig)}
    differing = [
        f"--{name} {_shown(value)} (the run has {_shown(getattr(stored, name))})"
        for name, value in settings.items()
        if not fields[name].metadata["may_change"] and value != getattr(stored, name)
    ]
    if differing:
        raise ValueError(
            f"the run in {stored.run_dir} cannot go on with other settings: "
            f"{', '.join(differing)}. Leave them out to resume it, or give a new --run_dir"
        )
    return dataclasses.replace(stored, **settings)


def to_json(config: TrainConfig) -> dict[str, object]:
    """Settings as plain JSON values (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_json(values: Mapping[str, object]) -> TrainConfig:
    """The inverse of `to_json`. Raises ValueError for an unknown setting or a bad value."""
    known = {item.name for item in dataclasses.fields(TrainConfig)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"unknown settings {', '.join(unknown)}: written by another version")
    return TrainConfig(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
    )
