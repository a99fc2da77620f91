"""budget_events.jsonl: the events that moved the end of a run (training/course.py).

    {"step": 412, "end_step": 930, "paid_s": 131.5, "why": "..."}    a line each, the oldest first

A line is on the disk before its event takes effect, some steps later, and every checkpoint holds
the events up to then. So a run that was killed in between takes the course that it would have taken
without the kill.
"""

import dataclasses
import errno
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from resnet50.config.train_config import TrainConfig
from resnet50.records import checkpoint, ownership, run_folder
from resnet50.system import files
from resnet50.training import distributed
from resnet50.training.course import Course, Event
from resnet50.training.distributed import Ranks

LINE = '{"step": 412, "end_step": 930, "paid_s": 131.5, "why": "..."}'
MOST_BYTES = 2**20  # a line takes about a hundred


def at_start(
    cfg: TrainConfig, ranks: Ranks, saved_step: int, say: Callable[[str], None]
) -> tuple[Event, ...]:
    """The events of a run that resumes from saved_step, -1: that begins; rank 0's, on all ranks.

    Those of the run's folder; without any, for a run that begins, those of --budget_events. Every
    rank must call it. Raises ValueError if they contradict the checkpoint or each other.
    """
    if not cfg.num_steps:
        return ()
    word = ""
    if ranks.is_main:
        word = json.dumps([as_values(event) for event in known_events(cfg, saved_step, say)])
    words = distributed.exchange_before_connecting(word, ranks)
    return tuple(Event(**values) for values in json.loads(words[0]))


def known_events(cfg: TrainConfig, saved_step: int, say: Callable[[str], None]) -> list[Event]:
    """What rank 0 finds in the folder, in the checkpoint of saved_step, and in --budget_events."""
    path = Path(cfg.run_dir) / ownership.BUDGET_EVENTS
    found = read(path) if path.exists() else []
    if saved_step >= 0:
        saved = saved_events(cfg, saved_step)
        check_continues(path, saved_step, saved, found)
        if len(found) < len(saved):
            say(f"{path} lacks events: taking them from the checkpoint of step {saved_step}")
            found = saved
    elif cfg.budget_events and not found:
        path = Path(cfg.budget_events)
        found = read(path)
    try:
        Course(cfg.num_steps, found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}. The run has --num_steps {cfg.num_steps}") from None
    return found


def saved_events(cfg: TrainConfig, step: int) -> list[Event]:
    """Those that the checkpoint of a step holds."""
    path = checkpoint.step_path(run_folder.checkpoints_dir(Path(cfg.run_dir)), step)
    return [Event(**values) for values in checkpoint.read_value(path, "events") or []]


def check_continues(path: Path, step: int, saved: Sequence[Event], found: Sequence[Event]) -> None:
    """Raise ValueError unless the file has the checkpoint's events, and others only after it."""
    common = min(len(saved), len(found))
    is_same = list(saved[:common]) == list(found[:common])
    if not is_same or any(event.step <= step for event in found[common:]):
        raise ValueError(
            f"{path} is not what the run in that folder did: its checkpoint of step {step} has "
            f"{len(saved)} events, the file {len(found)}, and they differ. Put the right file "
            "there, or delete it to take the checkpoint's"
        )


def read(path: Path) -> list[Event]:
    """The events of a file, the oldest first; without a last line that a kill cut short.

    Raises ValueError naming the file, and the line that is no event.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > MOST_BYTES:
        raise ValueError(f"{path} has more than {MOST_BYTES:,} bytes: no run has so many events")
    *lines, last = data.split(b"\n")
    events = []
    for number, line in enumerate(lines, start=1):
        if (event := _event(line)) is None:
            raise ValueError(f"{path}: line {number} is no event such as {LINE}")
        events.append(event)
    # Without an end of line it was not on the disk yet, and had no effect; or it was typed so.
    return [*events, *filter(None, [_event(last)])]


def _event(line: bytes) -> Event | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, Mapping) or not values.keys() >= {"step", "end_step"}:
        return None
    paid_s, why = values.get("paid_s", 0.0), values.get("why", "")
    event = Event(values["step"], values["end_step"], paid_s, why)
    is_right = type(event.step) is int and type(event.end_step) is int
    return event if is_right and type(paid_s) in (int, float) and type(why) is str else None


def as_values(event: Event) -> dict[str, object]:
    """As checkpoints and lines have it."""
    return dataclasses.asdict(event)


def write(run_dir: Path, events: Iterable[Event]) -> None:
    """Replace the file of a run by these events, if it does not hold just them. Raises OSError."""
    path = run_dir / ownership.BUDGET_EVENTS
    text = "".join(map(_line, events))
    before = path.read_bytes() if path.exists() else b""
    if before != text.encode():
        files.write_text(path, text, sync=True)


def append(run_dir: Path, event: Event) -> None:
    """Add an event, which is on the disk when this returns. Raises OSError; the file is then as it
    was before."""
    path = run_dir / ownership.BUDGET_EVENTS
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    size = os.fstat(file).st_size
    try:
        line = _line(event).encode()
        if os.write(file, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file)
    except OSError:
        os.ftruncate(file, size)
        raise
    finally:
        os.close(file)
    files.sync_folder(run_dir)


def _line(event: Event) -> str:
    return json.dumps(as_values(event)) + "\n"
