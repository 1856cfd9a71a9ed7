"""gs:// through obstore: large objects, lost answers, odd answers, and a dataset that is read there."""

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google_storage import Bucket
from plans import PLAN
from synthetic_datasets import synthetic

from retro_data import open_dataset
from retro_ops.errors import BadInputError, ConfigurationError
from retro_ops.plan.parameters import Parameters
from retro_ops.planning.expectation import write_estimate
from retro_ops.planning.shards import of_patterns
from retro_ops.progress import logger
from retro_ops.storage import probe, store
from retro_ops.storage.base import ConflictError
from retro_ops.storage.checked import copy

MIB = 2**20


@pytest.fixture
def bucket(google_storage_server: tuple[Bucket, dict[str, str]]) -> Bucket:
    bucket = google_storage_server[0]
    bucket.objects.clear()
    bucket.requests.clear()
    return bucket


def test_plan_says_how_much_room_the_largest_object_needs(
    gs: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' * 1000)
    shards, _ = of_patterns({"corpus": str(tmp_path), "validation_corpus": None}, None)
    plan = replace(PLAN, shards=tuple(shards), parameters=Parameters(index_type="Flat"))
    tokenizer: Any = SimpleNamespace(encode=lambda texts: [[1]] * len(texts))
    model: Any = SimpleNamespace(operations=lambda tokens: 1.0, bytes=1)
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level("INFO", logger.name)
    write_estimate(replace(plan, root=gs), tokenizer, model, f"{tmp_path}/plan.json", 1)
    # 1,000 chunks with 384 numbers of four bytes.
    assert "written to TMPDIR before it is sent, so a task needs about 1.5 MB there" in caplog.text
    caplog.clear()
    write_estimate(replace(plan, root=str(tmp_path)), tokenizer, model, f"{tmp_path}/plan.json", 1)
    assert "TMPDIR" not in caplog.text


def test_a_large_object_arrives_whole_in_parts_and_is_read_in_ranges(gs: str, bucket: Bucket) -> None:
    content = random.Random(0).randbytes(37 * MIB + 1)
    with store.create(f"{gs}/large.bin") as writer:
        writer.write(bytes(10))
        writer.write(content[10:])
        writer.set_head(content[:10])
        written = writer.close()
    assert sum("partNumber=" in request for request in bucket.requests) == 3
    assert store.read(written.uri) == content
    assert copy(written.uri, f"{gs}/copy.bin", written.sha256).sha256 == store.sha256(written.uri)


def test_a_conditional_write_whose_answer_was_lost_has_succeeded(gs: str, bucket: Bucket) -> None:
    uri, where = f"{gs}/current.json", store.at(gs)
    bucket.lost = 1
    where.write_if(uri, b"1", None)
    assert (bucket.lost, store.read(uri)) == (0, b"1")
    tagged = where.read_tagged(uri)
    assert tagged
    bucket.lost = 1
    where.write_if(uri, b"2", tagged[1])
    assert (bucket.lost, store.read(uri)) == (0, b"2")
    for tag in (tagged[1], None):
        with pytest.raises(ConflictError, match=r"current.json was changed by another process"):
            where.write_if(uri, b"3", tag)


def test_planning_accepts_such_a_store(gs: str, bucket: Bucket) -> None:
    probe.check_writes(f"{gs}/root/d")
    assert not bucket.objects


def test_folders_and_lists_end_at_slashes(gs: str, bucket: Bucket) -> None:
    for name in ("a/b/c", "a/d", "ab/c", "e"):
        store.write(f"{gs}/{name}", b"x")
    where = store.at(gs)
    assert where.folders(gs) == ["a", "ab"]
    assert where.folders(f"{gs}/a") == ["b"]
    assert where.list(f"{gs}/a") == [f"{gs}/a/b/c", f"{gs}/a/d"]
    where.delete_all([f"{gs}/none", f"{gs}/a/d", f"{gs}/e"])
    where.delete_folder(f"{gs}/a")
    assert where.list(gs) == [f"{gs}/ab/c"]


def test_a_dataset_is_read_there(gs: str, bucket: Bucket, tmp_path: Path) -> None:
    spec = synthetic(tmp_path / "d", [[3, 1], [5]])
    for path in (tmp_path / "d").rglob("*.*"):
        store.write(f"{gs}/d/{path.relative_to(tmp_path / 'd')}", path.read_bytes())
    here = open_dataset(str(spec)).train
    there = open_dataset(f"{gs}/d/data.spec.json", cache=str(tmp_path / "cache")).train
    np.testing.assert_array_equal(there[:].retrieved(), here[:].retrieved())
    np.testing.assert_array_equal(there.embeddings(2, 7), here.embeddings(2, 7))


@pytest.mark.parametrize("uri", ["gs://", "gs://b*d/key", "gs:///key", "az://user@host/key"])
def test_what_is_no_location_is_named(uri: str) -> None:
    with pytest.raises(BadInputError, match="is not a location in a store"):
        store.write(uri, b"")


def test_a_refusal_names_the_settings(gs: str, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "refuses", True)
    with pytest.raises(ConfigurationError, match=r"refused gs://test/a.*\n.*GOOGLE_"):
        store.read(f"{gs}/a")
