"""The meter stops: with a budget and --then stop-host, this host is shut down when the purse is
empty, even if training never began, or hangs.

    python3 -m host.service meter --run_dir runs/imagenet --then stop-host --budget_hours 3

systemd's `shutdown -h +MINUTES` waits, and there is one at a time on a host: a new one takes the
place of the old. It is scheduled when setup begins, for the whole budget; moved at each start of
the training, which has what the run has not yet spent; replaced at its end by --then's own, a
minute later; and canceled by --stop. It comes after the time at which training wants to be done,
and so spends nothing unless something is wrong. Standard library, Python 3.10.
"""

import argparse
import hashlib
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from host import background, shut_down
from host.changes import HostChanges, as_root
from resnet50.records import status
from resnet50.run import instance_price
from resnet50.system import files

# systemd-logind writes it, with the message to the users in C's escapes (src/login/logind-dbus.c).
SCHEDULED = Path("/run/systemd/shutdown/scheduled")
# After the end that training aims at: it may miss that by 3%, has then to save, may bring its last
# files to a mirror (run/mirror.py, ENDED_S), and tells whoever waits (run/on_end.py, LIMIT_S).
LATE_SHARE, LATE_S = 0.03, 300.0 + 600.0 + 60.0
AUTO = "auto"


@dataclass(frozen=True)
class Shutdown:
    """What is scheduled. at: Unix time; name: of the run whose purse it is; empty if not ours;
    purse_s: the whole purse in seconds, 0 if it is not known."""

    at: float
    name: str
    purse_s: int = 0

    @property
    def when(self) -> str:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.at))


def stored_purse_s(run_dir: Path) -> float:
    """Seconds of the budget that the run there was planned with, at the price of then: its schedule
    ends with it on any host. 0 if there is no such run, or it has none."""
    try:
        settings = files.read_json(run_dir / status.CONFIG).get("settings")
    except ValueError:
        return 0.0  # damaged: the words of the command line are left
    known = status.numbers(settings) if isinstance(settings, Mapping) else {}
    usd, price = known.get("budget_usd", 0.0), known.get("price_per_hour", 0.0)
    return 3600 * (usd / price if usd > 0 and price > 0 else known.get("budget_hours", 0.0))


def purse_s(budget_usd: float, budget_hours: float, price_per_hour: str) -> float:
    """Seconds that a budget pays for; 0 without one. Raises ValueError for dollars that have no
    price. price_per_hour: a number, or auto."""
    if not budget_usd:
        return 3600 * budget_hours
    said = ""
    if price_per_hour == AUTO:
        price, said = instance_price.find()
    else:
        price = float(price_per_hour or 0)
    if price <= 0:
        raise ValueError(
            f"--budget_usd {budget_usd:g} needs the price of this host, to know when it is spent: "
            f"--price_per_hour X{f' (auto: {said})' if said else ''}; or give --budget_hours"
        )
    return 3600 * budget_usd / price


def purse_of(args: argparse.Namespace) -> float:
    """Seconds of the budget of host/service.py's command line, if the host is to end with it; else
    0."""
    if args.then != shut_down.ALWAYS:
        return 0.0
    stored = stored_purse_s(args.run_dir)
    words = args.budget_usd, args.budget_hours, args.price_per_hour
    return stored or args.purse_s or purse_s(*words)


def schedule(args: argparse.Namespace) -> int:
    """`host.service meter`: as setup begins, and before each start of the training."""
    purse, host = purse_of(args), HostChanges(args.dry_run)
    if args.purse_s:  # from the unit or the shell that trains
        move(args.run_dir, purse, host)
    elif purse:
        begin(args.run_dir, purse, host)
    return 0


def scheduled() -> Shutdown | None:
    """The shutdown that systemd has waiting."""
    try:
        text = SCHEDULED.read_text(errors="replace")
    except OSError:
        return None
    at = re.search(r"^USEC=(\d+)$", text, re.MULTILINE)
    ours = r"^WALL_MESSAGE=.*\((resnet50-[0-9a-f]{8})(?:, purse (\d+) s)?\)"
    found = re.search(ours, text, re.MULTILINE)
    name, purse = found.groups() if found else ("", None)
    return Shutdown(int(at[1]) / 1e6, name, int(purse or 0)) if at else None


def name_of(run_dir: Path) -> str:
    """How a run's shutdown is told from others."""
    return f"resnet50-{hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:8]}"


def of_run(run_dir: Path) -> Shutdown | None:
    """The shutdown that waits for the end of this run's purse."""
    there = scheduled()
    return there if there and there.name == name_of(run_dir) else None


def begin(run_dir: Path, purse_s: float, host: HostChanges) -> None:
    """Schedule it when setup begins, unless a run trains or has ended there, or it is scheduled for
    this purse: the steps before the training must not last longer than that either."""
    if status.supervisor_of(run_dir) or status.known_status(run_dir).get("state") in status.ENDED:
        return
    there = of_run(run_dir)
    if there and there.purse_s == round(purse_s):
        print(describe(there, run_dir))
    else:
        move(run_dir, purse_s, host)


def move(run_dir: Path, purse_s: float, host: HostChanges) -> None:
    """Schedule it for the end of what the run has left, instead of whatever was scheduled for it.

    Another shutdown that comes earlier stays.
    """
    if not shut_down.BOOTED.exists():
        print(
            "warning: only systemd can schedule a shutdown for later, and does not run here: this "
            "host is shut down when training ends, but not before"
        )
        return
    left_s = max(purse_s - status.paid_s(run_dir), 0) + LATE_SHARE * purse_s + LATE_S
    there = scheduled()
    if there and there.name != name_of(run_dir) and there.at <= time.time() + left_s:
        print(f"this host has a shutdown scheduled for {there.when}, which stays")
        return
    ours = f"({name_of(run_dir)}, purse {purse_s:.0f} s)"
    message = f"the budget of the training in {run_dir} is spent {ours}"
    minutes = math.ceil(left_s / 60)
    host.run(*as_root(shut_down.program() or "shutdown", "-h", f"+{minutes}", message))
    at = Shutdown(time.time() + 60 * minutes, name_of(run_dir))
    print(describe(at, run_dir), flush=True)


def describe(there: Shutdown, run_dir: Path) -> str:
    """What will happen, and how to prevent it."""
    stop_it = background.script_line("--stop", "--run_dir", str(run_dir))
    return (
        f"this host is SHUT DOWN at {there.when} at the latest, when the budget is spent, even if "
        f"training never begins or hangs; `{stop_it}` cancels that"
    )


def cancel(run_dir: Path, host: HostChanges) -> bool:
    """Cancel the run's shutdown; whether there was one. Raises ValueError if that fails."""
    there = of_run(run_dir)
    if there is None:
        return False
    host.run(*as_root(shut_down.program() or "shutdown", "-c"))
    print(f"the shutdown of this host at {there.when} is canceled")
    return True
