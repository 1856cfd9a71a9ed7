"""The HTTP protocol that the original's retriever speaks, and the same with texts and tokens.

``GET /health`` says what is served; model and index are loaded before the server listens. ``POST /query?k=4`` takes a
``.npy`` array, of embeddings (floats ``[n, d]``) or of chunks (token ids ``[n, chunk_size]``), and answers with a zip
archive of the arrays ``distances``, ``indices`` and ``embeddings``, as the original's ``IndexServiceClient`` reads it.
Asked with a JSON object, ``{"texts": […]}`` or ``{"tokens": [[…]]}``, it answers with JSON: ``distances``, ``indices``
and ``texts``.
"""

import io
import ipaddress
import json
import logging
import sys
import threading
import traceback
import zipfile
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias
from urllib.parse import SplitResult, parse_qs, urlsplit

import numpy as np
from numpy.typing import NDArray

from retro_ops.errors import RetroError
from retro_ops.progress import logger, say
from retro_ops.serving.neighbours import Answer, ServedVersion
from retro_ops.storage import npy_header

MOST_BYTES = 16 * 2**20
MOST_ROWS = 4096
MOST_NEIGHBOURS = 1000
MOST_CELLS = 2**16
"""Limits on a request: its body, its queries, neighbours of a query, and queries times neighbours."""

TOKEN_BYTES = 32
"""Memory for the text of a token in a JSON answer, where a character takes up to 12 bytes."""

TIMEOUT_S = 60
"""Until a client must have sent its request."""


Body: TypeAlias = bytes | memoryview


class RefusedError(Exception):
    """A request that gets an answer with this status and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Server(ThreadingHTTPServer):
    """Answers the requests of ``served``, one search at a time. ``about``: what ``/health`` says."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], served: ServedVersion, about: Mapping[str, Any]) -> None:
        super().__init__(address, _Handler)
        self.served, self.about, self.searching = served, about, threading.Lock()
        self.local_only = is_loopback(address[0])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what ended a connection: as a rule the client, which is no error."""
        level = logging.DEBUG if isinstance(sys.exception(), OSError) else logging.ERROR
        say(f"serve: the connection of {client_address[0]} broke:\n{traceback.format_exc()}", level)


def is_loopback(host: str) -> bool:
    """Whether only processes of this machine reach ``host``."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT_S

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the name of the base class
        logger.debug("serve: " + format, *arguments)

    def do_GET(self) -> None:
        self._answered(self._get)

    def do_POST(self) -> None:
        self._answered(self._post)

    def _answered(self, work: Callable[[], tuple[str, Body]]) -> None:
        try:
            kind, body = work()
        except Exception as error:  # Such as exhausted memory of a GPU: the next request may succeed.
            status, message = (error.status, str(error)) if isinstance(error, RefusedError) else (500, _failed(error))
            self.close_connection = True  # The body of the request may not have been read.
            self._send(status, "application/json", json.dumps({"error": message}).encode())
            return
        self._send(200, kind, body)

    def _get(self) -> tuple[str, Body]:
        self._check_host()
        path = _parts(self.path).path
        if path != "/health":
            raise RefusedError(405 if path == "/query" else 404, "there are GET /health and POST /query?k=4")
        return "application/json", json.dumps(self.server.about).encode()

    def _post(self) -> tuple[str, Body]:
        self._check_host()
        parts = _parts(self.path)
        if parts.path != "/query":
            raise RefusedError(405 if parts.path == "/health" else 404, "there are GET /health and POST /query?k=4")
        k = _neighbours(parse_qs(parts.query))
        body = self._body()
        served = self.server.served
        with self.server.searching:
            if body.startswith(npy_header.MAGIC):
                array = _array(body)
                _check_size(served, len(array), k, served.dimension * np.dtype(np.float32).itemsize)
                return "application/zip", as_zip(served.query(_vectors(served, array), k), served)
            queries = _of_json(body)
            _check_size(served, len(queries), k, served.chunk_size * TOKEN_BYTES)
            return "application/json", _as_json(served.query(_vectors(served, queries), k), served)

    def _check_host(self) -> None:
        """A web page can send a browser here under a name of its own, which a server for this machine must refuse."""
        name = _parts(f"//{self.headers.get('Host', '')}").hostname or ""
        if self.server.local_only and not is_loopback(name):
            raise RefusedError(403, "this server answers requests to localhost only")

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise RefusedError(411, "the request has no Content-Length")
        if len(length) > 12 or int(length) > MOST_BYTES:
            raise RefusedError(413, f"the request has more than {MOST_BYTES:,} bytes; send fewer queries at a time")
        try:
            body = self.rfile.read(int(length))
        except OSError as error:
            raise RefusedError(408, f"the request did not arrive within {TIMEOUT_S} seconds") from error
        if len(body) < int(length):
            raise RefusedError(400, "the request is shorter than its Content-Length")
        return body

    def _send(self, status: int, kind: str, body: Body) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _failed(error: Exception) -> str:
    """What the client is told of an ``error`` that is not its own, which is logged."""
    if isinstance(error, RetroError):
        say(f"serve: {error}", logging.ERROR, event="request_failed")
        return str(error)
    say(f"serve: a request failed unexpectedly:\n{traceback.format_exc()}", logging.ERROR, event="request_failed")
    return f"the search failed ({type(error).__name__}); the log of the server says where"


def _parts(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise RefusedError(400, "the path or the Host of the request is not valid") from error


def _neighbours(query: Mapping[str, list[str]]) -> int:
    text = query.get("k", ["?"])[-1]
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and 1 <= int(text) <= MOST_NEIGHBOURS):
        raise RefusedError(400, f"k is {text[:20]!r}; ask for /query?k=4, at most {MOST_NEIGHBOURS}")
    return int(text)


def _array(body: bytes) -> NDArray[Any]:
    """The array of a ``.npy`` file. Nothing is unpickled, and nothing larger than ``body`` is made."""
    try:
        head = npy_header.parse(body)
    except ValueError as error:
        raise RefusedError(400, f"the body is not a .npy array: {error}") from error
    if head.dtype.kind not in "fiu" or head.fortran or len(head.shape) != 2 or head.bytes != len(body):
        raise RefusedError(400, "send a C-ordered array of floats [n, d] or of token ids [n, chunk_size]")
    return np.frombuffer(body, head.dtype, offset=head.offset).reshape(head.shape)


def _of_json(body: bytes) -> list[str] | NDArray[Any]:
    refused = RefusedError(400, 'send a .npy array, {"texts": ["…"]} or {"tokens": [[…]]}')
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise refused from error
    if not isinstance(content, dict) or len(content) != 1:
        raise refused
    ((name, rows),) = content.items()
    if name not in ("texts", "tokens") or not isinstance(rows, list):
        raise refused
    if name == "texts":
        if not all(isinstance(text, str) and not any("\ud800" <= c <= "\udfff" for c in text) for text in rows):
            raise refused
        return rows
    if not all(
        isinstance(row, list) and all(type(token) is int and 0 <= token < 2**31 for token in row) for row in rows
    ):
        raise refused
    if len({len(row) for row in rows}) > 1:
        raise RefusedError(400, "the rows of tokens have different lengths; fill them up with the pad id")
    return np.array(rows, np.int64).reshape(len(rows), len(rows[0]) if rows else 0)


def _check_size(served: ServedVersion, queries: int, k: int, neighbour_bytes: int) -> None:
    """RefusedError if the answer would be too large. ``neighbour_bytes``: what it takes for each neighbour."""
    most = min(MOST_CELLS, served.answer_bytes // neighbour_bytes)
    if not 0 < queries <= MOST_ROWS or queries * k > most:
        raise RefusedError(
            413 if queries else 400,
            f"{queries:,} queries; send 1 to {MOST_ROWS:,}, and at most {most:,} of queries times k",
        )


def _vectors(served: ServedVersion, queries: list[str] | NDArray[Any]) -> NDArray[np.float16]:
    """Embeddings of the queries ``[n, d]``."""
    if isinstance(queries, list):
        return served.embedded_texts(queries)
    if queries.dtype.kind == "f":
        return _checked_vectors(queries, served.dimension)
    if queries.shape[1] != served.chunk_size:
        raise RefusedError(400, f"a chunk has {served.chunk_size} tokens here, not {queries.shape[1]:,}")
    if queries.min() < 0 or queries.max() >= served.vocabulary_size:
        raise RefusedError(400, f"token ids are 0 to {served.vocabulary_size - 1:,} here")
    return served.embedded_tokens(queries)


def _checked_vectors(vectors: NDArray[Any], dimension: int) -> NDArray[np.float16]:
    if vectors.shape[1] != dimension:
        raise RefusedError(400, f"embeddings have {dimension} dimensions here, not {vectors.shape[1]:,}")
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    if not (np.abs(norms - 1) < 0.01).all():  # NaN is not.
        raise RefusedError(400, "the embeddings are not L2-normalised: encode(…, normalize_embeddings=True)")
    return vectors.astype(np.float16)


def as_zip(answer: Answer, served: ServedVersion) -> Body:
    """``distances``, ``indices`` and ``embeddings`` as ``.npy`` files in a zip archive, embeddings as float32."""
    out = io.BytesIO()
    arrays: dict[str, NDArray[Any]] = {
        "distances": answer.distances,
        "indices": answer.ids,
        "embeddings": served.vectors(answer.ids),
    }
    with zipfile.ZipFile(out, "w") as archive:
        for name, array in arrays.items():
            with archive.open(name, "w") as file:
                np.save(file, array, allow_pickle=False)
    return out.getbuffer()  # Without a copy.


def _as_json(answer: Answer, served: ServedVersion) -> bytes:
    found = iter(served.texts(answer.ids[answer.ids >= 0]))
    texts = [[next(found) if number >= 0 else None for number in row] for row in answer.ids.tolist()]
    distances = [[near if np.isfinite(near) else None for near in row] for row in answer.distances.tolist()]
    return json.dumps({"distances": distances, "indices": answer.ids.tolist(), "texts": texts}).encode()
