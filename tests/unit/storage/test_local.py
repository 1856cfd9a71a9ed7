"""Files of the local store: writes are all or nothing, and one of two writers is told."""

from pathlib import Path

import pytest

from retro_ops.errors import TransientError
from retro_ops.storage import store
from retro_ops.storage.base import ConflictError


def _write_and_fail(uri: str) -> None:
    with store.create(uri) as writer:
        writer.write(b"half")
        raise RuntimeError


def test_a_local_write_is_all_or_nothing(tmp_path: Path) -> None:
    uri = str(tmp_path / "folder" / "a.bin")
    with pytest.raises(RuntimeError):
        _write_and_fail(uri)
    assert list((tmp_path / "folder").iterdir()) == []
    killed = store.at(uri).create(uri)
    killed.write(b"killed before close")
    store.write(uri, b"whole")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["a.bin"]
    killed.abort()  # Its file is open in this process still.


def test_a_writer_that_another_swept_away_is_to_be_tried_again(tmp_path: Path) -> None:
    uri = str(tmp_path / "a.bin")
    first = store.at(uri).create(uri)
    store.write(uri, b"second")
    with pytest.raises(TransientError, match="took over"):
        first.close()
    first.abort()
    assert store.read(uri) == b"second"


def test_compare_and_swap_on_files(tmp_path: Path) -> None:
    uri = str(tmp_path / "current.json")
    local = store.at(uri)
    assert local.read_tagged(uri) is None
    local.write_if(uri, b"1", None)
    with pytest.raises(ConflictError):
        local.write_if(uri, b"2", None)
    tagged = local.read_tagged(uri)
    assert tagged is not None
    local.write_if(uri, b"3", tagged[1])
    assert store.read(uri) == b"3"
