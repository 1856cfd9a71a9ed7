"""Reads whole files and compares them with their checksum on the way."""

import hashlib
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from retro_ops.errors import BadInputError
from retro_ops.storage import store
from retro_ops.storage.base import Written
from retro_ops.storage.npy import open_npy

COPY_BYTES = 8 * 2**20


def checked_rows(uri: str, rows: int, sha256: str, *, overlap: int = 0) -> Iterator[NDArray[Any]]:
    """All rows of an array in order, ``rows`` at a time; each block also has the first ``overlap`` rows of the next.

    Raises BadInputError after the last block if the file has another SHA-256.
    """
    reader = open_npy(uri)
    digest = hashlib.sha256(reader.header)
    held: NDArray[Any] | None = None  # Until the block after it is read.
    for _, block in reader.blocks(rows):
        digest.update(block.tobytes())
        if held is not None:
            yield np.concatenate([held, block[:overlap]]) if overlap else held
        held = block
    if held is not None:
        yield held
    _compare(uri, digest.hexdigest(), sha256)


def copy(uri: str, target: str, sha256: str) -> Written:
    """Copy a file. Raises BadInputError, and leaves no copy, if it has another SHA-256."""
    with store.create(target) as writer, store.open_stream(uri) as source:
        for data in _pieces(source):
            writer.write(data)
        written = writer.close()
    if written.sha256 != sha256:
        store.at(target).delete(target)
    _compare(uri, written.sha256, sha256)
    return written


def _pieces(source: IO[bytes]) -> Iterator[bytes]:
    while data := source.read(COPY_BYTES):
        yield data


def _compare(uri: str, found: str, expected: str) -> None:
    if found != expected:
        raise BadInputError(
            f"{uri} was modified after its stage wrote it (SHA-256 differs)", "run `retro-ops validate`"
        )
