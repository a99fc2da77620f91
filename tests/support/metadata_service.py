"""EC2's instance metadata service, as far as resnet50/run asks it, on this machine."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from resnet50.run import instance_metadata, spot_watch

NOTICE = {"action": "terminate", "time": "2026-01-31T12:00:00Z"}
STOPPING = "spot notice: terminate at 2026-01-31T12:00:00Z: saving and stopping"  # the event
REBALANCE = {"noticeTime": "2026-01-31T11:50:00Z"}


class FakeService:
    """What it answers, and what it was asked; tokens are needed, as with IMDSv2."""

    def __init__(self) -> None:
        self.found: dict[str, object] = {}  # path: text, or what JSON holds; all else is 404
        self.garbage: list[bytes] | None = None  # sent piece by piece instead of an answer
        self.pause_s = 0.0  # between two pieces
        self.garbage_for = ("GET",)
        self.tokens: set[str] = set()
        self.num_tokens = 0
        self.asked: list[tuple[str, str, int]] = []  # method, path, code
        self.endpoint = ""

    def give_notice(self) -> None:
        self.found[spot_watch.INSTANCE_ACTION] = NOTICE

    def recommend(self) -> None:
        self.found[spot_watch.REBALANCE] = REBALANCE

    def wait_until_told(self, path: str, timeout_s: float) -> None:
        """Return when somebody has asked for what is there, and had time to hear it."""
        deadline = time.monotonic() + timeout_s
        while ("GET", path, 200) not in self.asked:
            assert time.monotonic() < deadline, f"nobody asked for {path} in {timeout_s} s"
            time.sleep(0.02)
        time.sleep(0.5)

    @property
    def environment(self) -> dict[str, str]:
        """For a process that asks here; its proxies lead nowhere."""
        nowhere = "http://127.0.0.1:9"
        return {
            instance_metadata.ENDPOINT: self.endpoint,
            instance_metadata.DISABLED: "",
            "http_proxy": nowhere,
            "HTTP_PROXY": nowhere,
            "ALL_PROXY": nowhere,
        }


class Server(ThreadingHTTPServer):
    """Stays silent about clients that disconnect."""

    daemon_threads = True

    def handle_error(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def serve() -> Iterator[FakeService]:
    """A fake service on a port of its own."""
    service = FakeService()

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            seconds = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
            if self.is_garbage():
                return
            if self.path != "/latest/api/token" or seconds != "21600":
                self.answer(400, b"")
                return
            service.num_tokens += 1
            token = f"token-{service.num_tokens}=="
            service.tokens.add(token)
            self.answer(200, token.encode())

        def do_GET(self) -> None:
            if self.headers.get("X-aws-ec2-metadata-token") not in service.tokens:
                self.answer(401, b"")
            elif self.is_garbage():
                return
            elif self.path in service.found:
                there = service.found[self.path]
                text = there if isinstance(there, str) else json.dumps(there)
                self.answer(200, text.encode())
            else:
                self.answer(404, b"<html>404 - Not Found</html>")

        def is_garbage(self) -> bool:
            if service.garbage is None or self.command not in service.garbage_for:
                return False
            service.asked.append((self.command, self.path, 0))
            self.close_connection = True
            with contextlib.suppress(OSError):  # the other side has heard enough
                for piece in service.garbage:
                    self.wfile.write(piece)
                    time.sleep(service.pause_s)
            return True

        def answer(self, code: int, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            service.asked.append((self.command, self.path, code))
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    service.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
