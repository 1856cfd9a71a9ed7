"""A real S3 server: errors, uploads in parts over TLS, writers that race."""

import os
from pathlib import Path

import numpy as np
import pytest
from samples import Run, tokenize_flags

from retro_ops.errors import TransientError
from retro_ops.storage import npy, store
from retro_ops.storage.base import ConflictError
from retro_ops.storage.s3_client import client
from retro_ops.storage.s3_uploads import PART_BYTES


def test_errors_of_the_store_name_the_cause(
    tmp_path: Path, run: Run, s3: str, t5_dir: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = tokenize_flags(tmp_path, t5_dir)
    run("tokenize-and-chunk", f"{s3}/nothing.jsonl", *flags, code=65)
    run("tokenize-and-chunk", f"{s3}/folder/", *flags, code=65)
    assert "no corpus file at" in capfd.readouterr().err
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    client.cache_clear()
    run("tokenize-and-chunk", f"{s3}/x.jsonl", *flags, code=78)
    said = capfd.readouterr().err
    assert "the store refused" in said
    assert secret not in said
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    client.cache_clear()
    run("tokenize-and-chunk", f"{s3}/x.jsonl", *flags, code=75)
    assert "cannot reach the store" in capfd.readouterr().err


def test_large_objects_over_tls_arrive_whole(s3_tls: str) -> None:
    """Over TLS boto3 sends checksums in trailers; more than two parts, with the header known last."""
    rows = np.arange(5_000_000, dtype=np.int64)
    uri = f"{s3_tls}/large.npy"
    with npy.NpyWriter(uri, np.int64) as writer:
        for start in range(0, len(rows), 700_000):
            writer.append(rows[start : start + 700_000])
        written = writer.close()
    assert written.bytes > 2 * PART_BYTES
    assert written.sha256 == store.sha256(uri)
    reader = npy.open_npy(uri)
    np.testing.assert_array_equal(reader.rows(4_999_990, 5_000_000), rows[-10:])
    assert reader.shape == (5_000_000,)


def test_an_abandoned_upload_is_swept_and_a_lost_race_is_reported(s3: str) -> None:
    uri = f"{s3}/abandoned.bin"
    first, second = store.at(uri).create(uri), store.at(uri).create(uri)
    for writer in (first, second):  # and never closed, as by a kill
        writer.write(b"x" * (2 * PART_BYTES + 1))
    uploads = client().list_multipart_uploads(Bucket=s3.removeprefix("s3://"), Prefix="abandoned")
    assert len(uploads.get("Uploads", ())) == 1
    assert not store.exists(uri)
    with pytest.raises(TransientError, match="took over"):
        first.close()
    current = f"{s3}/current.json"
    store.at(current).write_if(current, b"1", None)
    with pytest.raises(ConflictError):
        store.at(current).write_if(current, b"2", None)
    tagged = store.at(current).read_tagged(current)
    assert tagged is not None
    store.at(current).write_if(current, b"3", tagged[1])
    with pytest.raises(ConflictError):
        store.at(current).write_if(current, b"4", tagged[1])
    assert store.read(current) == b"3"


def test_folders_are_listed_without_their_content(s3: str) -> None:
    for name in ("roots/b/c/d.bin", "roots/a/e.bin", "roots/f.bin"):
        store.write(f"{s3}/{name}", b"")
    at = store.at(s3)
    assert at.folders(f"{s3}/roots") == ["a", "b"]
    assert at.folders(f"{s3}/nothing") == []
