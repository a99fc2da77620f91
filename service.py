"""Keep a training running without a terminal, and say how it stands.

    python3 service.py start --run_dir runs/imagenet -- .venv/bin/python train.py --recipe mild
    python3 service.py status --run_dir runs/imagenet
    python3 service.py attach | logs | stop --run_dir runs/imagenet

What it runs is `python train.py`, which restarts what crashed and saves when told to stop: as a
systemd unit where systemd runs (which also resumes after a reboot), else in tmux, else in a session
of its own. Its output goes to RUN_DIR/console.log. Standard library, Python 3.10. Exit codes: 0 it
runs or is done, 1 it ended while starting, 2 change something.
"""

import argparse
import os
import pwd
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import systemd_unit
from host_changes import HostChanges, as_root, can_sudo
from run_state import lock_holder, progress, read_status

NAME = "resnet50-training"
UNIT_PATH = Path(f"/etc/systemd/system/{NAME}.service")
CONSOLE = "console.log"
SYSTEMD, TMUX, SETSID = "systemd", "tmux", "setsid"
ENDED = ("done", "diverged")  # nothing more happens without the user
START_S, STOP_S = 300.0, 120.0  # the unit's own TimeoutStopSec is 110


def available_way() -> str:
    """The best way that this host has: systemd with the right to use it, tmux, setsid."""
    if Path("/run/systemd/system").exists() and (os.geteuid() == 0 or can_sudo()):
        return SYSTEMD
    return TMUX if shutil.which("tmux") else SETSID


def start(args: argparse.Namespace) -> int:
    """Have it trained, unless it trains already or is done."""
    run_dir, host = args.run_dir, HostChanges(args.dry_run)
    if not args.dry_run and settled(args, ended_too=False) == 0:
        return 0
    if args.then == "stop-host":
        print("when training has ended, this host is SHUT DOWN (--then stop-host)")
    way = args.way or available_way()
    other = systemd_unit.run_dir_of(UNIT_PATH)
    if way == SYSTEMD and unit_is_active() and other != str(run_dir.resolve()):
        raise ValueError(f"this host trains {other or 'something else'} already: stop that first")
    log = run_dir / CONSOLE
    host.run("mkdir", "-p", str(run_dir))
    if not args.dry_run:
        log.touch()  # else systemd makes it, as root's
    before = read_status(run_dir).get("attempt")
    starts = {SYSTEMD: start_unit, TMUX: start_tmux, SETSID: start_session}
    is_alive = starts[way](args, log, host)
    return 0 if args.dry_run else wait_for_first_step(run_dir, before, is_alive)


def settled(args: argparse.Namespace, ended_too: bool = True) -> int:
    """Whether there is nothing to start, and then what there is; 1 if there is."""
    if lock_holder(args.run_dir):
        return show(args.run_dir)
    if not ended_too or read_status(args.run_dir).get("state") not in ENDED:
        return 1
    show(args.run_dir)
    print("give another --run_dir to train another one")
    return 0


def running(args: argparse.Namespace) -> int:
    """Whether it trains this moment; 1 if it does not."""
    return settled(args, ended_too=False)


def start_unit(args: argparse.Namespace, log: Path, host: HostChanges) -> Callable[[], bool]:
    """A unit that is also started at every boot. Like the other two, returns "does it live?"."""
    after = ["/usr/bin/env", "python3", "-B", __file__, "after", f"--run_dir={args.run_dir}"]
    text = systemd_unit.text(
        name=NAME,
        command=args.command,
        folder=Path.cwd(),
        run_dir=args.run_dir,
        log=log.resolve(),
        user=pwd.getpwuid(os.geteuid()).pw_name,
        before=["/usr/bin/env", *shlex.split(args.before)] if args.before else [],
        after=[*after, f"--then={args.then}", f"--way={SYSTEMD}"],
    )
    made = args.run_dir / f"{NAME}.service"
    host.replace(made, text)
    host.run(*as_root("install", "-m", "644", str(made), str(UNIT_PATH)))
    host.run(*as_root("systemctl", "daemon-reload"))
    host.run(*as_root("systemctl", "reset-failed", f"{NAME}.service"), may_fail=True)
    host.run(*as_root("systemctl", "enable", "--now", f"{NAME}.service"))
    return unit_is_active


def shell_line(args: argparse.Namespace) -> str:
    """What tmux and setsid run: prepare, train, and what comes then."""
    after = [sys.executable, __file__, "after", f"--run_dir={args.run_dir}", f"--then={args.then}"]
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


def wait_for_first_step(run_dir: Path, before: str | None, is_alive: Callable[[], bool]) -> int:
    """Until it trains, or has trained; 1 with the log's end if it ended before that."""
    deadline = time.monotonic() + START_S
    lives = True
    while lives and time.monotonic() < deadline:
        time.sleep(0.5)
        lives = is_alive()  # asked first: what ends now has written its status by now
        status = read_status(run_dir)
        trains = lock_holder(run_dir) and status.get("step", 0) > 0
        if status.get("attempt") not in (None, before) and (trains or status["state"] == "done"):
            return show(run_dir)
        if not lives and status.get("state") == "done":  # it was before: what has train.py said?
            said = (run_dir / CONSOLE).read_text().rstrip().rpartition("\n")[2]
            print(said)
            return 2 if ": error: " in said else show(run_dir)
    if lives:
        print("it is still starting")
        return show(run_dir)
    print((run_dir / CONSOLE).read_text()[-2000:], file=sys.stderr)
    told = f"training ended while starting; above is the end of {run_dir / CONSOLE}"
    print(f"service.py: error: {told}", file=sys.stderr)
    return 1


def show(run_dir: Path) -> int:
    """How the run stands, and how to look on."""
    status, holder = read_status(run_dir), lock_holder(run_dir)
    if not status and not holder:
        print(f"service.py: error: no run in {run_dir}", file=sys.stderr)
        return 2
    state = status.get("state", "starting")
    if state == "running" and not holder:
        state = "gone: it was killed; the command that started it resumes it"
    elif holder:
        state = f"training, process {holder}, {how_it_runs(run_dir)}"
    print(f"{run_dir}: {state}")
    if "stop_step" in status:
        print(f"  {progress(status)}")
    if status.get("message"):
        print(f"  {status['message']}")
    print(f"  log: {run_dir / CONSOLE}; curves: {run_dir / 'curves.png'}")
    return 0


def how_it_runs(run_dir: Path) -> str:
    """Which of the ways the running training was started in, as far as it shows."""
    if is_units(run_dir) and unit_is_active():
        return f"systemd unit {NAME}"
    return f"tmux session {session_of(run_dir)}" if has_tmux_session(run_dir) else "without one"


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


def stop(args: argparse.Namespace) -> int:
    """Have the run saved and ended, and not started at the next boot."""
    if is_units(args.run_dir) and shutil.which("systemctl"):
        HostChanges().run(*as_root("systemctl", "disable", "--now", f"{NAME}.service"))
    if holder := lock_holder(args.run_dir):
        os.kill(holder, signal.SIGTERM)
        print(f"told process {holder} to save and end", flush=True)
    deadline = time.monotonic() + STOP_S
    while lock_holder(args.run_dir) and time.monotonic() < deadline:
        time.sleep(0.2)
    if lock_holder(args.run_dir):
        raise ValueError(f"process {holder} has not ended after {STOP_S:.0f} s; see --logs")
    return show(args.run_dir)


def attach(args: argparse.Namespace) -> int:
    """The tmux screen, or the log as it grows; Ctrl-C leaves, training goes on."""
    if has_tmux_session(args.run_dir):
        os.execvp("tmux", ["tmux", "attach-session", "-t", f"={session_of(args.run_dir)}"])
    check_log(args.run_dir)
    os.execvp("tail", ["tail", "-n", "40", "-F", str(args.run_dir / CONSOLE)])


def logs(args: argparse.Namespace) -> int:
    """The end of the log."""
    check_log(args.run_dir)
    os.execvp("tail", ["tail", "-n", "200", str(args.run_dir / CONSOLE)])


def check_log(run_dir: Path) -> None:
    """Raise ValueError if nothing was started in this run folder."""
    if not (run_dir / CONSOLE).exists():
        raise ValueError(f"{run_dir / CONSOLE}: no such file; nothing was started in this folder")


def after(args: argparse.Namespace) -> int:
    """Once the run has ended by itself: no start at the next boot, and what --then asks for."""
    if read_status(args.run_dir).get("state") not in ENDED:
        return 0
    host = HostChanges(args.dry_run)
    if args.way == SYSTEMD:
        host.run(*as_root("systemctl", "disable", f"{NAME}.service"))
    if args.then == "stop-host":
        print("training has ended: shutting this host down in a minute; `shutdown -c` keeps it")
        host.run(*as_root("shutdown", "-h", "+1"))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Start, show, stop; see above."""
    parser = argparse.ArgumentParser(
        prog="service.py", usage="service.py DO --run_dir DIR [options] [-- COMMAND]",
        description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    calls = {
        "start": start,
        "settled": settled,
        "running": running,
        "status": lambda args: show(args.run_dir),
        "stop": stop,
    }
    calls |= {"attach": attach, "logs": logs, "after": after}
    add = parser.add_argument
    add("do", choices=calls)
    add("--run_dir", type=Path, required=True, metavar="DIR", help="run folder")
    add("--way", choices=(SYSTEMD, TMUX, SETSID), help="to keep it running [the best there is]")
    add("--before", default="", metavar="LINE", help="command that comes before each start")
    add("--then", choices=("nothing", "stop-host"), default="nothing",
        help="when training has ended; stop-host shuts the machine down")  # fmt: skip
    add("--dry_run", action="store_true", help="print what would be done")
    argv = list(sys.argv[1:] if argv is None else argv)
    own = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:own])
    args.command = argv[own + 1 :]
    if (args.do == "start") != bool(args.command):
        parser.error("`start` needs a command after --, and only it does")
    try:
        return calls[args.do](args)
    except KeyboardInterrupt:
        print("service.py: left alone; what was started goes on")
        return 0
    except (ValueError, OSError) as error:
        print(f"service.py: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
