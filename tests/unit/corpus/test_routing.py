"""Where documents go: category, split, number of the shard."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro_ops.corpus.routing import (
    ByField,
    ByHash,
    ByPath,
    Cut,
    Fixed,
    LeftOut,
    ShardCounter,
    by_field,
    by_hash,
    by_path,
    field_value,
    place,
)


def test_a_field_may_lie_within_another() -> None:
    record = {"meta": {"set": "Books3", "n": {"m": 1}}, "a.b": "dotted", "a": {"b": "nested"}}
    assert field_value(record, "meta.set") == "Books3"
    assert field_value(record, "meta.n.m") == 1
    assert field_value(record, "a.b") == "dotted"
    assert (
        field_value(record, "meta.none") is field_value(record, "meta.set.deeper") is field_value(record, "x") is None
    )


@pytest.mark.parametrize(("value", "word"), [("x", "x"), (1, "1"), (True, "true"), (1.5, "1.5"), (["a"], '["a"]')])
def test_values_are_compared_as_they_are_written(value: object, word: str) -> None:
    assert by_field(ByField("f", {word: "docs"}), {"f": value}) == "docs"


def test_every_record_that_is_left_out_has_a_reason() -> None:
    rule = ByField("meta.set", {"Books3": "books3"})
    assert by_field(rule, {"meta": {"set": "ArXiv"}}) == LeftOut("meta.set: ArXiv")
    assert by_field(rule, {"meta": {}}) == by_field(rule, {"meta": {"set": None}}) == LeftOut("no meta.set")


def test_the_first_pattern_decides() -> None:
    rule = ByPath({"/c/*_docs.jsonl*": "docs", "/c/**": "code"})
    assert by_path(rule, "/c/00_docs.jsonl.gz") == "docs"
    assert by_path(rule, "/c/deep/er/x.jsonl") == "code"
    assert by_path(rule, "/d/00_docs.jsonl") == LeftOut("no pattern for /d/00_docs.jsonl")
    assert by_path(ByPath({"s3://b/{a,b}/*": "docs"}), "s3://b/b/x.parquet") == "docs"


def test_a_place_is_split_and_category() -> None:
    by_kind = ByField("kind", {"d": "docs"})
    by_side = ByField("side", {"dev": "val"})
    assert place(by_kind, by_side, {"kind": "d", "side": "dev"}, "", "") == ("val", "docs")
    assert place(by_kind, by_side, {"kind": "d", "side": "test"}, "", "") == LeftOut("side: test")
    assert place(Fixed("docs"), Fixed("train"), {}, "", "") == ("train", "docs")


@given(st.text(), st.floats(0.001, 0.999), st.floats(0.001, 0.999), st.dictionaries(st.text(), st.integers()))
def test_a_document_never_changes_sides(name: str, a: float, b: float, more: dict[str, int]) -> None:
    less, greater = sorted((a, b))
    record = {**more, "id": name}
    # Neither by its text, nor by what else it holds, nor back to training when the share grows.
    assert by_hash(ByHash(less, "id"), record, "text") == by_hash(ByHash(less, "id"), {"id": name}, "other")
    if by_hash(ByHash(less, "id"), record, "") == "val":
        assert by_hash(ByHash(greater, "id"), record, "") == "val"


def test_the_hash_is_what_it_was() -> None:
    """A change would move documents between the splits of datasets that exist."""
    sides = "".join(by_hash(ByHash(0.3, "id", "7"), {"id": number}, "")[0] for number in range(40))
    assert sides == "ttttttttttttttttttttvvttvtttvttttttttttt"


def test_the_text_decides_where_there_is_no_id() -> None:
    rule = ByHash(0.5, "id")
    texts = [f"text {number}" for number in range(100)]
    assert [by_hash(rule, {}, t) for t in texts] == [by_hash(rule, {"id": t}, "") for t in texts]


def test_the_share_is_about_the_requested_one_and_the_seed_changes_its_members() -> None:
    def chosen(seed: str) -> set[int]:
        return {n for n in range(20_000) if by_hash(ByHash(0.1, "id", seed), {"id": n}, "") == "val"}

    one, other = chosen("0"), chosen("1")
    assert len(one) == pytest.approx(2000, rel=0.1)
    assert len(one & other) == pytest.approx(200, rel=0.5)


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 100), st.sampled_from(["file", "documents", "bytes"]))
def test_shards_are_full_before_the_next_begins(sizes: list[int], size: int, by: str) -> None:
    counter = ShardCounter(Cut(by, size), None)  # type: ignore[arg-type]
    numbers = [counter.next(bytes_) for bytes_ in sizes]
    assert None not in numbers
    assert numbers == sorted(numbers)  # type: ignore[type-var]
    if by == "file":
        assert set(numbers) <= {0}
        return
    weights = [1 if by == "documents" else bytes_ for bytes_ in sizes]
    shards = [[w for w, n in zip(weights, numbers, strict=True) if n == number] for number in sorted(set(numbers))]  # type: ignore[type-var]
    assert sorted(set(numbers)) == list(range(len(shards)))  # type: ignore[type-var]
    assert all(sum(shard) <= size or len(shard) == 1 for shard in shards)
    assert all(sum(shard) + following[0] > size for shard, following in itertools.pairwise(shards))


def test_a_limit_takes_the_first_documents() -> None:
    counter = ShardCounter(Cut("documents", 2), 5)
    assert [counter.next(1) for _ in range(7)] == [0, 0, 1, 1, 2, None, None]
