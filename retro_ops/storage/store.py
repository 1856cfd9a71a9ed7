"""Object storage by URI: local files, S3 and what is only read, behind one small interface.

Writes are atomic: an object exists in full or not at all. S3 uses boto3, which reads credentials and
``AWS_ENDPOINT_URL`` from the environment, so this package never handles secrets.
"""

import functools
import importlib.util
from contextlib import AbstractContextManager
from typing import IO

from retro_ops.errors import BadInputError, ConfigurationError
from retro_ops.storage.base import Store, Writer, Written, aborted_unless_closed, hash_stream
from retro_ops.storage.https import HttpsStore
from retro_ops.storage.hub import HubStore
from retro_ops.storage.local import LocalStore
from retro_ops.storage.memory import MemoryStore
from retro_ops.storage.object_store import ObjectStore
from retro_ops.storage.s3 import S3Store


def at(uri: str) -> Store:
    """The store that holds ``uri``: a local path, ``s3://…``, ``gs://…``, ``az://…``, or ``memory://…`` in tests.
    ``hf://…`` and ``https://…`` are only read."""
    scheme = uri.partition("://")[0] if "://" in uri else ""
    if scheme == "" and not uri.startswith("s3:"):  # A root `s3://` loses its slashes.
        return _LOCAL
    if scheme == "memory":
        return _MEMORY
    if scheme not in _STORES:
        raise BadInputError(
            f"cannot open {uri!r}",
            "use a local path, s3://, gs:// or az://bucket/key, or for documents hf:// or https://",
        )
    where, package, extra = _STORES[scheme]
    _require(scheme, package, extra)
    return where


@functools.cache
def _require(scheme: str, package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ConfigurationError(
            f"{scheme}:// needs {package}, which is not installed", f"pip install 'retro-ops[{extra}]'"
        )


def exists(uri: str) -> bool:
    """Whether there is an object at ``uri``."""
    return at(uri).exists(uri)


def read(uri: str) -> bytes:
    """The content of an object. Raises BadInputError if it does not exist."""
    return at(uri).read(uri)


def write(uri: str, data: bytes) -> Written:
    """Write an object atomically."""
    with create(uri) as writer:
        writer.write(data)
        return writer.close()


def create(uri: str, length: int | None = None) -> AbstractContextManager[Writer]:
    """A writer for a new object of ``length`` bytes, if it is known. It is discarded unless ``close`` was called."""
    return aborted_unless_closed(at(uri).create(uri, length))


def same_object(a: str, b: str) -> bool:
    """Whether two URIs, such as two spellings of a local path, are the same object."""
    return canonical(a) == canonical(b)


def buffers(uri: str) -> bool:
    """Whether an object at ``uri`` is written to a file in TMPDIR before it is sent."""
    return isinstance(at(uri), ObjectStore)


def canonical(uri: str) -> str:
    """A text that is equal for all URIs of the same object."""
    return at(uri).canonical(uri)


def sha256(uri: str) -> str:
    """SHA-256 of the stored content, streamed."""
    return hash_stream(open_stream(uri))


def open_stream(uri: str) -> IO[bytes]:
    """A sequential reader of an object."""
    return at(uri).open(uri)


_LOCAL = LocalStore()
_MEMORY = MemoryStore()
_STORES: dict[str, tuple[Store, str, str]] = {
    "s3": (S3Store(), "boto3", "s3"),
    "gs": (ObjectStore(), "obstore", "gcs"),
    "az": (ObjectStore(), "obstore", "azure"),
    "https": (HttpsStore(), "urllib3", "stages"),
    "hf": (HubStore(), "huggingface_hub", "stages"),
}
"""By scheme: the store, the package that it needs, and the extra of retro-ops with it."""
