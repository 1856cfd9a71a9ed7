"""A small S3 server that lacks something, as real ones do: newer checksums, or conditional writes."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONDITIONS = ("If-Match", "If-None-Match")


@dataclass
class Limits:
    """``checksums``: answer (status, code) to a request with one. ``conditions``: ``honoured``, ``ignored`` or
    ``refused``."""

    checksums: tuple[int, str] | None = None
    conditions: str = "honoured"
    objects: dict[str, bytes] = field(default_factory=dict)


@contextmanager
def limited_s3(limits: Limits) -> Iterator[str]:
    """Its endpoint."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            if limits.checksums and any(name.lower().startswith("x-amz-checksum-") for name in self.headers):
                self._answer(*limits.checksums)
            elif limits.conditions == "refused" and any(name in self.headers for name in CONDITIONS):
                self._answer(501, "NotImplemented")
            elif limits.conditions == "honoured" and not self._holds():
                self._answer(412, "PreconditionFailed")
            else:
                limits.objects[self.path] = data
                self._answer(200, tag=data)

        def do_GET(self) -> None:
            data = limits.objects.get(self.path)
            if data is None:
                self._answer(404, "NoSuchKey")
            else:
                self._answer(200, body=data, tag=data)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_DELETE(self) -> None:
            limits.objects.pop(self.path, None)
            self._answer(204)

        def _holds(self) -> bool:
            stored = limits.objects.get(self.path)
            if "If-None-Match" in self.headers:
                return stored is None
            return "If-Match" not in self.headers or (stored is not None and _tag(stored) == self.headers["If-Match"])

        def _answer(self, status: int, code: str = "", body: bytes = b"", tag: bytes | None = None) -> None:
            body = f"<Error><Code>{code}</Code><Message>Because.</Message></Error>".encode() if code else body
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if tag is not None:
                self.send_header("ETag", _tag(tag))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _tag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'
