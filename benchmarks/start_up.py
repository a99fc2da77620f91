"""How long train.py takes from the command to its first step, on data of ImageNet's size.

    python benchmarks/start_up.py
    python benchmarks/start_up.py --rounds 5 --folder /data/scratch

Three data sets of 1,000 classes take turns: 4,000 images; a pack with an index of 1,281,167 images
for training and 50,000 for validation; and as many files in class folders. The large ones hold few
pictures many times (as entries of an index, and as hard links), so they take little room, but a
start reads the same index, or lists the same number of files, as with ImageNet. Each run is
`train.py --max_steps 1`: a ResNet50, 32 px, a batch of 8. A start is timed to the first line
printed (imports) and from there to the end of the first step; a run's own log says when that was.
With root's rights, the kernel's caches of files and folders are dropped before every cold round.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from resnet50.data import pack  # noqa: E402

NUM_CLASSES, NUM_TRAIN, NUM_VAL = 1000, 1_281_167, 50_000
SMALL = 2 * NUM_CLASSES  # images of a split that costs nothing to open
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
LIMIT_S, POLL_S = 1800, 0.01


def class_names() -> list[str]:
    """As many as ImageNet has, of its form."""
    return [f"n{10_000_000 + number}" for number in range(NUM_CLASSES)]


def make_folder(folder: Path, num_train: int, num_val: int) -> Path:
    """Class folders; the files of a class are hard links to one photograph-sized picture."""
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
    for split, total in (("train", num_train), ("val", num_val)):
        for label, name in enumerate(class_names()):
            place = folder / split / name
            place.mkdir(parents=True)
            first = place / f"{name}_0.JPEG"
            picture.save(first, quality=90)
            for number in range(1, total // NUM_CLASSES + (label < total % NUM_CLASSES)):
                os.link(first, place / f"{name}_{number}.JPEG")
    return folder


def make_pack(source: Path, folder: Path) -> Path:
    """The packs of `source`, with an index as long as ImageNet's over the same records."""
    folder.mkdir()
    for split, total in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        lengthen(source / f"{split}.pack", folder / f"{split}.pack", total)
    return folder


def lengthen(source: Path, path: Path, num_images: int) -> None:
    """A pack with the records of another one, and an index in which they come again and again."""
    data = source.read_bytes()
    about = json.loads(data[64 : 64 + int.from_bytes(data[12:16], "little")])
    index = pack.PackedImages(source)._index
    with open(path, "w+b") as file:
        file.write(data[: -index.nbytes])
        pack.seal(file, about, np.repeat(index, num_images // len(index) + 1)[:num_images])


def drop_caches() -> None:
    """Forget files and folders, as after the machine's own start."""
    os.sync()
    DROP_CACHES.write_text("3\n")


def time_start(data_dir: Path) -> tuple[float, float]:
    """Seconds from the command to its first line, and from there to the first step's record."""
    with tempfile.TemporaryDirectory() as name:
        run_dir, log = Path(name) / "run", Path(name) / "run" / "log.jsonl"
        words = [sys.executable, ROOT / "train.py", "--data_dir", data_dir, "--run_dir", run_dir]
        words += ["--image_size=32", "--total_batch_size=8", "--device_batch_size=8"]
        words += ["--num_workers=1", "--epochs=1"]
        words += ["--log_every_steps=1", "--spot_watch=off"]
        begin = time.monotonic()
        run = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
        )
        try:
            first_line = run.stdout.readline()
            imported = time.monotonic()
            while not (log.is_file() and '"step": 1,' in log.read_text()):
                if run.poll() is not None or time.monotonic() > begin + LIMIT_S:
                    raise RuntimeError(f"no step was taken: {first_line}{run.stdout.read()}")
                time.sleep(POLL_S)
            return imported - begin, time.monotonic() - imported
        finally:
            os.killpg(run.pid, signal.SIGKILL)
            run.communicate()


def measure(places: dict[str, Path], rounds: int, is_cold: bool) -> None:
    """Print a row for every data set: medians over the rounds, which they take in turns."""
    found = {name: [] for name in places}
    for _ in range(rounds):
        for name, place in places.items():
            if is_cold:
                drop_caches()
            found[name].append(time_start(place))
    base = statistics.median(after for _, after in next(iter(found.values())))
    for name, times in found.items():
        imports, after = (statistics.median(column) for column in zip(*times, strict=True))
        caches = "cold" if is_cold else "warm"
        print(f"| {name} | {caches} | {imports:.1f} s | {after:.1f} s | {after - base:+.1f} s |")


def main(argv: Sequence[str] | None = None) -> int:
    """Make the data sets, measure, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="[3]")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="for the data [a temporary one]")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: must be at least 1")
    if args.folder and not args.folder.is_dir():
        parser.error(f"--folder {args.folder}: no such folder")
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        top = Path(name)
        small = make_folder(top / "small", SMALL, SMALL)
        words = [sys.executable, ROOT / "prepare_data.py", small, "--out", top / "packed"]
        subprocess.run(words, check=True, capture_output=True, timeout=LIMIT_S)
        places = {
            f"{2 * SMALL:,} files": small,
            "a pack of ImageNet's size": make_pack(top / "packed", top / "pack"),
            "as many files": make_folder(top / "files", NUM_TRAIN, NUM_VAL),
        }
        print(
            "| data | caches | to the first line | from there to the first step | against small |"
        )
        print("|---|---|---|---|---|")
        measure(places, args.rounds, is_cold=False)
        if os.access(DROP_CACHES, os.W_OK):
            measure(places, args.rounds, is_cold=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
