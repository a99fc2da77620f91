"""Three ways to keep a command running without a terminal: a systemd unit, tmux, its own session.

Standard library, Python 3.10.
"""

import os
import pwd
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from host import systemd_unit
from host.changes import HostChanges, as_root, can_sudo

NAME = "resnet50-training"
UNIT_PATH = Path(f"/etc/systemd/system/{NAME}.service")
SYSTEMD, TMUX, SETSID = "systemd", "tmux", "setsid"
CONSOLE = "console.log"  # in the run folder: what the command prints
CLONE = Path(__file__).resolve().parents[1]  # where `python3 -m host.service` is found


@dataclass(frozen=True)
class Launch:
    """What to keep running.

    command: train.py and its arguments; before: a command line that runs as root before each start;
    then: what to do at the end, "nothing" or "stop-host"; last_attempt: the attempt in status.json
    before this start, in case the start makes no new one.
    """

    run_dir: Path
    command: Sequence[str]
    before: str
    then: str
    last_attempt: str

    @property
    def log(self) -> Path:
        return self.run_dir / CONSOLE


def available_way() -> str:
    """The best way that this host has: systemd with the right to use it, tmux, setsid."""
    if Path("/run/systemd/system").exists() and (os.geteuid() == 0 or can_sudo()):
        return SYSTEMD
    return TMUX if shutil.which("tmux") else SETSID


def start_unit(launch: Launch, host: HostChanges) -> Callable[[], bool]:
    """Start a unit, now and at every boot. Like the other two, returns a test that it is alive."""
    text = systemd_unit.text(
        name=NAME,
        command=launch.command,
        folder=Path.cwd(),
        run_dir=launch.run_dir,
        log=launch.log.resolve(),
        user=pwd.getpwuid(os.geteuid()).pw_name,
        before=["/usr/bin/env", *shlex.split(launch.before)] if launch.before else [],
        after=["/usr/bin/env", *after_words(launch, "python3"), f"--way={SYSTEMD}"],
    )
    made = launch.run_dir / f"{NAME}.service"
    host.replace(made, text)
    host.run(*as_root("install", "-m", "644", str(made), str(UNIT_PATH)))
    host.run(*as_root("systemctl", "daemon-reload"))
    host.run(*as_root("systemctl", "reset-failed", f"{NAME}.service"), may_fail=True)
    host.run(*as_root("systemctl", "enable", "--now", f"{NAME}.service"))
    return unit_is_active


def after_words(launch: Launch, python: str) -> list[str]:
    """`host.service after`, for env to run."""
    words = [f"--chdir={CLONE}", python, "-B", "-m", "host.service", "after"]
    words += [f"--run_dir={launch.run_dir.resolve()}", f"--then={launch.then}"]
    # Left out if there was none: an empty value is refused, since most are unset variables.
    return [*words, *([f"--last_attempt={launch.last_attempt}"] if launch.last_attempt else [])]


def shell_line(launch: Launch) -> str:
    """What tmux and setsid run: the preparation, the training, and what follows."""
    after = ["env", *after_words(launch, sys.executable)]
    before = shlex.join(as_root(*shlex.split(launch.before))) if launch.before else ""
    parts = [before, shlex.join(launch.command), shlex.join(after)]
    return "; ".join(part for part in parts if part)


def start_tmux(launch: Launch, host: HostChanges) -> Callable[[], bool]:
    """Start a detached tmux session; the screen and the log show the same."""
    line = f"{{ {shell_line(launch)}; }} 2>&1 | tee -a {shlex.quote(str(launch.log))}"
    session = session_of(launch.run_dir)
    host.run("tmux", "new-session", "-d", "-s", session, "-c", str(Path.cwd()), line)
    return lambda: has_tmux_session(launch.run_dir)


def start_session(launch: Launch, host: HostChanges) -> Callable[[], bool]:
    """Start it in a session of its own, which outlives any terminal."""
    line = f"{{ {shell_line(launch)}; }} >>{shlex.quote(str(launch.log))} 2>&1 </dev/null"
    print("+ setsid sh -c", shlex.quote(line), "&", flush=True)
    if host.dry_run:
        return lambda: False
    quiet = subprocess.DEVNULL
    shell = subprocess.Popen(
        ["sh", "-c", line], start_new_session=True, stdin=quiet, stdout=quiet, stderr=quiet
    )
    return lambda: shell.poll() is None


def is_units(run_dir: Path) -> bool:
    """Whether the installed unit trains in this run folder."""
    return systemd_unit.run_dir_of(UNIT_PATH) == str(run_dir.resolve())


def unit_is_active() -> bool:
    """Whether it runs, or waits to be started again."""
    if not shutil.which("systemctl"):
        return False
    question = ["systemctl", "is-active", f"{NAME}.service"]
    answer = subprocess.run(question, capture_output=True, text=True).stdout.strip()
    return answer in ("active", "activating", "deactivating", "reloading")


def session_of(run_dir: Path) -> str:
    """Name of a run's tmux session; tmux reserves dots and colons."""
    return f"{NAME}-{run_dir.name}".replace(".", "_").replace(":", "_")


def has_tmux_session(run_dir: Path) -> bool:
    """Whether the session that `start` made for this run is there."""
    if not shutil.which("tmux"):
        return False
    question = ["tmux", "has-session", "-t", f"={session_of(run_dir)}"]
    return subprocess.run(question, capture_output=True).returncode == 0
