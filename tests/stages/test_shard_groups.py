"""Several shards in one call: the same bytes as one by one, and one that is bad keeps no other from being done."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from samples import Run, build_in_groups, write_corpus

from retro_ops.errors import BadInputError, TransientError
from retro_ops.execution import report, shard_groups
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Identity, Plan, Shard
from retro_ops.search import hits, reranking
from retro_ops.storage import store

INDEX_TYPES = ("IVF4,PQ8x4", "Flat", "PCA16,IVF4,SQ8", "IVF4,PQ8x4fs")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number, name in enumerate(("train/a", "train/b", "train/c", "val/v")):
        write_corpus(folder / f"{name}.jsonl", [text[:1500] for text in texts[3 + 3 * number : 6 + 3 * number]])
    return folder


@pytest.fixture
def plan_uri(tmp_path: Path, run: Run, corpus: Path, small_model: str) -> str:
    return planned(run, tmp_path, corpus, small_model, "IVF4,PQ8x4")


def planned(run: Run, root: Path, corpus: Path, model: str, index_type: str) -> str:
    uri = paths.plan_uri(str(root), "d", index_type)
    run(
        *("plan", "--root", root, "--dataset", "d", "--output", uri, "--tokenizer", model, "--model", model),
        *("--corpus", corpus / "train", "--validation-corpus", corpus / "val", "--index-type", index_type),
    )
    return uri


def contents(root: Path) -> dict[str, str]:
    """Digest of every file that holds data; reports hold times."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.suffix in (".npy", ".index", ".zst") or path.name.endswith("spec.json")
    }


def test_groups_write_the_bytes_of_single_shards(tmp_path: Path, run: Run, corpus: Path, small_model: str) -> None:
    """A trained index of any type that is filled again and again is as it was loaded."""
    for size in (1, 4):
        for index_type in INDEX_TYPES:
            build_in_groups(run, planned(run, tmp_path / str(size), corpus, small_model, index_type), size)
    one, together = contents(tmp_path / "1"), contents(tmp_path / "4")
    assert len([name for name in one if name.endswith("partial.index")]) == 4 * len(INDEX_TYPES)
    assert together == one


def test_what_is_wrong_with_one_shard_keeps_no_other_from_being_done(
    run: Run, plan_uri: str, corpus: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = read_plan(plan_uri)
    path = corpus / "train/b.jsonl"
    content = path.read_text()
    path.write_text("changed")
    run("tokenize-and-chunk", "--plan", plan_uri, "--shard", "a,b,c", code=65)
    said = capfd.readouterr().err
    assert "1 of 3 shards failed: b: " in said
    assert "has changed" in said
    assert done(plan, "tokenize-and-chunk") == ["a", "c"]
    run("embed-chunks", "--plan", plan_uri, "--shard", "a,b,c", code=65)
    assert "1 of 3 shards failed: b: " in capfd.readouterr().err
    assert done(plan, "embed-chunks") == ["a", "c"]
    path.write_text(content)
    run("tokenize-and-chunk", "--plan", plan_uri, "--shard", "a,b,c")
    assert capfd.readouterr().err.count("already done") == 2
    assert done(plan, "tokenize-and-chunk") == ["a", "b", "c"]


def test_small_shards_of_a_group_are_searched_for_together(
    run: Run, plan_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each search reads the embeddings of its candidates, for any number of rows."""
    build_in_groups(run, plan_uri, 4)
    plan, rows = read_plan(plan_uri), list[int]()
    find = reranking.find

    def counting(queries: hits.Queries, *more: Any) -> hits.Found:
        rows.append(len(queries))
        return find(queries, *more)

    monkeypatch.setattr(reranking, "find", counting)
    reports = [paths.report_uri(plan, "retrieve-neighbours", name) for name in "abcv"]
    for uri in (reports[0], reports[2], reports[3]):  # The second one is done.
        store.at(uri).delete(uri)
    run("retrieve-neighbours", "--plan", plan_uri, "--shard", "a,b,c,v")
    counts = [report.require(uri, "it")["counts"]["rows"] for uri in reports]
    assert rows == [counts[0] + counts[2], counts[3]]


def done(plan: Plan, stage: str) -> list[str]:
    return [shard.name for shard in plan.shards if store.exists(paths.report_uri(plan, stage, shard.name))]


def test_a_group_must_be_of_the_plan(run: Run, plan_uri: str, capfd: pytest.CaptureFixture[str]) -> None:
    run("tokenize-and-chunk", "--plan", plan_uri, "--shard", "a,x", code=65)
    assert "has no shard 'x'" in capfd.readouterr().err
    assert done(read_plan(plan_uri), "tokenize-and-chunk") == []
    run("tokenize-and-chunk", "--plan", plan_uri, code=65)
    assert "--shard A,B" in capfd.readouterr().err


def fail_with(error: BaseException, at: str, seen: list[str]) -> Callable[[str], None]:
    def work(name: str) -> None:
        seen.append(name)
        if name == at:
            raise error

    return work


@pytest.mark.parametrize(
    ("error", "raised", "seen"),
    [
        (BadInputError("bad line"), BadInputError, ["a", "b", "c"]),
        (ZeroDivisionError("by nothing"), RuntimeError, ["a", "b", "c"]),
        (TransientError("no answer"), TransientError, ["a", "b"]),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, ["a", "b"]),
    ],
)
def test_which_trouble_ends_a_group(error: BaseException, raised: type[BaseException], seen: list[str]) -> None:
    shards = tuple(Shard(name, "train", ()) for name in ("a", "b", "c"))
    plan = Plan("d", "/r", Parameters(), Identity("t", 100, 0, "m", 8), shards)
    found: list[str] = []
    with pytest.raises(raised, match=str(error)):
        shard_groups.each("embed-chunks", plan, ["a", "b", "c"], fail_with(error, "b", found))
    assert found == seen
