"""Local files as a store."""

import builtins
import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from retro_ops.errors import ConfigurationError, TransientError
from retro_ops.storage.base import (
    ConflictError,
    Stored,
    Writer,
    Written,
    aborted_unless_closed,
    exactly,
    hash_stream,
    missing,
    taken_over,
)
from retro_ops.uris import parent


class LocalStore:
    """Files. A new file gets its name by rename after fsync, so a crash leaves none half-written."""

    def exists(self, uri: str) -> bool:
        return os.path.isfile(uri)

    def size(self, uri: str) -> int:
        with _errors(uri):
            return os.stat(uri).st_size

    def read(self, uri: str) -> bytes:
        with _errors(uri):
            return Path(uri).read_bytes()

    def head(self, uri: str, length: int) -> tuple[bytes, int]:
        with _errors(uri), open(uri, "rb") as file:
            return file.read(length), os.fstat(file.fileno()).st_size

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        with _errors(uri), open(uri, "rb") as file:
            file.seek(start)
            return exactly(uri, file.read(length), length)

    def read_tagged(self, uri: str) -> tuple[bytes, str] | None:
        if not self.exists(uri):
            return None
        data = self.read(uri)
        return data, hashlib.sha256(data).hexdigest()

    def write_if(self, uri: str, data: bytes, tag: str | None) -> None:
        os.makedirs(parent(uri), exist_ok=True)
        with open(f"{uri}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = self.read_tagged(uri)
            if (found[1] if found else None) != tag:
                raise ConflictError(f"another run changed {uri}", "run again")
            with aborted_unless_closed(self.create(uri)) as writer:
                writer.write(data)
                writer.close()

    def create(self, uri: str) -> Writer:
        with _errors(uri):
            return _LocalWriter(uri)

    def open(self, uri: str) -> IO[bytes]:
        with _errors(uri):
            return open(uri, "rb")

    def canonical(self, uri: str) -> str:
        return os.path.realpath(uri)

    def delete(self, uri: str) -> None:
        with _errors(uri):
            Path(uri).unlink(missing_ok=True)

    def delete_folder(self, folder: str) -> None:
        # Another process may be writing into it; files that remain do no harm.
        shutil.rmtree(folder, ignore_errors=True)

    def objects(self, folder: str) -> builtins.list[Stored]:
        found = []
        for uri in self.list(folder):
            with contextlib.suppress(FileNotFoundError):  # Removed meanwhile.
                stat = os.stat(uri)
                found.append(Stored(uri, stat.st_size, stat.st_mtime))
        return found

    def list(self, folder: str) -> builtins.list[str]:
        return sorted(
            os.path.join(base, name)
            for base, _, names in os.walk(folder)
            for name in names
            if not name.endswith(_LocalWriter.SUFFIX)
        )

    def fingerprint(self, uri: str) -> str:
        with _errors(uri):
            return f"sha256:{hash_stream(open(uri, 'rb'))}"

    def fingerprint_of(self, written: Written) -> str:
        return f"sha256:{written.sha256}"


class _LocalWriter:
    SUFFIX = ".unfinished"

    def __init__(self, uri: str) -> None:
        folder, name = os.path.split(uri)
        os.makedirs(folder or ".", exist_ok=True)
        for leftover in Path(folder).glob(f".{glob.escape(name)}.*{self.SUFFIX}"):
            leftover.unlink(missing_ok=True)  # of a writer that was killed
        self._uri = uri
        self._temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}{self.SUFFIX}")
        self._file = open(self._temporary, "wb")  # noqa: SIM115 - closed by close() or abort()
        self._hash: Any = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        with _errors(self._uri):
            self._file.write(data)
        if self._hash:
            self._hash.update(data)

    def set_head(self, data: bytes) -> None:
        with _errors(self._uri):
            self._file.seek(0)
            self._file.write(data)
            self._file.seek(0, os.SEEK_END)
        self._hash = None

    def close(self) -> Written:
        with _errors(self._uri):
            size = self._file.tell()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            checksum = self._hash.hexdigest() if self._hash else hash_stream(LocalStore().open(self._temporary))
            try:
                os.replace(self._temporary, self._uri)
            except FileNotFoundError as error:
                raise taken_over(self._uri) from error
        return Written(self._uri, size, checksum)

    def abort(self) -> None:
        self._file.close()
        Path(self._temporary).unlink(missing_ok=True)


@contextlib.contextmanager
def _errors(uri: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise missing(uri) from error
    except PermissionError as error:
        raise ConfigurationError(f"no permission for {uri}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TransientError(f"no space left to write {uri}", "free some space; nothing was lost") from error
        raise
