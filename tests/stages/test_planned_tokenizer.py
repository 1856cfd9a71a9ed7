"""Tasks of a plan read the tokenizer that `plan` stored, so they need neither its folder nor transformers."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from runs import call
from samples import write_corpus

from retro_ops.errors import ConfigurationError
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths
from retro_ops.tokens.tokenizer import Tokenizer, planned

PROGRAM = """
import sys
from retro_ops.cli import main
code = main(["tokenize-and-chunk", "--plan", sys.argv[1], "--shard", "a"])
sys.exit(code or (3 if "transformers" in sys.modules else 0))
"""


@pytest.fixture
def uri(tmp_path: Path, model_dir: str) -> str:
    """A plan whose tokenizer is gone."""
    folder = tmp_path / "tokenizer"
    shutil.copytree(model_dir, folder)
    write_corpus(tmp_path / "corpus" / "a.jsonl", ["a text", "another"])
    uri = paths.plan_uri(str(tmp_path / "root"), "d", "x")
    place = ("--root", tmp_path / "root", "--dataset", "d", "--output", uri)
    call("plan", *place, "--corpus", tmp_path / "corpus", "--tokenizer", folder, "--model", model_dir)
    shutil.rmtree(folder)
    return uri


def test_a_task_needs_neither_the_tokenizer_nor_transformers(uri: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", PROGRAM, uri], env=environment, check=False).returncode == 0


def test_it_is_the_tokenizer_that_was_planned_with(uri: str, model_dir: str) -> None:
    stored, loaded = planned(uri, read_plan(uri)), Tokenizer.load(model_dir)
    for name in ("json", "digest", "pad_id", "cleans_up", "vocabulary_size", "encoding", "decoding"):
        assert getattr(stored, name) == getattr(loaded, name), name


def test_another_tokenizer_is_not_taken_for_it(uri: str) -> None:
    stored = Path(paths.tokenizer_uri(uri))
    content = json.loads(stored.read_text())
    content["tokenizer"] = content["tokenizer"].replace('"the"', '"eht"')
    stored.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match="cannot load tokenizer"):
        planned(uri, read_plan(uri))


def test_a_name_that_means_another_tokenizer_by_now_is_refused(uri: str, model_dir: str, t5_dir: str) -> None:
    Path(paths.tokenizer_uri(uri)).unlink()
    plan = read_plan(uri)
    back = replace(plan, parameters=replace(plan.parameters, tokenizer=model_dir))
    assert planned(uri, back).digest == plan.identity.tokenizer_digest
    moved = replace(plan, parameters=replace(plan.parameters, tokenizer=t5_dir, pad_id=0))
    digests = f"{Tokenizer.load(t5_dir, 0).digest}.*{plan.identity.tokenizer_digest}"
    with pytest.raises(ConfigurationError, match=digests):
        planned(uri, moved)
