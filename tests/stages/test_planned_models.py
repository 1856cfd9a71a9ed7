"""Tasks of a plan use the tokenizer and the model that it was made with: those that `plan` stored, else by name if they
are the same."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models
from runs import call
from samples import Run, write_corpus

import retro_ops
from retro_ops.embedding.model import open_model
from retro_ops.errors import ConfigurationError
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths
from retro_ops.quality import recompute
from retro_ops.tokens.tokenizer import Tokenizer, planned

PROGRAM = """
import sys
from retro_ops.cli import main
code = main(["tokenize-and-chunk", "--plan", sys.argv[1], "--shard", "a"])
sys.exit(code or (3 if "transformers" in sys.modules else 0))
"""


@pytest.fixture
def uri(tmp_path: Path, small_model: str) -> str:
    """A plan whose tokenizer is gone."""
    folder = tmp_path / "tokenizer"
    shutil.copytree(small_model, folder)
    write_corpus(tmp_path / "corpus" / "a.jsonl", ["a text", "another"])
    uri = paths.plan_uri(str(tmp_path / "root"), "d", "x")
    place = ("--root", tmp_path / "root", "--dataset", "d", "--output", uri)
    call("plan", *place, "--corpus", tmp_path / "corpus", "--tokenizer", folder, "--model", small_model)
    shutil.rmtree(folder)
    return uri


def test_a_task_needs_neither_the_tokenizer_nor_transformers(uri: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", PROGRAM, uri], env=environment, check=False).returncode == 0


def test_it_is_the_tokenizer_that_was_planned_with(uri: str, small_model: str) -> None:
    stored, loaded = planned(uri, read_plan(uri)), Tokenizer.load(small_model)
    for name in ("json", "digest", "pad_id", "cleans_up", "vocabulary_size", "encoding", "decoding"):
        assert getattr(stored, name) == getattr(loaded, name), name


def test_another_tokenizer_is_not_taken_for_it(uri: str) -> None:
    stored = Path(paths.tokenizer_uri(uri))
    content = json.loads(stored.read_text())
    content["tokenizer"] = content["tokenizer"].replace('"the"', '"eht"')
    stored.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match="cannot load tokenizer"):
        planned(uri, read_plan(uri))


def test_a_name_that_means_another_tokenizer_by_now_is_refused(uri: str, small_model: str, t5_dir: str) -> None:
    Path(paths.tokenizer_uri(uri)).unlink()
    plan = read_plan(uri)
    back = replace(plan, parameters=replace(plan.parameters, tokenizer=small_model))
    assert planned(uri, back).digest == plan.identity.tokenizer_digest
    moved = replace(plan, parameters=replace(plan.parameters, tokenizer=t5_dir, pad_id=0))
    digests = f"{Tokenizer.load(t5_dir, 0).digest}.*{plan.identity.tokenizer_digest}"
    with pytest.raises(ConfigurationError, match=digests):
        planned(uri, moved)


@pytest.fixture
def model(tmp_path: Path, small_model: str) -> Path:
    from transformers import AutoTokenizer

    return Path(tiny_models.write(tmp_path / "tiny", "Bert", AutoTokenizer.from_pretrained(small_model)))


@pytest.fixture
def tokenised(tmp_path: Path, run: Run, model: Path, small_model: str) -> str:
    """The location of a plan whose two shards are tokenised."""
    for name in ("a", "b"):
        write_corpus(tmp_path / "corpus" / f"{name}.jsonl", [f"a text of {name}"])
    uri = paths.plan_uri(str(tmp_path / "root"), "d", "x")
    place = ("--root", tmp_path / "root", "--dataset", "d", "--output", uri)
    run("plan", *place, "--corpus", tmp_path / "corpus", "--tokenizer", small_model, "--model", model)
    run("tokenize-and-chunk", "--plan", uri, "--shard", "a,b")
    return uri


def change(model: Path) -> str:
    """Give the model another activation function. Its settings before."""
    settings = model / "config.json"
    text = settings.read_text()
    settings.write_text(text.replace('"gelu"', '"relu"'))
    return text


def test_no_shard_is_embedded_by_another_model(
    run: Run, tokenised: str, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Once for a group of shards, and before anything is written."""
    plan, before = read_plan(tokenised), change(model)
    capfd.readouterr()
    run("embed-chunks", "--plan", tokenised, "--shard", "a,b", code=78)
    said = capfd.readouterr().err
    digest = open_model(str(model)).digest
    refusal = f"model {str(model)!r} has changed: its digest is {digest}, the dataset was made with"
    assert said.count(refusal) == 1
    assert plan.identity.model_digest in said
    assert not any(Path(paths.embeddings_uri(plan, name)).parent.exists() for name in ("a", "b"))
    (model / "config.json").write_text(before)
    run("embed-chunks", "--plan", tokenised, "--shard", "a,b")


def test_recomputed_vectors_are_of_the_planned_model_and_tokenizer(
    run: Run, tokenised: str, model: Path, t5_dir: str
) -> None:
    run("embed-chunks", "--plan", tokenised, "--shard", "a,b")
    plan = read_plan(tokenised)
    assert list(recompute.embeddings(tokenised, plan, 1)) == []
    change(model)
    with pytest.raises(ConfigurationError, match=r"model .* has changed"):
        list(recompute.embeddings(tokenised, plan, 1))
    moved = replace(plan, parameters=replace(plan.parameters, tokenizer=t5_dir))
    Path(paths.tokenizer_uri(tokenised)).unlink()
    with pytest.raises(ConfigurationError, match=r"tokenizer .* has changed"):
        list(recompute.embeddings(tokenised, moved, 1))


def test_only_one_place_opens_a_model_to_embed() -> None:
    """So a new command cannot forget the comparison."""
    package = Path(retro_ops.__file__).parent
    made = {file.name for file in package.rglob("*.py") if re.search(r"\bEmbedder\(", file.read_text())}
    assert made == {"embedder.py"}
