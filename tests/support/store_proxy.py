"""A proxy before an S3 server that damages traffic as networks and stores do, drawn from a seed.

It keeps every header, so signatures stay valid. ``FAULTS`` are what it can do to a request; ``Weather`` says how often.
"""

import http.client
import random
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

ANSWERS = {
    "500": (500, "InternalError"),
    "503": (503, "ServiceUnavailable"),
    "slow down": (503, "SlowDown"),
    "429": (429, "TooManyRequests"),
}
"""Errors instead of the answer; the request does not reach the store."""

FAULTS = (
    *ANSWERS,
    "delay",  # before the store sees it
    "trickle",  # the answer comes in small pieces
    "dropped request",  # the connection is closed before the store sees it
    "reset request",
    "lost reply",  # the request is carried out, and the connection is closed
    "reset reply",
    "denied success",  # the request is carried out, and the answer is a 503
    "truncated reply",  # half of the body
    "reset in the reply",
    "wrong bytes sent",  # one bit of an upload
    "wrong bytes read",  # one bit of a whole object
    "error in a success",  # status 200 of the completion of an upload, with an error in the body
    "stale list",  # the previous answer to the same question
    "outage",  # every request fails for a while
)

HOP = {"connection", "expect", "transfer-encoding", "keep-alive"}


@dataclass
class Weather:
    """``share``: part of the requests that meet a fault, of ``kinds``. ``outage_s``: length of an outage.

    ``met``: how often each fault happened; a fault that does not apply to the request it was drawn for does not count.
    """

    seed: int = 0
    share: float = 0.1
    kinds: Sequence[str] = FAULTS
    outage_s: float = 3.0
    met: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()
        self._away_until = 0.0
        self.lists: dict[str, list[tuple[int, list[tuple[str, str]], bytes]]] = {}

    def draw(self) -> str | None:
        with self._lock:
            if time.monotonic() < self._away_until:
                return "away"
            if not self.kinds or self._random.random() >= self.share:
                return None
            kind = self._random.choice(list(self.kinds))
            if kind == "outage":
                self._away_until = time.monotonic() + self.outage_s
                self.met[kind] += 1
                return "away"
            return kind

    def number(self, below: int) -> int:
        with self._lock:
            return self._random.randrange(below)

    def happened(self, kind: str) -> None:
        with self._lock:
            self.met[kind] += 1


@contextmanager
def store_proxy(upstream: str, weather: Weather, certificate: tuple[Path, Path] | None = None) -> Iterator[str]:
    """Its endpoint. ``upstream``: that of the store. ``certificate``: certificate and key, to speak TLS as well."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(upstream, weather))
    server.daemon_threads = True
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(upstream: str, weather: Weather) -> type[BaseHTTPRequestHandler]:
    place = urlsplit(upstream)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def handle(self) -> None:
            with suppress(OSError, ssl.SSLError, http.client.HTTPException):
                super().handle()

        def _any(self) -> None:
            body, kind = self._body(), weather.draw()
            if kind == "away":
                return self._end(reset=True)
            if kind == "delay":
                weather.happened(kind)
                time.sleep(0.05 + weather.number(400) / 1000)
            if kind in ("dropped request", "reset request"):
                weather.happened(kind)
                return self._end(reset=kind.startswith("reset"))
            if kind in ANSWERS:
                weather.happened(kind)
                return self._error(*ANSWERS[kind])
            if kind == "wrong bytes sent" and body and self._is_upload():
                weather.happened(kind)
                body = self._flipped(body)
            self._answer(kind, *self._forwarded(body))
            return None

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _any  # noqa: N815 - the names of http.server

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(parts)

        def _forwarded(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            kind = http.client.HTTPConnection
            options = {}
            if place.scheme == "https":
                kind, options = http.client.HTTPSConnection, {"context": ssl._create_unverified_context()}
            store = kind(place.hostname or "", place.port, timeout=60, **options)
            try:
                store.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in HOP and name.lower() != "content-length":
                        store.putheader(name, value)
                store.putheader("Content-Length", str(len(body)))
                store.endheaders(body or None)
                answer = store.getresponse()
                headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in HOP]
                return answer.status, headers, answer.read()
            finally:
                store.close()

        def _answer(self, kind: str | None, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
            if kind in ("lost reply", "reset reply"):
                weather.happened(kind)
                return self._end(reset=kind.startswith("reset"))
            if kind == "denied success" and status < 300:
                weather.happened(kind)
                return self._error(*ANSWERS["503"])
            if kind == "error in a success" and self.command == "POST" and "uploadId" in query:
                weather.happened(kind)
                return self._send(200, [], _document("InternalError"), "whole")
            if "list-type" in query and status == 200:
                before = weather.lists.setdefault(self.path, [])
                before.append((status, headers, body))
                if kind == "stale list" and len(before) > 1:
                    weather.happened(kind)
                    status, headers, body = before[-2]
                del before[:-3]
            if kind == "wrong bytes read" and body and self.command == "GET" and status == 200 and not query:
                weather.happened(kind)
                body = self._flipped(body)
            cut = kind in ("truncated reply", "reset in the reply") and len(body) > 1 and self.command == "GET"
            if cut or (kind == "trickle" and body):
                weather.happened(str(kind))
            return self._send(status, headers, body, str(kind) if cut or kind == "trickle" else "whole")

        def _send(self, status: int, headers: list[tuple[str, str]], body: bytes, how: str) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() != "content-length" or self.command == "HEAD":
                    self.send_header(name, value)
            if self.command != "HEAD" and status not in (204, 304):
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if how in ("truncated reply", "reset in the reply"):
                self.wfile.write(body[: len(body) // 2])
                self._end(reset=how.startswith("reset"))
            elif how == "trickle":
                for start in range(0, len(body), max(1, len(body) // 8)):
                    self.wfile.write(body[start : start + max(1, len(body) // 8)])
                    time.sleep(0.01)
            else:
                self.wfile.write(body)

        def _error(self, status: int, code: str) -> None:
            self._send(status, [], b"" if self.command == "HEAD" else _document(code), "whole")

        def _end(self, *, reset: bool) -> None:
            self.close_connection = True
            if reset:  # Closing a socket that does not linger sends RST.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with suppress(OSError):
                self.wfile.flush()
                self.connection.close()

        def _is_upload(self) -> bool:
            return self.command == "PUT" and any(name.lower().startswith("x-amz-checksum") for name in self.headers)

        def _flipped(self, body: bytes) -> bytes:
            at = weather.number(len(body))
            return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]

        def log_message(self, *arguments: object) -> None:
            """Nothing."""

    return Handler


def _document(code: str) -> bytes:
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>Of the proxy.</Message></Error>'.encode()
