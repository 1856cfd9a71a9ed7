"""A store of local files."""

import builtins
import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from retro_ops.errors import BadInputError, ConfigurationError, TransientError, exhausted
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

MOST_LINKS = 10_000
"""Linked folders that a listing follows. Links that lead to each other could otherwise be followed without end."""


class LocalStore:
    """Local files. A new file is renamed into place after fsync, so a crash never leaves a partial file."""

    def exists(self, uri: str) -> bool:
        with _errors(uri):
            about = _stat(uri)
            return about is not None and stat.S_ISREG(about.st_mode)

    def size(self, uri: str) -> int:
        with _errors(uri):
            return _regular(uri).st_size

    def read(self, uri: str) -> bytes:
        with self.open(uri) as file, _errors(uri):
            return file.read()

    def head(self, uri: str, length: int) -> tuple[bytes, int]:
        with self.open(uri) as file, _errors(uri):
            return file.read(length), os.fstat(file.fileno()).st_size

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        with self.open(uri) as file, _errors(uri):
            file.seek(start)
            return exactly(uri, file.read(length), length)

    def read_tagged(self, uri: str) -> tuple[bytes, str] | None:
        if not self.exists(uri):
            return None
        data = self.read(uri)
        return data, hashlib.sha256(data).hexdigest()

    def write_if(self, uri: str, data: bytes, tag: str | None) -> None:
        with contextlib.ExitStack() as stack:
            with _errors(uri):
                os.makedirs(parent(uri), exist_ok=True)
                lock = stack.enter_context(open(f"{uri}.lock", "w"))
                fcntl.flock(lock, fcntl.LOCK_EX)
            current = self.read_tagged(uri)
            if (current[1] if current else None) != tag:
                raise ConflictError(f"{uri} was changed by another process", "run the command again")
            with aborted_unless_closed(self.create(uri)) as writer:
                writer.write(data)
                writer.close()

    def create(self, uri: str, length: int | None = None) -> Writer:
        with _errors(uri):
            return _LocalWriter(uri)

    def open(self, uri: str) -> IO[bytes]:
        with _errors(uri):
            _regular(uri)  # Opening a named pipe would wait for a writer.
            return open(uri, "rb")

    def canonical(self, uri: str) -> str:
        return os.path.realpath(uri)

    def delete(self, uri: str) -> None:
        with _errors(uri):
            Path(uri).unlink(missing_ok=True)

    def delete_all(self, uris: Sequence[str]) -> None:
        for uri in uris:
            self.delete(uri)

    def delete_folder(self, folder: str) -> None:
        # Another process may be writing into it; a leftover file is not an error.
        shutil.rmtree(folder, ignore_errors=True)

    def objects(self, folder: str, *, follow_links: bool = False) -> builtins.list[Stored]:
        objects = []
        for uri in self.list(folder, follow_links=follow_links):
            with contextlib.suppress(FileNotFoundError):  # Removed since it was listed.
                about = os.stat(uri)
                objects.append(Stored(uri, about.st_size, about.st_mtime))
        return objects

    def list(self, folder: str, *, follow_links: bool = False) -> builtins.list[str]:
        return sorted(
            path for path in _walk(folder, follow_links=follow_links) if not path.endswith(_LocalWriter.SUFFIX)
        )

    def folders(self, folder: str) -> builtins.list[str]:
        if not os.path.isdir(folder):
            return []
        with _errors(folder), os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())

    def fingerprint(self, uri: str) -> str:
        stream = self.open(uri)
        with _errors(uri):
            return f"sha256:{hash_stream(stream)}"

    def fingerprint_of(self, written: Written) -> str:
        return f"sha256:{written.sha256}"


class _LocalWriter:
    SUFFIX = ".unfinished"

    def __init__(self, uri: str) -> None:
        folder, name = os.path.split(uri)
        os.makedirs(folder or ".", exist_ok=True)
        # A hash has a fixed length, so that a long name leaves room for the suffix.
        of_name = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        for leftover in Path(folder).glob(f".{of_name}.*{self.SUFFIX}"):
            leftover.unlink(missing_ok=True)  # Left by a writer that was killed.
        self._uri = uri
        self._temporary = os.path.join(folder, f".{of_name}.{uuid.uuid4().hex}{self.SUFFIX}")
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


def _walk(folder: str, *, follow_links: bool) -> Iterator[str]:
    """Paths of everything below ``folder`` that is no folder. A folder that cannot be read is an error: its files would
    look as if they had been deleted. A linked folder that leads back to one above it is left out."""
    links = 0
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while waiting:
        base, above = waiting.pop()
        with _errors(base):
            about = _stat(base)
            if about is None or not stat.S_ISDIR(about.st_mode):
                continue
            try:
                entries = list(os.scandir(base))
            except FileNotFoundError:  # Deleted meanwhile.
                continue
            here = about.st_dev, about.st_ino
            if here in above:
                continue
            for entry in entries:
                linked = follow_links and entry.is_symlink()
                if not entry.is_dir(follow_symlinks=follow_links):
                    yield entry.path
                    continue
                links += linked
                if links > MOST_LINKS:
                    raise BadInputError(
                        f"{folder} has more than {MOST_LINKS:,} linked folders", "remove links that lead to each other"
                    )
                waiting.append((entry.path, above | {here}))


def _stat(path: str) -> os.stat_result | None:
    """Facts about ``path``; None if nothing has, or can have, this name."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise


def _regular(uri: str) -> os.stat_result:
    """Facts about a regular file. BadInputError for anything else, such as a named pipe or a device."""
    about = os.stat(uri)
    if stat.S_ISDIR(about.st_mode):
        raise IsADirectoryError(uri)
    if not stat.S_ISREG(about.st_mode):
        raise BadInputError(
            f"{uri} is not a regular file", "copy its content to a file; pipes, sockets and devices cannot be read"
        )
    return about


@contextlib.contextmanager
def _errors(uri: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise missing(uri) from error
    except PermissionError as error:
        raise ConfigurationError(
            f"no permission to access {uri}", "check the owner and mode of the file and its folder"
        ) from error
    except OSError as error:
        if lacking := exhausted(error, uri):
            raise lacking from error
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            raise BadInputError(f"{uri} cannot be opened: {error.strerror}", "use another path") from error
        if error.errno == errno.EROFS:
            raise ConfigurationError(f"{uri} is read-only", "mount the file system for writing") from error
        raise TransientError(f"cannot access {uri}: {error.strerror or error}", "check the disk or mount") from error
    except ValueError as error:
        if "null" not in str(error) and not isinstance(error, UnicodeError):
            raise
        raise BadInputError(f"{uri!r} is not a path: {error}", "correct the path") from error
