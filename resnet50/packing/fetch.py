"""Bring train.pack and val.pack from a bucket, a web server or another folder, and check them.

    python -m resnet50.packing.fetch --data_from s3://BUCKET/imagenet --data_dir data/imagenet
    python -m resnet50.packing.fetch --data_from https://HOST/imagenet --data_dir data/imagenet
    python -m resnet50.packing.fetch --data_from /mnt/other/imagenet --data_dir data/imagenet

The packs come in ranges of 32 MB, 16 at a time, and every image is compared with its checksum as
its range arrives; nothing is decoded. What is not whole yet lies in DIR/.fetch, and a pack gets its
name only when all of it is right. After a kill, the same command goes on, and has lost no more than
the ranges that were on their way. A pack that is there already and is the same stays as it is;
another one is never replaced. s3:// needs the package obstore; its credentials come from where
other AWS programs have them: the environment, ~/.aws, or the role of the machine.
"""

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from resnet50.config.command_line import Parser, print_error
from resnet50.data import pack
from resnet50.data.pack import SUFFIX, DamagedPackError, PackedImages
from resnet50.packing import pack_sources, ranges
from resnet50.packing.output_folder import is_whole
from resnet50.packing.pack_sources import PackSource, UnreachableError
from resnet50.packing.progress import Progress
from resnet50.packing.ranges import Journal, Range
from resnet50.packing.report import SPLITS
from resnet50.packing.transfer import Transfer, patiently
from resnet50.system import files
from resnet50.system.locking import FolderLock

PROGRAM = "fetch"
WORK_DIR = ".fetch"
RANGE_BYTES = 32_000_000
# AWS's guide counts on 85 to 90 MB/s for one connection to S3 (S3 user guide, "Performance
# guidelines"), and the instances of our guide have 10 Gbit/s and more.
NUM_PARALLEL = 16
GIVE_UP_S = 300.0
FIRST_ANSWER_S = 20.0  # until then the URL may be wrong, which the user should not wait for


class Wanted(NamedTuple):
    """A pack at its source. header: its first bytes, which no other pack has."""

    name: str
    url: str
    header: bytes

    @property
    def numbers(self) -> pack.Header:
        """What the header says."""
        return pack.read_header(self.header, self.url)


def look_at(source: PackSource, split: str, give_up_s: float) -> Wanted:
    """Which pack of a split the source has.

    Raises ValueError if it has none or a damaged one, UnreachableError.
    """
    name = f"{split}{SUFFIX}"
    url = source.url_of(name)

    def look() -> Wanted:
        """What is there now; asked again while the source does not answer."""
        there = source.size_of(name)
        header = b"".join(source.read(name, 0, pack.HEADER.size))
        if len(header) < min(pack.HEADER.size, there):
            raise UnreachableError(f"{url}: the connection ended early")
        wanted = Wanted(name, url, header)
        if there != wanted.numbers.file_bytes:
            written = f"{wanted.numbers.file_bytes:,} were written"
            raise pack.damaged(url, f"it has {there:,} bytes, {written}")
        return wanted

    return patiently(look, min(give_up_s, FIRST_ANSWER_S))


def is_here(wanted: Wanted, data_dir: Path) -> bool:
    """Whether this very pack lies in the folder. Raises ValueError if another one does, or if it
    is damaged."""
    path = data_dir / wanted.name
    if not path.exists():
        return False
    with open(path, "rb") as file:
        header = file.read(pack.HEADER.size)
    if header != wanted.header:
        raise ValueError(
            f"--data_dir {data_dir}: {wanted.name} there is not the pack of {wanted.url}, and is "
            "not replaced: move it away, give another --data_dir, or leave out --data_from"
        )
    PackedImages(path)  # raises DamagedPackError
    return True


def check_room(missing: Sequence[Wanted], data_dir: Path) -> None:
    """Raise ValueError if the disk has no room for what has yet to come."""
    needed = 0
    for wanted in missing:
        partial = data_dir / WORK_DIR / wanted.name
        has_bytes = 512 * partial.stat().st_blocks if partial.exists() else 0
        needed += max(wanted.numbers.file_bytes - has_bytes, 0)
    place = data_dir.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ValueError(
            f"--data_dir {data_dir}: {needed / 1e9:.3f} GB have yet to come, {free / 1e9:.3f} GB "
            "are free: free some, or give another --data_dir"
        )


def take_over(wanted: Wanted, partial: Path) -> Journal:
    """The journal of an earlier start for the same pack, or a new one; makes the file.

    Raises ValueError if part of another pack is there: it may have cost hours.
    """
    journal = Journal(partial.with_name(f"{wanted.name}.ranges"))
    about = {"url": wanted.url, "header": wanted.header.hex()}
    if not partial.exists():
        journal.there.clear()
    elif journal.about.get("header", about["header"]) != about["header"]:
        raise ValueError(
            f"{partial} is part of another pack, of {journal.about.get('url')}, than that of "
            f"{wanted.url}: remove {partial.parent} to begin anew, or give another --data_dir"
        )
    journal.begin(about)
    with open(partial, "ab"):
        pass
    os.truncate(partial, wanted.numbers.file_bytes)  # takes no room yet
    return journal


class Fetch:
    """Brings one pack; what is there already is not fetched again.

    Raises ValueError for what must be changed, UnreachableError, or OSError of the disk.
    """

    def __init__(
        self, source: PackSource, wanted: Wanted, data_dir: Path, give_up_s: float
    ) -> None:
        self._source, self._wanted, self._url = source, wanted, wanted.url
        self._place = data_dir / wanted.name
        self._partial = data_dir / WORK_DIR / wanted.name
        self._give_up_s = give_up_s
        self._num_came = 0

    def run(self) -> None:
        """Fetch what is missing, compare all of it, then give the pack its name."""
        begin_s = time.monotonic()
        journal = take_over(self._wanted, self._partial)
        images, header = self._open(), self._wanted.numbers
        records = header.records_offset, header.index_offset
        items = ranges.cut(images.offsets, *records, RANGE_BYTES)
        num_there = sum((item.start, item.end) in journal.there for item in items)
        if num_there:
            print(f"{self._url}: {num_there} of {len(items)} ranges are here", file=sys.stderr)
        self._transfer(items, lambda item: damage_in(images, item), journal)
        with open(self._partial, "rb") as file:
            os.fsync(file.fileno())
        if self._place.exists():  # whoever made it meanwhile, it is not this one
            raise ValueError(f"{self._place} has appeared meanwhile, and is not replaced")
        os.replace(self._partial, self._place)
        files.sync_folder(self._place.parent)
        seconds = max(time.monotonic() - begin_s, 1e-3)
        print(
            f"{self._place}: {header.file_bytes / 1e9:.3f} GB, all {len(images):,} images "
            f"compared with their checksums; {self._num_came / 1e9:.3f} GB came in {seconds:.1f} s,"
            f" {self._num_came / seconds / 1e6:.1f} MB/s"
        )

    def _open(self) -> PackedImages:
        """The pack with its header and index, which are fetched unless an earlier start has them.

        A second try shows whether it was the network that damaged them.
        """
        header = self._wanted.numbers
        ends = [
            *ranges.pieces(0, header.records_offset, RANGE_BYTES),
            *ranges.pieces(header.index_offset, header.file_bytes, RANGE_BYTES),
        ]
        for is_last in (False, False, True):
            try:
                return PackedImages(self._partial)
            except DamagedPackError as error:
                if is_last:
                    text = str(error).replace(str(self._partial), self._url)
                    raise DamagedPackError(text) from None
            self._transfer(ends, lambda item: None)
        raise AssertionError("the last try returns or raises")

    def _transfer(
        self,
        items: Sequence[Range],
        check: Callable[[Range], str | None],
        journal: Journal | None = None,
    ) -> None:
        transfer = Transfer(
            self._source,
            self._wanted.name,
            self._partial,
            check,
            num_parallel=NUM_PARALLEL,
            silence_s=self._give_up_s,
        )
        there = journal.there if journal else ()
        total = sum(item.end - item.start for item in items)
        with closing(transfer.run(items, there)) as events, Progress(self._url, total) as progress:
            for event in events:
                self._num_came += event.num_bytes
                progress.add(event)
                if event.done and journal:
                    journal.add(event.done)


def damage_in(images: PackedImages, item: Range) -> str | None:
    """The first image of a range that is not what was written, with what is wrong; None without."""
    for index in item.images:
        if what := images.find_damage(index):
            name = images.name(index).removeprefix(f"{images.root}:")
            return f"{name}: {what}"
    return None


def was_replaced(source: PackSource, wanted: Wanted) -> bool:
    """Whether the source has another pack by now, whose parts look like damage."""
    try:
        now = look_at(source, wanted.name.removesuffix(SUFFIX), give_up_s=0)
    except (ValueError, UnreachableError):
        return False
    return now.header != wanted.header


def fetch(data_from: str, data_dir: Path, give_up_s: float) -> None:
    """Bring both packs into a folder.

    Raises ValueError for what must be changed, UnreachableError, or OSError of the disk.
    """
    source = pack_sources.open_source(data_from)
    try:
        wanted = [look_at(source, split, give_up_s) for split in SPLITS]
    except UnreachableError as error:
        if not all(is_whole(data_dir / f"{split}{SUFFIX}") for split in SPLITS):
            raise
        print(f"warning: {error}; the packs in {data_dir} are used as they are", file=sys.stderr)
        return
    missing = [each for each in wanted if not is_here(each, data_dir)]
    check_room(missing, data_dir)
    work_dir = data_dir / WORK_DIR
    if missing:
        work_dir.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(data_dir, f"{WORK_DIR}/.lock", option="--data_dir")
        for each in missing:
            try:
                Fetch(source, each, data_dir, give_up_s).run()
            except (ValueError, UnreachableError) as error:
                if was_replaced(source, each):
                    raise ValueError(
                        f"{each.url} was replaced while it was fetched: remove {work_dir} and "
                        "begin again"
                    ) from error
                raise
        lock.release()
    if work_dir.exists():
        shutil.rmtree(work_dir)
    for each in wanted:
        if each not in missing:
            print(f"{data_dir / each.name} is the pack of {each.url} already")


def build_parser() -> argparse.ArgumentParser:
    """What can be asked for, and the text of --help."""
    parser = Parser(PROGRAM, __doc__)
    add = parser.add_argument
    places = "s3://BUCKET/PREFIX, https://HOST/FOLDER or a folder with both packs"
    add("--data_from", required=True, metavar="URL", help=places)
    add("--data_dir", type=Path, required=True, metavar="DIR", help="folder to bring them to")
    add(
        "--give_up_s",
        type=float,
        default=GIVE_UP_S,
        metavar="S",
        help=f"end when nothing has come for so many seconds [{GIVE_UP_S:.0f}]",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch; 0 if both packs are there, 2 if something must be changed, 75 to try again later."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not 1 <= args.give_up_s <= 86_400:
        parser.error(f"--give_up_s {args.give_up_s:g}: must be from 1 to 86400")
    for signum in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore the former
        signal.signal(signum, signal.default_int_handler)
    try:
        fetch(args.data_from, args.data_dir, args.give_up_s)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; the same command goes on", file=sys.stderr)
        return os.EX_TEMPFAIL
    except UnreachableError as error:
        print_error(PROGRAM, f"--data_from: {error}; the same command goes on where this one ended")
        return os.EX_TEMPFAIL
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        message = f"--data_dir {args.data_dir}: {error.strerror}{where}"
        return print_error(PROGRAM, f"{message}; once that is fixed, the same command goes on")
    except ValueError as error:
        return print_error(PROGRAM, error)
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # At once: a thread may wait for a dead server, and it must not be ended inside of the client.
    os._exit(code)
