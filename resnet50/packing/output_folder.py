"""The folder that packs are written to: whether what it holds is what is asked for now.

report.json     what was asked for and what was made, written last
.work/          only while packing: a lock, and each split's part of the report
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from resnet50.data import orientation
from resnet50.data.pack import SUFFIX, DamagedPackError, PackedImages
from resnet50.packing import snapshot
from resnet50.packing.data_set import Source
from resnet50.packing.report import SPLITS


def read_report(out: Path) -> dict:
    """The report of an earlier run; {} without one, or if it is incomplete or another program's."""
    try:
        report = json.loads((out / "report.json").read_text())
    except (OSError, ValueError):
        return {}
    parts = [report.get(name) for name in ("request", *SPLITS)] if isinstance(report, dict) else [0]
    return report if all(isinstance(part, dict) for part in parts) else {}


def is_finished(out: Path, request: Mapping[str, object]) -> bool:
    """Whether this exact request was carried out. Raises ValueError if `out` holds other files."""
    if report := read_report(out):
        refuse_other_request(out, report, request)
        whole = [split for split in SPLITS if is_whole(out / f"{split}{SUFFIX}")]
        (out / ".work").mkdir(exist_ok=True)  # what is damaged or gone is packed again
        for split in whole:
            (out / ".work" / f"{split}.json").write_text(json.dumps(report[split]))
        if len(whole) == len(SPLITS):
            shutil.rmtree(out / ".work")
        return len(whole) == len(SPLITS)
    if request["source"] == "fashion-mnist" and all((out / split).is_dir() for split in SPLITS):
        return True  # folders, which this command wrote before there were packs
    if out.exists() and not (out / ".work").exists() and any(out.iterdir()):
        names = ", ".join(sorted(path.name for path in out.iterdir())[:5])
        raise ValueError(
            f"--out {out} holds other files ({names}): give an empty or a new folder, so that "
            "none of your files are touched"
        )
    return False


def refuse_other_request(out: Path, report: Mapping, request: Mapping[str, object]) -> None:
    """Raise ValueError if another request was carried out there. request: without "upright" if
    that is left to the classes."""
    was, now = dict(report["request"]), dict(request)
    made = report["train"].get("way", {}).get("upright")
    # Older packs hold their pictures as stored, not turned.
    was["upright"] = made or orientation.NO
    if "upright" not in request:
        now["upright"] = was["upright"] if made is None else automatic(out, made)
    # Levels that are not asked for are compared with none: packs from before them are complete.
    was["levels"] = report["train"].get("way", {}).get("levels", [])
    now.setdefault("levels", was["levels"])
    names = [*now, *(name for name in was if name not in now)]
    if differing := [name for name in names if was.get(name) != now.get(name)]:
        pairs = [f"{name} {was.get(name)}, now {now.get(name)}" for name in differing]
        raise ValueError(
            f"--out {out} holds a data set made with other options ({'; '.join(pairs)}): "
            "remove it, or give another --out"
        )


def automatic(out: Path, otherwise: str) -> str:
    """What --upright auto means for the classes of the packs there; `otherwise` without one."""
    packs = (out / f"{split}{SUFFIX}" for split in SPLITS)
    path = next(filter(is_whole, packs), None)
    return otherwise if path is None else orientation.of_classes(PackedImages(path).classes)


def is_whole(path: Path) -> bool:
    """Whether a pack exists and opens; its images are not checked."""
    try:
        PackedImages(path)
    except (DamagedPackError, FileNotFoundError):
        return False
    return True


def finished_way(out: Path, split: str) -> dict[str, object]:
    """How a split was stored that an unfinished run has packed already; {} if it has not."""
    path = out / ".work" / f"{split}.json"
    is_there = path.exists() and (out / f"{split}{SUFFIX}").exists()
    return json.loads(path.read_text())["way"] if is_there else {}


def compare_source(out: Path, source: Path, recognize: Callable[[], Source]) -> str:
    """Compare a source with its state when it was packed; returns a note if that is unknown.

    recognize: lists the source again. Raises ValueError naming what has changed.
    """
    kept = read_report(out).get("source_files")
    if kept is None:
        return (
            "; it was packed before file sizes and times were recorded, so it is not known "
            f"whether {source} has changed since: remove {out} to pack it again"
        )
    if not source.exists():
        return f"; {source} no longer exists, so it was not compared"
    changed = ""
    if "archives" in kept:
        changed = snapshot.archives_changed(kept)
    elif kept:
        try:
            changed = snapshot.files_changed(kept, source, snapshot.stamps_of(recognize()))
        except ValueError as error:
            changed = str(error)
    if changed:
        raise ValueError(
            f"--out {out} is complete, but {source} has changed since it was packed: "
            f"{changed}. Remove {out} to pack it again, or give another --out"
        )
    return ""


def remove_if_empty(work_dir: Path) -> None:
    """Leave no trace of a start that did no work."""
    (work_dir / ".lock").unlink()
    for folder in (work_dir, work_dir.parent):
        if not any(folder.iterdir()):
            folder.rmdir()
