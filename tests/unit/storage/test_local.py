"""Files of the local store: writes are all or nothing, and one of two writers is told."""

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro_ops.errors import BadInputError, ConfigurationError, TransientError
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


def test_a_folder_that_cannot_be_read_is_an_error_and_not_an_empty_one(tmp_path: Path) -> None:
    """Its files would look as if they had been deleted."""
    for name in ("open/a.jsonl", "closed/b.jsonl", "closed/sub/c.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    for closed in (tmp_path / "closed" / "sub", tmp_path / "closed", tmp_path):
        for call in ("list", "objects", "exists", "read_tagged"):
            with denied(closed), pytest.raises(ConfigurationError, match="no permission"):
                getattr(store.at("/"), call)(str(tmp_path if call in ("list", "objects") else closed / "current.json"))
    assert store.at("/").list(str(tmp_path / "none")) == []


@contextlib.contextmanager
def denied(folder: Path) -> Iterator[None]:
    """Without permission for ``folder``, as another user, since root may read everything."""
    if os.geteuid() == 0:
        for path in (folder, *folder.parents):
            if path.parent == Path("/tmp") or path.owner() != "root":
                break
            path.chmod(0o755)
    folder.chmod(0o000)
    try:
        if os.geteuid() == 0:
            os.seteuid(65534)
        yield
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        folder.chmod(0o755)


def test_linked_folders_are_followed_for_a_corpus_and_circles_are_cut(tmp_path: Path) -> None:
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    corpus.mkdir()
    elsewhere.mkdir()
    (corpus / "a.jsonl").touch()
    (elsewhere / "b.jsonl").touch()
    (corpus / "books").symlink_to("../elsewhere")
    (elsewhere / "back").symlink_to("../corpus")
    found = store.at("/").list(str(corpus), follow_links=True)
    assert [Path(uri).relative_to(corpus).as_posix() for uri in found] == ["a.jsonl", "books/b.jsonl"]
    # What is deleted is never followed.
    assert len(store.at("/").list(str(corpus))) == 2
    store.at("/").delete_folder(str(corpus))
    assert (elsewhere / "b.jsonl").exists()


def test_links_that_multiply_are_bounded(tmp_path: Path) -> None:
    for number in range(16):
        (tmp_path / f"{number}").mkdir()
        for name in ("a", "b"):
            (tmp_path / f"{number}" / name).symlink_to(f"../{number + 1}")
    with pytest.raises(BadInputError, match="linked folders"):
        store.at("/").list(str(tmp_path), follow_links=True)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """A named pipe would wait for a writer without end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    server.close()
    places = [str(tmp_path / name) for name in ("pipe", "loop", "socket", "x" * 300, "nul\0", "\udcff\ud800")]
    for uri in (*places, "/dev/zero"):
        for call in ("size", "read", "open", "fingerprint"):
            with pytest.raises(BadInputError):
                getattr(store.at("/"), call)(uri)
    with pytest.raises((BadInputError, TransientError)):
        store.read("/proc/self/mem")


@settings(max_examples=30)
@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1))
def test_every_name_that_the_file_system_takes_can_be_written(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        uri = f"{folder}/{name}"
        try:
            open(uri, "x").close()
        except OSError:
            return
        os.unlink(uri)
        store.write(uri, b"content")
        assert store.read(uri) == b"content"


def test_a_name_as_long_as_the_file_system_takes_can_be_written(tmp_path: Path) -> None:
    store.write(str(tmp_path / ("x" * 255)), b"content")


def test_folders_are_listed_without_their_content(tmp_path: Path) -> None:
    for name in ("b/c/d.bin", "a/e.bin", "f.bin"):
        store.write(str(tmp_path / name), b"")
    at = store.at(str(tmp_path))
    assert at.folders(str(tmp_path)) == ["a", "b"]
    assert at.folders(str(tmp_path / "nothing")) == []
