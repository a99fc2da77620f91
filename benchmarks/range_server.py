"""A web server that sends parts of files, and can be slow, wrong or gone.

For benchmarks/empty_disk.py, which limits its bytes per second, and for tests.
"""

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

RANGE = re.compile(r"bytes=(\d+)-(\d+)")
BLOCK_BYTES = 1 << 16


class RangeServer:
    """What it does, to be changed while it serves, and what it was asked for.

    error: an HTTP status instead of an answer; damaged: places in a file, by its name, whose bytes
    it sends wrong, num_damaged times each; cut_after: bytes after which it breaks a connection off;
    pause_s: before each block of an answer; mb_per_s: of all answers together, 0: no limit.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.error, self.sends_parts = 0, True
        self.damaged: dict[str, list[int]] = {}
        self.num_damaged = 1_000_000
        self.cut_after = 0
        self.pause_s, self.mb_per_s = 0.0, 0.0
        self.asked: list[tuple[str, int, int]] = []  # file, start, end
        self.url = ""
        self._lock, self._free_s = threading.Lock(), 0.0

    def bytes_asked(self) -> int:
        return sum(end - start for _, start, end in self.asked)

    def wait_for_turn(self, num_bytes: int) -> None:
        """Return when so many bytes may be sent."""
        time.sleep(self.pause_s)
        if not self.mb_per_s:
            return
        with self._lock:
            # Whoever has slept too long may catch up.
            begin_s = max(self._free_s, time.monotonic() - 0.1)
            self._free_s = begin_s + num_bytes / self.mb_per_s / 1e6
            wait_s = self._free_s - time.monotonic()
        time.sleep(max(wait_s, 0))

    def part(self, name: str, start: int, end: int) -> bytes:
        """The bytes that are sent for this part of a file."""
        with open(self.folder / name, "rb") as file:
            file.seek(start)
            data = bytearray(file.read(end - start))
        with self._lock:
            for place in self.damaged.get(name, []):
                if start <= place < end and self.num_damaged > 0:
                    data[place - start] ^= 0xFF
                    self.num_damaged -= 1
        return bytes(data)


class Handler(BaseHTTPRequestHandler):
    """Answers GET; the settings are in `settings`, of the class made for each server."""

    settings: RangeServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # 40 ms a request

    def do_GET(self) -> None:
        """Send the file, or the range of it that was asked for."""
        settings, name = self.settings, self.path.strip("/")
        path = settings.folder / name
        if settings.error or not path.is_file():
            self.send_error(settings.error or 404)
            return
        size = path.stat().st_size
        asked = RANGE.fullmatch(self.headers.get("Range", ""))
        if not settings.sends_parts or asked is None:
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            self.wfile.write(path.read_bytes())
            return
        start, end = int(asked[1]), min(int(asked[2]) + 1, size)
        settings.asked.append((name, start, end))
        if start >= size:
            self.send_error(416)
            return
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        with contextlib.suppress(OSError):  # the other side has gone
            self.send_part(name, start, end)

    def send_part(self, name: str, start: int, end: int) -> None:
        settings = self.settings
        if settings.cut_after and end - start > settings.cut_after:
            end, self.close_connection = start + settings.cut_after, True
        for at in range(start, end, BLOCK_BYTES):
            stop = min(at + BLOCK_BYTES, end)
            settings.wait_for_turn(stop - at)
            self.wfile.write(settings.part(name, at, stop))

    def log_message(self, *args: object) -> None:
        pass


class WebServer(ThreadingHTTPServer):
    """Takes sixteen connections at once; the usual five would let the others wait for a second."""

    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *args: object) -> None:
        """Say nothing of clients that disconnect."""


@contextlib.contextmanager
def serve(folder: Path, port: int = 0) -> Iterator[RangeServer]:
    """Serve the files of a folder on 127.0.0.1."""
    settings = RangeServer(folder)
    handler = type("Handler", (Handler,), {"settings": settings})
    server = WebServer(("127.0.0.1", port), handler)
    settings.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield settings
    finally:
        server.shutdown()
        server.server_close()
