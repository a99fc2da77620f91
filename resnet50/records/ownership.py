"""Which files in a folder a run has written, so that nobody else's is replaced or removed.

A run writes fixed names, some of them common ones (best.pt, metrics.csv, config.json). A folder is
a run's if its config.json, its status.json or a checkpoint in it is one that this program wrote. In
any other folder a file of such a name is somebody else's; files with other names are
never touched, there or in a run's folder.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from resnet50.records import checkpoint, status
from resnet50.records.tensorboard_log import FOLDER as TENSORBOARD
from resnet50.system.locking import LOCK

CONFIG, LOG, METRICS, CHECKPOINTS = status.CONFIG, "log.jsonl", "metrics.csv", "checkpoints"
RECORD = "record.json"
BUDGET_EVENTS = "budget_events.jsonl"
FILES = (CONFIG, status.FILE, RECORD, LOG, METRICS, "metrics.md", "curves.png", BUDGET_EVENTS)
EVENTS = "events.out.tfevents.*"  # TensorBoard's own name for its files
RANGE_TEST = "lr_finder"
CURVES = ("full_range.png", "high_range.png", "mid_range.png")
RANGE_TEST_FILES = ("result.json", "curve.csv", *CURVES)
IN_RANGE_TEST = tuple(f"{RANGE_TEST}/{name}" for name in RANGE_TEST_FILES)
# What a refused start may leave: locks, a heartbeat and its time, each holding a number.
HEARTBEAT = ".heartbeat"  # run/heartbeat.py writes it
PAID = status.PAID  # paid_clock.py writes it
NUMBERS = (LOCK, status.SUPERVISOR_LOCK, HEARTBEAT, PAID)
BEGINNINGS = {LOG: b'{"kind": "', METRICS: b"epoch,step,"}
BUDGET_EVENTS_BEGINNING = b'{"step": '
SOME_SETTINGS = {"total_batch_size", "max_lr", "epochs"}  # of every config.json of ours


def is_config(path: Path) -> bool:
    settings = _json_object(path).get("settings")
    return isinstance(settings, dict) and settings.keys() >= SOME_SETTINGS


def is_status(path: Path) -> bool:
    """Whether it belongs to a run that has begun; a refused start's does not count."""
    return _json_object(path).keys() >= {"attempt", "state", "step", "stop_step"}


def is_record_or_missing(path: Path) -> bool:
    return not _exists(path) or _json_object(path).keys() >= {"format", "settings", "curve"}


def foreign_range_test(folder: Path) -> Path | None:
    """A file that a range test would replace, if no range test wrote the results there."""
    there = (folder / name for name in RANGE_TEST_FILES if _exists(folder / name))
    is_ours = _json_object(folder / "result.json").keys() >= {"max_lr", "suggestions"}
    return None if is_ours else next(there, None)


def num_rows(run_dir: Path) -> int:
    """Epochs in metrics.csv."""
    try:
        return max((run_dir / METRICS).read_bytes().count(b"\n") - 1, 0)
    except OSError:
        return 0


def has_run(run_dir: Path) -> bool:
    """Whether a run of this program is there, or what is left of one."""
    checkpoints = checkpoint.files_in(run_dir / CHECKPOINTS)
    return has_mark(run_dir) or any(map(checkpoint.has_trailer, checkpoints))


def has_mark(run_dir: Path) -> bool:
    """Whether config.json or status.json says that the folder is a run's."""
    return is_config(run_dir / CONFIG) or is_status(run_dir / status.FILE)


def refuse_foreign(run_dir: Path) -> None:
    """Raise ValueError, before anything is written, if a run there would replace or remove a file
    that no run has written."""
    misplaced = (path for path, is_right in _kinds(run_dir) if _exists(path) and not is_right(path))
    foreign = next(misplaced, None)
    # Runs from before there were records may have a file of the user's with that name.
    if foreign is None and not is_record_or_missing(run_dir / RECORD):
        foreign = run_dir / RECORD
    if foreign is None and not has_run(run_dir):
        foreign = next(filter(_is_foreign, _written(run_dir)), None)
    # A checkpoint of ours alone, such as a copied best.pt, says nothing about the files around it.
    if foreign is None and not has_mark(run_dir):
        beginnings = BEGINNINGS | {BUDGET_EVENTS: BUDGET_EVENTS_BEGINNING}
        files = ((run_dir / name, begin) for name, begin in beginnings.items())
        foreign = next((path for path, begin in files if not _begins(path, begin)), None)
        # Pictures and tables made from the log are a run's if the log is.
        made_from_log = (run_dir / METRICS).with_suffix(".md"), run_dir / "curves.png"
        if foreign is None and not any(_exists(run_dir / name) for name in BEGINNINGS):
            foreign = next(filter(_exists, made_from_log), None)
    if foreign is not None:
        raise ValueError(
            f"--run_dir {run_dir}: its {foreign.relative_to(run_dir)} is not from a run of this "
            "program, and would be replaced: give another --run_dir, or move that file away"
        )


def remove_run(run_dir: Path) -> None:
    """Delete what a run wrote there, and nothing else; a file named like a checkpoint that is
    not one is renamed."""
    folder = run_dir / CHECKPOINTS
    for path in checkpoint.files_in(folder):
        if checkpoint.has_trailer(path):
            path.unlink()
        else:
            checkpoint.put_aside(path)
    checkpoint.remove_partial(folder)
    config = run_dir / CONFIG
    has_events = is_config(config) and _json_object(config)["settings"].get("tensorboard")
    events = (run_dir / TENSORBOARD).glob(EVENTS) if has_events else ()
    found = () if foreign_range_test(run_dir / RANGE_TEST) else IN_RANGE_TEST
    # Names that a run from before there were such files may have as files of the user's.
    new_names = {
        RECORD: is_record_or_missing(run_dir / RECORD),
        BUDGET_EVENTS: _begins(run_dir / BUDGET_EVENTS, BUDGET_EVENTS_BEGINNING),
    }
    names = [name for name in FILES if new_names.get(name, True)]
    names.append(PAID)  # another run pays for itself
    for path in (*events, *(run_dir / name for name in (*names, *found))):
        path.unlink(missing_ok=True)
    for inner in (folder, run_dir / TENSORBOARD, run_dir / RANGE_TEST):
        if inner.is_dir() and not inner.is_symlink() and not any(inner.iterdir()):
            inner.rmdir()


def _written(run_dir: Path) -> Iterator[Path]:
    """The files there with names that a run writes."""
    names = [*FILES, *IN_RANGE_TEST, *NUMBERS]
    # Not of these two: rank 0 may be writing its first status.json, or the config.json of a run
    # that it restores, while another rank looks.
    partial = [f"{name}.partial" for name in FILES if name not in (CONFIG, status.FILE)]
    yield from filter(_exists, (run_dir / name for name in (*names, *partial)))
    yield from checkpoint.files_in(run_dir / CHECKPOINTS)
    yield from checkpoint.partial_in(run_dir / CHECKPOINTS)


def _is_foreign(path: Path) -> bool:
    """Whether a file in a folder without a run is something other than a refused start left."""
    if path.name in NUMBERS:
        text = path.read_bytes()[:64].strip()
        return bool(text) and not text.lstrip(b"-").isdigit()
    if path.name in BEGINNINGS:  # a start may end before it has written its settings
        return not _begins(path, BEGINNINGS[path.name])
    if path.name == BUDGET_EVENTS:
        return not _begins(path, BUDGET_EVENTS_BEGINNING)
    if path.name == status.FILE:
        return not _json_object(path).keys() >= {"attempt", "state"}
    if path.parent.name == RANGE_TEST:  # lr_finder.py may have run before the first start
        return foreign_range_test(path.parent) is not None
    return True


def _kinds(run_dir: Path) -> list[tuple[Path, Callable[[Path], bool]]]:
    """What must be a folder, or a file, if it is there at all."""
    folders = (CHECKPOINTS, TENSORBOARD, RANGE_TEST)
    return [
        *((run_dir / name, Path.is_dir) for name in folders),
        *((run_dir / name, Path.is_file) for name in (*FILES, *IN_RANGE_TEST, *NUMBERS)),
    ]


def _begins(path: Path, begin: bytes) -> bool:
    """Whether a file is missing, empty, or begins like one of a run."""
    try:
        with open(path, "rb") as file:
            return begin.startswith(file.read(len(begin)))
    except FileNotFoundError:
        return True


def _exists(path: Path) -> bool:
    return os.path.lexists(path)  # a broken link counts too


def _json_object(path: Path) -> dict:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
