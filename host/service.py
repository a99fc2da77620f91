"""Keep a training running without a terminal, and report its state.

    python3 -m host.service start --run_dir runs/imagenet -- .venv/bin/python train.py --recipe mild
    python3 -m host.service status --run_dir runs/imagenet
    python3 -m host.service attach | logs | stop --run_dir runs/imagenet

It runs `python train.py`, which restarts after a crash and saves when told to stop: as a
systemd unit where systemd runs (which also resumes after a reboot), else in tmux, else in a session
of its own. Its output goes to RUN_DIR/console.log. Standard library, Python 3.10. Exit codes: 0 it
runs or is done, 1 it ended while starting, 2 change something.
"""

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from host import background, systemd_unit
from host.background import CONSOLE, NAME, SETSID, SYSTEMD, TMUX, UNIT_PATH, Launch
from host.changes import HostChanges, as_root, can_sudo
from resnet50.config.command_line import Parser, print_error
from resnet50.records import status

START_S, STOP_S = 300.0, 120.0  # the unit's own TimeoutStopSec is 110


def start(args: argparse.Namespace) -> int:
    """Start the training, unless it is running already or is done."""
    run_dir, host = args.run_dir, HostChanges(args.dry_run)
    if not args.dry_run and is_training(args) == 0:
        return 0
    if args.then == "stop-host":
        if not (args.dry_run or os.geteuid() == 0 or can_sudo()):
            raise ValueError(
                "--then stop-host needs root, which sudo does not give without a password"
            )
        print("when training has ended, this host is SHUT DOWN (--then stop-host)")
    way = args.way or background.available_way()
    other = systemd_unit.run_dir_of(UNIT_PATH)
    if way == SYSTEMD and background.unit_is_active() and other != str(run_dir.resolve()):
        raise ValueError(f"this host is training {other or 'something else'}: stop that first")
    host.run("mkdir", "-p", str(run_dir))
    last_attempt = str(status.read_status(run_dir).get("attempt", ""))
    launch = Launch(run_dir, args.command, args.before, args.then, last_attempt)
    if not args.dry_run:
        launch.log.touch()  # otherwise systemd creates it, owned by root
    log_size = size_of(launch.log)
    starts = {
        SYSTEMD: background.start_unit,
        TMUX: background.start_tmux,
        SETSID: background.start_session,
    }
    is_alive = starts[way](launch, host)
    return 0 if args.dry_run else wait_for_first_step(launch, log_size, is_alive)


def is_settled(args: argparse.Namespace) -> int:
    """0 if there is nothing to start, since it is training or has ended, after showing that; else
    1."""
    if is_training(args) == 0:
        return 0
    if status.read_status(args.run_dir).get("state") not in status.ENDED:
        return 1
    show(args.run_dir)
    print("give a new --run_dir to train another one")
    return 0


def is_training(args: argparse.Namespace) -> int:
    """0 if it is training at this moment, after showing how; else 1."""
    return show(args.run_dir) if status.supervisor_of(args.run_dir) else 1


def size_of(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def wait_for_first_step(launch: Launch, log_size: int, is_alive: Callable[[], bool]) -> int:
    """Wait until it trains, or is done; 1, with the log's end, if it ended before that.

    log_size: bytes of the log before it was started.
    """
    run_dir, deadline, lives = launch.run_dir, time.monotonic() + START_S, True
    while lives and time.monotonic() < deadline:
        time.sleep(0.5)
        lives = is_alive()  # asked first: if it has ended, its status is written by now
        found = status.read_status(run_dir)
        is_done = found.get("state") == status.DONE
        trains = status.supervisor_of(run_dir) and found.get("step", 0) > 0
        is_new = found.get("attempt", "") not in ("", launch.last_attempt)
        if is_new and (trains or is_done):
            return show(run_dir)
        if not lives and is_done:  # it was done before: train.py has said so, or why not
            said = launch.log.read_bytes()[log_size:].decode(errors="replace").rstrip()
            print(said)
            return 2 if ": error: " in said else show(run_dir)
    if lives:
        print("it is still starting")
        return show(run_dir)
    print(launch.log.read_text()[-2000:], file=sys.stderr)
    message = f"training ended while starting; above is the end of {launch.log}"
    print_error("host/service.py", message)
    return 1


def show(run_dir: Path) -> int:
    """Print the run's state, and where to watch it."""
    found, supervisor = status.read_status(run_dir), status.supervisor_of(run_dir)
    if not found and not supervisor:
        return print_error("host/service.py", f"no run in {run_dir}")
    state = found.get("state", "starting")
    if supervisor:
        state = f"training, process {supervisor}, {how_it_runs(run_dir)}"
    elif state == status.RUNNING:
        state = "gone: it was killed; the command that started it resumes it"
    print(f"{run_dir}: {state}")
    if "stop_step" in found:
        print(f"  {status.describe_progress(found)}")
    if found.get("message"):
        print(f"  {found['message']}")
    files = {"log": CONSOLE, "records": "log.jsonl", "curves": "curves.png"}
    there = [
        f"{what}: {run_dir / name}" for what, name in files.items() if (run_dir / name).exists()
    ]
    print(f"  {'; '.join(there)}")
    return 0


def how_it_runs(run_dir: Path) -> str:
    """How the running training was started, as far as it shows."""
    if background.is_units(run_dir) and background.unit_is_active():
        return f"systemd unit {NAME}"
    return (
        f"tmux session {background.session_of(run_dir)}"
        if background.has_tmux_session(run_dir)
        else "without systemd or tmux"
    )


def stop(args: argparse.Namespace) -> int:
    """Make the run save and end, and not start at the next boot."""
    if background.is_units(args.run_dir) and shutil.which("systemctl"):
        HostChanges().run(*as_root("systemctl", "disable", "--now", f"{NAME}.service"))
    if holder := status.supervisor_of(args.run_dir):
        os.kill(holder, signal.SIGTERM)
        print(f"told process {holder} to save and end", flush=True)
    deadline = time.monotonic() + STOP_S
    while status.supervisor_of(args.run_dir) and time.monotonic() < deadline:
        time.sleep(0.2)
    if status.supervisor_of(args.run_dir):
        raise ValueError(f"process {holder} has not ended after {STOP_S:.0f} s; see --logs")
    return show(args.run_dir)


def attach(args: argparse.Namespace) -> int:
    """The tmux screen, or the log as it grows; Ctrl-C leaves it, and training continues."""
    if background.has_tmux_session(args.run_dir):
        os.execvp(
            "tmux", ["tmux", "attach-session", "-t", f"={background.session_of(args.run_dir)}"]
        )
    check_log(args.run_dir)
    os.execvp("tail", ["tail", "-n", "40", "-F", str(args.run_dir / CONSOLE)])


def logs(args: argparse.Namespace) -> int:
    """The end of the log."""
    check_log(args.run_dir)
    os.execvp("tail", ["tail", "-n", "200", str(args.run_dir / CONSOLE)])


def check_log(run_dir: Path) -> None:
    """Raise ValueError if nothing was started in this run folder."""
    if not (run_dir / CONSOLE).exists():
        raise ValueError(
            f"{run_dir / CONSOLE}: no such file; nothing was started in the background here"
        )


def after(args: argparse.Namespace) -> int:
    """Once the run has ended by itself: no start at the next boot, and what --then asks for."""
    found, host = status.read_status(args.run_dir), HostChanges(args.dry_run)
    if found.get("state") not in status.ENDED:
        return 0
    if args.way == SYSTEMD:
        host.run(*as_root("systemctl", "disable", f"{NAME}.service"))
    # A start that was refused, or had nothing to do, leaves the status of the attempt before it.
    if args.then == "stop-host" and found.get("attempt") != args.last_attempt:
        print("training has ended: shutting this host down in a minute; `shutdown -c` cancels that")
        host.run(*as_root("shutdown", "-h", "+1"))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Start, show, stop; see above."""
    parser = Parser(
        "host/service.py",
        __doc__,
        usage="python3 -m host.service DO --run_dir DIR [options] [-- COMMAND]",
    )
    calls = {
        "start": start,
        "is_settled": is_settled,
        "is_training": is_training,
        "status": lambda args: show(args.run_dir),
        "stop": stop,
    }
    calls |= {"attach": attach, "logs": logs, "after": after}
    add = parser.add_argument
    add("do", choices=calls)
    add("--run_dir", type=Path, required=True, metavar="DIR", help="run folder")
    add("--way", choices=(SYSTEMD, TMUX, SETSID), help="how to keep it running [the best one here]")
    add("--before", default="", metavar="LINE", help="command to run before each start")
    add(
        "--then",
        choices=("nothing", "stop-host"),
        default="nothing",
        help="what to do when training has ended; stop-host shuts the machine down",
    )
    add("--last_attempt", default="", help=argparse.SUPPRESS)  # from `start` to `after`
    add("--dry_run", action="store_true", help="print what would be done")
    argv = list(sys.argv[1:] if argv is None else argv)
    own = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:own])
    args.command = argv[own + 1 :]
    if (args.do == "start") != bool(args.command):
        parser.error("`start`, and nothing else, needs a command after --")
    try:
        return calls[args.do](args)
    except KeyboardInterrupt:
        print("host/service.py: interrupted; what was started keeps running")
        return 0
    except (ValueError, OSError) as error:
        return print_error("host/service.py", error)


if __name__ == "__main__":
    sys.exit(main())
