"""Ids renumbered, neighbours updated, drift, the series of versions, dated corpora."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from retro_ops.corpus import json_lines
from retro_ops.errors import BadInputError
from retro_ops.index import drift
from retro_ops.plan import digests, paths
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Base, BaseShard, Identity, Plan, Shard, Source, Split, plan_from_json, plan_to_json
from retro_ops.search import reranking
from retro_ops.search.exact import NOTHING, pack, unpack
from retro_ops.search.renumbering import GONE, renumber
from retro_ops.versions import history
from retro_ops.versions.changes import compare


def test_ids_move_with_their_shards() -> None:
    # Shards of 3, 2 and 4 chunks; the second goes, the others move to 10 and 20.
    counts, offsets = np.array([3, 2, 4]), np.array([10, -1, 20])
    ids = np.array([[0, 2, 3], [4, 5, 8], [-1, 5, -1]])
    expected = [[10, 12, GONE], [GONE, 20, 23], [-1, 20, -1]]
    np.testing.assert_array_equal(renumber(ids, counts, offsets), expected)


def test_an_id_beyond_all_shards_is_an_error() -> None:
    with pytest.raises(ValueError, match="beyond"):
        renumber(np.array([[9]]), np.array([3, 2, 4]), np.array([0, 3, 5]))


@pytest.mark.parametrize("seed", range(20))
def test_merging_with_what_is_known_is_a_search_of_everything(seed: int) -> None:
    """Any order of old and new chunks, ties, documents with copies among old and new."""
    rng = np.random.default_rng(seed)
    d, k, total = 4, 3, int(rng.integers(2, 60))
    # Few values, so that many distances are equal.
    vectors = rng.integers(-2, 3, (total, d)).astype(np.float16)
    documents = rng.integers(0, 12, total).astype(np.uint64)
    queries = reranking.Queries(
        rng.integers(-2, 3, (9, d)).astype(np.float16), rng.integers(0, 12, 9).astype(np.uint64)
    )
    is_new = rng.random(total) < 0.4

    def blocks(of: np.ndarray) -> Any:
        def every(wanted: Any) -> Any:
            for i in np.flatnonzero(of):
                yield reranking.Block(int(i), vectors[i : i + 1], documents[i : i + 1])

        return every

    known = reranking.exact_search(queries, k, blocks(~is_new)).keys
    whole = reranking.exact_search(queries, k, blocks(np.ones(total, bool))).keys
    merged = reranking.exact_search(queries, k, blocks(is_new), None, known).keys
    np.testing.assert_array_equal(merged, whole)
    ids, distances = unpack(known)
    np.testing.assert_array_equal(pack(distances, ids, ids >= 0), known)
    assert (merged[:, 0] != NOTHING).any()


def test_imbalance_of_a_sample_is_that_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(1000, 2.0))
    truth = len(shares) * (shares**2).sum()
    apart = np.arange(500)
    estimates = [drift.imbalance(rng.choice(1000, 500, p=shares), apart, 1000) for _ in range(200)]
    assert np.mean(estimates) == pytest.approx(truth, rel=0.05)  # The plain factor would say about 3.5.
    assert drift.imbalance(np.zeros(1, np.int64), np.zeros(1, np.int64), 1) == 1


def test_runs_are_sampled_uniformly_and_stay_inside() -> None:
    counts = np.array([10, 0, 100_000, 64])
    firsts = drift.sample_runs(counts, seed=1)
    assert sum(map(len, firsts)) == drift.SAMPLED_RUNS
    for count, of in zip(counts, firsts, strict=True):
        assert ((of >= 0) & (of < count)).all()
        assert (of % drift.RUN_ROWS == 0).all()


def fit(**changes: Any) -> drift.Fit:
    return drift.Fit(**{"vectors": 1000, "sample": 500, "quantisation_error": 0.1, "imbalance": 1.2, **changes})


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (fit(), None),
        (fit(vectors=2000, quantisation_error=0.12, imbalance=1.49), None),
        (fit(vectors=2001), "2,001"),
        (fit(quantisation_error=0.126), "quantisation error"),
        (fit(quantisation_error=None), None),
        (fit(imbalance=1.51), "imbalance"),
    ],
)
def test_when_to_train_again(now: drift.Fit, reason: str | None) -> None:
    found = drift.reason_to_retrain(fit(), now, 0.25)
    assert (found is None) if reason is None else (reason in str(found))


def test_other_text_fits_worse() -> None:
    rng = np.random.default_rng(0)
    train = rng.standard_normal((4000, 16)).astype(np.float32) * np.linspace(0.1, 1, 16)
    index: Any = faiss.index_factory(16, "IVF16,PQ4x4")
    index.train(train)
    sample = train[:1000].astype(np.float16)
    same = drift.fit(faiss.clone_index(index), np.split(sample, 100), 4000)
    other = drift.fit(faiss.clone_index(index), np.split(sample[:, ::-1] + np.float16(1), 100), 4000)
    assert drift.reason_to_retrain(same, same, 0.25) is None
    assert drift.reason_to_retrain(same, other, 0.25)


def shard(name: str, content: str, split: Split = "train") -> Shard:
    return Shard(name, split, (Source(f"/{name}", 1, content),))


def test_changes_are_by_content_not_by_order() -> None:
    former = [shard("a", "1"), shard("b", "2"), shard("c", "3"), shard("v", "4", "val")]
    now = [shard("c", "3"), shard("b", "9"), shard("d", "1"), shard("v", "4")]
    found = compare(former, now)
    assert (found.added, found.changed, found.removed, found.unchanged) == (("d",), ("b", "v"), ("a",), 1)


def plan_of(**changes: Any) -> Plan:
    identity = Identity("t", 100, 0, "m", 8)
    return Plan("d", "/r", Parameters(), identity, (shard("a", "1"), shard("b", "2")), **changes)


def test_a_condemned_output_goes_elsewhere_with_all_that_depends_on_it() -> None:
    plan = plan_of()
    bad = digests.embed_digest(plan, plan.shards[0])
    mended = plan_of(condemned=(bad,))
    for stage in ("tokenize-and-chunk",):
        assert paths.stage_folder(mended, stage, "a") == paths.stage_folder(plan, stage, "a")
    for stage in ("embed-chunks", "build-faiss-index", "retrieve-neighbours"):
        assert paths.stage_folder(mended, stage, "a") != paths.stage_folder(plan, stage, "a")
    assert paths.stage_folder(mended, "embed-chunks", "b") == paths.stage_folder(plan, "embed-chunks", "b")
    again = plan_of(condemned=(bad, digests.embed_digest(mended, mended.shards[0])))
    assert len({digests.embed_digest(p, p.shards[0]) for p in (plan, mended, again)}) == 3


def test_a_plan_of_the_first_format_can_still_be_read() -> None:
    import json

    document = json.loads(plan_to_json(plan_of())) | {"format": 1}
    for key in ("corpus", "validation_corpus", "as_of", "base", "condemned", "supersedes"):
        del document[key]
    assert plan_from_json(json.dumps(document), "x") == plan_of()


def test_what_a_recipe_adds_to_a_plan_is_written_only_where_there_is_one() -> None:
    plain = plan_to_json(plan_of())
    assert not any(f'"{key}"' in plain for key in ("recipe", "source_folder", "indexed", "queried"))
    shards = tuple(replace(s, indexed=s.name == "a", queried=s.name != "a") for s in plan_of().shards)
    plan = replace(plan_of(recipe="massive_open_text", source_folder="/s"), shards=shards)
    assert plan_from_json(plan_to_json(plan), "x") == plan


def test_a_plan_with_a_base_survives_being_written() -> None:
    base = Base("versions/x", "t", None, "w", (BaseShard("a", "train", 3, "e", None),))
    plan = plan_of(base=base, condemned=("c",), as_of="2026-01-01", supersedes=3, corpus="/c/{date}")
    assert plan_from_json(plan_to_json(plan), "x") == plan


def entry(path: str, as_of: str | None = None) -> dict[str, Any]:
    return {"path": path, "plan": f"plan of {path}", "published_at": "then", "as_of": as_of, "counts": {}}


def series(current: int, *entries: dict[str, Any]) -> history.Series:
    numbered = {number: {"version": number, **of} for number, of in enumerate(entries, 1)}
    return history.Series("/d/current.json", "tag", current, numbered, last=len(numbered))


@pytest.mark.parametrize(
    ("before", "path", "plan", "current", "count", "said"),
    [
        (series(0), "a", {"supersedes": 0}, 1, 1, "version 1 is published"),
        (series(1, entry("a")), "b", {"supersedes": 1}, 2, 2, "version 2 is published"),
        (series(1, entry("a")), "a", {"supersedes": 0}, 1, 1, "already"),
        (series(1, entry("a"), entry("b")), "b", {"supersedes": 1}, 2, 2, "current one again"),
        # After a rollback numbers go on, and an old plan has no opinion.
        (series(1, entry("a"), entry("b")), "c", {"supersedes": 1}, 3, 3, "version 3 is published"),
        (series(2, entry("a"), entry("b")), "c", {}, 3, 3, "version 3 is published"),
        # Whose version was overtaken does not come back by publishing it again, unless it was gone back to on purpose.
        (series(3, entry("a"), entry("b"), entry("c")), "b", {"supersedes": 1}, 3, 3, "version 3 came after it"),
        (series(3, entry("a"), entry("b"), entry("c")), "a", {"supersedes": 0}, 3, 3, "version 3 came after it"),
        (series(3, entry("a"), entry("b"), entry("c")), "a", {"supersedes": 3}, 1, 3, "current one again"),
        # Days decide before who was first.
        (series(1, entry("a", "2026-01-03")), "b", {"as_of": "2026-01-02"}, 1, 2, "stays the current one"),
        (series(1, entry("a", "2026-01-03")), "b", {"as_of": "2026-01-04", "supersedes": 0}, 2, 2, "is published"),
    ],
)  # fmt: skip
def test_what_publishing_does(
    before: history.Series, path: str, plan: dict[str, Any], current: int, count: int, said: str
) -> None:
    after, words = history.published(before, entry(path, plan.get("as_of")), plan_of(**plan))
    assert (after.current, len(after.entries)) == (current, count)
    assert said in words
    assert after.entries[current]["path"] in (path, before.entries.get(current, {}).get("path"))


@pytest.mark.parametrize("plan", [{"supersedes": 1}, {"supersedes": 0}, {"supersedes": 1, "as_of": "2026-01-03"}])
def test_who_was_overtaken_is_told(plan: dict[str, Any]) -> None:
    before = series(2, entry("a"), entry("b", "2026-01-03"))
    with pytest.raises(BadInputError, match="version 2 was published meanwhile"):
        history.published(before, entry("c", plan.get("as_of")), plan_of(**plan))


def test_who_wants_an_older_version_back_is_told_too() -> None:
    before = series(3, entry("a"), entry("b"), entry("c"))
    with pytest.raises(BadInputError, match="version 3 was published meanwhile"):
        history.published(before, entry("a"), plan_of(supersedes=2))


def test_dates_in_folders_and_in_names(tmp_path: Path) -> None:
    for name in ("2026-01-01/a", "2026-01-02/a", "2026-01-03/a", "latest/a", "2026-01-02/sub/a"):
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    pattern = f"{tmp_path}/{{date}}/*.jsonl"
    found = json_lines.find_dated(pattern, "2026-01-02")
    assert [(Path(f.uri).relative_to(tmp_path).as_posix(), f.date) for f in found] == [
        ("2026-01-01/a.jsonl", "2026-01-01"),
        ("2026-01-02/a.jsonl", "2026-01-02"),
    ]
    assert len(json_lines.find_dated(pattern, None)) == 3
    with pytest.raises(BadInputError, match="has a date up to 2025-12-31"):
        json_lines.find_dated(pattern, "2025-12-31")
    (tmp_path / "flat").mkdir()
    for name in ("news_2026-01-01_2026-01-05", "news_2026-01-02_2026-01-01"):
        (tmp_path / "flat" / f"{name}.jsonl").write_text("{}")
    (only,) = json_lines.find_dated(f"{tmp_path}/flat/news_*_{{date}}.jsonl", "2026-01-03")
    assert only.date == "2026-01-01"
