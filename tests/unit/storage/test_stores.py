"""What every store does alike."""

import os
import uuid
from pathlib import Path

import numpy as np
import pytest

from retro_ops.errors import BadInputError
from retro_ops.storage import store
from retro_ops.storage.base import ConflictError
from retro_ops.storage.npy import NpyWriter, open_npy

ANOTHER = os.environ.get("RETRO_TEST_STORE")
"""A bucket of another store, such as az://test, which the environment leads to."""


@pytest.fixture(params=["memory", "local", "s3", "gs", *([ANOTHER] if ANOTHER else [])])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    name = uuid.uuid4().hex
    bases = {"memory": "memory://test", "local": str(tmp_path)}
    base = request.getfixturevalue(request.param) if request.param in ("s3", "gs") else request.param
    return f"{bases.get(request.param, base)}/{name}"


def test_objects_are_written_whole_read_by_range_listed_and_deleted(folder: str) -> None:
    where = store.at(folder)
    written = store.write(f"{folder}/b/c.bin", b"0123456789")
    store.write(f"{folder}/a.bin", b"")
    assert (written.bytes, written.sha256) == (10, store.sha256(written.uri))
    assert where.fingerprint_of(written) == where.fingerprint(written.uri)
    assert where.fingerprint(f"{folder}/a.bin") != where.fingerprint(written.uri)
    assert where.read_range(written.uri, 3, 4) == b"3456"
    assert where.read_range(written.uri, 3, 0) == b""
    assert where.head(written.uri, 4) == (b"0123", 10)
    assert where.head(f"{folder}/a.bin", 4) == (b"", 0)
    assert [(of.uri, of.bytes) for of in where.objects(folder)] == [(f"{folder}/a.bin", 0), (written.uri, 10)]
    assert where.list(f"{folder}/b") == [written.uri]
    with pytest.raises(BadInputError, match="shorter than its header says"):
        where.read_range(written.uri, 8, 4)
    where.delete(written.uri)
    where.delete(written.uri)
    for read in (where.read, where.size, where.open, where.fingerprint):
        with pytest.raises(BadInputError, match="does not exist"):
            read(written.uri).read()  # type: ignore[union-attr]
    assert where.read_tagged(written.uri) is None
    where.delete_folder(folder)
    assert where.list(folder) == []


def test_a_write_is_visible_at_its_end_only(folder: str) -> None:
    uri = f"{folder}/rows.npy"
    with NpyWriter(uri, np.int64) as writer:
        writer.append(np.arange(5))
        assert not store.exists(uri)
        writer.close()
    np.testing.assert_array_equal(open_npy(uri).rows(1, 4), [1, 2, 3])
    with pytest.raises(ValueError, match="dtype"), NpyWriter(uri, np.int64) as writer:
        writer.append(np.zeros(2, np.int32))
    assert len(open_npy(uri)) == 5


def test_one_of_two_writers_with_a_condition_wins(folder: str) -> None:
    uri, where = f"{folder}/current.json", store.at(folder)
    where.write_if(uri, b"1", None)
    with pytest.raises(ConflictError):
        where.write_if(uri, b"2", None)
    tagged = where.read_tagged(uri)
    assert tagged is not None
    where.write_if(uri, b"3", tagged[1])
    with pytest.raises(ConflictError):
        where.write_if(uri, b"4", tagged[1])
    assert where.read(uri) == b"3"
