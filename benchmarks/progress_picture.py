"""A picture of a terminal in which train.py runs, for docs/reliability.md.

    python benchmarks/progress_picture.py --data_dir DIR --out images/progress.png

Starts a training in a pseudo-terminal, reads what it writes, and draws the lines that a user sees
in the second epoch, the progress bar at the end.
"""

import argparse
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from resnet50.system import figures
from resnet50.system.figures import Figure

REPOSITORY = Path(__file__).parent.parent
COLUMNS, ROWS = 130, 24  # characters
LIMIT_S = 600
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
BAR = re.compile(r"epoch 2/.*?(\d+)%.*?loss.*?\]")
BACKGROUND, TEXT = "#1b1b1b", "#e8e8e8"


def watch(words: Sequence[str], percent: int) -> str:
    """All that a training writes to its terminal until that much of its second epoch is done.

    Raises TimeoutError if that takes too long, and ValueError if the command ends first.
    """
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(words, stdin=end, stdout=end, stderr=end, start_new_session=True)
    os.close(end)
    written, deadline = "", time.monotonic() + LIMIT_S
    try:
        while percent > int(max(["0", *BAR.findall(written)], key=int)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {LIMIT_S} s for {percent}% of the second epoch")
            if select.select([terminal], [], [], 1)[0]:
                written += os.read(terminal, 65536).decode(errors="replace")
            elif process.poll() is not None:
                raise ValueError(f"the training ended too early:\n{written}")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(terminal)
    return written


def screen(written: str) -> list[str]:
    """The lines that a terminal shows; a carriage return writes over its line."""
    lines = []
    for line in ESCAPES.sub("", written).replace("\r\n", "\n").split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return [line[:COLUMNS] for line in lines if line][-ROWS:]


def draw(lines: Sequence[str], path: Path) -> None:
    """The lines in a fixed-width font."""
    height = 0.3 + 0.22 * len(lines)  # inches
    figure = Figure(figsize=(10.2, height), dpi=100, facecolor=BACKGROUND)
    for number, line in enumerate(lines):
        y = 1 - (0.15 + 0.22 * (number + 0.7)) / height
        figure.text(0.015, y, line, family="monospace", fontsize=8, color=TEXT, parse_math=False)
    figures.save(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the picture: returns 0, or 2 if the user must change something."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", type=Path, required=True, help="data to train on")
    parser.add_argument("--recipe", default="small", help="what to train [small]")
    parser.add_argument("--percent", type=int, default=60, help="of the second epoch [60]")
    parser.add_argument("--out", type=Path, required=True, help="picture to write, .png")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        train = [sys.executable, str(REPOSITORY / "train.py"), "--price_per_hour=1.624"]
        train += [f"--data_dir={args.data_dir}", f"--run_dir={folder}/run"]
        train += [f"--recipe={args.recipe}", "--log_every_steps=5"]
        try:
            written = watch(train, args.percent)
        except (ValueError, TimeoutError) as error:
            print(f"progress_picture.py: error: {error}", file=sys.stderr)
            return 2
    lines = screen(written.replace(folder, "runs"))
    draw(lines, args.out)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
