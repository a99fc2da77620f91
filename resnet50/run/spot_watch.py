"""Spot notices: EC2 warns two minutes before it reclaims a machine; the run saves and stops.

    python train.py --spot_watch auto    # watch where the instance metadata service answers
    python train.py --spot_watch on      # the same, and warn if it does not
    python train.py --spot_watch off

One daemon thread per host asks the service (IMDSv2, always with a token) every 5 s for

    /latest/meta-data/spot/instance-action                    404, or {"action": ..., "time": ...}
    /latest/meta-data/events/recommendations/rebalance        404, or {"noticeTime": ...}

The first makes the run save and stop, as SIGTERM does, with exit code 75; the second makes it save
once and continue. Notices are best effort, so the checkpoints every few minutes remain the
guarantee. Any other answer, or none, changes nothing and prints nothing.

A systemd unit restarts a run that exited with 75 after 30 s. That does no harm on a machine about
to vanish: the notice is still there, so each start stops at its first steps, until the machine is
gone.
"""

import contextlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable

from resnet50.run import instance_metadata
from resnet50.run.instance_metadata import Metadata

INSTANCE_ACTION = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"

POLL_S = 5.0  # what AWS recommends
TRIES = 2  # at the start

TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]{5,15}Z?", re.ASCII)  # printed, so strict
ACTIONS = ("terminate", "stop", "hibernate")


def start(
    mode: str, request_stop: Callable[[str], None], request_save: Callable[[str], None]
) -> None:
    """Start watching in a thread; to be called after the last fork of this process.

    mode: --spot_watch. request_stop, request_save: called in the thread, with the reason as text.
    """
    if mode == "off" or (mode == "auto" and instance_metadata.is_disabled()):
        return
    watch = SpotWatch(request_stop, request_save, must_answer=mode == "on")
    threading.Thread(target=watch.run, name="spot watch", daemon=True).start()


class SpotWatch:
    """Asks for notices and passes them on, each once."""

    def __init__(
        self,
        request_stop: Callable[[str], None],
        request_save: Callable[[str], None],
        *,
        must_answer: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._request_stop, self._request_save = request_stop, request_save
        self._must_answer = must_answer
        self.metadata = Metadata(clock)
        self._recommended = ""

    def run(self) -> None:
        """Watch until a notice comes; end at once if no service gives a token."""
        if not any(self.metadata.renew_token() for _ in range(TRIES)):
            if not self._must_answer:
                return
            with contextlib.suppress(OSError):  # the terminal is gone
                where = self.metadata.endpoint
                what = f"warning: --spot_watch on: {where} does not answer: still trying"
                print(what, file=sys.stderr, flush=True)
        while not self.poll():
            time.sleep(POLL_S)

    def poll(self) -> bool:
        """Ask once; True if the machine will be reclaimed, after which polling can end."""
        if notice := parse_notice(self.metadata.read(INSTANCE_ACTION)):
            self._request_stop(f"spot notice: {notice}: saving and stopping")
            return True
        recommended = parse_rebalance(self.metadata.read(REBALANCE))
        if recommended and recommended != self._recommended:
            self._recommended = recommended
            self._request_save(
                f"spot: rebalance recommendation of {recommended}: saving, then continuing"
            )
        return False


def parse_notice(body: bytes) -> str:
    """What will happen and when, "terminate at 2026-01-31T12:00:00Z"; empty if it is no notice."""
    notice = parse_object(body)
    action, moment = notice.get("action"), notice.get("time")
    if action not in ACTIONS or not is_time(moment):
        return ""
    return f"{action} at {moment}"


def parse_rebalance(body: bytes) -> str:
    """When a recommendation to leave this machine was given; empty if it is none."""
    moment = parse_object(body).get("noticeTime")
    return moment if is_time(moment) else ""


def parse_object(body: bytes) -> dict[str, object]:
    """The JSON object in these bytes; empty for anything else."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):  # RecursionError: thousands of brackets
        return {}
    return found if isinstance(found, dict) else {}


def is_time(value: object) -> bool:
    return isinstance(value, str) and TIME.fullmatch(value) is not None
