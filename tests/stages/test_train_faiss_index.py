"""The index type that a corpus gets."""

import json
from pathlib import Path

import pytest
from books import build, make_corpus, plan_of
from samples import Run

from retro_ops.execution import report
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths
from retro_ops.storage import store


def test_a_corpus_too_small_for_its_index_type_fails_or_gets_another_type_on_request(
    tmp_path: Path, run: Run, texts: list[str], model_dir: str, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus = make_corpus(tmp_path / "corpus", texts)
    uri = plan_of(run, str(tmp_path / "root"), str(corpus), model_dir, model_dir, "--index-type", "IVF4096,PQ8")
    for stage in ("tokenize-and-chunk", "embed-chunks"):
        for shard in read_plan(uri).shards:
            run(stage, "--plan", uri, "--shard", shard.name)
    run("train-faiss-index", "--plan", uri, code=65)
    assert "too few to train index type 'IVF4096,PQ8'" in capfd.readouterr().err
    options = ("--index-type", "IVF4096,PQ8", "--index-too-small", "downgrade")
    plan = build(run, plan_of(run, str(tmp_path / "root"), str(corpus), model_dir, model_dir, *options))
    card = json.loads(store.read(paths.card_uri(plan, "json")))
    assert card["index_type"]["type"] == "Flat"
    assert "instead of IVF4096,PQ8, as " in card["index_type"]["why"]


def test_an_index_type_of_auto_is_chosen_and_recorded(
    tmp_path: Path, run: Run, texts: list[str], model_dir: str
) -> None:
    corpus = make_corpus(tmp_path / "corpus", texts)
    uri = plan_of(run, str(tmp_path / "root"), str(corpus), model_dir, model_dir, "--index-type", "auto")
    plan = build(run, uri)
    made = report.read(paths.report_uri(plan, "train-faiss-index"))
    assert made is not None
    assert made["details"]["index_type"] == "Flat"
    assert "brute force is cheapest" in made["details"]["why"]
    tuned = report.read(paths.report_uri(plan, "tune-search"))
    assert tuned is not None
    assert tuned["details"]["train"]["recall"] > 0.95
