"""Where a loader process spends its time, in microseconds an image.

    python benchmarks/loader_profile.py
    python benchmarks/loader_profile.py --min_crop_scale 0.35 --image_sizes 88 224

It calls what a worker of train.py calls, in this process, on one core, with one thread and a warm
page cache, on the pack with a level that prepare_data.py makes of the photo corpus (loader.py). The
clock runs around each stage where it happens, between the others, since a stage alone would find
its code and data in the processor's caches. It counts CPU time, in which other programs have no
part. Of every batch the fastest of --rounds counts, for each stage by itself. What is left of the
whole is Python between the stages and the clock itself, 0.3 us for each call.
"""

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import simplejpeg
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import crop_quality

from resnet50.data import crops, sampling, tiles
from resnet50.data.batch import Slot, slot_dtype
from resnet50.data.levels import LeveledPicture
from resnet50.data.pack import PackedImages

# Title, and the functions by whose names it is called.
STAGES: dict[str, list[tuple[object, str]]] = {
    "asking the kernel to read ahead": [(PackedImages, "will_need"), (LeveledPicture, "will_need")],
    "opening records: reading, tables, checksums": [(PackedImages, "open")],
    "random numbers, rectangles, levels": [
        (sampling, "uniforms"),
        (crops, "stacked"),
        (crops, "crop_boxes"),
        (crops, "pick_levels"),
        (crops, "reduce_boxes"),
    ],
    "reading full pictures, tables of lengths": [(LeveledPicture, "level")],
    "splicing": [(tiles, "cut")],
    "decoding (simplejpeg: C)": [(simplejpeg, "decode_jpeg")],
    "resizing (torch, OpenCV: C++)": [(crops, "resize")],
}
WHOLE, REST = "whole", "the rest"


def time_stages(seconds: dict[str, float]) -> None:
    """Have each stage add its time to `seconds` from now on."""

    def timed(function: Callable, title: str) -> Callable:
        """The function, adding the CPU time of each call to its stage."""

        def call(*args: object, **kwargs: object) -> object:
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[title] += time.thread_time() - start

        return call

    for title, functions in STAGES.items():
        for place, name in functions:
            setattr(place, name, timed(getattr(place, name), title))


def profile(
    pack: PackedImages, side: int, args: argparse.Namespace, seconds: dict[str, float]
) -> dict[str, float]:
    """Microseconds an image by stage."""
    size = args.batch_size
    slot = Slot(0, np.zeros(1, slot_dtype(size, side))[0])
    fill = crops.TrainImages(pack, 0, crops.Augmentation(args.min_crop_scale))
    order, sums = sampling.epoch_order(0, 0, len(pack)), defaultdict(float)
    starts = range(0, max(len(pack) - size, 0) + 1, size)[: args.batches]
    for start in starts:
        fastest = defaultdict(lambda: float("inf"))
        for _ in range(args.rounds):
            slot.set_key(sampling.BatchKey(0, order[start : start + size], side))
            seconds.clear()
            begin = time.thread_time()
            fill(slot)
            seconds[WHOLE] = time.thread_time() - begin
            for title, spent in seconds.items():
                fastest[title] = min(fastest[title], spent)
        for title, spent in fastest.items():
            sums[title] += spent
    num_images = len(starts) * min(size, len(pack))
    found = {title: 1e6 * spent / num_images for title, spent in sums.items()}
    return found | {REST: found[WHOLE] - sum(found.get(title, 0) for title in STAGES)}


def main(argv: Sequence[str] | None = None) -> int:
    """Print one table, a column for each image size; 2 if something must be changed."""
    parser = argparse.ArgumentParser(
        prog="loader_profile.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    crop_quality.add_corpus_options(parser)
    add = parser.add_argument
    add("--image_sizes", type=int, nargs="+", default=[88, 128], metavar="N", help="px")
    add("--min_crop_scale", type=float, default=0.08, metavar="X", help="[%(default)s]")
    add("--batch_size", type=int, default=128, metavar="N", help="[%(default)s]")
    add("--batches", type=int, default=6, metavar="N", help="at most [%(default)s]")
    add("--rounds", type=int, default=20, metavar="N", help="[%(default)s]")
    args = parser.parse_args(argv)
    for name, least in (("image_sizes", 16), ("batch_size", 1), ("batches", 1), ("rounds", 1)):
        if np.min(getattr(args, name)) < least:
            parser.error(f"--{name}: must be at least {least}")
    try:
        pack = crop_quality.open_corpus(args).pack(crop_quality.LEVEL_248)
    except (ValueError, OSError) as error:
        print(f"loader_profile.py: error: {error}", file=sys.stderr)
        return 2
    os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    torch.set_num_threads(1)
    pack.root.read_bytes()  # into the page cache
    seconds: dict[str, float] = defaultdict(float)
    time_stages(seconds)
    columns = [profile(pack, side, args, seconds) for side in args.image_sizes]
    print("| us an image | " + " | ".join(f"{side} px" for side in args.image_sizes) + " |")
    print("|---" * (1 + len(columns)) + "|")
    for title in (*STAGES, REST, WHOLE):
        print(f"| {title} | " + " | ".join(f"{of.get(title, 0):.1f}" for of in columns) + " |")
    if args.json:
        of_sizes = dict(zip(args.image_sizes, columns, strict=True))
        args.json.write_text(json.dumps({"us_an_image": of_sizes}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
