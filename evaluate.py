"""Top-1 and top-5 of a checkpoint or a weights file on a split, every image counted once.

    python evaluate.py --data_dir DIR --weights runs/NAME/checkpoints/best.pt
    torchrun --standalone --nproc_per_node=4 evaluate.py --data_dir DIR --weights FILE
    python evaluate.py --data_dir DIR --weights runs/NAME --report runs/NAME/report
    python evaluate.py --images FOLDER --weights runs/NAME --csv predictions.csv

Takes the settings from the checkpoint (averaged weights, sizes, batch, precision), or ImageNet's
usual ones for other files: torchvision's keys, 224 px cropped from 256, fp32. Ranks take whole
batches in turn, so the results do not depend on the number of ranks. top1 and top5 use a single
crop; FFCV's published figures average over the crop and its mirror image, which --flip reports
separately. --report writes per_class.csv, confused_pairs.csv, and pictures of the confusion matrix,
the worst classes, and the most confident mistakes. --images reads pictures without classes, such
as ImageNet's test images: --csv writes the predicted classes, --submission the same in the format
of Kaggle's competition.
"""

import resnet50.system.preflight  # noqa: F401 (first: it reports what this Python lacks)

# isort: split
import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from resnet50.config.command_line import Parser, print_error
from resnet50.data import class_names, class_order, crops, orientation, transforms
from resnet50.data.batch import Batch, normalize
from resnet50.data.loader import Loader, choose_num_workers
from resnet50.data.splits import (
    Split,
    deep_gray_line,
    open_pictures,
    open_split,
    relabeled,
    unused_line,
)
from resnet50.inference import mistakes, predictions, pretrained
from resnet50.inference.predictions import Predictions
from resnet50.inference.pretrained import Pretrained
from resnet50.system import outputs, processes
from resnet50.training import distributed, engine
from resnet50.training.device import choose_precision
from resnet50.training.distributed import Ranks
from resnet50.training.plan import eval_keys


def build_parser() -> argparse.ArgumentParser:
    """The command line; settings that are not given come from the checkpoint."""
    parser = Parser("evaluate.py", __doc__)
    add = parser.add_argument
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument("--data_dir", type=Path, help="folder with SPLIT.pack or SPLIT/CLASS/*")
    images.add_argument("--images", type=Path, help="folder of pictures without classes")
    add(
        "--weights",
        required=True,
        help="checkpoint, run folder, export, any ResNet50 file or folder, USER/NAME on "
        "Hugging Face, or `torchvision`",
    )
    add("--split", default="val", help="split to evaluate [val]")
    add("--raw", action="store_true", help="use the trained weights, not their average (EMA)")
    add(
        "--v1_strides",
        action="store_true",
        help="other people's weights are from a ResNet v1, which strides in the first 1x1",
    )
    add(
        "--flip",
        action="store_true",
        help="also report flip_top1 and flip_top5, averaged over the mirror image",
    )
    add("--image_size", type=int, metavar="N", help="side of the center crop, px [as trained; 224]")
    add(
        "--resize_size",
        type=int,
        metavar="N",
        help="shorter side before the crop, px [as trained; 256]",
    )
    add("--batch_size", type=int, metavar="N", help="images per batch [as trained; 64]")
    add(
        "--num_workers",
        type=int,
        default=-1,
        metavar="N",
        help="loader processes per GPU; -1: by cores",
    )
    add(
        "--upright",
        choices=(orientation.AUTO, orientation.YES, orientation.NO, orientation.LEGACY),
        help="turn the pictures of --data_dir upright, as EXIF says [as in training, or auto]",
    )
    add("--amp", choices=("auto", "bf16", "fp16", "fp32"), help="precision [as trained; fp32]")
    add("--json", type=Path, help="file for the result, a JSON object")
    add("--report", type=Path, help="folder for tables and pictures of what it gets wrong")
    add("--csv", type=Path, help="file for the five likeliest classes of every image")
    add("--submission", type=Path, help="file for Kaggle: five classes and boxes of each image")
    return parser


def sizes(args: argparse.Namespace, loaded: Pretrained) -> tuple[int, int, int]:
    """Crop side, shorter side before the crop, images per batch: as given, as trained, or usual."""
    crop_size = args.image_size or loaded.image_size
    resize_size = args.resize_size or round(crop_size * 256 / 224)
    if not (args.image_size or args.resize_size):
        resize_size = loaded.resize_size
    batch_size = args.batch_size or loaded.settings.get("device_batch_size", 64)
    if min(crop_size, resize_size - crop_size + 1, batch_size) < 1:
        raise ValueError(
            f"--image_size {crop_size}, --resize_size {resize_size}, --batch_size {batch_size}: "
            "must be at least 1, and the crop no larger than the picture"
        )
    return crop_size, resize_size, batch_size


def check_outputs(args: argparse.Namespace) -> None:
    """Raise ValueError, before anything is computed, for a file that could not be written."""
    if args.images and args.report:
        raise ValueError("--report needs the true classes: give --data_dir, not --images")
    if args.images and not (args.csv or args.submission):
        raise ValueError("--images needs an output file: --csv FILE or --submission FILE")
    files = {option: getattr(args, option) for option in ("json", "csv", "submission")}
    marks = {"csv": predictions.TABLE_BEGIN, "submission": predictions.SUBMISSION_BEGIN}
    marks["json"] = ("num_images", "num_bad_images", "weights")  # of `evaluate`'s result
    outputs.check(files, marks, {"weights": args.weights, "images": args.images})
    if args.report:
        if foreign := mistakes.foreign_file(args.report):
            raise ValueError(
                f"--report {args.report}: its {foreign.name} is not from a report, and would be "
                "replaced: give another folder"
            )
        outputs.check_folder("report", args.report)


def open_images(args: argparse.Namespace, loaded: Pretrained, ranks: Ranks) -> Split:
    """The images of --images, or the split of --data_dir, labeled by the model's logits."""
    if args.images:
        split = open_pictures(args.images)
    else:
        split = open_split(args.data_dir, args.split, args.upright or loaded.upright)
    if ranks.is_main:
        for line in filter(None, (unused_line(split), deep_gray_line(split))):
            print(line, file=sys.stderr)
    if args.images:
        return split
    labels = loaded.labels_of(split.classes, split.root)
    if labels != sorted(labels) and ranks.is_main:
        place = next(number for number, label in enumerate(labels) if number != label)
        print(
            f"note: the class folders of {split.root} are matched by name, not by order: "
            f"{split.classes[place]} is class {labels[place]} of the weights",
            file=sys.stderr,
        )
    return relabeled(split, labels)


class Views:
    """The pictures of a split as the model sees them, for --report and --submission."""

    def __init__(self, split: Split, crop_size: int, resize_size: int, interpolation: str) -> None:
        self.split, self.crop_size, self.resize_size = split, crop_size, resize_size
        self.interpolation = interpolation

    def crop(self, index: int) -> np.ndarray:
        """uint8 (S, S, 3)."""
        try:
            picture = Image.fromarray(self.split.open(index).pixels())
            return transforms.eval_crop(
                picture, self.resize_size, self.crop_size, self.interpolation
            )
        except Exception:  # reported as undecodable; the model got black as well
            return np.zeros((self.crop_size, self.crop_size, 3), dtype=np.uint8)

    def size(self, index: int) -> tuple[int, int]:
        """Width and height in pixels."""
        try:
            return self.split.open(index).size
        except Exception:  # undecodable too, but the submission needs a box
            return 1, 1


def write_files(
    args: argparse.Namespace, views: Views, loaded: Pretrained, predicted: Predictions
) -> list[str]:
    """Write what --report, --csv and --submission ask for; returns a message per failure, or ""."""
    split = views.split
    numbers = range(len(views.split))
    names = [split.name(index) for index in numbers]
    is_named = split.classes and not class_order.are_numbers(split.classes)
    classes = class_names.readable(split.classes) if is_named else loaded.classes

    def write_csv(path: Path) -> None:
        predictions.write_csv(path, names, classes, predicted)

    def write_submission(path: Path) -> None:
        pixels = [views.size(index) for index in numbers]
        predictions.write_submission(path, names, pixels, loaded.class_ids, predicted)

    def write_report(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        written = mistakes.write_report(folder, classes, split.labels, *predicted, views.crop)
        print("wrote", *written, file=sys.stderr)

    writers = {"csv": write_csv, "submission": write_submission, "report": write_report}
    asked = {option: getattr(args, option) for option in writers if getattr(args, option)}
    return [outputs.write_or_keep(name, path, writers[name]) for name, path in asked.items()]


def evaluate(args: argparse.Namespace, ranks: Ranks) -> tuple[dict[str, object], list[str]]:
    """Run the evaluation on all ranks: its result, and which files failed.

    Raises ValueError if the user must change something.
    """
    check_outputs(args)
    loaded = pretrained.load(args.weights, args.raw, args.v1_strides)
    for note in loaded.notes if ranks.is_main else ():
        print(f"{loaded.name}: {note}", file=sys.stderr)
    if args.submission and not loaded.class_ids:
        raise ValueError(f"--submission: the class ids of --weights {loaded.name} are not known")
    split = open_images(args, loaded, ranks)
    crop_size, resize_size, batch_size = sizes(args, loaded)
    on_gpu = ranks.device.type == "cuda"
    num_workers = choose_num_workers(args.num_workers, ranks.local_world_size, on_gpu)
    keys = eval_keys(len(split), batch_size, crop_size, ranks.rank, ranks.world_size)
    images = crops.EvalImages(split, resize_size, loaded.interpolation)
    loader = Loader([images], batch_size, crop_size, num_workers, ranks.device)
    first_batches = loader.batches(0, keys)

    distributed.connect(ranks)
    model = loaded.model.to(ranks.device)
    precision = choose_precision(args.amp or loaded.settings.get("amp", "fp32"), ranks.device)
    bad_images: set[str] = set()
    normalized = partial(normalize, mean=loaded.mean, std=loaded.std)
    answer = partial(engine.predict, model, precision=precision, normalize=normalized)
    collector = predictions.Collector(len(split), model.fc.out_features, keys, ranks.device)

    def predict(batch: Batch) -> Tensor:
        bad_images.update(batch.bad_images)
        logits = answer(batch)
        collector.note(logits)
        return logits

    result = engine.means(engine.evaluate(predict, first_batches, len(split), ranks))
    if args.flip:
        predict_flipped = partial(answer, with_flip=True)
        sums = engine.evaluate(predict_flipped, loader.batches(0, keys), len(split), ranks)
        flipped = engine.means(sums)
        result |= {"flip_top1": flipped["top1"], "flip_top5": flipped["top5"]}
    bad_images = distributed.gather_names(bad_images, ranks)
    for name in sorted(bad_images) if ranks.is_main else ():
        print(f"warning: cannot be decoded, counted as black: {name}", file=sys.stderr)
    predicted = collector.gathered(ranks)
    distributed.disconnect()
    problems = []
    if ranks.is_main:
        views = Views(split, crop_size, resize_size, loaded.interpolation)
        problems = write_files(args, views, loaded, predicted)
    result = {
        **(result if args.data_dir else {}),
        "num_images": len(split),
        "num_bad_images": len(bad_images),
        "split": str(split.root),
        "weights": str(args.weights),
        "kind": loaded.kind,
        "image_size": crop_size,
        "resize_size": resize_size,
    }
    return result, problems


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and print a JSON object; returns 0, or 2 if the user must change something."""
    args = build_parser().parse_args(argv)
    if distributed.launched_by_torchrun():
        processes.die_with_launcher()
    ranks = Ranks()
    try:
        ranks = distributed.read_ranks()
        result, problems = evaluate(args, ranks)
    except KeyboardInterrupt:
        print("evaluate.py: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if ranks.is_main:
            print_error("evaluate.py", error)
        return 2
    if not ranks.is_main:
        return 0
    text = json.dumps(result, indent=2)
    print(text, flush=True)  # first, in case the files cannot be written
    if args.json:

        def write_json(path: Path) -> None:
            path.write_text(f"{text}\n")

        problems.append(outputs.write_or_keep("json", args.json, write_json))
    problems = [problem for problem in problems if problem]
    return print_error("evaluate.py", "; ".join(problems)) if problems else 0


if __name__ == "__main__":
    sys.exit(main())
