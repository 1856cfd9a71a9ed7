"""Which documents hold a part of a benchmark text."""

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from plans import plan_of, shard
from pyarrow import parquet

from retro_ops.duplicates.benchmarks import BYTES_PER_WORD, LEAST_WORDS, NGRAM_WORDS, BenchmarkTexts
from retro_ops.duplicates.contamination import figures, read, summed
from retro_ops.errors import BadInputError

TEXT = [f"w{number}" for number in range(40)]


def overlaps(texts: list[list[str]], documents: list[list[str]]) -> list[list[int]]:
    found: list[list[int]] = BenchmarkTexts(texts).overlaps(documents).tolist()
    return found


def test_thirteen_words_in_a_row_are_an_overlap_and_twelve_are_not() -> None:
    padded = [["a", "b", *TEXT[20 : 20 + length], "c"] for length in (NGRAM_WORDS, NGRAM_WORDS - 1)]
    assert overlaps([["x"], TEXT], padded) == [[0, 1]]


@pytest.mark.parametrize("length", range(LEAST_WORDS, NGRAM_WORDS))
def test_a_shorter_text_must_occur_as_a_whole(length: int) -> None:
    assert overlaps([TEXT[:length]], [["a", *TEXT[:length]], TEXT[1:length], TEXT[: length - 1]]) == [[0, 0]]


def test_texts_of_few_words_and_no_texts_are_compared_with_nothing() -> None:
    assert overlaps([TEXT[: LEAST_WORDS - 1], []], [TEXT]) == []
    assert overlaps([], [TEXT]) == []
    assert overlaps([TEXT], [[], ["w1"]]) == []
    assert overlaps([TEXT], []) == []


def test_words_of_two_texts_or_documents_are_not_in_a_row() -> None:
    assert overlaps([TEXT[:10], TEXT[10:20]], [TEXT[5:18]]) == []
    assert overlaps([TEXT], [TEXT[:10], TEXT[10:20]]) == []


def test_the_same_as_a_search_for_every_ngram_in_random_texts() -> None:
    draw = random.Random(1)
    texts = [[draw.choice("ab") for _ in range(draw.randrange(30))] for _ in range(40)]
    some = [[*draw.choice(texts)[draw.randrange(3) :], "c", *draw.choice(texts)] for _ in range(60)]
    documents = [[word if draw.random() < 0.95 else "c" for word in document] for document in some]

    def ngrams(words: list[str], length: int) -> set[tuple[str, ...]]:
        return {tuple(words[at : at + length]) for at in range(len(words) - length + 1)}

    first: dict[tuple[str, ...], int] = {}
    for number, text in enumerate(texts):
        if len(text) >= LEAST_WORDS:
            for ngram in ngrams(text, min(len(text), NGRAM_WORDS)):
                first.setdefault(ngram, number)
    expected = {
        (number, first[ngram])
        for number, document in enumerate(documents)
        for length in range(LEAST_WORDS, NGRAM_WORDS + 1)
        for ngram in ngrams(document, length) & first.keys()
    }
    assert len(expected) > 20
    assert overlaps(texts, documents) == sorted(map(list, expected))


def test_each_process_has_room_for_the_texts(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"text": "word " * 1000}) + '\n{"text": ""}')
    texts = read((str(file),), "2GiB", 2**20)
    needed = 1000 * BYTES_PER_WORD
    for budget, processes in ((20 * needed, 8), (2 * 3 * needed, 3), (2 * 3 * needed - 1, 2), (needed // 2, 1)):
        assert texts.processes(8, budget) == processes
    assert texts.counts == [{"texts": 2, "too_short": 1}]
    file.write_text('{"text": "?"}')
    assert read((str(file),), "3GiB", 2**20).processes(8, 2**20) == 8


def test_examples_are_spread_over_the_contaminated_documents_of_all_shards() -> None:
    plan = dataclasses.replace(
        plan_of(),
        shards=(shard("a", "1"), shard("b", "2"), shard("v", "3", "val")),
        benchmark_files=(shard("q", "4").sources[0],) * 2,
    )
    of_files = [{"texts": 9, "too_short": 2}, {"texts": 1, "too_short": 0}]
    details = {"records_of_sources": [100], "benchmarks": of_files}
    reports = [{"counts": {"documents": 90}, "details": {**details, **more}} for more in ({}, {"damaged": "cut"}, {})]
    # Documents 0 to 29 of a, each with two texts, and 0 to 9 of b.
    of_a = np.array([[record, 0, line] for record in range(30) for line in (record % 4 + 1, 7)])
    of_b = np.array([[record, 1, 3] for record in range(10)])
    facts = figures(plan, reports, *summed([of_a, of_b, np.zeros((0, 3), np.int64)]))
    assert (facts["contaminated"], facts["documents"], facts["shards"]) == (40, 180, {"a": 30, "b": 10})
    assert [(file["texts"], file["too_short"], file["found"]) for file in facts["benchmarks"]] == [(9, 2, 5), (1, 0, 1)]
    assert facts["unsigned_shards"] == ["b"]
    documents = [("a", record + 1, record % 4 + 1) for record in range(30)] + [("b", at + 1, 3) for at in range(10)]
    shown = [(example["shard"], example["line"], example["text"]) for example in facts["examples"]]
    assert shown == [documents[int(at)] for at in np.linspace(0, 39, 20)]


def test_a_record_without_text_and_too_many_words_are_errors(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"text": "some words"}\n{"question": "what"}\n')
    with pytest.raises(BadInputError, match=r"questions.jsonl, line 2: no key 'text'; its keys are 'question'"):
        read((str(file),), "2GiB", 2**20)
    table = tmp_path / "questions.parquet"
    parquet.write_table(pyarrow.table({"question": ["what"]}), table)
    with pytest.raises(
        BadInputError, match=r"its columns are question\n.*give each record one text, under the key 'text'"
    ):
        read((str(table),), "2GiB", 2**20)
    file.write_text("\n")
    with pytest.raises(BadInputError, match=r"no benchmark text in .*questions.jsonl"):
        read((str(file),), "4GiB", 2**20)
    file.write_text(json.dumps({"text": "word " * 3000}))
    with pytest.raises(BadInputError, match=r"more than 771 words, up to .*questions.jsonl, line 1"):
        read((str(file),), "1MiB", 2**20)
