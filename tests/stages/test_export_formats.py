"""Exports of one version in every format hold the same rows; they continue, and refuse what is damaged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from books import build, make_corpus, plan_of
from pyarrow import parquet
from retro_pytorch_restated import sequence
from samples import Run, write_corpus

from retro_data import Dataset, open_dataset
from retro_ops.plan import paths
from retro_ops.plan.plan import Plan
from retro_ops.storage import store


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, run: Run, texts: list[str], small_model: str) -> Plan:
    """Three shards, of which one training shard is indexed only and the validation shard is queried only."""
    folder = tmp_path_factory.mktemp("formats")
    corpus = make_corpus(folder / "corpus", [text[:3000] for text in texts])
    licences = ["CC-BY-4.0", None, "MIT", "MIT", "CC0-1.0", "MIT"]
    documents = [{"text": t, "id": f"b{i}", "meta": {"license": licences[i]}} for i, t in enumerate(texts[6:12])]
    write_corpus(corpus / "train/01_b.jsonl", documents)
    choice = ("--indexed", "0*", "--queried", "00_a,val_a", "--max-leaked", "1")
    return build(run, plan_of(run, str(folder / "root"), str(corpus), small_model, small_model, *choice))


@pytest.fixture
def dataset(plan: Plan, tmp_path: Path) -> Dataset:
    return open_dataset(f"{plan.root}/books", cache=str(tmp_path / "cache"), lease=False)


def exported(run: Run, plan: Plan, to: Path, *flags: Any, code: int = 0) -> Path:
    run("export", "--root", plan.root, "--dataset", "books", "--to", to, *flags, code=code)
    return to


def test_parquet_has_every_chunk_with_its_text_neighbours_and_document(
    plan: Plan, run: Run, tmp_path: Path, dataset: Dataset
) -> None:
    to = exported(run, plan, tmp_path / "to", "--format", "parquet")
    index = dataset.val.index
    tables = {name: parquet.read_table(to / f"{name}.parquet") for name in ("train/00_a", "train/01_b", "val/val_a")}
    ids = np.concatenate([tables[f"train/{name}"]["id"].to_numpy() for name in ("00_a", "01_b")])
    np.testing.assert_array_equal(ids, np.arange(len(index)))
    tokens = [row for name in ("00_a", "01_b") for row in tables[f"train/{name}"]["tokens"].to_pylist()]
    np.testing.assert_array_equal(tokens, index.take("chunks", np.arange(len(index))))
    assert tables["val/val_a"]["id"].null_count == len(dataset.val)
    for name, rows in (("train/00_a", dataset.train[:]), ("val/val_a", dataset.val[:])):
        table = tables[name].to_pydict()
        assert table["text"] == rows.text()
        np.testing.assert_array_equal(table["neighbours"], rows.neighbours)
        np.testing.assert_array_equal(np.array(table["distances"], np.float32), rows.distances)
        assert table["document"] == [document.number for document in rows.documents()]
        assert set(table["category"]) == {"a"}
    assert "neighbours" not in tables["train/01_b"].column_names
    documents = parquet.read_table(to / "documents/01_b.parquet").to_pydict()
    assert documents["license"] == ["CC-BY-4.0", None, "MIT", "MIT", "CC0-1.0", "MIT"]
    assert documents["id"] == [f"b{number}" for number in range(6)]
    assert documents["line"] == list(range(1, 7))
    assert json.loads(documents["record"][0])["meta"] == {"license": "CC-BY-4.0"}
    identities = dataset.train.document_ids(0, len(dataset.train))[np.unique(dataset.train[:].numbers * 0)]
    assert parquet.read_table(to / "documents/00_a.parquet")["document_id"][0].as_py() == identities[0]


def test_retro_pytorch_reads_the_same_sequences(plan: Plan, run: Run, tmp_path: Path, dataset: Dataset) -> None:
    to = exported(run, plan, tmp_path / "to", "--format", "lucidrains", "--sequence-length", 256)
    for name in ("train", "val"):
        split, counted = dataset.splits[name], 0
        windows = split.windows(4)
        for number in range(len(windows)):
            tokens, retrieved = sequence(to, name, number)
            batch = windows.batch([number])
            chunks = int(batch["chunks"][0])
            np.testing.assert_array_equal(tokens[:-1], batch["input_ids"][0])
            np.testing.assert_array_equal(retrieved[:chunks], batch["neighbour_ids"][0, :chunks])
            counted += chunks
        assert counted == len(split)
        assert json.loads((to / "retro.json").read_text())["num_sequences"][name] == len(windows)
    assert (to / "documents/01_b.documents.jsonl.zst").exists()


def test_only_what_a_trainer_reads_and_only_some_shards(plan: Plan, run: Run, tmp_path: Path, dataset: Dataset) -> None:
    to = exported(run, plan, tmp_path / "to", "--only", "trainer", "--shards", "00_*")
    names = {path.relative_to(to).as_posix() for path in to.rglob("*") if path.is_file()}
    assert not [name for name in names if name.endswith((".index", ".embeddings.npy"))]
    assert not [name for name in names if "val" in name]
    with open_dataset(str(to), cache=str(tmp_path / "cache")) as copy:
        assert list(copy.splits) == ["train"]
        np.testing.assert_array_equal(copy.train[:].retrieved(), dataset.train[:].retrieved())
        assert copy.train[:].text() == dataset.train[:].text()
        assert copy.train[3].documents() == dataset.train[3].documents()
    exported(run, plan, to, "--shards", "0x*", code=65)


@pytest.mark.parametrize("layout", ["original", "lucidrains", "parquet"])
def test_an_export_continues_and_refuses_damaged_inputs(
    plan: Plan, run: Run, tmp_path: Path, layout: str, capfd: pytest.CaptureFixture[str]
) -> None:
    to = exported(run, plan, tmp_path / "to", "--format", layout)
    files = json.loads((to / "export.json").read_text())["files"]
    times = {name: (to / name).stat().st_mtime_ns for name in files}
    lost, changed = sorted(files)[-2:]
    (to / lost).unlink()
    (to / changed).write_bytes(b"x" + (to / changed).read_bytes()[1:])
    exported(run, plan, to, "--format", layout)
    again = json.loads((to / "export.json").read_text())["files"]
    assert {name: of["sha256"] for name, of in again.items()} == {name: of["sha256"] for name, of in files.items()}
    assert {name for name in files if (to / name).stat().st_mtime_ns != times[name]} == {lost, changed}
    for name, of in files.items():
        assert store.sha256(str(to / name)) == of["sha256"]
    other = "parquet" if layout != "parquet" else "original"
    exported(run, plan, to, "--format", other, code=65)
    assert "holds an export with layout" in capfd.readouterr().err
    damaged = paths.neighbours_uri(plan, "00_a")
    sound = store.read(damaged)
    try:
        store.write(damaged, sound[:-1] + bytes([sound[-1] ^ 1]))
        exported(run, plan, tmp_path / "other", "--format", layout, code=65)
    finally:
        store.write(damaged, sound)
    assert f"{damaged} was modified after its stage wrote it" in capfd.readouterr().err
    assert not list((tmp_path / "other").rglob("*knn*"))
    assert not list((tmp_path / "other").rglob("00_a.parquet"))
    assert not list((tmp_path / "other").rglob("00_a.neighbours.npy"))
