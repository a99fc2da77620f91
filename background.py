"""Three ways to keep a command running without a terminal: a systemd unit, tmux, a session.

Standard library, Python 3.10.
"""

import argparse
import os
import pwd
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import systemd_unit
from host_changes import HostChanges, as_root, can_sudo

NAME = "resnet50-training"
UNIT_PATH = Path(f"/etc/systemd/system/{NAME}.service")
SYSTEMD, TMUX, SETSID = "systemd", "tmux", "setsid"
SERVICE = Path(__file__).with_name("service.py")


def available_way() -> str:
    """The best way that this host has: systemd with the right to use it, tmux, setsid."""
    if Path("/run/systemd/system").exists() and (os.geteuid() == 0 or can_sudo()):
        return SYSTEMD
    return TMUX if shutil.which("tmux") else SETSID


def start_unit(args: argparse.Namespace, log: Path, host: HostChanges) -> Callable[[], bool]:
    """A unit that is also started at every boot. Like the other two, returns "does it live?"."""
    python = ["/usr/bin/env", "python3", "-B"]
    text = systemd_unit.text(
        name=NAME,
        command=args.command,
        folder=Path.cwd(),
        run_dir=args.run_dir,
        log=log.resolve(),
        user=pwd.getpwuid(os.geteuid()).pw_name,
        before=["/usr/bin/env", *shlex.split(args.before)] if args.before else [],
        after=[*python, *after_words(args), f"--way={SYSTEMD}"],
    )
    made = args.run_dir / f"{NAME}.service"
    host.replace(made, text)
    host.run(*as_root("install", "-m", "644", str(made), str(UNIT_PATH)))
    host.run(*as_root("systemctl", "daemon-reload"))
    host.run(*as_root("systemctl", "reset-failed", f"{NAME}.service"), may_fail=True)
    host.run(*as_root("systemctl", "enable", "--now", f"{NAME}.service"))
    return unit_is_active


def after_words(args: argparse.Namespace) -> list[str]:
    """`service.py after`, which is told the attempt before this start: maybe no other came."""
    words = ["after", f"--run_dir={args.run_dir}", f"--then={args.then}"]
    return [str(SERVICE), *words, f"--last_attempt={args.last_attempt}"]


def shell_line(args: argparse.Namespace) -> str:
    """What tmux and setsid run: prepare, train, and what comes then."""
    after = [sys.executable, *after_words(args)]
    before = shlex.join(as_root(*shlex.split(args.before))) if args.before else ""
    parts = [before, shlex.join(args.command), shlex.join(after)]
    return "; ".join(part for part in parts if part)


def start_tmux(args: argparse.Namespace, log: Path, host: HostChanges) -> Callable[[], bool]:
    """A detached tmux session; the screen and the log show the same."""
    line = f"{{ {shell_line(args)}; }} 2>&1 | tee -a {shlex.quote(str(log))}"
    session = session_of(args.run_dir)
    host.run("tmux", "new-session", "-d", "-s", session, "-c", str(Path.cwd()), line)
    return lambda: has_tmux_session(args.run_dir)


def start_session(args: argparse.Namespace, log: Path, host: HostChanges) -> Callable[[], bool]:
    """A session of its own, which no terminal's end reaches."""
    line = f"{{ {shell_line(args)}; }} >>{shlex.quote(str(log))} 2>&1 </dev/null"
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
    asked = ["systemctl", "is-active", f"{NAME}.service"]
    told = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    return told in ("active", "activating", "deactivating", "reloading")


def session_of(run_dir: Path) -> str:
    """Name of a run's tmux session; tmux keeps dots and colons to itself."""
    return f"{NAME}-{run_dir.name}".replace(".", "_").replace(":", "_")


def has_tmux_session(run_dir: Path) -> bool:
    """Whether the session that `start` made for this run is there."""
    if not shutil.which("tmux"):
        return False
    asked = ["tmux", "has-session", "-t", f"={session_of(run_dir)}"]
    return subprocess.run(asked, capture_output=True).returncode == 0
