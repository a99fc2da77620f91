"""Export a checkpoint for other programs; check the files against PyTorch, and time them.

    python export.py --weights runs/NAME --out exported/NAME --data_dir DIR
    python export.py --weights FILE --out exported/NAME --formats safetensors,onnx
    python export.py --weights FILE --out exported/NAME --data_dir DIR --num_calibration 1000
    python export.py --weights runs/NAME --out exported/NAME --data_dir DIR --hub USER/NAME

Writes model.safetensors with config.json (evaluate.py and timm load the folder), model.onnx in
fp32, and model_int8.onnx, calibrated on pictures of the train split. Uses the averaged weights
(EMA) if there are any, otherwise (or with --raw) the trained ones, and says which.

Then prints size, latency, images/s, top-1 and agreement of each, timed in turn on the CPU. Nothing
appears in --out if a logit of an fp32 file differs by more than 1e-4, or if int8 agrees with fp32
on a smaller share of the pictures than --min_agreement. --hub adds a model card and a Space and
uploads everything to Hugging Face (with --dry_run, nothing). Exit codes: 0 done, 2 change
something.

    python export.py --weights runs/NAME --out exported/half --prune 50

writes pruned.pt instead: the same network with narrower blocks and at most half of the
multiply-adds. Fine-tune it with `train.py --init_from`; the output says how. Export the result
with `--compare runs/NAME` to see in the table what was lost.
"""

import resnet50.system.preflight  # noqa: F401 (first: it reports what this Python lacks)

# isort: split
import argparse
import contextlib
import importlib.metadata
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from model import architecture_of
from resnet50.config.command_line import Parser, print_error
from resnet50.data import splits
from resnet50.export import comparison, hub, pruning
from resnet50.export import formats as export_formats
from resnet50.export.comparison import Variant
from resnet50.export.formats import FILES, INT8, ONNX, SAFETENSORS, TENSORRT
from resnet50.export.hub import Target
from resnet50.inference import pretrained
from resnet50.inference.pretrained import Pretrained
from resnet50.records import checkpoint, ownership
from resnet50.system import outputs

PRUNED = "pruned.pt"


def build_parser() -> argparse.ArgumentParser:
    """What can be asked for, and the text of --help."""
    parser = Parser("export.py", __doc__)
    add = parser.add_argument
    add(
        "--weights",
        required=True,
        help="checkpoint, run folder, export, any ResNet50 file or folder, USER/NAME on "
        "Hugging Face, or `torchvision`",
    )
    add("--out", type=Path, required=True, help="folder for the files; created if missing")
    add(
        "--formats",
        help="separated by commas: safetensors, onnx, int8 [all; without --data_dir no int8]",
    )
    add(
        "--prune",
        type=float,
        metavar="X",
        help="keep at most X%% of the multiply-adds, and write pruned.pt for train.py --init_from",
    )
    add(
        "--compare",
        metavar="WEIGHTS",
        help="model to add to the table: what this one was pruned from",
    )
    add(
        "--tensorrt", action="store_true", help="also build an engine for this machine's NVIDIA GPU"
    )
    add("--data_dir", type=Path, help="folder with SPLIT.pack or SPLIT/CLASS/*, to check on")
    add("--split", default="val", help="split to check on [val]")
    add("--raw", action="store_true", help="use the trained weights, not their average (EMA)")
    numbers = {
        "num_calibration": (300, "pictures to calibrate int8 on"),
        "num_images": (2000, "pictures to check on, spread over all classes; 0: all"),
        "batch_size": (16, "batch size for images/s and for the check"),
        "num_rounds": (20, "rounds in which each model is timed"),
    }
    for name, (default, text) in numbers.items():
        add(f"--{name}", type=int, default=default, metavar="N", help=f"{text} [{default}]")
    add(
        "--min_agreement",
        type=float,
        default=95.0,
        metavar="X",
        help="%% of the pictures on which int8 must predict the same class as fp32 [95]",
    )
    add("--json", type=Path, help="file for the table, a JSON object")
    add(
        "--v1_strides",
        action="store_true",
        help="other people's weights are from a ResNet v1, which strides in the first 1x1",
    )
    add_hub_flags(parser)
    return parser


def add_hub_flags(parser: argparse.ArgumentParser) -> None:
    """Where to upload it."""
    add = parser.add_argument
    add(
        "--hub",
        metavar="USER/NAME",
        help="upload it there on Hugging Face, with a card and a Space",
    )
    add("--private", action="store_true", help="with --hub: make the repositories private")
    add(
        "--dry_run", action="store_true", help="with --hub: write and list everything, send nothing"
    )


def chosen_formats(args: argparse.Namespace) -> list[str]:
    """The formats to write, in FILES' order. Raises ValueError for one that cannot be written."""
    known = [SAFETENSORS, ONNX, INT8]
    default = ",".join(known if args.data_dir else known[:2])
    asked = (args.formats or default).split(",") + [TENSORRT] * args.tensorrt
    for name in set(asked) - set(known) - ({TENSORRT} if args.tensorrt else set()):
        raise ValueError(f"--formats {name}: no such format; there are {', '.join(known)}")
    export_formats.check_packages(asked)
    inexact = [name for name in asked if name in (INT8, TENSORRT)]
    if inexact and args.data_dir is None:
        raise ValueError(
            f"the format {inexact[0]} needs --data_dir: it is checked on pictures of --split, and "
            "int8 is calibrated on those of train"
        )
    return [name for name in FILES if name in asked]


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ValueError for numbers that make no sense."""
    for name in ("num_calibration", "batch_size", "num_rounds"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)}: must be at least 1")
    outputs.check({"json": args.json}, {"json": ("models", "conditions")})
    if args.num_images < 0:
        raise ValueError(f"--num_images {args.num_images}: must be at least 1, or 0 for all")
    if args.prune is not None and not 0 < args.prune < 100:
        raise ValueError(
            f"--prune {args.prune:g}: must be the percent of the multiply-adds to keep, above 0 "
            "and below 100"
        )
    if not 0 <= args.min_agreement <= 100:
        raise ValueError(f"--min_agreement {args.min_agreement:g}: must be from 0 to 100")


def check_out(out: Path, formats: Sequence[str]) -> None:
    """Raise ValueError if files of an earlier export would remain from another model, or if
    folders have the files' names."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: give a folder")
    if ownership.has_run(out):
        raise ValueError(
            f"--out {out} is a run, and its {pretrained.CONFIG} would be replaced: give another "
            "folder"
        )
    for file in [*(FILES[name] for name in formats), pretrained.CONFIG]:
        if (out / file).is_dir():
            raise ValueError(f"--out {out} has a folder {file}: move it, or give another --out")
    stale = [file for name, file in FILES.items() if name not in formats and (out / file).exists()]
    if stale:
        raise ValueError(
            f"--out {out} has {stale[0]} from another export, which would not be replaced: remove "
            "it, give another folder, or name its format in --formats too"
        )


@contextlib.contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A folder inside --out for files that are not checked yet, gone when the block ends.

    Inside, since --out may be a mount, or a link to another disk, to which nothing can be renamed,
    or be in a folder without write permission. If the block fails, an --out that was made for it
    is removed too. Raises ValueError if nothing can be written there.
    """
    made = [path for path in (out, *out.parents) if not path.exists()]
    try:
        try:
            out.mkdir(parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(prefix=".export.", suffix=".partial", dir=out)
        except OSError as error:
            raise ValueError(f"--out {out} cannot be written: {error.strerror}") from error
        with folder as name:
            yield Path(name)
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):  # it is no longer empty
                path.rmdir()
        raise


def named(kind: str) -> str:
    """Which weights, in words."""
    return "weights" if kind == "weights" else f"{kind} weights"


def write_all(
    args: argparse.Namespace, loaded: Pretrained, formats: Sequence[str], folder: Path
) -> list[Variant]:
    """Write the files into a folder and open each again; returns them after the PyTorch model."""
    onnx = folder / FILES[ONNX]
    export_formats.write_config(loaded, folder)
    if set(formats) - {SAFETENSORS}:  # the others are converted from it
        print(f"writing {onnx.name}")
        export_formats.write_onnx(loaded, onnx)
    predictors = {}
    for name in formats:
        path = folder / FILES[name]
        if name == SAFETENSORS:
            export_formats.write_safetensors(loaded, path)
            predictors[name] = export_formats.eager_predictor(pretrained.load(str(path)).model)
        elif name == TENSORRT:
            largest = max(args.batch_size, *comparison.NOISE_BATCHES)
            export_formats.write_tensorrt(onnx, path, loaded.image_size, largest)
            predictors[name] = export_formats.tensorrt_predictor(path)
        else:
            if name == INT8:
                pictures = comparison.calibration_images(
                    loaded, args.data_dir, args.split, args.num_calibration
                )
                export_formats.write_int8(onnx, path, pictures)
            predictors[name] = export_formats.onnx_predictor(path)
    variants = [Variant("PyTorch", export_formats.eager_predictor(loaded.model))]
    for name, predict in predictors.items():
        is_exact = name in (SAFETENSORS, ONNX)
        variants.append(Variant(FILES[name], predict, folder / FILES[name], is_exact))
    return variants


def prune(args: argparse.Namespace) -> None:
    """Write pruned.pt and say how to fine-tune it. Raises ValueError."""
    check_out(args.out, FILES)
    with staging(args.out) as folder:
        loaded = load_model(args.weights, args.raw, args.v1_strides)
        smaller = pruning.prune(loaded, args.prune / 100)
        checkpoint.write(folder / PRUNED, smaller.state_dict())
        os.replace(folder / PRUNED, args.out / PRUNED)
    for name, model in (("before", loaded.model), ("pruned", smaller)):
        print(f"{name}: {pruning.describe(model, loaded.image_size)}")
    base_width = architecture_of(smaller.state_dict())["base_width"]
    recipe, max_lr = loaded.settings.get("recipe"), loaded.settings.get("max_lr", 0.1)
    print(
        f"{named(loaded.kind)} written to {args.out / PRUNED}. Fine-tune them, with a lower "
        "learning rate than before:\n"
        f"  python train.py --init_from {args.out / PRUNED} --base_width {base_width}"
        f"{f' --recipe {recipe}' if recipe else ''} --max_lr {0.3 * max_lr:.2g} --run_dir "
        "runs/pruned --data_dir DIR"
    )


def publish(folder: Path, out: Path, formats: Sequence[str]) -> None:
    """Move the checked files into place."""
    for file in [*(FILES[name] for name in formats), pretrained.CONFIG]:
        os.replace(folder / file, out / file)


def conditions(args: argparse.Namespace, num_images: int) -> str:
    """How the table was measured, in one sentence."""
    packages = [name for name in ("torch", "onnxruntime") if export_formats.is_installed(name)]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    pictures = f"{num_images} pictures of {args.split}" if num_images else "noise, without pictures"
    return (
        f"Medians of {args.num_rounds} rounds in turn on the CPU, {torch.get_num_threads()} "
        f"thread(s), batches of {args.batch_size} for images/s; {versions}; compared on {pictures}."
    )


def export(args: argparse.Namespace) -> tuple[Pretrained, dict[str, object]]:
    """Write, check, time and publish; returns the model and its table. Raises ValueError if the
    user must change something."""
    check_arguments(args)
    formats = chosen_formats(args)
    check_out(args.out, formats)
    hub.check(Target(args.hub, args.private, args.dry_run), formats)
    with staging(args.out) as folder:
        return write_checked(args, formats, folder)


def load_model(source: str, raw: bool, v1_strides: bool = False) -> Pretrained:
    """The model of --weights or --compare; its notes are printed."""
    loaded = pretrained.load(source, raw, v1_strides)
    for note in loaded.notes:
        print(f"{loaded.name}: {note}", file=sys.stderr)
    return loaded


def write_checked(
    args: argparse.Namespace, formats: Sequence[str], folder: Path
) -> tuple[Pretrained, dict[str, object]]:
    """Write into `folder`, check, time, and publish to --out: the model and its table."""
    loaded = load_model(args.weights, args.raw, args.v1_strides)
    split = None
    if args.data_dir:
        split = splits.open_split(args.data_dir, args.split, loaded.upright)
        split = splits.relabeled(split, loaded.labels_of(split.classes, split.root))
    other = None
    if args.compare:
        try:
            other = load_model(args.compare, args.raw)
        except ValueError as error:  # its text names the option of other models
            raise ValueError(str(error).replace("--weights", "--compare", 1)) from error
        comparison.check_comparable(loaded, other)
    print(f"{loaded.name}: {named(loaded.kind)}, {loaded.model.fc.out_features} classes")
    variants = write_all(args, loaded, formats, folder)
    if other is not None:
        predict = export_formats.eager_predictor(other.model)
        variants.append(comparison.compared(other, predict))
    comparison.compare_on_noise(variants, loaded.image_size)
    num_images = 0
    if split is not None:
        indices = comparison.spread(split, args.num_images)
        pictures = comparison.batches(split, indices, loaded, args.batch_size, comparison.warn_bad)
        num_images = comparison.compare_on_pictures(variants, pictures)
    if problems := comparison.problems(variants, args.min_agreement):
        raise ValueError(f"{'; '.join(problems)}. Nothing was written to {args.out}")
    comparison.measure(variants, loaded.image_size, args.batch_size, args.num_rounds)
    rows = [comparison.row_of(variant, variants[0]) for variant in variants]
    publish(folder, args.out, formats)
    return loaded, {
        "models": rows,
        "weights": str(args.weights),
        "kind": loaded.kind,
        "out": str(args.out),
        "num_images": num_images,
        "conditions": conditions(args, num_images),
    }


def write_json(path: Path, result: Mapping[str, object]) -> str:
    """Write the table; returns the message for the user if that failed, or ""."""

    def write(place: Path) -> None:
        place.write_text(json.dumps(result, indent=2) + "\n")

    return outputs.write_or_keep("json", path, write)


def main(argv: Sequence[str] | None = None) -> int:
    """Export and print the table; returns 0, or 2 if the user must change something."""
    args = build_parser().parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # removes staged files too
    try:
        if args.prune is not None:
            check_arguments(args)
            prune(args)
            return 0
        loaded, result = export(args)
        problem = write_json(args.json, result) if args.json else ""
        print(f"\n{comparison.as_table(result['models'])}\n\n{result['conditions']}")
        print(f"{named(result['kind'])} written to {args.out}")
        if args.hub:
            places = [args.weights, args.out, args.data_dir]
            hub.publish(Target(args.hub, args.private, args.dry_run), loaded, result, places)
    except KeyboardInterrupt:
        print("export.py: interrupted, nothing was written", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        return print_error("export.py", error)
    return print_error("export.py", problem) if problem else 0


if __name__ == "__main__":
    sys.exit(main())
