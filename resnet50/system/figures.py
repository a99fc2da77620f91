"""matplotlib's figures, on a host with no screen, perhaps no home folder, and few fonts.

Code that draws imports Figure and Axes from here, so that matplotlib is first imported below.
"""

import logging
import warnings
from pathlib import Path
from typing import BinaryIO

# Before the import, which otherwise logs where its cache is to users without a writable home.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

import matplotlib  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

__all__ = ["Axes", "Figure", "plain", "save"]

# The others are for characters that DejaVu Sans, which comes with matplotlib, lacks; fonts that are
# not installed are skipped.
matplotlib.rcParams["font.family"] = [
    *("DejaVu Sans", "Noto Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans Devanagari"),
    *("WenQuanYi Zen Hei", "Noto Emoji", "Unifont"),
]


def save(figure: Figure, file: Path | BinaryIO) -> bool:
    """Write a figure as a PNG; returns whether the fonts had all its characters.

    A missing one becomes a box. matplotlib would warn about each of them in each picture.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(file, format="png")
    texts = [str(warning.message) for warning in caught]
    for text in texts:
        if "missing from font" not in text:
            warnings.warn(text, stacklevel=2)
    return not any("missing from font" in text for text in texts)


def plain(text: str) -> str:
    """Escape text for matplotlib, which takes "$a$" for math, and draws nothing but Unicode."""
    return text.encode(errors="replace").decode().replace("$", r"\$")
