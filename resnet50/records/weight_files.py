"""A weights file of any origin -> its contents, without running its code; or what it is instead.

    contents = read(Path("model_best.pth.tar"), "--weights")

The first bytes decide, not the name: people call everything .pth. torch.load always runs with
weights_only=True: otherwise a pickle could run any program.
"""

import argparse
import os
import pickletools
import re
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import torch
from torch import serialization

from resnet50.records import checkpoint

# Under which names other programs keep a network's weights in their checkpoints, the likelier
# ones first: torchvision's and DeiT's references, timm, Lightning, fairseq, the courses.
PLACES = (
    *("state_dict", "model_state_dict", "model", "net", "network", "model_state", "weights"),
    *("params", "state", "module", "net_state_dict", "student", "backbone", "encoder", "resnet"),
)
# Words in names of averaged weights; the teacher of self-supervised methods is one.
AVERAGE = {"ema", "swa", "averaged", "average", "avg", "teacher", "shadow"}
# What a file begins with, and the message if it was given as weights.
KINDS = {
    b"version https://git-lfs": "is a Git LFS pointer, not weights: `git lfs pull` fetches them",
    b"\x89HDF\r\n\x1a\n": "is HDF5, such as Keras writes (.h5): give PyTorch weights",
    b"\x93NUMPY": "is a NumPy array: give PyTorch weights",
    b"\x1f\x8b": "is compressed (gzip): unpack it first",
    b"7z\xbc\xaf": "is compressed (7-Zip): unpack it first",
    b"Rar!": "is compressed (RAR): unpack it first",
    b"%PDF": "is a PDF",
    b"\xff\xd8\xff": "is a picture",
    b"\x89PNG": "is a picture",
}
HTML = re.compile(rb"\s*(<!--.*?-->\s*)?<(!doctype\s+html|html|head|\?xml)", re.IGNORECASE)
ZIP = b"PK\x03\x04"
OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6: its magic number
# What torch.load creates without running code from the file.
HARMLESS = re.compile(
    r"torch\.(\w+|_utils\.\w+|_tensor\.\w+|storage\.\w+|nn\.parameter\.Parameter)"
    r"|collections\.\w+|argparse\.Namespace|_codecs\.encode|(__builtin__|builtins)\.(set|bytearray|complex)"
)
MAX_HEADER_BYTES = 100_000_000  # of safetensors: its own limit
# Operations of a pickle that only memoize, and those that begin a dictionary or an object.
MEMORIES = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
TABLES = {"EMPTY_DICT", "GLOBAL", "BINGET", "LONG_BINGET", "MARK"}
NOT_TENSORS = "is not a file of tensors written by torch.save"
CUT = "is cut short: its end is missing. Copy or download it again"
TORCHSCRIPT = (
    "is TorchScript (torch.jit.save), a program and not just weights. These lines save them, "
    "if you trust the file:\n"
    "  import torch\n"
    "  weights = torch.jit.load({path!r}, map_location='cpu').state_dict()\n"
    "  torch.save(weights, {out!r})"
)
MORE_THAN_TENSORS = (
    "holds more than tensors ({what}), which only running code from the file could load. These "
    "lines save the weights alone, if you trust the file:\n"
    "  import torch\n"
    "  contents = torch.load({path!r}, map_location='cpu', weights_only=False)\n"
    "  torch.save({weights}, {out!r})"
)


def read(path: Path, option: str = "--weights") -> dict:
    """What torch.save or safetensors wrote there, loaded onto the CPU: a dictionary.

    option: of the command line, for the message. Raises ValueError naming option and file if it is
    neither, incomplete, or needs code to load; the message says what the file is.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{option} {path} is a pipe or a device: give a file")
    try:
        with open(path, "rb") as file:
            contents = _contents(path, file)
    except OSError as error:
        raise ValueError(f"{option} {path}: {error.strerror or error}") from error
    except checkpoint.DamagedCheckpointError as error:
        raise checkpoint.DamagedCheckpointError(f"{option}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{option} {path} {error}") from None
    if not isinstance(contents, dict):
        raise ValueError(f"{option} {path} holds a {type(contents).__name__}, not a state dict")
    return contents


def is_average(name: str) -> bool:
    """Whether a name is that of averaged weights: model_ema, state_dict_ema, teacher."""
    return not AVERAGE.isdisjoint(re.split(r"[._\W]", name.lower()))


def _contents(path: Path, file: BinaryIO) -> object:
    """What the file holds. Raises ValueError saying what it is, without its name."""
    size = os.fstat(file.fileno()).st_size
    head = file.read(512)
    # Ours ends with its hash, and is verified; anything else is whatever torch makes of it.
    file.seek(-min(checkpoint.TRAILER_BYTES, size), os.SEEK_END)
    if file.read(8) == b"\nsha256 ":
        return checkpoint.load(path)
    if not head:
        raise ValueError("is empty: the copy or the download has failed")
    if is_safetensors(head, size) or (path.suffix == ".safetensors" and not _says_what_it_is(head)):
        return _safetensors(path)
    if found := _named_by_first_bytes(head):
        raise ValueError(found)
    if head.startswith(ZIP) and (found := _named_by_members(path)):
        raise ValueError(found)
    try:
        # The one class that is allowed: argparse's bag of settings, which many programs put
        # beside the weights (torchvision's references, timm). Making one runs nothing, and its
        # contents have to be allowed too. NumPy's numbers stay out: its dtype takes any state.
        with serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        # torch raises half a dozen types for files that are not its own, and for those that hold
        # more than tensors it suggests weights_only=False: that advice is not passed on.
        raise ValueError(_what_torch_refused(path, head)) from error


def is_safetensors(head: bytes, size: int) -> bool:
    """Whether it begins as safetensors does: the header's length in 8 bytes, then JSON."""
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 0 < length < MAX_HEADER_BYTES and head[:1] != b"{" and size > 8


def _says_what_it_is(head: bytes) -> bool:
    """Whether the first bytes are those of another kind of file."""
    return head.startswith((ZIP, b"\x80")) or bool(_named_by_first_bytes(head))


def _safetensors(path: Path) -> dict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"is damaged or cut short: {error}") from None


def _named_by_first_bytes(head: bytes) -> str:
    """What the file is, by its first bytes; empty if they do not tell."""
    for magic, what in KINDS.items():
        if head.startswith(magic):
            return what
    if not head.strip(b"\0"):
        return "begins with zeros alone: the copy or the download has not finished"
    if HTML.match(head):
        return "is a web page, saved in the file's place: download the file itself"
    if head.lstrip()[:1] in (b"{", b"["):
        return "is JSON, not weights: give the file with the tensors"
    return ""


def _named_by_members(path: Path) -> str:
    """What a zip is if not torch.save's; empty if it may be that."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return CUT
    if any(name.endswith("constants.pkl") for name in names):
        return TORCHSCRIPT.format(path=str(path), out=_beside(path))
    if any(name.endswith("data.pkl") for name in names):
        return ""
    if any(name.endswith(".npy") for name in names):
        return "holds NumPy arrays (.npz): give PyTorch weights"
    if any(name.endswith((".h5", "keras_metadata.pb")) for name in names):
        return "is from Keras: give PyTorch weights"
    return f"is a zip archive with {names[0] if names else 'nothing'} in it: unpack it first"


def _what_torch_refused(path: Path, head: bytes) -> str:
    """Why torch.load could not read a file, without running anything from it."""
    texts, classes = _words_of_pickle(path, head)
    if unsafe := sorted(name for name in classes if not HARMLESS.fullmatch(name)):
        what = ", ".join(unsafe[:3]) + (" and more" if len(unsafe) > 3 else "")
        return MORE_THAN_TENSORS.format(
            what=what, path=str(path), out=_beside(path), weights=_expression(texts)
        )
    if path.suffix == ".onnx":
        return "is ONNX: give the weights that it was made from"
    if tarfile.is_tarfile(path):
        return "is a tar archive: unpack it first"
    if head.startswith(OLD_TORCH):
        return "is cut short or damaged: copy or download it again"
    if head.startswith((ZIP, b"\x80")):
        return f"{NOT_TENSORS}, or damaged: copy or download it again"
    return NOT_TENSORS


def _words_of_pickle(path: Path, head: bytes) -> tuple[list[tuple[str, bool]], set[str]]:
    """The texts in a file's pickles, in order, each with whether a dictionary or an object comes
    next, and the classes and functions that they name.

    Read as a list of operations, none of which is executed. Empty if the list is incomplete.
    """
    try:
        operations = [op for op in _operations(path, head) if op[0] not in MEMORIES]
    except Exception:  # damaged files raise anything
        return [], set()
    texts = []
    classes = set()
    recent = ["", ""]
    for (name, value), (following, _) in pairwise([*operations, ("STOP", None)]):
        if name == "STACK_GLOBAL":  # newer pickles: module and name are the two texts before
            classes.add(".".join(recent))
        elif name == "GLOBAL":
            classes.add(value.replace(" ", "."))
        elif isinstance(value, str):
            texts.append((value, following in TABLES))
            recent = [recent[-1], value]
    return texts, classes


def _operations(path: Path, head: bytes) -> Iterator[tuple[str, object]]:
    """The operations of the pickles that torch.save wrote: one in a zip, else four in a row."""
    if head.startswith(ZIP):
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            for operation, value, _ in pickletools.genops(archive.read(name)):
                yield operation.name, value
        return
    with open(path, "rb") as file:
        for _ in range(4 if head.startswith(OLD_TORCH) else 1):
            for operation, value, _ in pickletools.genops(file):
                yield operation.name, value


def _expression(texts: Sequence[tuple[str, bool]]) -> str:
    """Python for the weights in `contents`, by the names that come before the first tensor's."""
    words = [text for text, _ in texts]
    is_model = "_modules" in words
    first = next((i for i, text in enumerate(words) if text == "_modules" or ".weight" in text), 0)
    # torch.save's old format puts the word before every pickled module.
    names = set(PLACES) - ({"module"} if is_model else set())
    averages = [text for text, has_table in texts if has_table and is_average(text)]
    places = [text for text in averages if "." not in text]
    places = places or [text for text in words[:first] if text in names][-1:]
    place = f"contents[{places[0]!r}]" if places else "contents"
    return f"{place}.state_dict()" if is_model else place


def _beside(path: Path) -> str:
    """A name for the weights alone."""
    name = path.name.removesuffix(".tar")
    return f"{Path(name).stem}_weights.pt"
