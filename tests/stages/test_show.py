"""Chunks beside their neighbours, and where both come from."""

import json
from pathlib import Path

import numpy as np
import pytest
import zstandard
from counting import CountingStore
from samples import Run
from synthetic_datasets import synthetic

DOCUMENTS = [[3, 1, 2], [1, 4]]
"""Chunks of each document of each shard."""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """The shards ``00``, with a sidecar, and ``01``, without one."""
    made = synthetic(tmp_path / "data", DOCUMENTS, k=2)
    records = [{"source": "a.jsonl", "line": 2 * n + 1, "record": {"id": f"doc-{n}"} if n else {}} for n in range(3)]
    lines = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    (tmp_path / "data/00/chunks.documents.jsonl.zst").write_bytes(zstandard.compress(lines))
    np.save(tmp_path / "data/00/neighbours.npy", np.array([[8, 3]] * 5 + [[0, -1]]))
    np.save(tmp_path / "data/00/distances.npy", np.array([[0.25, 0.5]] * 5 + [[0.25, np.inf]], np.float32))
    return made


def shown(run: Run, capfd: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    """The lines that name chunks."""
    capfd.readouterr()
    run("show", *arguments)
    return [line.strip() for line in capfd.readouterr().out.splitlines() if ", chunk " in line or line.endswith("none")]


def test_a_chunk_and_its_neighbours_name_their_documents(
    spec: Path, run: Run, t5_dir: str, capfd: pytest.CaptureFixture[str]
) -> None:
    of = ("--spec", spec, "--tokenizer", t5_dir)
    assert shown(run, capfd, *of, "--shard", "00", "--chunk", 4) == [
        "00, chunk 4, document 2 (a.jsonl, line 5, id 'doc-2')",
        "1. 01, chunk 2, document 1, squared distance 0.250",
        "2. 00, chunk 3, document 1 (a.jsonl, line 3, id 'doc-1'), squared distance 0.500",
    ]
    assert shown(run, capfd, *of, "--shard", "00", "--chunk", 5) == [
        "00, chunk 5, document 2 (a.jsonl, line 5, id 'doc-2')",
        "1. 00, chunk 0, document 0 (a.jsonl, line 1), squared distance 0.250",
        "2. none",
    ]


@pytest.mark.parametrize(
    ("shard", "document", "rows", "expected"),
    [("00", 0, 9, [0, 1, 2]), ("00", 0, 2, [0, 1]), ("00", 2, 3, [4, 5]), ("01", 1, 9, [1, 2, 3, 4])],
)
def test_a_document_is_shown_by_its_first_chunks(
    spec: Path, run: Run, t5_dir: str, capfd: pytest.CaptureFixture[str],
    shard: str, document: int, rows: int, expected: list[int],
) -> None:  # fmt: skip
    of = ("--spec", spec, "--tokenizer", t5_dir, "--shard", shard, "--document", document, "--rows", rows)
    said = [line for line in shown(run, capfd, *of) if line[1:2] != "." and not line.endswith("none")]
    assert [line.split(",")[:2] for line in said] == [[shard, f" chunk {row}"] for row in expected]


def test_the_documents_of_a_shard_are_read_once(
    spec: Path, run: Run, t5_dir: str, counted: CountingStore, tmp_path: Path
) -> None:
    run("show", "--spec", spec, "--tokenizer", t5_dir, "--shard", "00", "--document", 0)
    sidecar = tmp_path / "data/00/chunks.documents.jsonl.zst"
    assert counted.bytes[str(sidecar)] == len(sidecar.read_bytes())


def test_a_document_without_chunks_is_named_so(
    spec: Path, run: Run, t5_dir: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    starts = np.load(tmp_path / "data/00/seq2chunk.npy")
    starts[1] = starts[2]
    np.save(tmp_path / "data/00/seq2chunk.npy", starts)
    run("show", "--spec", spec, "--tokenizer", t5_dir, "--shard", "00", "--document", 1)
    assert capfd.readouterr().out == "There are no chunks to show.\n"


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (("--shard", "02"), "no shard '02' has neighbours\n  What to do: name one of: 00, 01"),
        (("--shard", "01", "--chunk", 5), "shard '01' has no chunk 5\n  What to do: it has 5 chunks, numbered from 0"),
        (("--shard", "01", "--chunk", -1), "shard '01' has no chunk -1"),
        (("--shard", "01", "--document", 2), "shard '01' has no document 2"),
        (("--chunk", 1), "name the shard with --shard"),
    ],
    ids=["shard", "after the last", "before the first", "document", "no shard"],
)
def test_what_is_not_there_is_refused(
    spec: Path, run: Run, t5_dir: str, capfd: pytest.CaptureFixture[str], choice: tuple[object, ...], said: str
) -> None:
    run("show", "--spec", spec, "--tokenizer", t5_dir, *choice, "--log-format", "text", code=65)
    assert said in capfd.readouterr().err
