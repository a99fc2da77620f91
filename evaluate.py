"""Top-1 and top-5 of a checkpoint or a weights file on a split, every image counted once.

    python evaluate.py --data_dir DIR --weights runs/NAME/checkpoints/best.pt
    torchrun --standalone --nproc_per_node=4 evaluate.py --data_dir DIR --weights FILE

Takes the settings from a checkpoint (averaged weights, sizes, batch, precision) and ImageNet's
usual ones for other files: torchvision's keys, 224 px cut from 256, fp32. Whole batches go round
the ranks, so that any number of them gives the same figures. top1 and top5 are of a single crop;
FFCV's published figures average over the crop and its mirror image, which --flip reports apart.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import checkpoint
import data
import distributed
import engine
import feeding
import interruption
import sampling
from command_line import with_underscores
from distributed import Ranks
from feeding import Feeder
from model import ResNet, architecture_of, load_weights
from slots import Batch


def build_parser() -> argparse.ArgumentParser:
    """The command line; what is not given comes from the checkpoint."""
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--data_dir", type=Path, required=True, help="folder with SPLIT.pack or SPLIT/CLASS/*")
    add("--weights", type=Path, required=True, help="checkpoint, or file of torchvision's keys")
    add("--split", default="val", help="folder of data_dir to evaluate [val]")
    add("--raw", action="store_true", help="the trained weights, not their average (EMA)")
    add("--flip", action="store_true", help="also averaged over the mirror image: flip_top1, _top5")
    add("--image_size", type=int, metavar="N", help="side of the centre crop, px [as trained; 224]")
    add("--resize_size", type=int, metavar="N", help="shorter side before it, px [as trained; 256]")
    add("--batch_size", type=int, metavar="N", help="images a batch [as trained; 64]")
    add(
        "--num_workers", type=int, default=-1, metavar="N", help="loaders a GPU; -1: from the cores"
    )
    add("--amp", choices=("auto", "bf16", "fp16", "fp32"), help="precision [as trained; fp32]")
    add("--json", type=Path, help="file for the result, a JSON object")
    return parser


def read_weights(path: Path, raw: bool) -> tuple[dict, str, dict]:
    """State dict, what it is, and the settings it was trained with (empty for a foreign file)."""
    state = checkpoint.load_weights_file(path)
    if "model" not in state:
        return state, "weights", {}
    if state.get("ema") is not None and not raw:
        return state["ema"], "EMA", state.get("config", {})
    return state["model"], "trained", state.get("config", {})


def sizes(args: argparse.Namespace, trained: dict) -> tuple[int, int, int]:
    """Side of the crop, shorter side before it, images a batch: as given, as trained, or usual."""
    crop_size = args.image_size or trained.get("eval_image_size") or trained.get("image_size", 224)
    resize_size = args.resize_size or round(crop_size * 256 / 224)
    if trained.get("eval_resize_size") and not (args.image_size or args.resize_size):
        resize_size = trained["eval_resize_size"]
    batch_size = args.batch_size or trained.get("device_batch_size", 64)
    if min(crop_size, resize_size - crop_size + 1, batch_size) < 1:
        raise ValueError(
            f"--image_size {crop_size}, --resize_size {resize_size}, --batch_size {batch_size}: "
            "must be at least 1, and the crop no larger than the picture"
        )
    return crop_size, resize_size, batch_size


def evaluate(args: argparse.Namespace, ranks: Ranks) -> dict[str, object]:
    """Run the evaluation on all ranks. Raises ValueError for what the user must change."""
    split = data.open_split(args.data_dir, args.split)
    weights, kind, trained = read_weights(args.weights, args.raw)
    architecture = architecture_of(weights)
    if architecture["num_classes"] != len(split.classes):
        raise ValueError(
            f"--weights {args.weights} knows {architecture['num_classes']} classes, "
            f"{split.root} has {len(split.classes)}: give the data it was trained on"
        )
    crop_size, resize_size, batch_size = sizes(args, trained)
    on_gpu = ranks.device.type == "cuda"
    num_workers = feeding.choose_num_workers(args.num_workers, ranks.local_world_size, on_gpu)
    keys = sampling.eval_keys(len(split), batch_size, crop_size, ranks.rank, ranks.world_size)
    rounds = -(-len(split) // (batch_size * ranks.world_size))
    images = data.EvalImages(split, resize_size)
    feeder = Feeder([images], batch_size, crop_size, num_workers, ranks.device)
    first_batches = feeder.batches(0, keys)

    distributed.connect(ranks)
    model = ResNet(**architecture, blurpool=trained.get("blurpool", False))
    load_weights(model, weights)
    model.to(ranks.device)
    precision = engine.choose_precision(args.amp or trained.get("amp", "fp32"), ranks.device)
    bad_images: set[str] = set()

    def note_bad_images(batch: Batch | None) -> bool:
        bad_images.update(batch.bad_images if batch else ())
        return False

    def means(batches: Iterator[Batch], with_flip: bool) -> dict[str, float]:
        batches = chain(batches, [None] * (rounds - len(keys)))
        return engine.means(
            engine.evaluate(
                model, batches, len(split), precision, ranks, note_bad_images, with_flip
            )
        )

    result = means(first_batches, with_flip=False)
    if args.flip:
        flipped = means(feeder.batches(0, keys), with_flip=True)
        result |= {"flip_top1": flipped["top1"], "flip_top5": flipped["top5"]}
    bad_images = distributed.gather_names(bad_images, ranks)
    for name in sorted(bad_images) if ranks.is_main else ():
        print(f"warning: cannot be decoded, counted as black: {name}", file=sys.stderr)
    distributed.disconnect()
    return {
        **result,
        "num_images": len(split),
        "num_bad_images": len(bad_images),
        "split": str(split.root),
        "weights": str(args.weights),
        "kind": kind,
        "image_size": crop_size,
        "resize_size": resize_size,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and print a JSON object; 0, or 2 for what the user must change."""
    args = build_parser().parse_args(with_underscores(sys.argv[1:] if argv is None else argv))
    if distributed.launched_by_torchrun():
        interruption.die_with_launcher()
    ranks = Ranks()
    try:
        ranks = distributed.read_ranks()
        result = evaluate(args, ranks)
        if ranks.is_main and args.json:
            args.json.write_text(json.dumps(result, indent=2) + "\n")
    except (ValueError, OSError) as error:
        if ranks.is_main:
            print(f"evaluate.py: error: {error}", file=sys.stderr)
        return 2
    if ranks.is_main:
        print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
