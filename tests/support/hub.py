"""The part of the Hugging Face Hub's HTTP interface that pushing and downloading use, on this
machine: huggingface_hub 2.4.0 talks to it as to the real one, without xet.

    with hub_stub.serve() as hub:
        ...  # a command with hub.environment(folder)
        hub.files["models"]["me/mine"]["README.md"]
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + "0" * 34
TOKEN = "hf_" + "AbCdEfGhIj" * 3 + "KlMn"  # the shape of real ones
REPOSITORY = re.compile(r"/api/(models|spaces)/([\w.-]+/[\w.-]+)(/[\w-]+)?")
RESOLVED = re.compile(r"/(spaces/)?([\w.-]+/[\w.-]+)/resolve/main/(.+)")
LFS_SUFFIXES = (".safetensors", ".onnx", ".png")


@dataclass
class Hub:
    """What the stub was sent. files: kind -> repository -> path -> content; refuse: a request's
    beginning such as "POST /api/repos/create" -> the status that answers it."""

    address: str
    files: dict[str, dict[str, dict[str, bytes]]]
    requests: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    created: list[dict] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    refuse: dict[str, int] = field(default_factory=dict)

    def environment(self, home: Path, token: str = TOKEN) -> dict[str, str]:
        """Variables with which huggingface_hub asks this stub, and nobody else."""
        switches = ("XET", "TELEMETRY", "UPDATE_CHECK", "PROGRESS_BARS")
        more = {f"HF_HUB_DISABLE_{name}": "1" for name in switches}
        return {"HF_ENDPOINT": self.address, "HF_HOME": str(home), "HF_TOKEN": token, **more}

    def commit(self, kind: str, name: str, body: bytes) -> None:
        """Do what the lines of a commit say."""
        files = self.files[kind].setdefault(name, {})
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]

    def answer(self, method: str, path: str, body: bytes) -> object:
        """The JSON that answers a request; None: no such thing."""
        if path == "/api/whoami-v2":
            return {"name": "me", "type": "user"}
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            kind = "spaces/" if self.created[-1].get("type") == "space" else ""
            return {"url": f"{self.address}/{kind}me/mine"}
        if path == "/api/validate-yaml":
            return {}
        if path.endswith("/info/lfs/objects/batch"):
            href = f"{self.address}/lfs"
            objects = [
                {**item, "actions": {"upload": {"href": f"{href}/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            return {"transfer": "basic", "objects": objects}
        if path.startswith("/lfs/"):
            self.objects[path.removeprefix("/lfs/")] = body
            return {} if hashlib.sha256(body).hexdigest() == path.removeprefix("/lfs/") else None
        if match := REPOSITORY.match(path):
            return self.of_repository(*match.groups(), body)
        return None

    def of_repository(self, kind: str, name: str, what: str | None, body: bytes) -> object:
        """What is asked of one repository."""
        files = self.files[kind].get(name, {})
        if what == "/preupload":
            modes = [
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
                for file in json.loads(body)["files"]
                for mode in ["lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular"]
            ]
            return {"files": modes}
        if what == "/commit":
            self.commit(kind, name, body)
            return {"commitUrl": f"{self.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT}
        if what == "/tree":
            return [
                {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
                for path, content in files.items()
            ]
        return {"id": name, "private": False, "siblings": [], "tags": [], "downloads": 0}


class Handler(BaseHTTPRequestHandler):
    """Answers with what the Hub object says."""

    hub: Hub

    def do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request, path = f"{self.command} {self.path}", self.path.partition("?")[0]
        self.hub.requests.append(request)
        self.hub.bodies.append(body)
        for beginning, status in self.hub.refuse.items():
            if request.startswith(beginning):
                return self.send(status, b'{"error": "refused by the stub"}')
        if match := RESOLVED.fullmatch(path):
            kind = "spaces" if match[1] else "models"
            content = self.hub.files[kind].get(match[2], {}).get(match[3])
        else:
            found = self.hub.answer(self.command, path, body)
            content = None if found is None else json.dumps(found).encode()
        return self.send(404 if content is None else 200, content or b"{}")

    def send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_HEAD = do  # noqa: N815

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """A Hub with nothing in it, while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {}))
    hub = Hub(f"http://127.0.0.1:{server.server_port}", {"models": {}, "spaces": {}})
    server.RequestHandlerClass.hub = hub
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
