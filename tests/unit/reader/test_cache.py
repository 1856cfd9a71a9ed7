"""Local copies of remote files."""

import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from retro_data.cache import Cache
from retro_ops.errors import BadInputError
from retro_ops.storage import store


@pytest.fixture
def folder() -> str:
    name = f"memory://cache/{uuid.uuid4().hex}"
    store.write(f"{name}/a.bin", b"content")
    return name


def listed(folder: str, sha256: str) -> None:
    store.write(f"{folder}/export.json", json.dumps({"files": {"a.bin": {"sha256": sha256}}}).encode())


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_a_file_is_copied_once_under_its_checksum(folder: str, tmp_path: Path) -> None:
    sha256 = store.sha256(f"{folder}/a.bin")
    listed(folder, sha256)
    with ThreadPoolExecutor(8) as pool:
        copies = set(pool.map(lambda _: Cache(str(tmp_path), folder).path(f"{folder}/a.bin"), range(8)))
    assert [Path(path).read_bytes() for path in copies] == [b"content"]
    assert files(tmp_path) == [sha256]
    store.at(folder).delete(f"{folder}/a.bin")
    assert {Cache(str(tmp_path), folder).path(f"{folder}/a.bin")} == copies


def test_a_file_without_a_listed_checksum_is_copied_again_when_it_changes(folder: str, tmp_path: Path) -> None:
    first = Cache(str(tmp_path)).path(f"{folder}/a.bin")
    assert Cache(str(tmp_path)).path(f"{folder}/a.bin") == first
    store.write(f"{folder}/a.bin", b"other")
    assert Path(Cache(str(tmp_path)).path(f"{folder}/a.bin")).read_bytes() == b"other"
    assert Path(first).read_bytes() == b"content"


@pytest.mark.parametrize(("sha256", "said"), [("0" * 64, "is not what was written"), ("../../x", "as its SHA-256")])
def test_a_file_with_another_checksum_leaves_nothing(folder: str, tmp_path: Path, sha256: str, said: str) -> None:
    listed(folder, sha256)
    with pytest.raises(BadInputError, match=said):
        Cache(str(tmp_path / "a/b"), folder).path(f"{folder}/a.bin")
    assert files(tmp_path) == []


def test_what_is_made_of_a_file_is_made_once_and_not_half(folder: str, tmp_path: Path) -> None:
    cache, calls = Cache(str(tmp_path)), []

    def make(path: str, target: str) -> None:
        calls.append(path)
        Path(target).write_bytes(Path(path).read_bytes().upper())
        if len(calls) == 1:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        cache.derived(f"{folder}/a.bin", "upper", make)
    made = [cache.derived(f"{folder}/a.bin", "upper", make) for _ in range(2)]
    assert [Path(path).read_bytes() for path in made] == [b"CONTENT"] * 2
    assert len(calls) == 2
