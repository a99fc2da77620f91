"""What the fault tests share: long tiny runs, an uninterrupted one to compare with, and the kills
that hit a moment of a kind on purpose."""

import functools
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from support.commands import (
    ONE_RANK,
    WITH_CURVES,
    processes_mentioning,
    start,
    tiny_flags,
    torchrun_words,
    train_words,
    wait_for,
)
from support.in_process import run_here
from support.pictures import STEPS_PER_EPOCH
from support.runs import assert_same_end, status_of, steps_logged

EPOCHS = 14
LAST_STEP = EPOCHS * STEPS_PER_EPOCH


def flags_of(data_dir: Path, run_dir: Path, *more: object) -> list[object]:
    """The tiny model with everything on that has state, for 56 steps."""
    return [*tiny_flags(data_dir, run_dir), f"--epochs={EPOCHS}", *more]


@functools.cache
def straight_run(data_dir: Path) -> Path:
    """A run of one rank that nothing interrupts, made once in each test process."""
    run_dir = data_dir.parent / "straight" / "run"
    run_dir.parent.mkdir()
    result = run_here(train_words(*flags_of(data_dir, run_dir)), run_dir.parent)
    assert result.code == 0, result.err
    return run_dir


def assert_as_if_nothing_was(data_dir: Path, run_dir: Path) -> None:
    """The run ended bit for bit like the uninterrupted one, and logged every step once."""
    assert [record["step"] for record in steps_logged(run_dir)] == list(range(1, LAST_STEP + 1))
    assert_same_end(straight_run(data_dir), run_dir)
    assert status_of(run_dir)["state"] == "done"


def words_of(launcher: str, flags: list[object]) -> tuple[list[object], dict[str, str]]:
    """The command for a rank alone, for torchrun with two, or for the supervisor; its variables.

    With curves: drawing them is most of an epoch's end, and of what follows the last step.
    """
    if launcher == "two ranks":
        return torchrun_words(2, "train.py", *flags), WITH_CURVES
    return train_words(*flags), WITH_CURVES | (ONE_RANK if launcher == "one rank" else {})


def signal_all(pids: list[int], signum: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            continue


def kill_all(run_dir: Path, first: subprocess.Popen) -> None:
    """SIGKILL for every process of a run, whichever session it is in."""
    first.kill()
    while pids := processes_mentioning(f"{run_dir}"):
        signal_all(pids, signal.SIGKILL)
        time.sleep(0.01)
    first.communicate()


def last_record(run_dir: Path) -> dict:
    """The last whole line of log.jsonl; empty without one."""
    try:
        with open(run_dir / "log.jsonl", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 2000))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return {}
    return json.loads(lines[-2]) if len(lines) > 1 and lines[-2][:1] == b"{" else {}


def is_saving(run_dir: Path) -> bool:
    """Whether part of a checkpoint lies there."""
    return any(name.endswith(".partial") for name in os.listdir(run_dir / "checkpoints"))


def in_step(run_dir: Path) -> bool:
    record = last_record(run_dir)
    return record.get("kind") == "train" and record["step"] % STEPS_PER_EPOCH > 0


def in_evaluation(run_dir: Path) -> bool:
    """The epoch's last step is logged, its row is not."""
    record = last_record(run_dir)
    return (
        record.get("kind") == "train"
        and record["step"] % STEPS_PER_EPOCH == 0
        and record["step"] < LAST_STEP
    )


def at_epochs_end(run_dir: Path) -> bool:
    """The epoch's row is logged, no step of the next one is."""
    record = last_record(run_dir)
    return record.get("kind") == "epoch" and record["step"] < LAST_STEP


def around_the_last_step(run_dir: Path) -> bool:
    """The last step is logged; the run does not say that it is done."""
    record = last_record(run_dir)
    return record.get("step") == LAST_STEP and status_of(run_dir).get("state") != "done"


# Each kind of moment: how it shows on the disk, and how many seconds into it a kill may come.
MOMENTS: dict[str, tuple[Callable[[Path], bool], float]] = {
    "step": (in_step, 0.03),
    "save": (is_saving, 0.006),
    "evaluation": (in_evaluation, 0.03),
    "epoch's end": (at_epochs_end, 0.01),
    "last step": (around_the_last_step, 0.3),
}
KINDS = ("start-up", *MOMENTS)


@dataclass
class Killer:
    """Starts one command again and again and kills everything of it at moments of given kinds."""

    words: list[object]
    variables: dict[str, str]
    run_dir: Path
    rng: random.Random
    start_up_s: float  # a first guess
    hits: Counter = field(default_factory=Counter)
    misses: Counter = field(default_factory=Counter)

    def kill_at(self, kind: str, tries: int = 3) -> None:
        """Kill at a moment of this kind; try again if it was missed."""
        for _ in range(tries):
            has_hit = self._in_start_up() if kind == "start-up" else self._in(kind)
            (self.hits if has_hit else self.misses)[kind] += 1
            if has_hit:
                return

    def _in_start_up(self) -> bool:
        """Anywhere from the first import to the step before training begins."""
        before = last_record(self.run_dir)
        process = start(self.words, self.run_dir.parent, **self.variables)
        time.sleep(self.rng.random() * self.start_up_s)
        kill_all(self.run_dir, process)
        return last_record(self.run_dir) == before

    def _in(self, kind: str) -> bool:
        """Stop all processes when the moment seems to be there, and kill them if it is.

        Processes may get further while they are being stopped, so that is checked afterwards.
        """
        is_there, width_s = MOMENTS[kind]
        goal = len(steps_logged(self.run_dir)) + self.rng.randrange(1, 6)
        began = time.monotonic()
        process = start(self.words, self.run_dir.parent, **self.variables)
        pids: list[int] = []
        while process.poll() is None:
            record = last_record(self.run_dir)
            if not pids and record.get("kind") == "train" and self._has_begun(process):
                self.start_up_s = 0.9 * (time.monotonic() - began)
                pids = processes_mentioning(str(self.run_dir))
            if not pids or (record.get("step", 0) < goal and kind != "last step"):
                time.sleep(0.005)
            elif not is_there(self.run_dir):
                time.sleep(0.0005)
            else:
                time.sleep(self.rng.random() * width_s)
                signal_all(pids, signal.SIGSTOP)
                if is_there(self.run_dir):
                    break
                signal_all(pids, signal.SIGCONT)
        kill_all(self.run_dir, process)
        return bool(pids) and is_there(self.run_dir)

    def _has_begun(self, process: subprocess.Popen) -> bool:
        """Whether this start, and not the one before it, wrote the log."""
        heartbeat = self.run_dir / ".heartbeat"
        began_s = Path(f"/proc/{process.pid}").stat().st_ctime
        return heartbeat.exists() and heartbeat.stat().st_mtime > began_s


def reach(process: subprocess.Popen, run_dir: Path, step: int) -> None:
    """Wait until a running command has logged this step."""
    wait_for(lambda: len(steps_logged(run_dir)) >= step or process.poll() is not None)
    assert process.poll() is None, process.communicate()


def assert_no_orphans(run_dir: Path, timeout_s: float) -> None:
    wait_for(lambda: not processes_mentioning(str(run_dir)), timeout_s, "the end of all processes")
