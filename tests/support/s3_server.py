"""A real S3 server, moto's, in a process of its own that can be told to be slow, away or full.

What it gets wrong (5.2.5, seen with obstore 0.12.1): it takes any credentials, so that refusals are
made by programs/s3_server.py; its times are whole seconds, as S3's are. If-Match and If-None-Match
of a PUT it has right, a file that is gone included.
"""

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.commands import PROGRAMS
from support.needs import variable

PYTHON = "S3_SERVER_PYTHON"  # of the environment that .ci/run makes for it
BUCKET = "bucket"


@dataclass
class Server:
    """A running server, and what a client needs to reach it."""

    process: subprocess.Popen
    port: int
    log: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "KEY-OF-TESTS",
            "AWS_SECRET_ACCESS_KEY": "SECRET-OF-TESTS",
            "AWS_REGION": "us-east-1",
        }

    def tell(self, command: str) -> None:
        """See programs/s3_server.py."""
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def put(self, name: str, data: bytes) -> None:
        """Write a file of the bucket."""
        headers = {"Content-Type": "application/octet-stream"}
        request = urllib.request.Request(self._url_of(name), data, headers, method="PUT")
        urllib.request.urlopen(request, timeout=60).close()

    def get(self, name: str) -> bytes:
        """A file of the bucket; empty if there is none."""
        # moto looks for no signature, but for this header.
        headers = {"Authorization": "AWS KEY-OF-TESTS:any"}
        request = urllib.request.Request(self._url_of(name), headers=headers)
        for tries_left in reversed(range(5)):
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return answer.read()
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return b""
                # moto may fail while the file is being replaced, or be too busy to answer.
                assert tries_left and error.code >= 500, error
            except OSError:
                if not tries_left:
                    raise
            time.sleep(0.5)
        return b""

    def _url_of(self, name: str) -> str:
        return f"{self.environment['AWS_ENDPOINT_URL']}/{BUCKET}/{name}"

    def requests(self) -> list[str]:
        """Method and path of each request so far."""
        return self.log.read_text().splitlines()


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """A server with one empty bucket; skips the test where there is none to start."""
    python = variable(PYTHON, "a Python that has moto (.ci/run makes one)")
    log = folder / "requests.log"
    log.touch()
    process = subprocess.Popen(
        [python, PROGRAMS / "s3_server.py", log],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    try:
        server = Server(process, int(process.stdout.readline()), log)
        url = f"{server.environment['AWS_ENDPOINT_URL']}/{BUCKET}"
        urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=20).close()
        yield server
    finally:
        process.kill()
        process.communicate()
