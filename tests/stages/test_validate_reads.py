"""``validate`` reads each file of a dataset once, for its rules and its checksum."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from counting import CountingStore
from samples import Run, synthetic_shard, write_index_spec

from retro_ops.execution import report
from retro_ops.quality import checks
from retro_ops.storage import store
from retro_ops.storage.base import Written
from retro_ops.storage.npy import HEADER_BYTES, open_npy

DOCUMENTS = [10] * 2000


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    """Files of a shard beside their reports, made by hand: 20,000 chunks, so that headers are little."""
    folder = synthetic_shard(tmp_path_factory.mktemp("data"), DOCUMENTS, seed=1)
    for name in ("chunks", "embeddings"):
        uri = str(folder / f"{name}.npy")
        written = Written(uri, (folder / f"{name}.npy").stat().st_size, store.sha256(uri))
        outcome = report.Outcome({}, [written], {"pad_id": 0})
        report.run_once(name, str(folder / f"{name}.report.json"), "0", {}, [], lambda outcome=outcome: outcome)
    index_spec = write_index_spec(folder / "index.spec.json", [folder])
    index = folder / "data.index"
    run("train-faiss-index", "--spec", index_spec, "--index-type", "IVF4,Flat", "--output", folder / "trained.index")
    run("build-faiss-index", "--spec", index_spec, "--trained-index", folder / "trained.index", "--output-index", index)
    run(
        *("retrieve-neighbours", "--query-embeddings", folder / "embeddings.npy", "--index", index),
        *("--query-chunk2seq", folder / "chunk2seq.npy", "--neighbours-output", folder / "neighbours.npy"),
        *("--index-spec", index_spec, "--nprobe", 1, "--retrieval-margin", 12),
    )
    run(
        *("write-specs", "--chunks", folder / "chunks.npy", "--seq2chunk", folder / "seq2chunk.npy"),
        *("--chunk2seq", folder / "chunk2seq.npy", "--neighbours", folder / "neighbours.npy"),
        *("--faiss-index", index, "--index-spec", index_spec, "--data-spec", folder / "data.spec.json"),
    )
    return folder


READ_ONCE = ("embeddings", "neighbours", "distances", "chunks")
HEADERS = 4 * HEADER_BYTES
"""A file is opened for its own rules, for the number of its rows, and beside others."""


@pytest.mark.parametrize("block_rows", [999, checks.BLOCK_ROWS])
def test_each_large_array_is_read_once(
    dataset: Path, run: Run, counted: CountingStore, monkeypatch: pytest.MonkeyPatch, block_rows: int
) -> None:
    monkeypatch.setattr(checks, "BLOCK_ROWS", block_rows)
    run("validate", "--spec", dataset / "data.spec.json")
    for name in READ_ONCE:
        path = dataset / f"{name}.npy"
        size, read = path.stat().st_size, counted.bytes[str(path)]
        assert size > 4 * HEADERS
        assert size <= read <= size + HEADERS, name


def damaged(path: Path, at: int) -> Iterator[None]:
    whole = path.read_bytes()
    data = bytearray(whole)
    data[at] ^= 1
    path.write_bytes(data)
    yield
    path.write_bytes(whole)


@pytest.mark.parametrize("name", READ_ONCE)
@pytest.mark.parametrize("at", [-2, HEADER_BYTES * 3, 100])
def test_a_bit_that_breaks_no_rule_is_found_by_its_sum(
    dataset: Path, run: Run, counted: CountingStore, name: str, at: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also in the padding of the header (byte 100), which is no row."""
    path = dataset / f"{name}.npy"
    for _ in damaged(path, at):
        capfd.readouterr()
        counted.bytes.clear()
        run("validate", "--spec", dataset / "data.spec.json", code=65)
    said = capfd.readouterr().err
    assert str(path) in said
    if name == "embeddings" and at != 100:
        assert f"{path}: its content was modified after its stage wrote it (SHA-256 differs)" in said
        assert "problems found: 1, the first: " in said
        assert counted.bytes[str(path)] <= path.stat().st_size + HEADERS
    run("validate", "--spec", dataset / "data.spec.json")


@pytest.mark.parametrize("rows", [0, 1, checks.BLOCK_ROWS - 1, checks.BLOCK_ROWS, checks.BLOCK_ROWS + 1])
def test_the_sum_of_an_array_that_was_read_in_blocks_is_that_of_its_file(tmp_path: Path, rows: int) -> None:
    uri = str(tmp_path / "a.npy")
    np.save(uri, np.arange(rows * 3, dtype=np.float16).reshape(rows, 3))
    sums, taken = checks._Sums(), 0
    for _, block in sums.blocks(open_npy(uri)):
        taken += len(block)
    expected = store.sha256(uri)
    Path(uri).unlink()
    assert taken == rows
    assert sums.of(uri) == expected
