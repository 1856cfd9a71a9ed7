"""A store on S3, or a server with the same protocol: reads, lists and deletes objects."""

import builtins
import io
import itertools
from collections.abc import Sequence
from typing import IO, Any

from retro_ops.errors import RetroError
from retro_ops.storage.base import ConflictError, Stored, Writer, Written, exactly, missing
from retro_ops.storage.read_ahead import READERS, RangeStream, side_by_side
from retro_ops.storage.s3_client import ask, bucket_key, bucket_prefix, client, s3_errors
from retro_ops.storage.s3_uploads import S3Writer

DELETED_AT_ONCE = 1000
"""Most objects that S3 deletes in one request."""

NO_BATCHES = (400, 405, 411, 501)
"""Answers of stores that know no such request, or not its checksum: MethodNotAllowed, NotImplemented and others."""


class S3Store:
    """Objects on S3 or a server with the same protocol."""

    def exists(self, uri: str) -> bool:
        return self._head(uri) is not None

    def size(self, uri: str) -> int:
        head = self._head(uri)
        if head is None:
            raise missing(uri)
        return int(head["ContentLength"])

    def read(self, uri: str) -> bytes:
        return self._get(uri, {})

    def head(self, uri: str, length: int) -> tuple[bytes, int]:
        from botocore.exceptions import ClientError

        def request() -> tuple[bytes, int]:
            try:
                response = client().get_object(**bucket_key(uri), Range=f"bytes=0-{length - 1}")
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 416:  # The object is empty.
                    return b"", 0
                raise
            data = bytes(response["Body"].read())
            # "bytes 0-99/1234"; a server that returned the whole object may omit it.
            return data, int(response.get("ContentRange", f"/{len(data)}").rpartition("/")[2])

        return ask(uri, request)

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        if length == 0:
            return b""
        return exactly(uri, self._get(uri, {"Range": f"bytes={start}-{start + length - 1}"}), length)

    def read_tagged(self, uri: str) -> tuple[bytes, str] | None:
        def request() -> tuple[bytes, str] | None:
            try:
                response = client().get_object(**bucket_key(uri))
                return response["Body"].read(), response["ETag"]
            except client().exceptions.NoSuchKey:
                return None

        return ask(uri, request)

    def write_if(self, uri: str, data: bytes, tag: str | None) -> None:
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        try:
            ask(uri, lambda: client().put_object(**bucket_key(uri), Body=data, **condition))
        except ConflictError:
            # Perhaps with this very write, whose answer was lost so that it was sent again.
            found = self.read_tagged(uri)
            if found is None or found[0] != data:
                raise

    def accepts(self, uri: str, *, checksums: bool, conditional: bool) -> bool:
        """Whether the store takes a small object at ``uri``, which is overwritten or must not exist yet."""
        condition = {"IfNoneMatch": "*"} if conditional else {}
        try:
            with s3_errors(uri):
                client(checksums=checksums).put_object(**bucket_key(uri), Body=b"1", **condition)
        except RetroError:
            return False
        return True

    def create(self, uri: str, length: int | None = None) -> Writer:
        return S3Writer(self, uri, length)

    def open(self, uri: str) -> IO[bytes]:
        """A sequential reader. It reads ranges, each with retries, so it survives idle connections."""
        return io.BufferedReader(RangeStream(self, uri))

    def canonical(self, uri: str) -> str:
        return uri

    def delete(self, uri: str) -> None:
        ask(uri, lambda: client().delete_object(**bucket_key(uri)))

    def delete_all(self, uris: Sequence[str]) -> None:
        batches = [uris[start : start + DELETED_AT_ONCE] for start in range(0, len(uris), DELETED_AT_ONCE)]
        left = side_by_side(_delete_batch, batches, READERS)
        side_by_side(self.delete, itertools.chain.from_iterable(left))

    def delete_folder(self, folder: str) -> None:
        self.delete_all(self.list(folder))

    def objects(self, folder: str, *, follow_links: bool = False) -> builtins.list[Stored]:
        bucket, prefix = bucket_prefix(folder)

        def request() -> builtins.list[dict[str, Any]]:
            pages = client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            return [entry for page in pages for entry in page.get("Contents", ())]

        found = ask(folder, request)
        return sorted(
            (Stored(f"s3://{bucket}/{e['Key']}", int(e["Size"]), e["LastModified"].timestamp()) for e in found),
            key=lambda stored: stored.uri,
        )

    def list(self, folder: str, *, follow_links: bool = False) -> builtins.list[str]:
        return [stored.uri for stored in self.objects(folder)]

    def folders(self, folder: str) -> builtins.list[str]:
        bucket, prefix = bucket_prefix(folder)

        def request() -> builtins.list[str]:
            pages = client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
            return [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ())]

        return sorted(name[len(prefix) :].rstrip("/") for name in ask(folder, request))

    def fingerprint(self, uri: str) -> str:
        head = self._head(uri)
        if head is None:
            raise missing(uri)
        return f"etag:{head['ETag'].strip(chr(34))}:{head['ContentLength']}"

    def fingerprint_of(self, written: Written) -> str:
        return self.fingerprint(written.uri)

    def _head(self, uri: str) -> dict[str, Any] | None:
        from botocore.exceptions import ClientError

        def request() -> dict[str, Any] | None:
            try:
                return dict(client().head_object(**bucket_key(uri)))
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                    return None
                raise

        return ask(uri, request)

    def _get(self, uri: str, options: dict[str, str]) -> bytes:
        return ask(uri, lambda: bytes(client().get_object(**bucket_key(uri), **options)["Body"].read()))


def _delete_batch(uris: Sequence[str]) -> list[str]:
    """Delete objects in one request. Returns those that are left, for requests of their own: all of them if the store
    does not know this request, else those that it names in its answer."""
    from botocore.exceptions import ClientError

    by_key = {bucket_key(uri)["Key"]: uri for uri in uris}
    named = {"Objects": [{"Key": key} for key in by_key], "Quiet": True}

    def request() -> list[str]:
        try:
            answer = client().delete_objects(Bucket=bucket_key(uris[0])["Bucket"], Delete=named)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] in NO_BATCHES:
                return list(uris)
            raise
        return [by_key[failed["Key"]] for failed in answer.get("Errors", ())]

    return ask(uris[0], request)
