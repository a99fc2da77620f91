"""--on_end COMMAND: a command that is run once when a run has ended, so that nobody has to look.

    python train.py --on_end 'mail -s "ended: $TRAIN_STATE" me@example.com <<<"$TRAIN_REASON"'

bash runs it, in the folder in which train.py was started, with these variables added:

    TRAIN_STATE      done, diverged, crashed, or config error, as in status.json
    TRAIN_REASON     a sentence: all epochs are done, the budget is spent, what went wrong
    TRAIN_TOP1       the best so far, in percent; empty if nothing was evaluated
    TRAIN_COST_USD   dollars so far; empty without --price_per_hour
    TRAIN_STEP       the step at which it ended
    TRAIN_RUN_DIR    the run's folder

Not after an interruption, which the same command resumes, and not where train.py refuses options,
folder, or mirror before it starts the training. A run that ends again at the same step in the same
way, as after a restart by systemd, is told once; another mistake at that step is told too. If
train.py was killed before it could tell, the next start does. The command has LIMIT_S; then it
is killed with all that it started. Whether it works changes nothing but a line of the log: not the
run, its state, or train.py's exit code. It is in no file of the run, since it may hold a secret.
"""

import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import chain, pairwise
from pathlib import Path

from resnet50.config.train_config import TrainConfig
from resnet50.records import ownership, status
from resnet50.system import files, orphans, processes

LIMIT_S = 60.0
CHECK_S = 10.0
POLL_S = 0.05
SIGNALED = "killed, as a signal came"
STATES = {code: state for state, code in status.EXIT_CODES.items()} | {1: status.CRASHED}
CRASHED_TEXT = "it crashed at the same place again, which a restart would not fix: see its log"
EXPANDED = set("$`*?[<>~\n")  # in a first word: bash says only when it runs what that is
UNKNOWN = "?"  # a first word that only bash can tell


def problem(command: str) -> str:
    """Why bash cannot run this, as far as that shows before; empty if nothing speaks against it."""
    bash = shutil.which("bash")
    if bash is None:
        return "needs bash, which is not installed"
    try:
        checked = _ask([bash, "-n", "-c", command])
        if checked.returncode:
            said = checked.stderr.strip().splitlines() or ["no reason given"]
            return f"is no command for bash: {said[0].removeprefix(f'{bash}: ')}"
        word = first_word(command)
        if not word:
            return "holds no command"
        if not set(word) & EXPANDED:
            if _ask([bash, "-c", 'command -v -- "$1"', "bash", word]).returncode:
                return f"begins with {word}, which is no command here: install it, or give its path"
    except subprocess.TimeoutExpired:
        return f"could not be checked in {CHECK_S:g} s"
    return ""


def _ask(words: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=CHECK_S
    )


def first_word(command: str) -> str:
    """The name of the first program, after variables of its own; empty without one, and UNKNOWN
    where it takes more of bash's grammar to find it."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        for word, after in pairwise(chain(lexer, [""])):
            name, equals, _ = word.partition("=")
            if set(word) <= set("();&|{}!"):
                continue
            # A function or an array begins; or the word is what is redirected, as in 2>file.
            if after[:1] == "(" or (after[:1] in ("<", ">") and (word.isdigit() or word[0] == "{")):
                return UNKNOWN
            if not (equals and name.removesuffix("+").isidentifier()):
                return os.path.expanduser(word)  # noqa: PTH111 (Path raises without a HOME)
    except ValueError:  # quotes as only bash has them, $'it\'s'
        return UNKNOWN
    return ""


def tell(
    command: str,
    cfg: TrainConfig,
    code: int,
    *,
    say: Callable[[str], None],
    is_unwanted: Callable[[], bool] = lambda: False,
) -> None:
    """Run the command for a run that ended with this exit code, unless it was run for that end.

    say: takes lines for the log. is_unwanted: asked while it runs; True ends it.
    """
    run_dir, state = Path(cfg.run_dir), STATES.get(code, "")
    if state in ("", status.INTERRUPTED):
        return
    found = status.known_status(run_dir)
    end = f"{state} at step {found.get('step', 0)}"
    variables = variables_of(cfg, state, found)
    # Whoever corrects one mistake may make another before the run gets any further.
    told = f"{end}: {variables['TRAIN_REASON']}" if state == status.CONFIG_ERROR else end
    if found.get("told") == told:
        say(f"--on_end was already run for this end ({end}), and is not run again")
        return
    # First the note: a kill in the middle must not make it run again.
    note(run_dir, told=told)
    text = run(command, variables, is_unwanted)
    say(f"--on_end ({end}): {text}")
    record = {"kind": "event", "step": found.get("step", 0), "text": f"--on_end: {text}"}
    log(run_dir, record)


def note(run_dir: Path, **changes: object) -> None:
    """Into status.json, if the disk takes it."""
    with suppress(OSError):  # full, or gone: to tell somebody is all the more urgent
        status.write_status(run_dir, **changes)


def log(run_dir: Path, record: Mapping[str, object]) -> None:
    """Into log.jsonl, likewise."""
    with suppress(OSError), open(run_dir / ownership.LOG, "a") as file:
        file.write(json.dumps(record) + "\n")


def variables_of(cfg: TrainConfig, state: str, found: Mapping[str, object]) -> dict[str, str]:
    """What the command learns of the run; found: its status.json."""
    known = status.numbers(found)
    top1, cost = known.get("best_top1"), known.get("cost_usd")
    variables = {
        "TRAIN_STATE": state,
        "TRAIN_REASON": reason(cfg, state, found),
        "TRAIN_TOP1": "" if top1 is None else f"{top1:.2f}",
        "TRAIN_COST_USD": f"{cost:.2f}" if cost and cfg.price_per_hour else "",
        "TRAIN_STEP": str(found.get("step", 0)),
        "TRAIN_RUN_DIR": str(Path(cfg.run_dir).resolve()),
    }
    return {name: value.replace("\0", "") for name, value in variables.items()}


def reason(cfg: TrainConfig, state: str, found: Mapping[str, object]) -> str:
    """Why the run has ended, in a sentence."""
    if state == status.CRASHED:
        return CRASHED_TEXT
    step = found.get("step", 0)
    if state != status.DONE:
        # Every attempt begins with an empty message, while log.jsonl has earlier attempts' errors.
        said = found.get("message") or last_event(Path(cfg.run_dir), step, "error: ")
        return str(said or "see its log")
    known = status.numbers(found)
    if cfg.target_top1 and known.get("best_top1", 0) >= cfg.target_top1:
        return f"--target_top1 {cfg.target_top1:g} is reached"
    if step < known.get("stop_step", 0):
        said = last_event(Path(cfg.run_dir), step, "--max_minutes ")
        return said or "its time is over"
    if cfg.budget_usd or cfg.budget_hours:
        purse = f"${cfg.budget_usd:g}" if cfg.budget_usd else f"{cfg.budget_hours:g} hours"
        return f"its schedule has come to its end within the budget of {purse}"
    if cfg.max_steps and step == cfg.max_steps:
        return f"--max_steps {cfg.max_steps} is reached"
    return f"all {cfg.epochs} epochs are done"


def last_event(run_dir: Path, step: int, beginning: str) -> str:
    """The last event of log.jsonl that begins like this, from this step or later."""
    try:
        records = files.read_records(run_dir / ownership.LOG)
    except (OSError, ValueError):
        return ""
    texts = [r["text"] for r in records if r.get("kind") == "event" and r.get("step", 0) >= step]
    return next((text for text in reversed(texts) if text.startswith(beginning)), "")


def run(command: str, variables: Mapping[str, str], is_unwanted: Callable[[], bool]) -> str:
    """Run it with these variables, for LIMIT_S at most; returns how that went, in a few words."""
    parent_pid = os.getpid()
    try:
        with orphans.adopted() as end_all:
            process = subprocess.Popen(
                [shutil.which("bash") or "bash", "-c", command],
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=lambda: processes.die_with_parent(parent_pid),
            )
            try:
                why = why_to_kill(process, is_unwanted)
            except KeyboardInterrupt:  # of a run that was done before, which handles no signals
                why = SIGNALED
            if why:
                end_all()
                process.wait()
                return why
    except (OSError, ValueError) as error:  # no bash any more, no process to be had
        return f"could not be run: {error}"
    return f"failed with exit code {process.returncode}" if process.returncode else "done"


def why_to_kill(process: subprocess.Popen, is_unwanted: Callable[[], bool]) -> str:
    """Wait for its end, returning an empty text, or for a reason to kill it."""
    deadline = time.monotonic() + LIMIT_S
    while process.poll() is None:
        if time.monotonic() > deadline:
            return f"killed after {LIMIT_S:g} s"
        if is_unwanted():
            return SIGNALED
        time.sleep(POLL_S)
    return ""
