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
gone. In Docker's own network the service is one hop too far, unless the instance allows two.
"""

import contextlib
import http.client
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

# The AWS SDKs' own environment variables. Proxies are not used: http.client ignores them.
ENDPOINT, DISABLED = "AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_EC2_METADATA_DISABLED"
DEFAULT_ENDPOINT = "http://169.254.169.254"
TOKEN_PATH = "/latest/api/token"
INSTANCE_ACTION = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"

POLL_S = 5.0  # what AWS recommends
TIMEOUT_S = 1.0  # of a whole request
TRIES = 2  # at the start
TOKEN_S = 21_600  # life of a token, the longest there is
RENEW_S = 600  # before its end
MAX_BYTES = 10_000

TOKEN = re.compile(r"[!-~]{1,1000}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]{5,15}Z?", re.ASCII)  # printed, so strict
ACTIONS = ("terminate", "stop", "hibernate")


def start(
    mode: str, request_stop: Callable[[str], None], request_save: Callable[[str], None]
) -> None:
    """Start watching in a thread; to be called after the last fork of this process.

    mode: --spot_watch. request_stop, request_save: called in the thread, with the reason as text.
    """
    is_disabled = os.environ.get(DISABLED, "").lower() == "true"
    if mode == "off" or (mode == "auto" and is_disabled):
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
        self._must_answer, self._clock = must_answer, clock
        self._endpoint = os.environ.get(ENDPOINT) or DEFAULT_ENDPOINT
        self._token, self._token_until = "", 0.0
        self._recommended = ""

    def run(self) -> None:
        """Watch until a notice comes; end at once if no service gives a token."""
        if not any(self._renew_token() for _ in range(TRIES)):
            if not self._must_answer:
                return
            with contextlib.suppress(OSError):  # the terminal is gone
                what = f"warning: --spot_watch on: {self._endpoint} does not answer: still trying"
                print(what, file=sys.stderr, flush=True)
        while not self.poll():
            time.sleep(POLL_S)

    def poll(self) -> bool:
        """Ask once; True if the machine will be reclaimed, after which polling can end."""
        if notice := parse_notice(self._read(INSTANCE_ACTION)):
            self._request_stop(f"spot notice: {notice}: saving and stopping")
            return True
        recommended = parse_rebalance(self._read(REBALANCE))
        if recommended and recommended != self._recommended:
            self._recommended = recommended
            self._request_save(
                f"spot: rebalance recommendation of {recommended}: saving, then continuing"
            )
        return False

    def _read(self, path: str) -> bytes:
        """What the service has there; empty unless it answers as expected."""
        for _ in range(2):  # again with a new token, if this one is refused
            if self._clock() >= self._token_until and not self._renew_token():
                return b""
            code, body = ask(self._endpoint, "GET", path, {"X-aws-ec2-metadata-token": self._token})
            if code != 401:
                return body if code == 200 else b""
            self._token_until = 0.0
        return b""

    def _renew_token(self) -> bool:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_S)}
        code, body = ask(self._endpoint, "PUT", TOKEN_PATH, headers)
        token = body.decode("ascii", "replace").strip()
        if code != 200 or not TOKEN.fullmatch(token):
            return False
        self._token = token
        self._token_until = self._clock() + TOKEN_S - RENEW_S
        return True


class _Socket(socket.socket):
    """A socket with one deadline for all that it receives, however slowly the bytes drip in."""

    until_s = 0.0  # on the monotonic clock

    def recv_into(self, *args: object) -> int:
        left_s = self.until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self.settimeout(left_s)
        return super().recv_into(*args)


def ask(endpoint: str, method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
    """Status code and body of an answer, cut at MAX_BYTES; (0, b"") if there is none."""
    try:
        parts = urlsplit(endpoint)
        if parts.scheme != "http" or not parts.hostname:
            return 0, b""
        family = socket.AF_INET6 if ":" in parts.hostname else socket.AF_INET
        connection = http.client.HTTPConnection(parts.hostname, parts.port)
        with _Socket(family, socket.SOCK_STREAM) as sock, contextlib.closing(connection):
            sock.until_s = time.monotonic() + TIMEOUT_S
            sock.settimeout(TIMEOUT_S)
            sock.connect((connection.host, connection.port))
            connection.sock = sock
            connection.request(method, parts.path.rstrip("/") + path, headers=headers)
            with connection.getresponse() as answer:
                return answer.status, answer.read(MAX_BYTES)
    except Exception:  # whatever goes wrong here must not affect training
        return 0, b""


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
