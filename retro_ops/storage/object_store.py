"""Google Cloud Storage (``gs://bucket/key``) and Azure Blob Storage (``az://container/key``), through obstore.

Credentials come from the environment, as obstore reads them: ``GOOGLE_…`` and ``AZURE_…``, or those of the machine.
"""

import builtins
import contextlib
import functools
import hashlib
import io
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

from retro_ops.errors import BadInputError, ConfigurationError, TransientError
from retro_ops.storage.base import ConflictError, Stored, Writer, Written, exactly, missing
from retro_ops.storage.read_ahead import RangeStream
from retro_ops.uris import split_scheme

PART_BYTES = 16 * 2**20
MOST_PARTS = 9_000
"""Parts of an upload. Google allows 10,000, Azure 50,000."""

UPLOADS = 3
"""Parts of an object that are sent at a time."""


class ObjectStore:
    """Objects on a store that obstore knows. Requests that fail are repeated by obstore, for up to three minutes."""

    def exists(self, uri: str) -> bool:
        return self._head(uri) is not None

    def size(self, uri: str) -> int:
        return int(self._known(uri)["size"])

    def read(self, uri: str) -> bytes:
        with _errors(uri):
            return bytes(_store(uri).get(_key(uri)).bytes())

    def head(self, uri: str, length: int) -> tuple[bytes, int]:
        try:
            with _errors(uri):
                found = _store(uri).get(_key(uri), options={"range": (0, length)})
                return bytes(found.bytes()), int(found.meta["size"])
        except _PastTheEndError:  # The object is empty.
            return b"", 0

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        if length == 0:
            return b""
        with _errors(uri):
            return exactly(uri, bytes(_store(uri).get_range(_key(uri), start=start, length=length)), length)

    def read_tagged(self, uri: str) -> tuple[bytes, str] | None:
        try:
            with _errors(uri):
                found = _store(uri).get(_key(uri))
                tag = {name: found.meta[name] for name in ("e_tag", "version") if found.meta.get(name)}
                return bytes(found.bytes()), json.dumps(tag)
        except _MissingError:
            return None

    def write_if(self, uri: str, data: bytes, tag: str | None) -> None:
        try:
            with _errors(uri):
                _store(uri).put(_key(uri), data, mode="create" if tag is None else json.loads(tag), use_multipart=False)
        except ConflictError:
            # A repeated request meets the object that the first one wrote, if only its answer was lost.
            found = self.read_tagged(uri)
            if found is None or found[0] != data:
                raise

    def create(self, uri: str, length: int | None = None) -> Writer:
        return _Upload(self, uri)

    def open(self, uri: str) -> IO[bytes]:
        return io.BufferedReader(RangeStream(self, uri))

    def canonical(self, uri: str) -> str:
        return uri

    def delete(self, uri: str) -> None:
        with contextlib.suppress(_MissingError), _errors(uri):
            _store(uri).delete(_key(uri))

    def delete_all(self, uris: Sequence[str]) -> None:
        if not uris:
            return
        try:
            with _errors(uris[0]):
                _store(uris[0]).delete([_key(uri) for uri in uris])
        except _MissingError:  # It stops at the first one that does not exist.
            for uri in uris:
                self.delete(uri)

    def delete_folder(self, folder: str) -> None:
        self.delete_all(self.list(folder))

    def objects(self, folder: str, *, follow_links: bool = False) -> builtins.list[Stored]:
        base = split_scheme(folder)[0]
        with _errors(folder):
            found = _store(folder).list(_key(folder) or None).collect()
        listed = [Stored(f"{base}/{of['path']}", int(of["size"]), of["last_modified"].timestamp()) for of in found]
        return sorted(listed, key=lambda stored: stored.uri)

    def list(self, folder: str, *, follow_links: bool = False) -> builtins.list[str]:
        return [stored.uri for stored in self.objects(folder)]

    def folders(self, folder: str) -> builtins.list[str]:
        with _errors(folder):
            found = _store(folder).list_with_delimiter(_key(folder) or None)
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"])

    def fingerprint(self, uri: str) -> str:
        about = self._known(uri)
        return f"etag:{str(about['e_tag']).strip(chr(34))}:{about['size']}"

    def fingerprint_of(self, written: Written) -> str:
        return self.fingerprint(written.uri)

    def _known(self, uri: str) -> Any:
        about = self._head(uri)
        if about is None:
            raise missing(uri)
        return about

    def _head(self, uri: str) -> Any | None:
        try:
            with _errors(uri):
                return _store(uri).head(_key(uri))
        except _MissingError:
            return None


class _Upload:
    """Collects an object in a temporary file and sends it at ``close``: its first bytes may change until then."""

    def __init__(self, store: ObjectStore, uri: str) -> None:
        self._store, self._uri = store, uri
        _key(uri)
        self._file = tempfile.TemporaryFile(prefix="retro-ops-")  # noqa: SIM115 - closed by close() or abort()

    def write(self, data: bytes | memoryview) -> None:
        with _no_space(self._uri):
            self._file.write(data)

    def set_head(self, data: bytes) -> None:
        self._file.seek(0)
        self._file.write(data)
        self._file.seek(0, io.SEEK_END)

    def close(self) -> Written:
        with self._file as file:
            length = file.seek(0, io.SEEK_END)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            part = max(PART_BYTES, -(-length // MOST_PARTS))
            with _errors(self._uri):
                _store(self._uri).put(_key(self._uri), file, chunk_size=part, max_concurrency=UPLOADS)
        stored = self._store.size(self._uri)
        if stored != length:
            raise TransientError(
                f"{self._uri}: wrote {length} bytes, but the store has {stored}", "run the stage again"
            )
        return Written(self._uri, length, sha256)

    def abort(self) -> None:
        self._file.close()


class _MissingError(BadInputError):
    pass


class _PastTheEndError(BadInputError):
    pass


@functools.cache
def _opened(place: str) -> Any:
    from obstore.store import from_url

    return from_url(place)


def _store(uri: str) -> Any:
    """obstore's store of the bucket or container of ``uri``."""
    return _opened(split_scheme(uri)[0])


def _key(uri: str) -> str:
    place, key = split_scheme(uri)
    if not re.fullmatch(r"(gs|az)://[A-Za-z0-9][A-Za-z0-9._-]{1,221}", place):
        raise BadInputError(
            f"{uri!r} is not a location in a store", "write it like gs://bucket/key or az://container/key"
        )
    return key.strip("/")


@contextlib.contextmanager
def _no_space(uri: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TransientError(
            f"cannot write {uri} to a temporary file first: {error}", "free some space, or set TMPDIR"
        ) from error


@contextlib.contextmanager
def _errors(uri: str) -> Iterator[None]:
    from obstore import exceptions

    settings = "check the bucket and the variables GOOGLE_… or AZURE_…"
    try:
        yield
    except (FileNotFoundError, exceptions.NotFoundError) as error:
        raise _MissingError(*missing(uri).args) from error
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
        raise ConflictError(f"{uri} was changed by another process", "run the command again") from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise ConfigurationError(f"the store refused {uri}: {_line(error)}", settings) from error
    except (exceptions.InvalidPathError, exceptions.UnknownConfigurationKeyError) as error:
        raise BadInputError(f"{uri!r} is not a location in a store: {_line(error)}", settings) from error
    except exceptions.BaseError as error:
        if "416 Range Not Satisfiable" in str(error):
            raise _PastTheEndError(f"{uri} is shorter than its header says") from error
        raise TransientError(f"the store failed on {uri}: {_line(error)}", settings) from error


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
