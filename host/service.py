"""Keep a training running without a terminal, and report its state.

    python3 -m host.service start --run_dir runs/imagenet -- .venv/bin/python train.py --recipe mild
    python3 -m host.service status --run_dir runs/imagenet
    python3 -m host.service attach | logs | stop --run_dir runs/imagenet    # or --runs runs

It runs `python train.py`, which restarts after a crash and saves when told to stop: as a
systemd unit where systemd runs (which also resumes after a reboot), else in tmux, else in a session
of its own. Its output goes to RUN_DIR/console.log. Standard library, Python 3.10. Exit codes: 0 it
runs or is done, 1 it ended while starting, 2 change something, 10 the answer to a question is no.
"""

import argparse
import os
import pwd
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from host import background, meter, mounts, runs, shut_down, systemd_unit
from host.background import CONSOLE, SETSID, SYSTEMD, TMUX, UNIT, UNIT_PATH, Launch
from host.changes import HostChanges, as_root
from resnet50.config.command_line import Parser, print_error
from resnet50.records import status
from resnet50.system import locking

START_S, STOP_S = 300.0, 120.0  # the unit's own TimeoutStopSec is 110
NO = 10  # not 1: a Python that cannot even begin ends with that
ELSEWHERE = "held by a process that cannot be seen from here (another container, or another host)"


def start(args: argparse.Namespace) -> int:
    """Start the training, unless it is running already or is done."""
    run_dir, host = args.run_dir, HostChanges(args.dry_run)
    if not args.dry_run and is_training(args) == 0:
        return 0
    way = possible_way(args)
    if args.then != shut_down.NEVER:
        promise = f"--then {args.then}: {shut_down.PROMISES[args.then]}"
        print(f"when training has ended, this host is SHUT DOWN ({promise})")
    warn_of_loss(run_dir)
    host.run("mkdir", "-p", str(run_dir))
    last_attempt = str(status.read_status(run_dir).get("attempt", ""))
    purse_s = meter.purse_of(args)
    launch = Launch(run_dir, args.command, args.before, args.then, last_attempt, purse_s)
    if not args.dry_run:
        launch.log.touch()  # otherwise systemd creates it, owned by root
        if reason := locking.why_no_locks(launch.log):
            print(f"warning: {run_dir} is on a disk without locks ({reason}): start only once")
    log_size = size_of(launch.log)
    starts = {
        SYSTEMD: background.start_unit,
        TMUX: background.start_tmux,
        SETSID: background.start_session,
    }
    is_alive = starts[way](launch, host)
    return 0 if args.dry_run else wait_for_first_step(launch, log_size, is_alive)


def check(args: argparse.Namespace) -> int:
    """Refuse what `start` would refuse, before hours of other work; starts nothing."""
    if supervisor := status.supervisor_of(args.run_dir):
        refuse_other_end(args, supervisor)
    elif status.known_status(args.run_dir).get("state") not in status.ENDED:
        possible_way(args)
    return 0


def possible_way(args: argparse.Namespace) -> str:
    """How to keep it running. Raises ValueError for --then or --way that this host cannot do."""
    if args.then != shut_down.NEVER and (problem := shut_down.problem()):
        raise ValueError(f"--then {args.then} {problem}")
    way = args.way or background.available_way()
    if problem := background.problem_with(way):
        raise ValueError(f"--way {way}: {problem}; leave it out for the best way that is here")
    if way == SYSTEMD:
        background.user_name()
        refuse_other_run(args.run_dir)
    return way


def warn_of_loss(run_dir: Path) -> None:
    """Say so if a stop of the host may take the checkpoints with it."""
    try:
        place = mounts.lost_with_a_stop(run_dir.resolve())
    except ValueError as error:
        print(f"warning: it cannot be told whether {run_dir} outlives a stop of the host: {error}")
        return
    if place:
        print(f"warning: {run_dir} is on {place}: a stop of the host may empty it")


def refuse_other_run(run_dir: Path) -> None:
    """Raise ValueError if the unit's place is taken: there is one unit on a host.

    That of a run that has ended, or is gone, gives way.
    """
    other = systemd_unit.run_dir_of(UNIT_PATH)
    if not UNIT_PATH.exists() or other == str(run_dir.resolve()):
        return
    if not other:
        raise ValueError(f"{UNIT_PATH} is not ours: rename it, or give --way {TMUX}")
    end = runs.end_of(Path(other))
    if background.unit_is_active() or background.unit_is_enabled() or not end:
        stop_it = background.script_line("--stop", "--run_dir", other)
        raise ValueError(
            f"the systemd unit of this host trains {other}, which has not ended, or would start at "
            f"the next boot. Make room with `{stop_it}` (it saves first), then `sudo rm "
            f"{UNIT_PATH}`; or train beside it: --way {TMUX}"
        )
    print(f"the unit's run before, {other}, is {end}: this one takes its place")


def is_settled(args: argparse.Namespace) -> int:
    """0 if there is nothing to start, since it is training or has ended, after showing that; else
    NO."""
    if is_training(args) == 0:
        return 0
    if status.read_status(args.run_dir).get("state") not in status.ENDED:
        return NO
    runs.refuse_another(args.run_dir, args.recipe, args.data_dir)
    if runs.lacks_copy(args.run_dir, args.mirror):
        return NO
    show_ended(args.run_dir, args.then)
    print("give a new --run_dir to train another one")
    return 0


def is_training(args: argparse.Namespace) -> int:
    """0 if it is training at this moment, after showing how; else NO."""
    supervisor = status.supervisor_of(args.run_dir)
    if not supervisor:
        return NO
    runs.refuse_another(args.run_dir, args.recipe, args.data_dir)
    refuse_other_end(args, supervisor)
    return show(args.run_dir)


def refuse_other_end(args: argparse.Namespace, supervisor: int) -> None:
    """Raise ValueError if --then is asked for, but the running training has it not."""
    if args.then in (shut_down.NEVER, background.then_of(supervisor, args.run_dir)):
        return
    stop_it = background.script_line("--stop", "--run_dir", str(args.run_dir))
    raise ValueError(
        f"{args.run_dir} is training already, without --then {args.then}. `{stop_it}` saves and "
        "ends it; then this command resumes it with --then"
    )


def show_ended(run_dir: Path, then: str) -> int:
    """As `show`, where nothing was left to train, and so nothing follows it."""
    if then != shut_down.NEVER:
        meter.cancel(run_dir, HostChanges())
        print(f"--then {then}: not in effect, since nothing is left to train; this host stays up")
    return show(run_dir)


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
        trains = status.supervisor_of(run_dir) and status.numbers(found).get("step", 0) > 0
        is_new = found.get("attempt", "") not in ("", launch.last_attempt)
        if is_new and (trains or is_done):
            return show(run_dir)
        if not lives and is_done:  # it was done before: train.py has said so, or why not
            said = launch.log.read_bytes()[log_size:].decode(errors="replace").rstrip()
            print(said)
            return 2 if ": error: " in said else show_ended(run_dir, launch.then)
    if lives:
        print("it is still starting")
        return show(run_dir)
    print(launch.log.read_text(errors="replace")[-2000:], file=sys.stderr)
    message = f"training ended while starting; above is the end of {launch.log}"
    if is_new and launch.then == shut_down.ALWAYS:
        message += ". --then stop-host shuts this host down; to keep it up: sudo shutdown -c"
    print_error("host/service.py", message)
    return 1


def show(run_dir: Path) -> int:
    """Print the run's state, and where to watch it."""
    found, supervisor = status.read_status(run_dir), status.supervisor_of(run_dir)
    if not found and not supervisor:
        return print_error("host/service.py", f"no run in {run_dir}")
    state = found.get("state", "starting")
    if supervisor == locking.HIDDEN:
        state = f"training, {ELSEWHERE}"
    elif supervisor:
        state = f"training, process {supervisor}, {how_it_runs(run_dir)}"
        if (then := background.then_of(supervisor, run_dir)) != shut_down.NEVER:
            state += f", --then {then}"
    elif state == status.RUNNING:
        state = "gone: it was killed; the command that started it resumes it"
    print(f"{run_dir}: {state}")
    if "stop_step" in found:
        print(f"  {status.describe_progress(found)}")
    if found.get("message"):
        print(f"  {found['message']}")
    if there := meter.of_run(run_dir):
        print(f"  {meter.describe(there, run_dir)}")
    files = {"log": CONSOLE, "records": "log.jsonl", "curves": "curves.png"}
    there = [
        f"{what}: {run_dir / name}" for what, name in files.items() if (run_dir / name).exists()
    ]
    print(f"  {'; '.join(there)}")
    return 0


def how_it_runs(run_dir: Path) -> str:
    """How the running training was started, as far as it shows."""
    if background.is_units(run_dir) and background.unit_is_active():
        return f"systemd unit {UNIT}"
    if background.has_tmux_session(run_dir):
        return f"tmux session: {shlex.join(background.attach_words(run_dir))}"
    return "without systemd or tmux"


def stop(args: argparse.Namespace) -> int:
    """Make the run save and end, and not start at the next boot."""
    if background.is_units(args.run_dir) and shutil.which("systemctl"):
        end_unit()
    if holder := status.supervisor_of(args.run_dir):
        tell_to_end(holder, args.run_dir)
    deadline = time.monotonic() + STOP_S
    while status.supervisor_of(args.run_dir) and time.monotonic() < deadline:
        time.sleep(0.2)
    if status.supervisor_of(args.run_dir):
        raise ValueError(f"process {holder} has not ended after {STOP_S:.0f} s; see --logs")
    was_scheduled = meter.cancel(args.run_dir, HostChanges())
    if was_scheduled and not status.read_status(args.run_dir):
        return 0  # setup had not come as far as a run that could be shown
    return show(args.run_dir)


def end_unit() -> None:
    """Stop the unit and keep it from the next boot, as far as there is anything to do."""
    is_active = background.unit_is_active()
    if not is_active and not background.unit_is_enabled():
        return
    try:
        HostChanges().run(*as_root("systemctl", "disable", "--now", UNIT))
    except ValueError as error:
        if is_active:  # it would start the run again
            raise
        print(f"warning: the unit may start at the next boot: {error}")


def tell_to_end(holder: int, run_dir: Path) -> None:
    """Raises ValueError if that is not for this user, or not from here, to do."""
    if holder == locking.HIDDEN:
        raise ValueError(f"{run_dir} is training, {ELSEWHERE}: stop it there")
    try:
        os.kill(holder, signal.SIGTERM)
    except ProcessLookupError:
        return  # it has just ended
    except PermissionError:
        owner = Path(f"/proc/{holder}").stat().st_uid
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = f"the user with id {owner}"
        raise ValueError(
            f"process {holder} belongs to {name}: `sudo kill {holder}` makes it save and end"
        ) from None
    print(f"told process {holder} to save and end", flush=True)


def attach(args: argparse.Namespace) -> int:
    """The tmux screen, or the log as it grows; Ctrl-C leaves it, and training continues."""
    if not os.isatty(0):  # nobody could leave it
        logs(args)
    if os.isatty(1) and background.has_tmux_session(args.run_dir):
        os.execvp("tmux", background.attach_words(args.run_dir))
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
    # The unit for failures, which also follows a `stop` that took too long, and a diverged run.
    if args.way == SYSTEMD and args.exit_code and not background.unit_is_enabled():
        return 0
    # A start that was refused, or had nothing to do, leaves the status of the attempt before it.
    is_new = found.get("attempt") not in (None, args.last_attempt)
    stops_host = is_new and shut_down.is_due(args.then, found.get("state"), args.exit_code)
    # A host that is shut down after a failure must not train, fail and shut down at its next boot.
    if args.way == SYSTEMD and (stops_host or found.get("state") in status.ENDED):
        host.run(*as_root("systemctl", "disable", UNIT))
    if stops_host:
        print("training has ended: shutting this host down in a minute; `shutdown -c` cancels that")
        host.run(*shut_down.command())
    elif there := meter.of_run(args.run_dir):
        print(meter.describe(there, args.run_dir))
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
        "check": check,
        "is_settled": is_settled,
        "is_training": is_training,
        "status": lambda args: show(args.run_dir),
        "stop": stop,
        "meter": meter.schedule,
    }
    calls |= {"attach": attach, "logs": logs, "after": after}
    add = parser.add_argument
    add("do", choices=calls)
    folder = {"type": Path, "metavar": "DIR"}
    add("--run_dir", **folder, help="run folder")
    add("--runs", **folder, action="append", help="instead: folder of run folders, to choose from")
    add("--way", choices=(SYSTEMD, TMUX, SETSID), help="how to keep it running [the best one here]")
    add("--recipe", help="refuse a run that is training or has ended with another one")
    add("--data_dir", **folder, help="the same for its data")
    add("--mirror", default="", help="for is_settled: where a run that has ended is to be copied")
    add("--before", default="", metavar="LINE", help="command to run before each start")
    add(
        "--then",
        choices=(shut_down.NEVER, *shut_down.PROMISES),
        default=shut_down.NEVER,
        help="what to do when training has ended: stop-host shuts the machine down unless it was "
        "interrupted, stop-host-when-done only if it is done or has diverged",
    )
    money = {"type": float, "default": 0.0, "metavar": "X"}
    add("--budget_usd", **money, help="with --then stop-host: the host ends with this budget")
    add("--budget_hours", **money, help="the same in hours")
    add("--price_per_hour", default="", metavar="X|auto", help="for --budget_usd")
    # From `start` to `meter`: the budget in seconds.
    add("--purse_s", type=float, default=0.0, help=argparse.SUPPRESS)
    # From `start` to `after`; exit_code: train.py's, 0 where only the state counts.
    add("--last_attempt", default="", help=argparse.SUPPRESS)
    add("--exit_code", type=int, default=0, help=argparse.SUPPRESS)
    add("--dry_run", action="store_true", help="print what would be done")
    argv = list(sys.argv[1:] if argv is None else argv)
    own = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:own])
    args.command = argv[own + 1 :]
    if (args.do == "start") != bool(args.command):
        parser.error("`start`, and nothing else, needs a command after --")
    if not args.run_dir and not args.runs:
        parser.error("--run_dir is missing")
    try:
        args.run_dir = args.run_dir or runs.choose(args.do, args.runs)
        return calls[args.do](args)
    except KeyboardInterrupt:
        print("host/service.py: interrupted; what was started keeps running")
        return 0
    except (ValueError, OSError) as error:
        return print_error("host/service.py", error)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a quiet end in `| head`; tail inherits it
    sys.exit(main())
