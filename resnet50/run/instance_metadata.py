"""EC2's instance metadata service (IMDSv2): what it says at a path, in a time that is bounded.

    Metadata().read("/latest/meta-data/instance-type")

Any other answer than one with the code 200, or none, reads as nothing. Off EC2 the first request
ends after TIMEOUT_S at the latest. In Docker's own network the service is one hop too far, unless
the instance allows two.
"""

import contextlib
import http.client
import os
import re
import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit

# The AWS SDKs' own environment variables. Proxies are not used: http.client ignores them.
ENDPOINT, DISABLED = "AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_EC2_METADATA_DISABLED"
DEFAULT_ENDPOINT = "http://169.254.169.254"
TOKEN_PATH = "/latest/api/token"

TIMEOUT_S = 1.0  # of a whole request
TOKEN_S = 21_600  # life of a token, the longest there is
RENEW_S = 600  # before its end
MAX_BYTES = 10_000

TOKEN = re.compile(r"[!-~]{1,1000}")


def is_disabled() -> bool:
    """Whether the SDKs' switch says that nobody may ask."""
    return os.environ.get(DISABLED, "").lower() == "true"


class Metadata:
    """A client with a token, which it renews."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.endpoint = os.environ.get(ENDPOINT) or DEFAULT_ENDPOINT
        self._clock = clock
        self._token, self._token_until = "", 0.0

    def read(self, path: str) -> bytes:
        """What the service has there; empty unless it answers as expected."""
        for _ in range(2):  # again with a new token, if this one is refused
            if self._clock() >= self._token_until and not self.renew_token():
                return b""
            code, body = ask(self.endpoint, "GET", path, {"X-aws-ec2-metadata-token": self._token})
            if code != 401:
                return body if code == 200 else b""
            self._token_until = 0.0
        return b""

    def renew_token(self) -> bool:
        """Whether the service gave one."""
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_S)}
        code, body = ask(self.endpoint, "PUT", TOKEN_PATH, headers)
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
