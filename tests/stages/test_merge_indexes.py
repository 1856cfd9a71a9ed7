"""Merged indexes: byte for byte those of one serial build."""

from pathlib import Path

import faiss
import numpy as np
import pytest
from books import arrays_of, build, make_corpus, plan_of
from samples import Run, synthetic_shard, write_index_spec

from retro_ops.plan import paths


def test_the_validation_index_extends_the_training_index(
    tmp_path: Path, run: Run, texts: list[str], small_model: str
) -> None:
    corpus = make_corpus(tmp_path / "corpus", texts)
    plan = build(run, plan_of(run, str(tmp_path / "root"), str(corpus), small_model, small_model))
    train, val = (faiss.read_index(paths.index_uri(plan, split)) for split in ("train", "val"))
    found = arrays_of(plan)
    rows = np.concatenate([found[f"{s}/embeddings"] for s in ("00_a", "01_b", "val_a")]).astype(np.float32)
    assert train.ntotal == len(rows) - len(found["val_a/embeddings"])
    for index in (train, val):
        index.make_direct_map()
        np.testing.assert_array_equal(index.reconstruct_n(0, index.ntotal), rows[: index.ntotal])


@pytest.mark.parametrize("index_type", ["Flat", "IVF8,Flat", "IVF8,PQ8x4", "OPQ8,IVF8,PQ8x4", "PCA16,IVF8,SQ8"])
def test_merged_partials_are_byte_equal_to_one_serial_build(tmp_path: Path, run: Run, index_type: str) -> None:
    shards = [synthetic_shard(tmp_path / name, [200 + 50 * i], i) for i, name in enumerate("abc")]
    spec = write_index_spec(tmp_path / "spec.json", shards)
    trained, serial, merged = (tmp_path / f"{name}.index" for name in ("trained", "serial", "merged"))
    run("train-faiss-index", "--spec", spec, "--index-type", index_type, "--output", trained)
    common = ("build-faiss-index", "--spec", spec, "--trained-index", trained)
    run(*common, "--output-index", serial)
    partials = [tmp_path / f"partial{i}.index" for i in range(3)]
    for i, partial in enumerate(partials):
        run(*common, "--output-index", partial, "--only-shard", i)
    run("merge-indexes", "--base-index", trained, "--partials", *partials, "--output-index", merged)
    assert merged.read_bytes() == serial.read_bytes()


def test_a_partial_index_of_another_training_is_refused(tmp_path: Path, run: Run) -> None:
    spec = write_index_spec(tmp_path / "spec.json", [synthetic_shard(tmp_path / "a", [300], 0)])
    for name, lists in (("one", 8), ("two", 4)):
        run(
            *("train-faiss-index", "--spec", spec, "--index-type", f"IVF{lists},Flat"),
            *("--output", tmp_path / f"{name}.index"),
        )
    files = ("--trained-index", tmp_path / "one.index", "--output-index", tmp_path / "part.index")
    run("build-faiss-index", "--spec", spec, *files)
    merge = ("merge-indexes", "--base-index", tmp_path / "two.index", "--partials", tmp_path / "part.index")
    run(*merge, "--output-index", tmp_path / "out.index", code=65)
