"""What prepare_data.py says about packs: what was made, and whether all of it is whole."""

import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

import dataset_paths
from resnet50.config.recipes import DEFAULT_RECIPE
from resnet50.data import class_folders
from resnet50.data.pack import SUFFIX, PackedImages
from resnet50.packing import encode
from resnet50.packing.data_set import Source
from resnet50.packing.writer import Note

SPLITS = ("train", "val")
VERIFY_CHUNK = 256  # images per task
SHOWN_NOTES = 20


def print_report(report: dict, out: Path, source: Source) -> None:
    """Print what was made, what is missing, and what comes next."""
    classes = class_folders.described(source.classes)
    print(f"{out}: {source.layout}, {len(source.classes)} classes: {classes}")
    for split in SPLITS:
        made = report[split]
        print(
            f"  {split:5}  {made['images']:>9,} images  {made['bytes'] / 1e9:8.3f} GB, "
            f"{made['bytes'] / made['images'] / 1e3:.1f} kB per image  {made['seconds']:7.1f} s  "
            f"{made['images_per_s']:.0f} images/s"
        )
        notes = [Note(**note) for note in made["notes"]]
        for kind in ("bad", "repaired"):
            print_notes(split, kind, [note for note in notes if note.kind == kind])
    for remark in source.remarks:
        print(f"  {remark}")
    if line := source.unused.line():
        print(f"  {line}")
    num_train, num_val = (report[split]["images"] for split in SPLITS)
    if missing := dataset_paths.missing_images(source.classes, num_train, num_val):
        print(f"warning: {missing}")
    elif dataset_paths.known_dataset(source.classes, num_train, num_val):
        print("  the numbers of images are right for this data set")
    recipe = recipe_for(source.classes, num_train, num_val)
    print(f"next: python train.py --data_dir {out} --recipe {recipe}")


def recipe_for(classes: Sequence[str], num_train: int, num_val: int) -> str:
    """The recipe to begin with; for a user's own images `small`, and then see docs/recipes.md."""
    dataset = dataset_paths.known_dataset(classes, num_train, num_val)
    names = [name for name, known in dataset_paths.DATASETS.items() if known == dataset]
    recipes = {"imagenet": DEFAULT_RECIPE, "fashion-mnist": "demo"}
    return recipes.get(names[0], names[0]) if names else "small"


def is_partial(path: Path) -> bool:
    """Whether packing was interrupted before this pack was whole."""
    return path.with_name(f"{path.name}.partial").exists()


def print_notes(split: str, kind: str, notes: Sequence[Note]) -> None:
    """Name the first pictures of a kind of note; nothing if there are none."""
    if not notes:
        return
    meaning = {
        "bad": "cannot be decoded and were left out",
        "repaired": "are unusual, and were read as follows",
    }[kind]
    print(f"  {split}: {len(notes)} images {meaning}:")
    for note in notes[:SHOWN_NOTES]:
        print(f"    {note.name}: {note.text}")
    if len(notes) > SHOWN_NOTES:
        print(f"    and {len(notes) - SHOWN_NOTES} more, in report.json")


def open_pack(option: str, data_dir: Path, split: str) -> PackedImages:
    """A split's pack. Raises ValueError naming the option if it is not there."""
    path = data_dir / f"{split}{SUFFIX}"
    if not path.exists():
        why = ", packing was interrupted: the command that packed it resumes"
        what = f"--{option} {data_dir}: {path.name} is not there"
        raise ValueError(what + (why if is_partial(path) else ""))
    return PackedImages(path)


def verify(data_dir: Path, num_workers: int) -> int:
    """Decode every image of both packs; 0 if all is well, 2 if not. Raises ValueError."""
    num_faults = 0
    counts = []
    classes = ()
    for split in SPLITS:
        pack, start = open_pack("verify", data_dir, split), time.monotonic()
        path = pack.root
        chunks = range(0, len(pack), VERIFY_CHUNK)
        tasks = ((path, at, min(at + VERIFY_CHUNK, len(pack))) for at in chunks)
        with (
            encode.worker_pool(num_workers) as pool,
            tqdm(total=len(pack), desc=split, unit="img", disable=None, leave=False) as bar,
        ):
            for faults in encode.in_order(pool, tasks, encode.find_faults, 4 * num_workers):
                bar.update(min(VERIFY_CHUNK, len(pack) - bar.n))
                num_faults += len(faults)
                for fault in faults:
                    tqdm.write(fault)
        seconds = time.monotonic() - start
        print(f"{path}: {len(pack):,} images checked, {len(pack) / seconds:.0f} images/s")
        counts.append(len(pack))
        classes = pack.classes
    if missing := dataset_paths.missing_images(classes, *counts):
        print(f"warning: {missing}")
    if num_faults:
        print(f"{num_faults} images are damaged: copy the pack again, or remove it and pack again")
    else:
        print("all images are whole")
    return 2 if num_faults else 0
