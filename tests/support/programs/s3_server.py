"""An S3 server on 127.0.0.1, which does what standard input says. Runs in moto's environment.

python s3_server.py LOG    prints its port; LOG gets a line for each request, before its answer

fault 503 SlowDown    answer each request with this status and code of an error
delay 0.05            answer each request this many seconds later
gone                  break off each request, as a server does that is restarted
ignore                drop the conditions of writes, as some servers do
fine                  none of these any more
"""

import socket
import sys
import threading
import time

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>as told</Message></Error>"
CONDITIONS = ("HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH")


class Faults:
    """moto behind whatever faults are asked for."""

    def __init__(self, log: str) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._log = open(log, "a", buffering=1)  # noqa: SIM115 (for the process's life)
        self.do("fine")

    def do(self, command: str) -> None:
        name, *words = command.split()
        self.error = ("", "")
        self.delay_s, self.is_gone, self.ignores = 0.0, name == "gone", name == "ignore"
        if name == "fault":
            self.error = words[0], words[1]
        elif name == "delay":
            self.delay_s = float(words[0])

    def __call__(self, environ: dict, start_response):
        self._log.write(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}\n")
        time.sleep(self.delay_s)
        if self.is_gone:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)  # close() waits for its readers
            raise ConnectionError
        status, code = self.error
        if status:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            body = ERROR.format(code).encode()
            headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
            start_response(f"{status} As Told", headers)
            return [body]
        if self.ignores and environ["REQUEST_METHOD"] == "PUT":
            for name in CONDITIONS:
                environ.pop(name, None)
        return self._moto(environ, start_response)


class Quiet(WSGIRequestHandler):
    """Says nothing of requests."""

    protocol_version = "HTTP/1.1"

    def log(self, *args: object) -> None:
        pass


def main(log: str) -> None:
    faults = Faults(log)
    server = make_server("127.0.0.1", 0, faults, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    for line in sys.stdin:
        faults.do(line)
        print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
