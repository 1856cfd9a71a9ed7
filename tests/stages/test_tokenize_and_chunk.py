"""Tokenising as a process that is killed, and of tables."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet
from runs import call
from samples import tokenize_flags, write_corpus

from retro_ops.corpus import line_streams
from retro_ops.execution import report
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths
from retro_ops.storage import store


def _stage(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "retro_ops.cli", *map(str, arguments)], stderr=subprocess.DEVNULL, env=dict(os.environ)
    )


def _kill_at(moments: Sequence[float], seconds: float, arguments: Sequence[object], marker: Path) -> int:
    """Starts the stage once for each moment and kills it then; counts those that died before the report."""
    died = 0
    for moment in moments:
        process = _stage(*arguments)
        time.sleep(moment * seconds)
        process.send_signal(signal.SIGKILL)
        code = process.wait()
        if code == -signal.SIGKILL:
            died += not marker.exists()
        if marker.exists():  # It had finished: its output must be complete, and the next kill starts from scratch.
            found = report.read(str(marker))
            assert found is not None
            assert all(store.sha256(o["uri"]) == o["sha256"] for o in found["outputs"])
            marker.unlink()
    return died


def test_a_stage_killed_at_any_moment_ends_byte_equal(
    tmp_path: Path, texts: list[str], t5_dir: str, small_model: str
) -> None:
    """With a plan, as the tasks of a DAG run: without one, each process imports transformers for 5 CPU seconds."""
    write_corpus(tmp_path / "corpus/d.jsonl", texts * 40)
    calm, calm_arguments = _planned(tmp_path, "calm", t5_dir, small_model)
    stormy, arguments = _planned(tmp_path, "stormy", t5_dir, small_model)
    start = time.monotonic()
    assert _stage(*calm_arguments).wait() == 0
    seconds = time.monotonic() - start
    draw = random.Random(7)
    moments = [draw.uniform(0.2, 1.0) for _ in range(10)]
    assert _kill_at(moments, seconds, arguments, stormy / "report.json") >= 3
    assert _stage(*arguments).wait() == 0
    names = {path.name for path in calm.iterdir()}
    assert "chunks.npy" in names
    assert {path.name for path in stormy.iterdir()} == names, "leftovers of killed writers are gone"
    for name in names - {"report.json"}:
        assert (calm / name).read_bytes() == (stormy / name).read_bytes(), name


def _planned(folder: Path, root: str, tokenizer: str, model: str) -> tuple[Path, list[object]]:
    """Where the output will be, and the arguments of the stage."""
    uri = paths.plan_uri(str(folder / root), "d", "x")
    place = ("--root", folder / root, "--dataset", "d", "--output", uri, "--corpus", folder / "corpus")
    call("plan", *place, "--tokenizer", tokenizer, "--model", model)
    marker = paths.report_uri(read_plan(uri), "tokenize-and-chunk", "d")
    assert Path(marker).name == "report.json"
    return Path(marker).parent, ["tokenize-and-chunk", "--plan", uri, "--shard", "d"]


def test_a_table_gives_the_chunks_of_the_same_json_lines(tmp_path: Path, texts: list[str], t5_dir: str) -> None:
    corpus = write_corpus(tmp_path / "d.jsonl", texts)
    parquet.write_table(pa.table({"body": texts, "n": range(len(texts))}), tmp_path / "d.parquet", row_group_size=7)
    call("tokenize-and-chunk", corpus, *tokenize_flags(tmp_path / "lines", t5_dir))
    call("tokenize-and-chunk", tmp_path / "d.parquet", "--text-field", "body", *tokenize_flags(tmp_path / "t", t5_dir))
    for name in ("chunks.npy", "seq2chunk.npy", "chunk2seq.npy", "chunks.document_ids.npy"):
        assert (tmp_path / "lines" / name).read_bytes() == (tmp_path / "t" / name).read_bytes(), name
    sidecar = line_streams.lines([str(tmp_path / "t/chunks.documents.jsonl.zst")], 2**20)
    records = [json.loads(line or b"") for _, _, line in sidecar]
    assert [(of["line"], of["record"]) for of in records] == [(n + 1, {"n": n}) for n in range(len(texts))]
