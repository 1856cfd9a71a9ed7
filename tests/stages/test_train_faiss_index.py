"""The index type that a corpus gets, and the sample that it is trained on."""

import json
from pathlib import Path

import numpy as np
import pytest
from books import build, make_corpus, plan_of
from counting import CountingStore
from samples import Run, write_index_spec

from retro_ops import memory
from retro_ops.execution import report
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.specs import index_spec_from_json
from retro_ops.stages.train_faiss_index import _sample
from retro_ops.storage import store
from retro_ops.storage.npy import NpyReader, open_npy


def test_a_corpus_too_small_for_its_index_type_fails_or_gets_another_type_on_request(
    tmp_path: Path, run: Run, texts: list[str], small_model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus = make_corpus(tmp_path / "corpus", texts)
    uri = plan_of(run, str(tmp_path / "root"), str(corpus), small_model, small_model, "--index-type", "IVF4096,PQ8")
    for stage in ("tokenize-and-chunk", "embed-chunks"):
        for shard in read_plan(uri).shards:
            run(stage, "--plan", uri, "--shard", shard.name)
    run("train-faiss-index", "--plan", uri, code=65)
    assert "too few to train index type 'IVF4096,PQ8'" in capfd.readouterr().err
    options = ("--index-type", "IVF4096,PQ8", "--index-too-small", "downgrade")
    plan = build(run, plan_of(run, str(tmp_path / "root"), str(corpus), small_model, small_model, *options))
    card = json.loads(store.read(paths.card_uri(plan, "json")))
    assert card["index_type"]["type"] == "Flat"
    assert "instead of IVF4096,PQ8, as " in card["index_type"]["why"]


def test_an_index_type_of_auto_is_chosen_and_recorded(
    tmp_path: Path, run: Run, texts: list[str], small_model: str
) -> None:
    corpus = make_corpus(tmp_path / "corpus", texts)
    uri = plan_of(run, str(tmp_path / "root"), str(corpus), small_model, small_model, "--index-type", "auto")
    plan = build(run, uri)
    made = report.read(paths.report_uri(plan, "train-faiss-index"))
    assert made is not None
    assert made["details"]["index_type"] == "Flat"
    assert "brute force is cheapest" in made["details"]["why"]
    tuned = report.read(paths.report_uri(plan, "tune-search"))
    assert tuned is not None
    assert tuned["details"]["train"]["recall"] > 0.95


def synthetic(folder: Path) -> Path:
    """Three shards of 80,000 vectors in all, and their index spec."""
    rng = np.random.default_rng(0)
    for name, count in (("a", 30_000), ("b", 10), ("c", 49_990)):
        (folder / name).mkdir()
        np.save(folder / name / "embeddings.npy", rng.standard_normal((count, 8)).astype(np.float16))
    return write_index_spec(folder / "index.spec.json", [folder / name for name in "abc"])


def opened(spec: Path) -> list[NpyReader]:
    return [open_npy(shard.embeddings) for shard in index_spec_from_json(spec.read_bytes(), str(spec))]


def test_bytes_read_for_training_are_a_small_multiple_of_the_sample(tmp_path: Path, counted: CountingStore) -> None:
    shards = opened(synthetic(tmp_path))
    counted.bytes.clear()
    sample = _sample(shards, 5_000, Parameters(), np.dtype(np.float16))
    assert sample.nbytes <= sum(counted.bytes.values()) < 3 * sample.nbytes


def test_a_sample_of_everything_is_all_rows_in_order(tmp_path: Path) -> None:
    shards = opened(synthetic(tmp_path))
    every = np.concatenate([shard.rows(0, len(shard)) for shard in shards])
    for wanted in (80_000, 10**7):
        found = _sample(shards, wanted, Parameters(), np.dtype(np.float32))
        assert np.array_equal(found, every.astype(np.float32))
    some = _sample(shards, 5_000, Parameters(), np.dtype(np.float16))
    places = {row.tobytes(): number for number, row in enumerate(every)}
    numbers = [places[row.tobytes()] for row in some]
    assert numbers == sorted(set(numbers))


def test_a_sample_that_exceeds_its_limit_is_refused_with_the_reason(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = synthetic(tmp_path)
    train = ("train-faiss-index", "--spec", spec, "--output", tmp_path / "x.index", "--index-type", "IVF16,Flat")
    run(*train, "--max-training-vectors", 10_000, "--memory-budget", "300KiB", code=65)
    assert "the limit is 0.0 GiB (--memory-budget)" in capfd.readouterr().err
    # At its default the limit is that of the machine.
    monkeypatch.setattr(memory, "_machine_memory", lambda: 2**20)
    run(*train, "--max-training-vectors", 20_000, code=65)
    assert "the limit is 0.0 GiB (three eighths of 0.0 GiB)" in capfd.readouterr().err
    run(*train, "--max-training-vectors", 20_000, "--memory-budget", "1GiB")
