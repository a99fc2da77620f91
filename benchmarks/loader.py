"""Images per second of this project's loader on one core, next to what users would pick instead.

    python benchmarks/loader.py
    python benchmarks/loader.py --image_sizes 224 --ffcv_python ~/ffcv/bin/python
    python benchmarks/loader.py --num_workers 2

Without --data_dir it makes the photo corpus (photo_corpus.py, 170 MB to download). It stores the
pictures once in each form compared, in --work_dir (1 GB), and measures from there: one process at a
time, one core, one thread, everything in the page cache, batches of 50. Seconds are CPU time,
summed over a process's threads, so that time taken by other programs does not count.
* base: ImageFolder, Pillow, RandomResizedCrop, flip, ToTensor, Normalize and torch.stack.
* ours: what a worker of train.py does for a batch, uint8 in its place in shared memory. Whether to
  flip is drawn here; the flip itself and the normalization are left to the device.
* FFCV 1.0.2 on files of JPEGs that its own writer made from the same pictures, and DALI on the CPU
  on plain JPEG files; uint8, flipped. webdataset on one .tar of the originals, then as base.
  Each runs in its own Python, since hardly any one holds everything, and is skipped if missing:
      apt install libopencv-dev libturbojpeg0-dev pkg-config && pip install ffcv==1.0.2 torchvision
      pip install nvidia-dali-cuda130==2.4.0
      pip install webdataset==1.0.2 torchvision

The candidates take turns in every round, in random order, with the same pictures; webdataset reads
from front to back and gets the next ones of its .tar. Ratios are within a round: median (10th-90th
percentile). With --num_workers 2 it instead compares two worker processes with one, by wall-clock
time: nothing else may run on the machine.
"""

import argparse
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import PIL
import simplejpeg
import torch
import torchvision

sys.path.insert(0, str(Path(__file__).parent.parent))

import crop_quality
import loader_rivals
from crop_quality import LEVEL_248, LONG_400, LONG_500, ORIGINAL, SHORT_256, Corpus
from loader_rivals import LONG_SIDES, TITLES, Rival, RivalError, start_rivals

from resnet50.data import crops, splits, transforms
from resnet50.data.batch import Slot, slot_dtype
from resnet50.data.loader import SPARE_SLOTS, Loader
from resnet50.data.sampling import BatchKey, epoch_order
from resnet50.system import limits

BATCH = 50  # images
STORES = (ORIGINAL, LONG_500, LEVEL_248, LONG_400, SHORT_256)
STORE_OF = {0: ORIGINAL, 500: LONG_500, 400: LONG_400}  # by the long side of others' files
RATIO = "{median:.2f} ({p10:.2f}-{p90:.2f})"
LEAD_IN = 4  # batches until workers that began together are out of step
IDLE_S = 0.3  # after which workers have filled all their slots


class Work(NamedTuple):
    """rounds: (rounds, batches, BATCH), numbers of pictures; size: of the crops, in pixels;
    scale: the least part of a picture's area in a crop."""

    corpus: Corpus
    rounds: np.ndarray
    size: int
    scale: float

    def batches(self, number: int) -> np.ndarray:
        return self.rounds[number % len(self.rounds)]


class Candidate(NamedTuple):
    """run: makes the images of a round, returns the seconds; files: what it reads."""

    name: str
    family: str
    store: str
    files: Sequence[str]
    run: Callable[[int], float]


def base_candidate(work: Work) -> Candidate:
    """The loader of the tutorials."""
    steps, corpus = torchvision.transforms, work.corpus
    chain = [
        steps.RandomResizedCrop(work.size, scale=(work.scale, 1.0)),
        steps.RandomHorizontalFlip(),
        steps.ToTensor(),
        steps.Normalize(transforms.IMAGENET_MEAN, transforms.IMAGENET_STD),
    ]
    dataset = torchvision.datasets.ImageFolder(corpus.folder.root, steps.Compose(chain))
    dataset.samples = list(zip(corpus.files, corpus.labels, strict=True))

    def run(number: int) -> float:
        start = time.process_time()
        for indices in work.batches(number).tolist():
            torch.stack([dataset[i][0] for i in indices])
        return time.process_time() - start

    return Candidate("ImageFolder, Pillow, float", "base", ORIGINAL, corpus.files, run)


def our_candidate(work: Work, store: str, split: splits.Split) -> Candidate:
    """What a worker process does, done in this one."""
    fill = crops.TrainImages(split, 0, crops.Augmentation(work.scale))
    slot = Slot(0, np.zeros(1, slot_dtype(BATCH, work.size))[0])

    def run(number: int) -> float:
        start = time.process_time()
        for indices in work.batches(number):
            slot.set_key(BatchKey(number, indices, work.size))
            fill(slot)
        return time.process_time() - start

    if split is work.corpus.folder:
        return Candidate("ours, folder", "ours", store, work.corpus.files, run)
    return Candidate("ours, packed", "ours", store, [str(split.root)], run)


def rival_candidate(work: Work, long_side: int, rival: Rival) -> Candidate:
    """Another project's loader."""
    corpus, library, store = work.corpus, rival.library, STORE_OF[long_side]
    name = f"{library} {store} {work.size} {work.scale}"
    files = rival.store(corpus.files, corpus.labels, long_side, corpus.cache)
    rival.ask(
        "make",
        name=name,
        files=files,
        labels=corpus.labels,
        order=work.rounds.ravel().tolist(),
        image_size=work.size,
        min_crop_scale=work.scale,
        batch_size=BATCH,
    )

    def run(number: int) -> float:
        return rival.ask("run", name=name, num_batches=work.rounds.shape[1])["seconds"]

    return Candidate(f"{TITLES[library]} {rival.version}", library, store, files, run)


def take_turns(candidates: Sequence[Candidate], rounds: int) -> np.ndarray:
    """Seconds (rounds, candidates), each round in a different order."""
    for candidate in candidates:
        for file in candidate.files:
            Path(file).read_bytes()  # into the page cache
        candidate.run(0)
    seconds = np.zeros((rounds, len(candidates)))
    for number in range(rounds):
        for place in random.Random(number).sample(range(len(candidates)), len(candidates)):
            seconds[number, place] = candidates[place].run(number + 1)
    return seconds


def spread(values: np.ndarray) -> dict[str, float]:
    return dict(zip(("p10", "median", "p90"), np.percentile(values, (10, 50, 90)), strict=True))


def compare(candidates: Sequence[Candidate], seconds: np.ndarray, work: Work) -> list[dict]:
    """Speeds of the candidates, and their ratios to the base and to rivals on the same store."""
    rows = []
    for candidate, own in zip(candidates, seconds.T, strict=True):
        num_bytes = sum(Path(file).stat().st_size for file in candidate.files)
        row = {
            "pipeline": candidate.name,
            "store": candidate.store,
            "seconds": own.tolist(),
            "bytes_per_image": num_bytes / len(work.corpus.folder),
            "images_per_s": spread(work.rounds[0].size / own),
        }
        for other, times in zip(candidates, seconds.T, strict=True):
            store = LONG_500 if candidate.store == LEVEL_248 else candidate.store
            is_same = other.family in LONG_SIDES and other.store == store
            if is_same or other.family == "base":
                row[f"x_{other.family}"] = spread(times / own)
        rows.append(row)
    return rows


def print_table(rows: Sequence[dict]) -> None:
    """One Markdown table; columns that no row has are left out."""
    titles = {f"x_{key}": f"x {title}" for key, title in {"base": "base", **TITLES}.items()}
    columns = [column for column in titles if any(column in row for row in rows)]
    print("| pipeline | store | kB/image | images/s |", *(f"{titles[c]} |" for c in columns))
    print("|---" * (4 + len(columns)) + "|")
    for row in rows:
        numbers = row["bytes_per_image"] / 1000, row["images_per_s"]["median"]
        cells = [row["pipeline"], row["store"], "{:.1f} | {:.0f}".format(*numbers)]
        cells += [RATIO.format(**row[column]) if column in row else "-" for column in columns]
        print("|", " | ".join(cells), "|")


def measure_one_core(args: argparse.Namespace, corpus: Corpus, rounds: np.ndarray) -> list[dict]:
    """A table for every image size and crop scale."""
    packs = {store: corpus.pack(store) for store in STORES}
    pythons = {library: getattr(args, f"{library}_python") for library in LONG_SIDES}
    rivals = start_rivals(pythons, corpus.files, corpus.labels, corpus.cache)
    os.sched_setaffinity(0, core := [max(os.sched_getaffinity(0))])
    for rival in rivals:
        rival.ask("pin", cores=core)
    pairs = [(rival, side) for rival in rivals for side in LONG_SIDES[rival.library]]
    tables = []
    for size, scale in itertools.product(args.image_sizes, args.min_crop_scales):
        work = Work(corpus, rounds, size, scale)
        candidates = [base_candidate(work), our_candidate(work, ORIGINAL, corpus.folder)]
        candidates += [our_candidate(work, store, pack) for store, pack in packs.items()]
        candidates += [rival_candidate(work, side, rival) for rival, side in pairs]
        rows = compare(candidates, take_turns(candidates, args.rounds), work)
        print(f"\n{size} px, crops from {scale:g} of the area, {args.rounds} rounds\n")
        print_table(rows)
        tables.append({"image_size": size, "min_crop_scale": scale, "rows": rows})
    for rival in rivals:
        rival.close()
    return tables


def measure_workers(args: argparse.Namespace, corpus: Corpus, rounds: np.ndarray) -> list[dict]:
    """What two workers deliver over one, at the first image size and crop scale."""
    size, scale = args.image_sizes[0], args.min_crop_scales[0]
    fill = crops.TrainImages(corpus.pack(LONG_500), 0, crops.Augmentation(scale))
    loaders = [Loader([fill], BATCH, size, count, torch.device("cpu")) for count in (1, 2)]
    keys = [BatchKey(0, indices, size) for indices in rounds.reshape(-1, BATCH)]
    streams = [loader.batches(0, itertools.cycle(keys)) for loader in loaders]
    num_batches = 4 * rounds.shape[1]
    seconds = np.zeros((args.rounds, 2))
    for number, (place, stream) in itertools.product(range(args.rounds), enumerate(streams)):
        time.sleep(IDLE_S)
        # Batches that are ready are not counted, nor the first ones, which all come at once.
        for _ in range(place + 1 + SPARE_SLOTS + LEAD_IN):
            next(stream)
        start = time.perf_counter()
        for _ in range(num_batches):
            next(stream)
        seconds[number, place] = time.perf_counter() - start
    one, two = np.median(num_batches * BATCH / seconds, axis=0)
    ratio = spread(seconds[:, 0] / seconds[:, 1])
    print(f"\n{LONG_500}, {size} px, crops from {scale:g} of the area, {args.rounds} rounds:")
    print(f"one worker {one:.0f} images/s, two {two:.0f}, {RATIO.format(**ratio)} times as many")
    return [{"one": one, "two": two, "ratio": ratio, "seconds": seconds.tolist()}]


def machine() -> str:
    """Processor, how busy it is, versions."""
    modules = torch, torchvision, PIL, simplejpeg, cv2
    versions = [f"{module.__name__} {module.__version__}" for module in modules]
    state = f"{limits.num_cores()} cores, load {os.getloadavg()[0]:.1f}"
    return ", ".join([limits.cpu_name(), state, f"Python {sys.version.split()[0]}", *versions])


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        prog="loader.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    crop_quality.add_corpus_options(parser)
    add = parser.add_argument
    add("--image_sizes", type=int, nargs="+", default=[224, 160, 128], metavar="N", help="px")
    add("--min_crop_scales", type=float, nargs="+", default=[0.08, 0.35], metavar="X")
    add("--rounds", type=int, default=25, metavar="N", help="[%(default)s]")
    add("--images_per_round", type=int, default=150, metavar="N", help="[%(default)s]")
    add("--num_workers", type=int, default=1, choices=(1, 2), help="2: two workers over one")
    loader_rivals.add_python_options(parser)
    args = parser.parse_args(argv)
    for name in ("image_sizes", "rounds", "images_per_round", "num_images"):
        if np.min(getattr(args, name)) < 1:
            parser.error(f"--{name}: must be at least 1")
    if args.images_per_round % BATCH:
        parser.error(f"--images_per_round {args.images_per_round}: must be a multiple of {BATCH}")
    if not all(0 < scale <= 1 for scale in args.min_crop_scales):
        parser.error("--min_crop_scales: must lie between 0 and 1")
    if args.num_workers > limits.num_cores():
        parser.error("--num_workers 2: needs two cores, but there is one; use --num_workers 1")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; 2 if something must be changed."""
    args = parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        corpus = crop_quality.open_corpus(args)
        num_images, count = len(corpus.folder), args.images_per_round
        if num_images < count:
            raise ValueError(f"--images_per_round {count}: there are {num_images}; use fewer")
        about = f"{machine()}; {num_images} pictures of {corpus.folder.root}"
        print(about)
        order = epoch_order(0, 0, num_images)[: num_images // count * count]
        rounds = order.reshape(-1, count // BATCH, BATCH)
        measure = measure_one_core if args.num_workers == 1 else measure_workers
        result = {"machine": about, "tables": measure(args, corpus, rounds)}
        if args.json:
            args.json.write_text(json.dumps(result, indent=1) + "\n")
    except (ValueError, OSError, RivalError) as error:
        print(f"loader.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
