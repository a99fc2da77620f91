"""Pack a data set into train.pack and val.pack, from which train.py reads only what it needs.

    python prepare_data.py fashion-mnist --out data/fashion-mnist
    python prepare_data.py tiny-imagenet --download --out data/tiny-imagenet
    python prepare_data.py FOLDER_WITH_THE_IMAGENET_TARS --out /mnt/imagenet/imagenet
    python prepare_data.py --verify /mnt/imagenet/imagenet
    python prepare_data.py --compare /mnt/imagenet/imagenet

SOURCE is a folder or an archive; what it holds is recognized: ImageNet's two original tars, which
are read in place, without unpacking to disk; Hugging Face's .tar.gz of them; Kaggle's competition
download; Tiny-ImageNet; mini-ImageNet; Imagenette; train/CLASS/* and val/CLASS/*; CLASS/* without
splits; train.csv and val.csv of `path,label`. Splits with other names are given by --train_dir and
--val_dir. Training images are stored so that a crop can be cut out of the compressed bytes, at most
500 pixels a side, with a copy of half the size for small crops; validation images keep their
original bytes. Files that are not used are counted in the output and named in report.json. A kill
costs seconds: the same command resumes, and the result has the same bytes; if the source has
changed since, the command says so. --compare tells whether labels and pixels are right, from the
source that report.json names, or from SOURCE.
"""

import resnet50.system.preflight  # noqa: F401 (first: it reports what this Python lacks)

# isort: split
import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from dataset_paths import DATASETS
from resnet50.config.command_line import Parser, print_error
from resnet50.data import orientation
from resnet50.data.pack import ORIGINAL, SUFFIX, TILES
from resnet50.packing import (
    archives,
    data_set,
    downloads,
    encode,
    fashion_mnist,
    level_choice,
    output_folder,
    snapshot,
    sources,
)
from resnet50.packing import report as pack_report
from resnet50.packing.data_set import Source
from resnet50.packing.encode import Encoding, SplitJob
from resnet50.packing.report import SPLITS
from resnet50.packing.sources import SplitDirs
from resnet50.records import status
from resnet50.system import limits
from resnet50.system.interruption import Interruption
from resnet50.system.locking import FolderLock

SPLIT_DIRS = ("train_dir", "val_dir")


def build_parser() -> argparse.ArgumentParser:
    """What can be asked for, and the text of --help."""
    parser = Parser(
        "prepare_data.py",
        __doc__,
        usage="prepare_data.py SOURCE --out DIR [options] | --verify DIR | --compare DIR [SOURCE]",
    )
    add = parser.add_argument
    names = ", ".join(DATASETS)
    add("source", nargs="?", help=f"folder or archive; or by name: {names}")
    add("--out", type=Path, metavar="DIR", help="folder to write [data/SOURCE for names]")
    add("--verify", type=Path, metavar="DIR", help="check and decode every image of a packed set")
    add(
        "--compare",
        type=Path,
        metavar="DIR",
        help="check labels and crops against the source",
    )
    add(
        "--download", action="store_true", help="download the named data set; for imagenet, say how"
    )
    add("--search", type=Path, metavar="DIR", help="where a named data set may already be")
    add("--source_dir", type=Path, metavar="DIR", help="fashion-mnist: folder with its four files")
    add_pixels(parser)
    add("--store", choices=(TILES, ORIGINAL), help=f"how to store training images [{TILES}]")
    add(
        "--val_store",
        choices=(TILES, ORIGINAL),
        help=f"how to store validation images [{ORIGINAL}]",
    )
    add(
        "--val_pct",
        type=float,
        default=10.0,
        metavar="X",
        help="percent of each class to validate with, if SOURCE is CLASS/* without splits [10]",
    )
    add("--write_annotations", action="store_true", help="write train.csv and val.csv to --out too")
    add("--skip_md5", action="store_true", help="accept known archives whatever their md5 is")
    add("--num_workers", type=int, metavar="N", help="worker processes [all cores]")
    return parser


def add_pixels(parser: argparse.ArgumentParser) -> None:
    """The flags that decide how pixels are stored."""
    add = parser.add_argument
    add(
        "--long_side",
        "--max_resolution",
        type=int,
        default=None,
        metavar="N",
        help="shrink training images to at most N pixels a side; 0: keep their size [500]",
    )
    add(
        "--short_side",
        type=int,
        default=0,
        metavar="N",
        help="shrink training images to a shorter side of N pixels; 0: keep their size [0]",
    )
    add(
        "--quality",
        type=int,
        default=90,
        metavar="Q",
        help="JPEG quality of re-encoded images [90]",
    )
    add(
        "--upright",
        choices=(orientation.AUTO, orientation.YES, orientation.NO),
        default=orientation.AUTO,
        help="turn pictures upright, as EXIF says; auto: except ImageNet and other data sets with "
        "published results [auto]",
    )
    add(
        "--levels",
        type=level_choice.parse,
        metavar="N,..",
        help="beside each training image, smaller copies with long sides of N pixels, descending, "
        "from which small crops are cut faster; none: only the image [half of --long_side: 248]",
    )
    add_split_dirs(parser)


def add_split_dirs(parser: argparse.ArgumentParser) -> None:
    """The flags that name a source's splits if they are not called train and val."""
    for split, what in (("train", "to train on"), ("val", "to validate on [part of training]")):
        parser.add_argument(
            f"--{split}_dir",
            action="append",
            default=[],
            metavar="NAME",
            help=f"folder inside SOURCE whose subfolders are classes {what}; can be repeated",
        )


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Fill in defaults; ends the program with exit code 2 on a mistake."""
    if args.compare and (args.out or args.verify):
        parser.error(f"--compare {args.compare} writes no packs: leave out --out and --verify")
    if not args.compare and (args.verify is None) == (args.source is None):
        parser.error("give a SOURCE to pack, or --verify DIR, or --compare DIR")
    args.num_workers = limits.num_cores() if args.num_workers is None else args.num_workers
    if not 1 <= args.num_workers <= 512:
        parser.error(f"--num_workers {args.num_workers}: must be from 1 to 512")
    if args.long_side is None:
        args.long_side = 0 if args.short_side else Encoding.long_side
    for name in ("long_side", "short_side"):
        if getattr(args, name) and not 32 <= getattr(args, name) <= 8192:
            parser.error(f"--{name} {getattr(args, name)}: must be from 32 to 8192, or 0")
    if problem := level_choice.problem(args.levels or (), train_store(args), args.long_side):
        parser.error(problem)
    if not 1 <= args.quality <= 100:
        parser.error(f"--quality {args.quality}: must be from 1 to 100")
    if not 0 < args.val_pct < 100:
        parser.error(f"--val_pct {args.val_pct:g}: must be above 0 and below 100")
    # Without SOURCE, report.json has it.
    is_name = args.source in DATASETS or (args.compare and not args.source)
    if args.download and not is_name:
        parser.error(f"--download is for one of {', '.join(DATASETS)}, not {args.source}")
    if args.source_dir and args.source != "fashion-mnist":
        parser.error("--source_dir is for fashion-mnist; give other folders as SOURCE")
    if args.search and not is_name:
        parser.error(f"--search is for one of {', '.join(DATASETS)}, not {args.source}")
    if args.val_dir and not args.train_dir:
        parser.error("--val_dir needs --train_dir: give both")
    if args.train_dir and is_name and args.source == "fashion-mnist":
        parser.error("--train_dir names folders of a SOURCE, and fashion-mnist has none")
    if args.source and args.out is None and not args.compare:
        if not is_name:
            parser.error("--out DIR is missing: give a folder for the packs")
        args.out = Path("data") / args.source


def train_store(args: argparse.Namespace) -> str:
    """How training images are stored; Fashion-MNIST's small pictures losslessly by default."""
    return args.store or (ORIGINAL if args.source == "fashion-mnist" else TILES)


def encodings(args: argparse.Namespace, classes: Sequence[str]) -> dict[str, Encoding]:
    """How each split is stored; evaluation takes whole images, so that only training has levels.

    classes: of the data set; they decide what --upright auto means.
    """
    sizes = {name: getattr(args, name) for name in ("long_side", "short_side", "quality")}
    is_auto = args.upright == orientation.AUTO
    sizes["upright"] = orientation.of_classes(classes) if is_auto else args.upright
    train = train_store(args)
    levels = args.levels
    if levels is None:
        levels = level_choice.default(args.long_side, args.short_side) if train == TILES else ()
    return {
        "train": Encoding(store=train, levels=levels, **sizes),
        "val": Encoding(store=args.val_store or ORIGINAL, **sizes),
    }


def open_source(args: argparse.Namespace, work_dir: Path) -> tuple[Source, Callable]:
    """The pictures to pack, and a function that reads them. Raises ValueError if there are none."""
    if args.source == "fashion-mnist":
        return fashion_mnist.source(args.source_dir), fashion_mnist.read
    if "://" in args.source:
        raise ValueError(
            f"{args.source.partition('://')[0]}://...: give a folder or an archive. For packs in a "
            "bucket or on a server: python -m resnet50.packing.fetch --data_from URL --data_dir DIR"
        )
    path = Path(args.source)
    if is_by_name(args):
        path = downloads.find(args.source, args.download, work_dir, args.search)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder, nor one of {', '.join(DATASETS)}")
    if not args.skip_md5:
        downloads.check_md5(path, work_dir)
    print(f"listing {path}", file=sys.stderr)
    return recognize(path, work_dir, args), archives.read


def recognize(path: Path, work_dir: Path, args: argparse.Namespace) -> Source:
    """The data set in a source, read as the options say. Raises ValueError."""
    dirs = SplitDirs(args.train_dir, args.val_dir)
    return sources.recognize(path, work_dir, args.val_pct, dirs)


def check_room(needed: int, out: Path) -> None:
    """Raise ValueError if the disk has no room for this many bytes, less those there already."""
    there = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    free = shutil.disk_usage(out).free
    if needed - there > free:
        raise ValueError(
            f"--out {out}: about {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free: "
            "free some, give another --out, or a smaller --long_side or --quality"
        )


def pack(args: argparse.Namespace) -> int:
    """Pack a source into args.out. Raises ValueError or OSError if something must be changed."""
    request = request_of(args)
    out = args.out
    work_dir = args.out / ".work"
    if args.search and all(output_folder.is_whole(out / f"{split}{SUFFIX}") for split in SPLITS):
        print(f"{out} is packed already")  # from whatever source
        return 0
    if output_folder.is_finished(out, request):
        note = ""
        if not is_by_name(args):
            path = Path(args.source)
            note = output_folder.compare_source(out, path, lambda: recognize(path, work_dir, args))
        print(f"{out} is already complete{note}")
        return 0
    work_dir.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(out, ".work/.lock", option="--out")
    try:
        source, read = open_source(args, work_dir)
    except ValueError:
        for tar in work_dir.glob("*.tar"):  # of a .tar.gz that is refused
            tar.unlink()
        output_folder.remove_if_empty(work_dir)
        raise
    stamps = snapshot.stamps_of(source)
    ways = encodings(args, source.classes)
    jobs = [
        SplitJob(
            split,
            pictures := source.splits[split],
            source.classes,
            read,
            ways[split],
            snapshot.marker(pictures, stamps),
        )
        for split in SPLITS
    ]
    try:
        samples = [encode.sample(job) for job in jobs]
        jobs[0] = level_choice.settle(jobs[0], samples[0], args.levels is not None, out)
        sizes = map(encode.estimate_bytes, samples, (len(job.pictures) for job in jobs))
        check_room(sum(sizes), out)
    except ValueError:
        output_folder.remove_if_empty(work_dir)
        raise
    stop = Interruption()  # from here on, a signal takes effect once finished work is on the disk
    report = {"request": request, "layout": source.layout, "classes": len(source.classes)}
    for job in jobs:
        digest = snapshot.digest_of(job.pictures, stamps)
        report[job.split] = output_folder.pack_one(job, digest, out, args.num_workers, stop)
    report["unused"] = source.unused.to_json()
    report["source_files"] = snapshot.to_json(source, Path(args.source), stamps)
    if args.write_annotations:
        data_set.write_annotations(source, out)
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    lock.release()
    shutil.rmtree(work_dir)
    pack_report.print_report(report, out, source)
    return 0


def compare(args: argparse.Namespace) -> int:
    """Compare packs with their source; 0 if they agree, 2 if not. Raises ValueError or OSError."""
    from resnet50.packing import compare_report  # needs torch, which packing need not wait for

    packs = {split: pack_report.open_pack("compare", args.compare, split) for split in SPLITS}
    if args.source is None:
        vars(args).update(output_folder.packed_from(args.compare))
    args.skip_md5 = True  # it was checked when it was packed
    left_out = {split: output_folder.left_out(args.compare, split) for split in SPLITS}
    place = args.compare if os.access(args.compare, os.W_OK) else None  # for what a .tar.gz holds
    with tempfile.TemporaryDirectory(prefix=".compare-", dir=place) as work_dir:
        source, read = open_source(args, Path(work_dir))
        return compare_report.run(args.compare, packs, source, read, left_out)


def request_of(args: argparse.Namespace) -> dict[str, object]:
    """What the command line asks for, as the report keeps it: a request that was carried out."""
    ways = {split: way.settings() for split, way in encodings(args, ()).items()}
    for way in ways.values():
        del way["upright"]  # only the source's classes tell what auto means
        for name in ("levels", "level_quality"):  # only the pictures tell whether they get any
            way.pop(name, None)
    source = args.source if is_by_name(args) else Path(args.source).resolve()
    upright = {} if args.upright == orientation.AUTO else {"upright": args.upright}
    levels = {} if args.levels is None else {"levels": list(args.levels)}
    # Only if given: older reports have none.
    dirs = {name: getattr(args, name) for name in SPLIT_DIRS if getattr(args, name)}
    return {"source": str(source), "val_pct": args.val_pct, **ways, **upright, **levels, **dirs}


def is_by_name(args: argparse.Namespace) -> bool:
    """Whether SOURCE is the name of a data set, not a file or folder."""
    return args.source in DATASETS and not Path(args.source).exists()


def main(argv: Sequence[str] | None = None) -> int:
    """Pack, verify or compare; 0: all is well, 2: something must be changed, 75: interrupted."""
    parser = build_parser()
    args = parser.parse_args(argv)
    check(parser, args)
    for signum in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore the former
        signal.signal(signum, signal.default_int_handler)
    try:
        if args.compare:
            return compare(args)
        return pack_report.verify(args.verify, args.num_workers) if args.verify else pack(args)
    except KeyboardInterrupt:
        print("prepare_data.py: interrupted; the same command resumes", file=sys.stderr)
        return status.EXIT_CODES[status.INTERRUPTED]
    except BrokenProcessPool:
        message = "a worker was killed, perhaps for lack of memory: use fewer --num_workers"
    except OSError as error:
        named = {name: getattr(args, name) for name in ("verify", "compare", "out")}
        option = next(f"--{name} {path}" for name, path in named.items() if path)
        if args.source and str(error.filename or "").startswith(str(Path(args.source).absolute())):
            option = args.source
        where = f" ({error.filename})" if error.filename else ""
        message = f"{option}: {error.strerror}{where}; fix that, and the same command resumes"
    except ValueError as error:
        message = str(error)
    return print_error("prepare_data.py", message)


if __name__ == "__main__":
    sys.exit(main())
