"""The folder that packs are written to: whether what it holds is what is asked for now.

report.json     what was asked for and what was made, written last
.work/          only while packing: a lock, and each split's part of the report
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tqdm import tqdm

from resnet50.data import orientation
from resnet50.data.pack import SUFFIX, DamagedPackError, PackedImages
from resnet50.packing import encode, snapshot
from resnet50.packing.data_set import Source
from resnet50.packing.encode import SplitJob
from resnet50.packing.report import SPLITS
from resnet50.system import files
from resnet50.system.interruption import Interruption


def read_report(out: Path) -> dict:
    """The report of an earlier run; {} without one, or if it is incomplete or another program's."""
    try:
        report = json.loads((out / "report.json").read_text())
    except (OSError, ValueError):
        return {}
    parts = [report.get(name) for name in ("request", *SPLITS)] if isinstance(report, dict) else [0]
    return report if all(isinstance(part, dict) for part in parts) else {}


def packed_from(data_dir: Path) -> dict[str, object]:
    """SOURCE and the options that say how it is read, as the report has them. Raises ValueError."""
    request = read_report(data_dir).get("request", {})
    options = {"val_pct", "train_dir", "val_dir"}
    if "source" not in request:
        what = f"--compare {data_dir}: no report.json there says what it was packed from"
        raise ValueError(f"{what}: give its SOURCE too, with the options that it was packed with")
    return {"source": request["source"]} | {k: v for k, v in request.items() if k in options}


def left_out(data_dir: Path, split: str) -> set[str]:
    """Names of the pictures that could not be decoded, as the report has them."""
    notes = read_report(data_dir).get(split, {}).get("notes", ())
    return {note["name"] for note in notes if note["kind"] == "bad"}


def is_finished(out: Path, request: Mapping[str, object]) -> bool:
    """Whether this exact request was carried out. Raises ValueError if `out` holds other files."""
    if report := read_report(out):
        refuse_other_request(out, report, request)
        whole = [split for split in SPLITS if is_whole(out / f"{split}{SUFFIX}")]
        (out / ".work").mkdir(exist_ok=True)  # what is damaged or gone is packed again
        for split in whole:
            files.write_json(out / ".work" / f"{split}.json", report[split])
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


def pack_one(
    job: SplitJob, digest: str, out: Path, num_workers: int, stop: Interruption
) -> dict[str, object]:
    """Pack one split, unless an earlier run has; returns its part of the report.

    digest: of its source files as they are now.
    """
    path, result_path = out / f"{job.split}{SUFFIX}", out / ".work" / f"{job.split}.json"
    if path.exists() and result_path.exists():
        result = json.loads(result_path.read_text())
        changed = "the settings" if result["way"] != job.encoding.settings() else ""
        if result.get("source", digest) != digest:  # older results have no digest
            changed = changed or "its files"
        if not changed:
            return result
        what = f"packing it again: {changed} have changed since it was packed"
        print(f"{job.split}: {what}", file=sys.stderr)
    start = time.monotonic()
    done_before = []
    with tqdm(
        total=len(job.pictures), desc=job.split, unit="img", disable=None, leave=False
    ) as bar:

        def progress(num_done: int) -> None:
            """Advance the bar; stop here if a signal arrived."""
            if not done_before:  # images done by an earlier start do not count for the speed
                done_before.append(num_done)
                bar.initial = bar.n = num_done
                if num_done:
                    print(f"{job.split}: resuming at image {num_done:,}", file=sys.stderr)
            bar.update(num_done - bar.n)
            if stop.requested:
                raise KeyboardInterrupt

        notes = encode.pack_split(job, path, num_workers, progress)
    seconds = time.monotonic() - start
    result = {
        "images": len(PackedImages(path)),
        "bytes": path.stat().st_size,
        "seconds": round(seconds, 1),
        "images_per_s": round((len(job.pictures) - done_before[0]) / max(seconds, 1e-3), 1),
        "way": job.encoding.settings(),
        "source": digest,
        "notes": [note._asdict() for note in notes],
    }
    files.write_json(result_path, result)
    return result


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
