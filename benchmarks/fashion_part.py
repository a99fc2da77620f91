"""A part of Fashion-MNIST for comparing training methods in minutes (methods.py).

    python benchmarks/fashion_part.py --out data/fashion-part

Writes PNGs of 32 px as train/CLASS/* and val/CLASS/*: 2,000 and 500 pictures a class, all from its
60,000 training pictures, so that no method is chosen on the test images that `demo` reports.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from resnet50.packing import fashion_mnist

PARTS = {"train": (0, 2000), "val": (2000, 2500)}  # first and last picture of a class


def write(out: Path, source_dir: Path | None) -> int:
    """Write the folders; returns the number of pictures. Raises ValueError if they are not to be
    had, OSError if they cannot be written."""
    source = fashion_mnist.source(source_dir)
    for split, (first, last) in PARTS.items():
        for label, name in enumerate(source.classes):
            pictures = [item for item in source.splits["train"] if item.label == label]
            folder = out / split / name
            folder.mkdir(parents=True)
            for picture in pictures[first:last]:
                (folder / Path(picture.name).name).write_bytes(fashion_mnist.read(picture.member))
    return len(source.classes) * PARTS["val"][1]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the folders, say how many pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    add("--source_dir", type=Path, metavar="DIR", help="folder with its four files [fetched]")
    args = parser.parse_args(argv)
    if args.out.exists():
        parser.error(f"--out {args.out}: exists already; give a new folder")
    try:
        number = write(args.out, args.source_dir)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{number:,} pictures in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
