"""What other projects' readers get from our exports equals what this project's reader gets from the same version."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seaweedfs import STAGES_BIN

from retro_data import Dataset, open_dataset

REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.filterwarnings("default")  # Theirs are not ours to fix.

SPLITS = {"train": ["00_a", "01_b"], "val": ["val_a"]}


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    words = [STAGES_BIN / "python", REPOSITORY / "tests/readers/exports.py", folder]
    subprocess.run(words, check=True, env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY}/reader"})
    return folder


@pytest.fixture(scope="module")
def ours(exports: Path) -> Iterator[Dataset]:
    with open_dataset(str(exports / "original")) as dataset:
        yield dataset


def expected(dataset: Dataset, split: str) -> dict[str, Any]:
    """Columns of the Parquet tables of a split that the reader has, too."""
    rows = dataset.splits[split][:]
    return {"tokens": rows.tokens, "neighbours": rows.neighbours, "distances": rows.distances}


def compare(found: dict[str, Any], dataset: Dataset, split: str) -> None:
    for name, array in expected(dataset, split).items():
        np.testing.assert_array_equal(np.array(list(found[name])), array)
    assert len(set(found["text"])) > 10
    assert set(found["category"]) <= {"a", "b"}


@pytest.mark.parametrize("split", SPLITS)
def test_datasets_loads_the_tables(exports: Path, ours: Dataset, split: str, tmp_path: Path) -> None:
    from datasets import load_dataset

    files = [f"{exports}/parquet/{split}/{name}.parquet" for name in SPLITS[split]]
    loaded = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    compare(loaded.to_dict(), ours, split)
    streamed = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path), streaming=True)
    assert [row["text"] for row in streamed] == loaded["text"][:]


@pytest.mark.parametrize("split", SPLITS)
def test_polars_scans_the_tables(exports: Path, ours: Dataset, split: str) -> None:
    import polars

    table = polars.scan_parquet(f"{exports}/parquet/{split}/*.parquet").collect()
    compare(table.to_dict(as_series=False), ours, split)
    near = table.filter(polars.col("distances").arr.get(0) < 1)
    assert 0 < len(near) <= len(table)


def test_duckdb_answers_the_questions_of_the_example(exports: Path, ours: Dataset, monkeypatch: Any) -> None:
    import duckdb

    monkeypatch.chdir(exports / "parquet")
    (rows,) = duckdb.sql("select count(*) from read_parquet('train/*.parquet')").fetchall()
    assert rows == (len(ours.train),)
    answers = [statement.fetchall() for statement in statements(duckdb.connect())]
    by_category, by_pair, nearest, licences = answers
    assert sum(count for _, count, _ in by_category) == len(ours.train)
    assert sum(count for *_, count in by_pair) == len(ours.train), "every chunk has a nearest neighbour"
    distances = [distance for distance, *_ in nearest]
    np.testing.assert_allclose(distances, np.sort(ours.train[:].distances[:, 0])[:5], atol=0.0006)
    assert licences == [("PSF-2.0", 30)]


def statements(connection: Any) -> Iterator[Any]:
    """Results of the statements of examples/neighbours.sql."""
    for statement in connection.extract_statements((REPOSITORY / "examples/neighbours.sql").read_text()):
        yield connection.execute(statement)


@pytest.mark.parametrize("split", SPLITS)
def test_retro_pytorch_reads_the_memory_maps(exports: Path, ours: Dataset, split: str) -> None:
    """Its own dataset class, with the arguments that the export names."""
    from retro_pytorch import RETRODataset

    folder = exports / "lucidrains"
    about = json.loads((folder / "retro.json").read_text())
    theirs = RETRODataset(
        num_chunks=about["num_chunks"],
        num_sequences=about["num_sequences"][split],
        num_neighbors=about["num_neighbors"],
        chunk_size=about["chunk_size"],
        seq_len=about["seq_len"],
        eos_id=about["eos_id"],
        pad_id=about["pad_id"],
        chunk_memmap_path=str(folder / "chunks.dat"),
        chunk_nn_memmap_path=str(folder / "chunks.knn.dat"),
        seq_memmap_path=str(folder / f"{split}.seq.dat"),
    )
    windows = ours.splits[split].windows(about["seq_len"] // about["chunk_size"])
    assert len(theirs) == len(windows)
    chunks = 0
    for number in range(len(windows)):
        tokens, retrieved = theirs[number]
        batch = windows.batch([number])
        of_window = int(batch["chunks"][0])
        np.testing.assert_array_equal(tokens[:-1], batch["input_ids"][0])
        np.testing.assert_array_equal(retrieved[:of_window], batch["neighbour_ids"][0, :of_window])
        chunks += of_window
    assert chunks == len(ours.splits[split])
