"""Writes objects to S3 by multipart uploads."""

import hashlib
import re
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from retro_ops.errors import BadInputError, TransientError
from retro_ops.storage.base import ConflictError, Store, Written, hash_stream
from retro_ops.storage.s3_client import ask, bucket_key, client, s3_errors, sends_checksums

PART_BYTES = 16 * 2**20
"""Least size of the parts of a multipart upload, except for the last one. See ``part_bytes``."""

PARTS_OF_ONE_SIZE = 900

MOST_PARTS = 10_000
MOST_PART_BYTES = 5 * 2**30
MOST_BYTES = 5 * 2**40
"""Limits of S3: parts of an object, bytes of a part, bytes of an object."""

PARTS_IN_FLIGHT = 3
"""Parts of the first size that are sent at a time, or as many larger ones as take no more memory, but at least one."""


def part_bytes(number: int, length: int | None = None) -> int:
    """Size of part ``number`` (from 1) of an object of ``length`` bytes.

    Of a known length: 16 MiB, or more if 10,000 parts of 16 MiB (156 GiB) are too few; at most 525 MiB. Of an unknown
    length: 16 MiB, then 32, 80, 160 MiB and so on. The first 900 parts (14 GiB) are small, so that most objects take
    little memory; the growth is quadratic, so that 10,000 parts hold more than 5 TiB and the last one is below 2 GiB.
    """
    if length is not None:
        return max(PART_BYTES, -(-length // MOST_PARTS))
    return PART_BYTES * (1 + (number // PARTS_OF_ONE_SIZE) ** 2)


class S3Writer:
    """Multipart upload, a few parts at a time. The first is held back until ``close``, so its head can change.

    In memory are the first part, the one that is being filled, and those that are being sent: PARTS_IN_FLIGHT times
    PART_BYTES, or one part if it is larger.
    """

    def __init__(self, store: Store, uri: str, length: int | None) -> None:
        self._store = store
        self._uri = uri
        self._length = length
        if length is not None and length > MOST_BYTES:
            raise _too_large(uri, f"{length:,} bytes")
        self._target = bucket_key(uri)
        self._first: bytearray | None = None
        self._buffer = bytearray()
        self._number = 1  # of the part that is being filled
        self._sent: list[dict[str, Any]] = []
        self._upload: str | None = None
        self._begun_again = False  # Whether the request that began it was repeated, so that another one may be left.
        self._bytes = 0
        self._hash: Any = hashlib.sha256()
        self._sender = ThreadPoolExecutor(PARTS_IN_FLIGHT)
        self._sending: deque[tuple[int, Future[None]]] = deque()  # Bytes of each part, in order.

    def write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data).cast("B")
        self._bytes += len(rest)
        if self._bytes > MOST_BYTES:
            raise _too_large(self._uri, f"more than {MOST_BYTES:,} bytes")
        if self._hash:
            self._hash.update(rest)
        while rest:
            size = part_bytes(self._number, self._length)
            room = size - len(self._buffer)
            self._buffer += rest[:room]
            rest = rest[room:]
            if len(self._buffer) == size:
                self._next_part()

    def set_head(self, data: bytes) -> None:
        first = self._buffer if self._first is None else self._first
        first[: len(data)] = data
        self._hash = None

    def close(self) -> Written:
        if self._first is None:
            answer = ask(self._uri, lambda: client().put_object(**self._target, Body=self._buffer))
            own = self._fingerprint(answer["ETag"])
        else:
            if self._buffer:
                self._send(self._number, self._buffer)
            self._send(1, self._first)
            self._wait_until_in_flight(0)
            own = self._complete()
        self._sender.shutdown()
        tag = self._store.fingerprint(self._uri)
        stored = int(tag.rpartition(":")[2])
        if stored != self._bytes:
            raise TransientError(
                f"{self._uri}: wrote {self._bytes} bytes, but the store has {stored}", "run the stage again"
            )
        sha256 = self._hash.hexdigest() if self._hash else hash_stream(self._store.open(self._uri))
        # Another writer may have replaced the object since.
        return Written(self._uri, self._bytes, sha256, tag if tag == own and sends_checksums() else None)

    def abort(self) -> None:
        self._sender.shutdown(cancel_futures=True)
        if self._upload:
            with s3_errors(self._uri):  # Not repeated: the next writer sweeps an upload that is left.
                client().abort_multipart_upload(**self._target, UploadId=self._upload)

    def _next_part(self) -> None:
        if self._first is None:
            self._first = self._buffer
        else:
            self._send(self._number, self._buffer)
        self._buffer = bytearray()
        self._number += 1

    def _send(self, number: int, data: bytearray) -> None:
        if self._upload is None:
            self._upload = ask(self._uri, self._begin)
        self._wait_until_in_flight(PARTS_IN_FLIGHT * PART_BYTES - len(data))
        self._sending.append((len(data), self._sender.submit(self._upload_part, number, data)))

    def _wait_until_in_flight(self, most_bytes: int) -> None:
        while self._sending and sum(size for size, _ in self._sending) > most_bytes:
            self._sending.popleft()[1].result()

    def _upload_part(self, number: int, data: bytearray) -> None:
        part = {**self._target, "UploadId": self._upload, "PartNumber": number, "Body": data}
        answer = ask(self._uri, lambda: client().upload_part(**part))
        self._sent.append({"PartNumber": number, "ETag": answer["ETag"]})

    def _begin(self) -> str:
        self._abort_leftovers()
        answer = client().create_multipart_upload(**self._target)
        self._begun_again = answer["ResponseMetadata"].get("RetryAttempts", 0) > 0
        return str(answer["UploadId"])

    def _complete(self) -> str:
        """The fingerprint of the object."""
        self._sent.sort(key=lambda part: int(part["PartNumber"]))
        whole = {**self._target, "UploadId": self._upload, "MultipartUpload": {"Parts": self._sent}}
        try:
            own = self._fingerprint(ask(self._uri, lambda: client().complete_multipart_upload(**whole))["ETag"])
        except ConflictError:
            # Perhaps completed by this very request, whose answer was lost so that it was sent again.
            own = self._fingerprint(self._tag_of_parts())
            if not self._store.exists(self._uri) or self._store.fingerprint(self._uri) != own:
                raise
        self._upload = None  # Nothing is left to abort.
        if self._begun_again:
            ask(self._uri, self._abort_leftovers)
        return own

    def _fingerprint(self, tag: str) -> str:
        return f"etag:{tag.strip(chr(34))}:{self._bytes}"

    def _tag_of_parts(self) -> str:
        """The object's tag as it was sent, where the tags of its parts are their MD5: then it is the MD5 of these MD5s
        with their number."""
        tags = [part["ETag"].strip('"') for part in self._sent]
        if not all(re.fullmatch("[0-9a-f]{32}", tag) for tag in tags):
            return "unknown"
        of_parts = hashlib.md5(b"".join(map(bytes.fromhex, tags)), usedforsecurity=False).hexdigest()
        return f"{of_parts}-{len(tags)}"

    def _abort_leftovers(self) -> None:
        """Abort uploads of writers that were killed: their parts are invisible but still cost money."""
        bucket, key = self._target["Bucket"], self._target["Key"]
        for upload in client().list_multipart_uploads(Bucket=bucket, Prefix=key).get("Uploads", ()):
            if upload["Key"] == key:
                client().abort_multipart_upload(**self._target, UploadId=upload["UploadId"])


def _too_large(uri: str, size: str) -> BadInputError:
    return BadInputError(
        f"{uri} would have {size}; S3 stores at most {MOST_BYTES:,} as one object",
        "make it smaller: more and smaller shards, or an index type with shorter codes",
    )
