"""Programs of the system: each has a time limit, and a message that names it.

    listed = commands.run(["lsblk", "--json"]).stdout

Runs before there is an environment: standard library, Python 3.10.
"""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

READ_S, CHANGE_S = 60.0, 600.0  # limits: for what only looks, and for what changes something
PATIENCE_S = 10.0  # then something is said
END_S = 5.0
# Where mkfs, blkid and the like are; cron, and `su` on Debian, leave these out of PATH.
SYSTEM_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"


def run(
    command: Sequence[str],
    limit_s: float = READ_S,
    *,
    what: str = "",
    env: Mapping[str, str | None] | None = None,
    english: bool = True,
    own_session: bool = False,
    **more: object,
) -> subprocess.CompletedProcess:
    """Run a command without input; its output as text.

    what: its name in messages. env: added to ours; None removes a variable. english: whatever the
    user's language is, for output that we read.
    own_session: without our terminal, and with all that it starts ended if the time is over. more:
    of subprocess.Popen. Raises ValueError if there is no such program, or if it takes longer than
    limit_s.
    """
    path = f"{os.environ.get('PATH') or os.defpath}:{SYSTEM_FOLDERS}"
    language = {"LC_ALL": "C"} if english else {}
    variables = {**os.environ, **language, "PATH": path, **(env or {})}
    try:
        process = subprocess.Popen(
            command,
            env={name: value for name, value in variables.items() if value is not None},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="backslashreplace",
            start_new_session=own_session,
            **more,
        )
    except FileNotFoundError as error:
        raise ValueError(f"{command[0]} is not installed: install it and try again") from error
    out, err = _finish(process, what or shlex.join(command), limit_s, own_session)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _finish(
    process: subprocess.Popen, what: str, limit_s: float, own_session: bool
) -> tuple[str, str]:
    """What a process prints to its end. Raises ValueError if that does not come in time."""
    patience_s = min(PATIENCE_S, limit_s)
    try:
        return process.communicate(timeout=patience_s)
    except subprocess.TimeoutExpired:
        if limit_s > patience_s:
            print(f"still waiting for {what}, up to {limit_s:.0f} s", file=sys.stderr, flush=True)
    try:
        return process.communicate(timeout=limit_s - patience_s)
    except subprocess.TimeoutExpired as error:
        _end(process, own_session)
        raise ValueError(f"{what} did not end in {limit_s:.0f} s, and was stopped") from error


def _end(process: subprocess.Popen, own_session: bool) -> None:
    """Stop a process, politely first, so that it removes its locks."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(-process.pid if own_session else process.pid, number)
        # One that waits for a dead disk or server cannot be ended, and is not waited for.
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
            if not own_session:
                return
