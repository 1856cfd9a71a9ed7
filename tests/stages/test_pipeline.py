"""Every stage of a plan, locally and on a real S3 server."""

from pathlib import Path

import numpy as np
import pytest
from books import arrays_of, build, make_corpus, plan_of
from samples import Run

from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths
from retro_ops.storage import store


def test_s3_and_local_give_the_same_dataset_and_a_rerun_does_nothing(
    tmp_path: Path, run: Run, texts: list[str], small_model: str, s3: str, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus = make_corpus(tmp_path / "corpus", texts)
    for path in corpus.rglob("*.jsonl"):
        store.write(f"{s3}/corpus/{path.relative_to(corpus)}", path.read_bytes())
    local = build(run, plan_of(run, str(tmp_path / "root"), str(corpus), small_model, small_model))
    uri = plan_of(run, f"{s3}/root", f"{s3}/corpus", small_model, small_model)
    remote = build(run, uri)
    expected, found = arrays_of(local), arrays_of(remote)
    assert set(expected) == set(found)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert (found["val_a/neighbours"] >= 0).all()
    before = {name: store.read(name) for name in store.at(s3).list(f"{s3}/root")}
    capfd.readouterr()
    build(run, uri)
    assert "started" not in capfd.readouterr().err
    assert {name: store.read(name) for name in store.at(s3).list(f"{s3}/root")} == before
    changed = plan_of(run, f"{s3}/root", f"{s3}/corpus", small_model, small_model, "--chunk-size", "32")
    shard = remote.shards[0].name
    assert paths.chunks_files(read_plan(changed), shard) != paths.chunks_files(remote, shard)
