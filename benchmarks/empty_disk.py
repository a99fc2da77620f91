"""From an empty disk to the first step: packs fetched from a web server, then train.py.

    python benchmarks/empty_disk.py --data_dir data/clothing
    python benchmarks/empty_disk.py --data_dir data/clothing --gb 2 --mb_per_s 200

The training pack of DIR is made larger, its pictures again and again, and served on this machine
with a limit of bytes per second. packing/fetch.py brings it to an empty folder and compares every
image with its checksum; then a ResNet50 takes its first step (32 px, a batch of 8). The same fetch
without a limit says what this host itself can do: if that is more, the network limits.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import range_server  # noqa: E402
import start_up  # noqa: E402

from resnet50.data import pack  # noqa: E402

LIMIT_S = 3600


def enlarge(source: Path, path: Path, num_bytes: int) -> int:
    """Write a pack with the records of another one so often that it has so many bytes; its size."""
    data = source.read_bytes()
    header = pack.read_header(data[: pack.HEADER.size], source)
    about = json.loads(data[pack.HEADER.size : pack.HEADER.size + header.json_bytes])
    records = data[header.records_offset : header.index_offset]
    entries = pack.PackedImages(source)._index
    times = max(1, round(num_bytes / (len(records) + entries.nbytes)))
    index = np.tile(entries, times)
    index["offset"] += np.repeat(np.arange(times, dtype="<u8") * len(records), len(entries))
    with open(path, "w+b") as file:
        file.seek(header.records_offset)
        for _ in range(times):
            file.write(records)
        pack.seal(file, about, index)
    return path.stat().st_size


def time_fetch(url: str, out: Path) -> float:
    """Seconds that packing/fetch.py takes, its own start included, to an empty folder."""
    words = [sys.executable, "-m", "resnet50.packing.fetch"]
    begin_s = time.monotonic()
    subprocess.run(
        [*words, f"--data_from={url}", f"--data_dir={out}"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=LIMIT_S,
    )
    return time.monotonic() - begin_s


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data_dir", type=Path, required=True, metavar="DIR", help="with both packs")
    add("--gb", type=float, default=2.0, metavar="X", help="size of the training pack [2]")
    add("--mb_per_s", type=float, default=200.0, metavar="X", help="the server's limit [200]")
    add("--folder", type=Path, metavar="DIR", help="for source and copy [a temporary one]")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Make the source, measure, print a table."""
    args = build_parser().parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        source, out = Path(name) / "source", Path(name) / "out"
        source.mkdir()
        num_bytes = enlarge(args.data_dir / "train.pack", source / "train.pack", int(args.gb * 1e9))
        shutil.copy2(args.data_dir / "val.pack", source)
        num_bytes += (source / "val.pack").stat().st_size
        with range_server.serve(source) as server:
            free_s = time_fetch(server.url, out)
            shutil.rmtree(out)
            server.mb_per_s = args.mb_per_s
            fetch_s = time_fetch(server.url, out)
        imports_s, step_s = start_up.time_start(out)
    rows = {
        f"fetch {num_bytes / 1e9:.2f} GB, at most {args.mb_per_s:g} MB/s": fetch_s,
        "of which the server's limit": num_bytes / args.mb_per_s / 1e6,
        "the same without a limit": free_s,
        "train.py to its first line": imports_s,
        "from there to the first step": step_s,
        "from an empty disk to the first step": fetch_s + imports_s + step_s,
    }
    print("| what | seconds | MB/s |\n|---|---|---|")
    for what, seconds in rows.items():
        rate = f"{num_bytes / seconds / 1e6:.0f}" if "fetch" in what or "limit" in what else ""
        print(f"| {what} | {seconds:.1f} | {rate} |")
    print(f"limited by: {'the server' if fetch_s > 1.1 * free_s else 'this host'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
