"""Shutting this host down once training has ended (--then): whether it can, when, and how.

Standard library, Python 3.10.
"""

import os
import shutil
from pathlib import Path

from host import commands
from host.changes import as_root, can_sudo
from resnet50.records import status

NEVER, ALWAYS, WHEN_DONE = "nothing", "stop-host", "stop-host-when-done"
PROMISES = {
    ALWAYS: "also after a crash or an error, not after an interruption",
    WHEN_DONE: "not after a crash, an error or an interruption",
}
CONTAINER_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))
# systemd's own test for whether it runs (sd_booted(3)).
BOOTED = Path("/run/systemd/system")
INIT = Path("/proc/1/comm")


def problem() -> str:
    """Why this host cannot be shut down from here, to follow "--then"; empty if it can."""
    if not takes_shutdown():
        return (
            "cannot work here: this is a container, or nothing in it takes a `shutdown`. Leave "
            "--then out, and stop the host where you rent it"
        )
    if not program():
        return "needs the program `shutdown`, which is not installed (on Debian: systemd-sysv)"
    if os.geteuid() != 0 and not can_sudo():
        return "needs root, which sudo does not give without a password"
    return ""


def takes_shutdown() -> bool:
    """Whether an init system runs here that can shut the host down."""
    is_container = any(mark.exists() for mark in CONTAINER_MARKS)
    return BOOTED.exists() or (not is_container and INIT.read_text().strip() == "init")


def program() -> str | None:
    """Where `shutdown` is: for cron, and for `su` on Debian, not on PATH."""
    path = f"{os.environ.get('PATH', '')}:{commands.SYSTEM_FOLDERS}"
    return shutil.which("shutdown", path=path)


def command() -> list[str]:
    """In a minute, so that whoever is working here can cancel it."""
    return as_root(program() or "shutdown", "-h", "+1")


def is_due(then: str, state: object, exit_code: int) -> bool:
    """Whether a run that ended in this state, train.py with this code, is an end that `then` means.

    exit_code: 0 if only the state counts.
    """
    is_failure = exit_code not in (0, status.EXIT_CODES[status.INTERRUPTED])
    return then != NEVER and (state in status.ENDED or (then == ALWAYS and is_failure))
