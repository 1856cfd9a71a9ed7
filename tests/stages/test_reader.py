"""The reader on published and exported datasets, on local files and S3, while they are refreshed and pruned."""

import json
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from books import arrays_of
from nightly import Nights, place, three_versions
from original_loader import examples
from runs import call

from retro_data import Dataset, open_dataset
from retro_ops.errors import BadInputError
from retro_ops.plan import paths
from retro_ops.plan.plan import Plan
from retro_ops.storage import store
from retro_ops.versions import history, leases

REPOSITORY = Path(__file__).resolve().parents[2]


def check_rows(dataset: Dataset, plan: Plan) -> None:
    """Every array of both splits, against the files of the stages."""
    found = arrays_of(plan)
    for split in plan.splits():
        of = dataset.splits[split]
        names = [shard.name for shard in plan.queried(split)]
        expected = {
            kind: np.concatenate([found[f"{name}/{kind}"] for name in names])
            for kind in ("chunks", "neighbours", "embeddings")
        }
        np.testing.assert_array_equal(of[:].tokens, expected["chunks"])
        np.testing.assert_array_equal(of[:].neighbours, expected["neighbours"])
        np.testing.assert_array_equal(of.embeddings(1, len(of)), expected["embeddings"][1:])
        assert (np.diff(of[:].distances) >= 0).all()


def test_a_published_dataset_as_the_original_reads_its_export(built: Nights, tmp_path: Path) -> None:
    plan = built.runs[0].plan
    call("export", *place(built), "--to", tmp_path / "exported")
    with open_dataset(f"{built.root}/d", cache=str(tmp_path / "cache")) as dataset:
        assert repr(dataset.train) == f"Split('train', {len(dataset.train):,} rows)"
        assert len(repr(dataset)) < 500
        assert dataset.version == 1
        check_rows(dataset, plan)
        for uri, of in (("train", dataset.train), ("val", dataset.val)):
            windows, number = of.windows(10_000), 0
            for expected in examples(tmp_path / f"exported/{uri}.data.spec.json", k=2, pad=of.pad_id):
                batch = windows.batch([number], k=2)
                chunks, tokens = len(expected.neighbour_ids), len(expected.input_ids)
                np.testing.assert_array_equal(batch["input_ids"][0, :tokens], expected.input_ids)
                np.testing.assert_array_equal(batch["labels"][0, :tokens], expected.labels)
                np.testing.assert_array_equal(batch["neighbour_ids"][0, :chunks], expected.neighbour_ids)
                number += 1
            assert number == len(windows)
        exported = open_dataset(str(tmp_path / "exported"), cache=str(tmp_path / "cache"))
        assert exported.version is None
        check_rows(exported, plan)
        assert exported.train.fingerprint == dataset.train.fingerprint


def test_documents_and_text(built: Nights, tmp_path: Path) -> None:
    with open_dataset(f"{built.root}/d", cache=str(tmp_path)) as dataset:
        rows = dataset.train[:]
        documents, near = rows.documents(), rows.neighbour_documents()
        read = {document.source: Path(str(document.source)).read_text().splitlines() for document in documents}
        seen = set()
        for text, document in zip(rows.text(), documents, strict=True):
            assert document.source == f"{built.folder}/train/{document.shard}.jsonl"
            whole = json.loads(read[document.source][int(document.line or 0) - 1])["text"].lower()
            assert "".join(text.split()).removeprefix("##") in "".join(whole.split())
            seen.add((document.shard, document.number))
        assert len(seen) == 9
        for own, row, found in zip(documents, rows.neighbours.tolist(), near, strict=True):
            assert [document is None for document in found] == [neighbour == -1 for neighbour in row]
            assert own not in found
        val = dataset.val[0]
        assert len(val.neighbour_text(continuation=1)[0]) == dataset.val.num_neighbours
        assert val.documents()[0].shard == "v"
        assert len(set(dataset.train.document_ids(0, len(rows)).tolist())) == len(seen)
        assert len(list(tmp_path.rglob("*.lines"))) == 4


def test_remote_files_are_copied_once_for_all_processes_and_checked(built: Nights, tmp_path: Path, s3: str) -> None:
    plan = built.runs[0].plan
    for uri in store.at(plan.root).list(plan.root):
        store.write(f"{s3}/reader{uri.removeprefix(plan.root)}", store.read(uri))
    program = (
        "import sys, retro_data as r; d = r.open_dataset(sys.argv[1], cache=sys.argv[2]);"
        "print(int(d.train[:].retrieved().sum()), int(d.val[:].retrieved().sum())); d.close()"
    )
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY}/reader"}
    command = [sys.executable, "-c", program, f"{s3}/reader/d", str(tmp_path)]
    readers = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {reader.communicate(timeout=120)[0] for reader in readers}
    with open_dataset(f"{built.root}/d") as local:
        train, val = local.train[:].retrieved().sum(), local.val[:].retrieved().sum()
    assert answers == {f"{train} {val}\n"}
    assert leases.leased(f"{s3}/reader", "d") == {}
    copies = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert len(copies) == 3 * 4  # chunks, chunk2seq and neighbours of four shards
    before = {path: path.stat().st_mtime_ns for path in copies}
    with open_dataset(f"{s3}/reader/d", cache=str(tmp_path)) as dataset:
        check_rows(dataset, plan)
    assert {path: path.stat().st_mtime_ns for path in copies} == before
    damaged = f"{s3}/reader{paths.chunks_files(plan, 'b')['chunks'].removeprefix(plan.root)}"
    store.write(damaged, store.read(damaged)[:-1] + b"x")
    with (
        open_dataset(f"{s3}/reader/d", cache=str(tmp_path / "other")) as dataset,
        pytest.raises(BadInputError, match="is not what was written"),
    ):
        _ = dataset.train[0].tokens


def test_an_open_version_outlives_prune_and_refresh(built: Nights) -> None:
    """Another thread opens the first and the current version all the time: all reads of a version are the same."""
    uri = f"{built.root}/d"
    first = open_dataset(uri)
    expected = first.train[:].retrieved()
    stop, seen = threading.Event(), defaultdict(set)

    def read() -> None:
        while not stop.is_set():
            for version in (1, None):
                with open_dataset(uri, version) as again:
                    rows = again.train[:]
                    seen[again.version].add((rows.tokens.tobytes(), rows.retrieved().tobytes()))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        three_versions(built)
        while 3 not in seen and reader.is_alive():  # An open version 2 would outlive prune too.
            time.sleep(0.01)
        for path in [p for p in Path(built.root).rglob("*") if "readers" not in p.parts]:
            os.utime(path, (time.time() - 7 * 86_400,) * 2)
        call("prune", *place(built), "--keep", 1, "--yes")
    finally:
        stop.set()
        reader.join()
    assert len(seen) > 1
    assert [version for version, contents in seen.items() if len(contents) > 1] == []
    assert seen[1] == {(first.train[:].tokens.tobytes(), expected.tobytes())}
    assert set(built.series().entries) == {1, 3}
    np.testing.assert_array_equal(open_dataset(uri, 1, lease=False).train[:].retrieved(), expected)
    assert open_dataset(uri, lease=False).version == 3
    # Dropped in the moment between the lease and its look at current.json, so that only the lease has the entry.
    series = built.series()
    history.write(replace(series, entries={3: series.entries[3]}))
    call("prune", *place(built), "--keep", 1, "--yes")
    np.testing.assert_array_equal(first.train[:].retrieved(), expected)
    assert store.exists(series.plan_uri(1))
    first.close()
    assert not list(Path(built.root).rglob("readers/*"))
    call("prune", *place(built), "--keep", 1, "--yes")
    assert not store.exists(series.plan_uri(1))
    assert set(built.series().entries) == {3}
    with pytest.raises(BadInputError, match="d has no version 1"):
        open_dataset(uri, 1)
    assert not list(Path(built.root).rglob("readers/*"))


def test_the_notebook_shows_chunks_beside_their_neighbours(
    built: Nights, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its code, cell by cell, without a notebook server."""
    monkeypatch.setenv("DATASET", f"{built.root}/d")
    notebook = json.loads((REPOSITORY / "examples/neighbours.ipynb").read_text())
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec("".join(cell["source"]), names)
    printed = capsys.readouterr().out
    with open_dataset(f"{built.root}/d", lease=False) as dataset:
        assert f"version 1: {len(dataset.train)} chunks of 64 tokens" in printed
    assert "100.0% of" in printed
    assert printed.count(f"{built.folder}/train/") >= 6
