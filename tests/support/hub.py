"""A server over TLS that speaks the file API of the Hugging Face hub, and serves files like any web server."""

import contextlib
import hashlib
import json
import re
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from seaweedfs import self_signed

TOKEN = "hf_secret"
PAGE = 3
"""Entries of a page of a listing."""


@dataclass
class Hub:
    """Files of the one dataset by path, and what the server does wrong."""

    url: str
    certificate: Path
    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    """Paths that the hub keeps in large-file storage: it redirects to another host, which must not see the token."""
    requests: list[str] = field(default_factory=list)
    sent: int = 0
    """Bytes of all answers."""
    broken: int = 0
    """Answers that break off in the middle, from now on."""
    ranges: bool = True
    stored: dict[str, bytes] = field(default_factory=dict)
    """Contents of the other host that are not those of ``files``."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the name of the base class
        """Not to standard error."""

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.hub.requests.append(f"POST {self.path}")
        if self.path == "/api/datasets/owner/books/paths-info/main":
            self._json([_entry(self.hub, path) for path in form["paths"] if path in self.hub.files])
        else:
            self._missing_repository()

    def do_GET(self) -> None:
        self.hub.requests.append(f"GET {self.path}")
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/datasets/owner/books/tree/main(?:/(.+))?", path):
            self._tree(found[1] or "")
        elif path.startswith("/api/"):
            self._missing_repository()
        elif (name := path.removeprefix("/datasets/owner/books/resolve/main/")) in self.hub.files:
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                self._answer(401, b"")
            elif name in self.hub.large:
                port = urlsplit(self.hub.url).port
                self._answer(302, b"", Location=f"https://localhost:{port}/storage/{name}")
            else:
                self._file(self.hub.files[name])
        elif (name := path.removeprefix("/storage/")) in self.hub.files:
            assert self.headers["Authorization"] is None
            self._file(self.hub.stored.get(name, self.hub.files[name]))
        else:
            self._answer(404, b"")

    def _tree(self, folder: str) -> None:
        names = sorted(name for name in self.hub.files if name.startswith(f"{folder}/" if folder else ""))
        start = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        if folder and not names:
            self._answer(404, b"", **{"X-Error-Code": "EntryNotFound"})
            return
        entries: list[Any] = [_entry(self.hub, name) for name in names[start : start + PAGE]]
        if not start:
            entries.append({"type": "directory", "oid": "0" * 40, "size": 0, "path": "data"})
        following = self.path.partition("?")[0] + f"?recursive=True&cursor={start + PAGE}"
        more = {"Link": f'<{self.hub.url}{following}>; rel="next"'} if start + PAGE < len(names) else {}
        self._json(entries, **more)

    def _file(self, content: bytes) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
        if not found or not self.hub.ranges:
            self._answer(200, content)
            return
        start, end = int(found[1]), min(int(found[2]) + 1, len(content))
        if start >= len(content):
            self._answer(416, b"", **{"Content-Range": f"bytes */{len(content)}"})
            return
        self._answer(206, content[start:end], **{"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"})

    def _missing_repository(self) -> None:
        self._answer(404, b"{}", **{"X-Error-Code": "RepoNotFound"})

    def _json(self, content: Any, **headers: str) -> None:
        self._answer(200, json.dumps(content).encode(), **{"Content-Type": "application/json"}, **headers)

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body and status == 206 and self.hub.broken:
            self.hub.broken -= 1
            body, self.close_connection = body[: len(body) // 2], True
        self.hub.sent += len(body)
        self.wfile.write(body)


def _entry(hub: Hub, path: str) -> dict[str, Any]:
    content = hub.files[path]
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return {
        "type": "file",
        "oid": git,
        "size": len(content),
        "path": path,
        **({"lfs": lfs} if path in hub.large else {}),
    }


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """A hub whose certificate is written to ``folder``. It is valid for 127.0.0.1 and localhost."""
    certificate, key = self_signed(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    handler = type("Handler", (_Handler,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        handler.hub = hub = Hub(f"https://127.0.0.1:{server.server_port}", certificate)  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
