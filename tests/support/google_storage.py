"""A stand-in for Google Cloud Storage: the requests of its XML API that obstore sends, as Google documents them.

Put, get, head and delete of objects with generations and their preconditions, lists, and multipart uploads. Written
from https://cloud.google.com/storage/docs/xml-api; no recorded traffic, since there is no way to it from here.
"""

import contextlib
import hashlib
import itertools
import json
import re
import threading
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class Bucket:
    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, int, float]] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.generations = itertools.count(1)
        self.lock = threading.Lock()
        self.requests: list[str] = []
        self.lost = 0
        """Answers to puts that are lost, from now on: the object is written, and the connection closed."""
        self.refuses = False

    def put(self, key: str, data: bytes, expected: str | None) -> int | None:
        """Its new generation; None if it has not the expected one (0: it must not exist)."""
        import time

        with self.lock:
            current = self.objects[key][1] if key in self.objects else 0
            if expected is not None and int(expected) != current:
                return None
            generation = next(self.generations)
            self.objects[key] = data, generation, time.time()
            return generation


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the name of the base class
        """Not to standard error."""

    def _target(self) -> tuple[str, dict[str, str]]:
        parts = urlsplit(self.path)
        _, _, key = unquote(parts.path).removeprefix("/").partition("/")
        query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        self.bucket.requests.append(f"{self.command} {self.path}")
        return key, query

    def do_PUT(self) -> None:
        key, query = self._target()
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if "partNumber" in query:
            self.bucket.uploads[query["uploadId"]][int(query["partNumber"])] = data
            self._answer(200, ETag=_tag(data))
            return
        generation = self.bucket.put(key, data, self.headers["x-goog-if-generation-match"])
        if generation is None:
            self._answer(412)
        elif self.bucket.lost:
            self.bucket.lost -= 1
            self.close_connection = True
        else:
            self._answer(200, **{"ETag": _tag(data), "x-goog-generation": str(generation)})

    def do_POST(self) -> None:
        key, query = self._target()
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        if "uploads" in query:
            upload = f"upload-{next(self.bucket.generations)}"
            self.bucket.uploads[upload] = {}
            self._answer(200, _xml("InitiateMultipartUploadResult", UploadId=upload))
        else:
            parts = self.bucket.uploads.pop(query["uploadId"])
            data = b"".join(part for _, part in sorted(parts.items()))
            generation = self.bucket.put(key, data, None)
            done = _xml("CompleteMultipartUploadResult", ETag=_tag(data))
            self._answer(200, done, **{"x-goog-generation": str(generation)})

    def do_DELETE(self) -> None:
        key, query = self._target()
        if "uploadId" in query:
            self._answer(204 if self.bucket.uploads.pop(query["uploadId"], None) is not None else 404)
        else:
            self._answer(204 if self.bucket.objects.pop(key, None) else 404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        key, query = self._target()
        if self.bucket.refuses:
            self._answer(403)
        elif not key:
            self._answer(200, self._list(query))
        elif key not in self.bucket.objects:
            self._answer(404)
        else:
            data, generation, written = self.bucket.objects[key]
            self._object(
                data, ETag=_tag(data), **{"x-goog-generation": str(generation), "Last-Modified": _date(written)}
            )

    def _object(self, data: bytes, **headers: str) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
        if not found:
            self._answer(200, data, **headers)
            return
        start, end = int(found[1]), min(int(found[2]) + 1, len(data))
        if start >= len(data):
            self._answer(416, **{"Content-Range": f"bytes */{len(data)}"})
        else:
            where = {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
            self._answer(206, data[start:end], **where, **headers)

    def _list(self, query: dict[str, str]) -> bytes:
        prefix, entries, folders = query.get("prefix", ""), "", set()
        for key, (data, _, written) in sorted(self.bucket.objects.items()):
            rest = key[len(prefix) :]
            if not key.startswith(prefix):
                continue
            if query.get("delimiter") and "/" in rest:
                folders.add(prefix + rest.partition("/")[0] + "/")
                continue
            about = {"Key": key, "Size": len(data), "ETag": _tag(data), "LastModified": _iso(written)}
            entries += _tags("Contents", **about)
        entries += "".join(_tags("CommonPrefixes", Prefix=folder) for folder in sorted(folders))
        return f"<ListBucketResult>{entries}<IsTruncated>false</IsTruncated></ListBucketResult>".encode()

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _tag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


def _date(seconds: float) -> str:
    return formatdate(seconds, usegmt=True)


def _iso(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _tags(outer: str, **inner: Any) -> str:
    content = "".join(f"<{name}>{escape(str(value))}</{name}>" for name, value in inner.items())
    return f"<{outer}>{content}</{outer}>"


def _xml(outer: str, **inner: Any) -> bytes:
    return _tags(outer, **inner).encode()


@contextlib.contextmanager
def google_storage() -> Iterator[tuple[Bucket, dict[str, str]]]:
    """The bucket ``gs://test``, and the variables that lead to it."""
    handler = type("Handler", (_Handler,), {"bucket": Bucket()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        key = {"gcs_base_url": f"http://127.0.0.1:{server.server_port}", "disable_oauth": True}
        key |= {"client_email": "", "private_key": "", "private_key_id": ""}
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield handler.bucket, {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(key)}  # type: ignore[attr-defined]
        finally:
            server.shutdown()
            thread.join()
