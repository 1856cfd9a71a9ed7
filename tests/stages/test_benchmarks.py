"""Training documents that hold benchmark texts, from corpus to published version and from night to night."""

import json
from pathlib import Path
from typing import Any

import pytest
from nightly import EXACT, Nights
from runs import Done, StageFailedError, call, compare
from samples import write_corpus
from test_find_duplicates import facts_of, lines_of

from retro_ops.execution import report
from retro_ops.plan import digests, paths
from retro_ops.storage import store


def some_words(text: str, first: int, count: int = 20) -> str:
    """Words of ``text`` with other case and punctuation."""
    return ", ".join(text.split()[first : first + count]).upper()


@pytest.fixture
def examined(nights: Nights, tmp_path: Path) -> Nights:
    """a: 0 1 2 3, of which 1 and 3 hold a benchmark text; b: 4 5; v holds one as well."""
    nights.texts = t = [text for text in nights.texts if len(text) > 1000]
    for path in nights.folder.rglob("*.jsonl"):
        path.unlink()
    write_corpus(nights.folder / "train/a.jsonl", [t[0], t[1], t[2], t[3]])
    write_corpus(nights.folder / "train/b.jsonl", [t[4], t[5]])
    write_corpus(nights.folder / "val/v.jsonl", [t[8], t[9]])
    write_corpus(tmp_path / "benchmarks/one.jsonl", [some_words(t[1], 30), "What is this?", some_words(t[8], 10)])
    write_corpus(tmp_path / "benchmarks/two.jsonl", [some_words(t[3], 5, 9), some_words(t[6], 0), some_words(t[3], 50)])
    nights.flags = (*EXACT, "--benchmarks", f"{tmp_path}/benchmarks")
    return nights


def found_in(done: Done) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(store.read(paths.contamination_uri(done.plan_uri)))
    return facts


def test_contaminated_documents_are_dropped_and_reported(examined: Nights) -> None:
    done = examined.first()
    assert lines_of(done) == {"a": [1, 3], "b": [1, 2], "v": [1, 2]}
    made = report.require(paths.report_uri(done.plan, "tokenize-and-chunk", "a"), "the chunks")
    assert made["counts"]["contaminated_dropped"] == 2
    facts = found_in(done)
    assert (facts["documents"], facts["contaminated"], facts["shards"]) == (6, 2, {"a": 2})
    names = [file["uri"].rpartition("/")[2] for file in facts["benchmarks"]]
    assert names == ["one.jsonl", "two.jsonl"]
    assert [(file["texts"], file["found"], file["too_short"]) for file in facts["benchmarks"]] == [(3, 1, 1), (3, 2, 0)]
    examples = [(one["shard"], one["line"], one["benchmark"][-9:-6], one["text"]) for one in facts["examples"]]
    assert examples == [("a", 2, "one", 1), ("a", 4, "two", 1)]
    assert not store.exists(paths.duplicates_uri(done.plan_uri)), "duplicates are kept"
    card = json.loads(store.read(paths.card_uri(done.plan, "json")))
    assert card["contamination"] == facts
    assert [row["contaminated_dropped"] for row in card["contents"]] == [2, 0, 0]
    assert b"<h2>Benchmark texts</h2>" in store.read(paths.card_uri(done.plan, "html"))
    manifest = json.loads(store.read(paths.manifest_uri(done.plan)))
    assert [file["bytes"] for file in manifest["benchmark_files"]] == [file["bytes"] for file in facts["benchmarks"]]
    assert manifest["shards"][0]["counts"]["contaminated_dropped"] == 2
    assert manifest["shards"][0]["contaminated"]["uri"].startswith("../")
    call("validate", "--plan", done.plan_uri)
    listed = done.plan.shard("a").contaminated
    call("prune", "--root", examined.root, "--dataset", "d", "--keep", 1, "--grace", "0m", "--yes")
    assert listed
    assert store.exists(listed.uri)


def test_a_report_changes_no_shard(examined: Nights) -> None:
    flags, examined.flags = examined.flags, EXACT
    plain = examined.first()
    for written in (plain.plan_uri, paths.manifest_uri(plain.plan), paths.version_plan_uri(plain.plan)):
        assert b"benchmark" not in store.read(written)
        assert b"contaminated" not in store.read(written)
    examined.flags = (*flags, "--contaminated", "report")
    done = examined.scratch()
    assert found_in(done)["contaminated"] == 2
    assert lines_of(done) == lines_of(plain)
    assert digests.merge_digest(done.plan) == digests.merge_digest(plain.plan)
    # A published version is compared on request, and its card then has the figures.
    done = examined.refresh(*flags[-2:], "--contaminated", "report")
    assert (done.calls["sign-documents"], done.calls["tokenize-and-chunk"], done.calls["publish"]) == (3, 0, 1)
    card = paths.card_uri(done.plan, "json")
    assert json.loads(store.read(card))["contamination"]["contaminated"] == 2
    done = examined.refresh("--num-neighbours", "2")
    assert done.calls["sign-documents"] == 0
    assert json.loads(store.read(paths.card_uri(done.plan, "json")))["contamination"]["contaminated"] == 2


def test_from_night_to_night_as_if_built_from_scratch(examined: Nights, tmp_path: Path) -> None:
    examined.first()
    done = examined.refresh()
    assert done.changes["nothing"]
    # A new benchmark text: all training documents are compared, and only the shard that loses one is built.
    write_corpus(tmp_path / "benchmarks/three.jsonl", [some_words(examined.texts[5], 7, 13)])
    done = examined.refresh()
    assert (done.calls["sign-documents"], done.calls["tokenize-and-chunk"]) == (2, 1)
    assert lines_of(done) == {"a": [1, 3], "b": [1], "v": [1, 2]}
    assert set(compare(done, examined.scratch())[0].values()) == {1.0}
    # Without benchmarks the dropped documents come back.
    done = examined.refresh("--unset", "benchmarks")
    assert (done.calls["sign-documents"], done.calls["tokenize-and-chunk"]) == (0, 1), "b was built in the first night"
    assert lines_of(done) == {"a": [1, 2, 3, 4], "b": [1, 2], "v": [1, 2]}


def test_of_copies_one_that_is_not_contaminated_stays(examined: Nights) -> None:
    t = examined.texts
    words = t[1].split()
    clean = " ".join([*words[:40], "other", *words[41:]])
    write_corpus(examined.folder / "train/a.jsonl", [t[1], clean, clean, t[3]])
    examined.flags = (*examined.flags, "--duplicates", "drop", "--duplicate-threshold", "0.5")
    done = examined.first()
    assert lines_of(done)["a"] == [2]
    made = report.require(paths.report_uri(done.plan, "tokenize-and-chunk", "a"), "the chunks")["counts"]
    assert (made["contaminated_dropped"], made["duplicates_dropped"]) == (2, 1)
    assert (found_in(done)["contaminated"], facts_of(done)["duplicates"]) == (2, 2)


def test_a_wrong_benchmark_stops_the_plan(examined: Nights, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plan_uri = paths.plan_uri(examined.root, "d", "x")

    def check_refused(message: str) -> None:
        with pytest.raises(StageFailedError):
            call("plan", "--root", examined.root, "--dataset", "d", "--output", plan_uri, *examined.settings)
        assert message in capfd.readouterr().err

    write_corpus(tmp_path / "benchmarks/two.jsonl", [{"question": "Which?"}])
    check_refused("benchmarks/two.jsonl, line 1: no key 'text'; its keys are 'question'")
    (tmp_path / "benchmarks/two.jsonl").rename(tmp_path / "benchmarks/two.json")
    check_refused("has files that would not be read as benchmark files: 1 of another format: ")
