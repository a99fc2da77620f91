"""Three ways to keep a command running without a terminal: a systemd unit, tmux, its own session.

Standard library, Python 3.10.
"""

import hashlib
import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from host import commands, shut_down, systemd_unit
from host.changes import HostChanges, as_root, can_sudo

NAME = "resnet50-training"
UNIT, FAILED_UNIT = f"{NAME}.service", f"{NAME}-failed.service"
UNITS = Path("/etc/systemd/system")
UNIT_PATH = UNITS / UNIT
SYSTEMD, TMUX, SETSID = "systemd", "tmux", "setsid"
END_S = 10.0  # for what follows a training in tmux
CONSOLE = "console.log"  # in the run folder: what the command prints
CLONE = Path(__file__).resolve().parents[1]  # where `python3 -m host.service` is found


@dataclass(frozen=True)
class Launch:
    """What to keep running.

    command: train.py and its arguments; before: a command line that runs as root before each start;
    then: what to do at the end (shut_down.py); last_attempt: the attempt in status.json
    before this start, in case the start makes no new one. purse_s: with a budget that ends with
    the host (meter.py), the seconds that it pays for; else 0.
    """

    run_dir: Path
    command: Sequence[str]
    before: str
    then: str
    last_attempt: str
    purse_s: float = 0.0

    @property
    def log(self) -> Path:
        return self.run_dir / CONSOLE


def available_way() -> str:
    """The best way that this host has: systemd with the right to use it, tmux, setsid."""
    return next(way for way in (SYSTEMD, TMUX, SETSID) if not problem_with(way))


def problem_with(way: str) -> str:
    """Why this host has no such way; empty if it has."""
    if way == SYSTEMD and not shut_down.BOOTED.exists():
        return "systemd does not run here"
    if way == SYSTEMD and os.geteuid() != 0 and not can_sudo():
        return "it needs root, which sudo does not give without a password"
    if way == TMUX and not shutil.which("tmux"):
        return "tmux is not installed"
    return ""


def start_unit(launch: Launch, host: HostChanges) -> Callable[[], bool]:
    """Start a unit, now and at every boot. Like the other two, returns a test that it is alive."""
    variables, withheld = systemd_unit.steering(os.environ)
    if variables:
        print(f"the unit gets these variables from here: {', '.join(variables)}")
    if withheld:
        print(f"the unit, which anyone here can read, does not get {', '.join(withheld)}")
    stops_host = launch.then == shut_down.ALWAYS
    after = ["/usr/bin/env", *after_words(launch), f"--way={SYSTEMD}"]
    texts = {
        UNIT: systemd_unit.text(
            name=NAME,
            command=launch.command,
            folder=Path.cwd(),
            run_dir=launch.run_dir,
            log=launch.log.resolve(),
            user=user_name(),
            environment=variables,
            before=[["/usr/bin/env", *words] for words in before_words(launch)],
            after=after,
            on_failure=FAILED_UNIT if stops_host else "",
        )
    }
    if stops_host:
        texts[FAILED_UNIT] = systemd_unit.failed_text(
            [*after, "--exit_code=1"], launch.log.resolve()
        )
    for name, text in texts.items():
        host.replace(launch.run_dir / name, text)
        host.run(*as_root("install", "-m", "644", str(launch.run_dir / name), str(UNITS / name)))
    try:
        host.run(*as_root("systemctl", "daemon-reload"))
        host.run(*as_root("systemctl", "reset-failed", UNIT), may_fail=True)
        host.run(*as_root("systemctl", "enable", "--now", UNIT))
    except ValueError:
        if not unit_is_active():  # it may still start, if only the time was over
            host.run(*as_root("systemctl", "disable", UNIT), may_fail=True)
            host.run(*as_root("rm", "-f", *(str(UNITS / name) for name in texts)), may_fail=True)
        raise
    return unit_is_active


def user_name() -> str:
    """Who the unit trains as. systemd looks numbers up too, and refuses those without a name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise ValueError(
            f"--way {SYSTEMD}: your user id, {os.geteuid()}, has no name here, which systemd "
            f"needs: give --way {TMUX} or --way {SETSID}"
        ) from None


def before_words(launch: Launch) -> list[list[str]]:
    """What root runs before each start, as words for env."""
    commands_before = [shlex.split(launch.before)] if launch.before else []
    if launch.purse_s:
        meter = [*service_words(launch, "meter"), f"--purse_s={launch.purse_s:.0f}"]
        commands_before.append(meter)
    return commands_before


def service_words(launch: Launch, do: str) -> list[str]:
    """`host.service` for this run, for env to run.

    By the Python that an environment is made of: an environment may be gone or renamed by then.
    """
    words = [f"--chdir={CLONE}", sys._base_executable, "-B", "-m", "host.service", do]
    return [*words, f"--run_dir={launch.run_dir.resolve()}", f"--then={launch.then}"]


def after_words(launch: Launch) -> list[str]:
    """`host.service after`."""
    words = service_words(launch, "after")
    # Left out if there was none: an empty value is refused, since most are unset variables.
    return [*words, *([f"--last_attempt={launch.last_attempt}"] if launch.last_attempt else [])]


def shell_line(launch: Launch) -> str:
    """What tmux and setsid run: the preparation, the training, and what follows."""
    before = [shlex.join(as_root("env", *words)) for words in before_words(launch)]
    after = shlex.join(["env", *after_words(launch)]) + " --exit_code=$?"
    return "; ".join([*before, shlex.join(launch.command), after])


def start_tmux(launch: Launch, host: HostChanges) -> Callable[[], bool]:
    """Start a detached tmux session; the screen and the log show the same.

    sh by name: tmux would give the line to the login shell, which may be fish or tcsh.
    """
    deadline = time.monotonic() + END_S
    while not host.dry_run and has_tmux_session(launch.run_dir):
        if time.monotonic() > deadline:
            attach = shlex.join(attach_words(launch.run_dir))
            raise ValueError(f"the start before has not ended yet: see {attach}")
        time.sleep(0.2)
    # -i: Ctrl-C on the screen is for the training, whose last words belong in the log.
    line = f"{{ {shell_line(launch)}; }} 2>&1 | tee -i -a {shlex.quote(str(launch.log))}"
    # The name is only what the screen shows; tmux reserves dots and colons.
    session = re.sub(r"[^\w-]", "_", launch.run_dir.name, flags=re.ASCII)
    words = tmux_words(launch.run_dir, "new-session", "-d", "-s", session, "-c", str(Path.cwd()))
    host.run(*words, "sh", "-c", line)
    return lambda: has_tmux_session(launch.run_dir)


def start_session(launch: Launch, host: HostChanges) -> Callable[[], bool]:
    """Start it in a session of its own, which outlives any terminal."""
    line = f"{{ {shell_line(launch)}; }} >>{shlex.quote(str(launch.log))} 2>&1 </dev/null"
    print("+ setsid sh -c", shlex.quote(line), "&", flush=True)
    if host.dry_run:
        return lambda: False
    quiet = subprocess.DEVNULL
    # Not waited for, and so without a time limit.
    shell = subprocess.Popen(
        ["sh", "-c", line], start_new_session=True, stdin=quiet, stdout=quiet, stderr=quiet
    )
    return lambda: shell.poll() is None


def then_of(supervisor: int, run_dir: Path) -> str:
    """What follows a running training (--then), as the unit or the shell that runs it has it."""
    try:
        if is_units(run_dir) and unit_is_active():
            line = UNIT_PATH.read_text()
        else:
            parent = re.search(r"PPid:\s*(\d+)", Path(f"/proc/{supervisor}/status").read_text())[1]
            line = Path(f"/proc/{parent}/cmdline").read_bytes().decode(errors="replace")
    except OSError:  # it has just ended, or is hidden: nothing of ours follows it here
        return shut_down.NEVER
    found = re.search(r"--then=([\w-]+)", line)
    return found[1] if found else shut_down.NEVER


def script_line(*words: str) -> str:
    """The command line that calls setup_and_train.sh, also where its run bit is missing."""
    return shlex.join(["bash", str(CLONE / "setup_and_train.sh"), *words])


def is_units(run_dir: Path) -> bool:
    """Whether the installed unit trains in this run folder."""
    return systemd_unit.run_dir_of(UNIT_PATH) == str(run_dir.resolve())


def unit_is_active() -> bool:
    """Whether it runs, or waits to be started again."""
    return _ask_systemctl("is-active") in ("active", "activating", "deactivating", "reloading")


def unit_is_enabled() -> bool:
    """Whether it starts at the next boot, as far as systemd does not deny that."""
    return _ask_systemctl("is-enabled") not in ("disabled", "masked")


def _ask_systemctl(question: str) -> str:
    """systemd's answer about the unit; empty if it has none."""
    if not shutil.which("systemctl"):
        return ""
    return commands.run(["systemctl", question, UNIT]).stdout.strip()


def tmux_words(run_dir: Path, *words: str) -> list[str]:
    """A tmux command for a run's own server.

    Its own, so that it reads no configuration of the user's, which may keep ended sessions, and has
    the environment of this start; a server that runs already would give that of its own start.
    """
    name = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:8]
    return ["tmux", "-L", f"resnet50-{name}", "-f", "/dev/null", *words]


def attach_words(run_dir: Path) -> list[str]:
    """The command that shows the run's screen."""
    return tmux_words(run_dir, "attach")


def has_tmux_session(run_dir: Path) -> bool:
    """Whether the session that `start` made for this run is there."""
    if not shutil.which("tmux"):
        return False
    return commands.run(tmux_words(run_dir, "has-session")).returncode == 0
