"""Reads benchmark texts, and counts the documents that hold parts of them."""

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ops import memory
from retro_ops.corpus import json_lines, source_lines
from retro_ops.duplicates.benchmarks import BYTES_PER_WORD, LEAST_WORDS, NGRAM_WORDS, BenchmarkTexts
from retro_ops.duplicates.minhash import words_of
from retro_ops.duplicates.summary import evenly, place
from retro_ops.errors import BadInputError
from retro_ops.plan.parameters import PARAMETERS, TEXT_FIELD
from retro_ops.plan.plan import Plan, category
from retro_ops.sizes import parse_bytes, some

CONTAMINATION_FORMAT = 1

ONE_TEXT = f"give each record one text, under the key {TEXT_FIELD!r}"


@dataclass(frozen=True)
class Benchmarks:
    """The texts of some benchmark files."""

    texts: BenchmarkTexts
    places: NDArray[np.int64]
    """``[texts, 2]``: number of the file, and line from 1."""
    too_short: NDArray[np.int64]
    """Number of texts of each file that have too few words to be compared."""
    words: int
    """Of all texts together."""

    @property
    def counts(self) -> list[dict[str, int]]:
        """The number of texts of each file, and of those that are too short."""
        texts = np.bincount(self.places[:, 0], minlength=len(self.too_short)).tolist()
        return [{"texts": n, "too_short": short} for n, short in zip(texts, self.too_short.tolist(), strict=True)]

    def processes(self, most: int, budget: int) -> int:
        """Number of processes, up to ``most``, whose copies of the texts fit into their share of the ``budget``."""
        return min(most, max(1, memory.benchmark_copies(budget) // max(1, self.words * BYTES_PER_WORD)))

    def overlaps(self, documents: Sequence[str]) -> NDArray[np.int64]:
        """``[pairs, 3]``: number of a document, and file and line of a benchmark text that it holds a part of."""
        pairs = self.texts.overlaps([words_of(text) for text in documents])
        return np.concatenate((pairs[:, :1], self.places[pairs[:, 1]]), axis=1)


@functools.lru_cache(maxsize=1)  # Of the shards of a group.
def read(uris: tuple[str, ...], memory_budget: str, line_bytes: int) -> Benchmarks:
    """The texts of the benchmark files ``uris``.

    BadInputError for a record that is no text, since its benchmark would remain in the training data, and for more
    words than the memory budget allows.
    """
    words, places, total = [], [], 0
    most = memory.benchmark_texts(parse_bytes(memory_budget)) // BYTES_PER_WORD
    for file, uri in enumerate(uris):
        for source, number, line in source_lines.lines([uri], line_bytes, TEXT_FIELD, remedy=ONE_TEXT):
            record = json_lines.parse(line, source, number, line_bytes, TEXT_FIELD)
            if isinstance(record, json_lines.BadRecord):
                raise BadInputError(f"benchmark text {record}", ONE_TEXT)
            if record is None:
                continue
            words.append(words_of(record.text))
            places.append((file, number))
            total += len(words[-1])
            if total > most:
                raise BadInputError(
                    f"the benchmarks have more than {most:,} words, up to {uri}, line {number}",
                    f"raise {PARAMETERS['memory_budget'].where} above {memory_budget}, or name fewer files",
                )
    if not words:
        raise BadInputError(f"no benchmark text in {some(uris, 5)}", "name files with texts")
    found = np.array(places, np.int64).reshape(-1, 2)
    short = np.array([len(text) < LEAST_WORDS for text in words], np.bool_)
    return Benchmarks(BenchmarkTexts(words), found, np.bincount(found[short, 0], minlength=len(uris)), total)


def summed(overlaps: Iterable[NDArray[np.int64]]) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """What the ``overlaps`` of each shard (``[pairs, 3]``) come to: the first of every document (``[documents, 3]``),
    by shard; and file and line of the texts that were found anywhere (``[texts, 2]``)."""
    first_of: list[NDArray[np.int64]] = []
    texts = np.zeros((0, 2), np.int64)
    for found in overlaps:
        first_of.append(found[np.unique(found[:, 0], return_index=True)[1]])
        if len(found):
            texts = np.unique(np.concatenate((texts, found[:, 1:])), axis=0)
    return first_of, texts


def figures(
    plan: Plan,
    reports: Sequence[dict[str, Any]],
    first_of: Sequence[NDArray[np.int64]],
    texts: NDArray[np.int64],
) -> dict[str, Any]:
    """Counts and examples. ``reports``: of `sign-documents`, by shard; the others: see ``summed``."""
    categories: dict[str, Counter[str]] = {}
    compared = [
        (shard, done, len(first))
        for shard, done, first in zip(plan.shards, reports, first_of, strict=True)
        if plan.benchmarks_of(shard)
    ]
    for shard, done, count in compared:
        counts = {"documents": done["counts"]["documents"], "contaminated": count}
        categories.setdefault(category(shard.name), Counter()).update(counts)
    held = np.bincount(texts[:, 0], minlength=len(plan.benchmark_files)).tolist()
    of_files = zip(plan.benchmark_files, compared[0][1]["details"]["benchmarks"], held, strict=True)
    return {
        "format": CONTAMINATION_FORMAT,
        "contaminated_are": plan.parameters.contaminated,
        "ngram_words": NGRAM_WORDS,
        "least_words": LEAST_WORDS,
        "documents": sum(counter["documents"] for counter in categories.values()),
        "contaminated": sum(count for _, _, count in compared),
        "categories": {name: dict(counter) for name, counter in sorted(categories.items())},
        "shards": {shard.name: count for shard, _, count in compared if count},
        "benchmarks": [{**asdict(file), **counts, "found": found} for file, counts, found in of_files],
        "unsigned_shards": [shard.name for shard, done, _ in compared if "damaged" in done["details"]],
        "examples": _examples(plan, reports, first_of),
    }


def _examples(
    plan: Plan, reports: Sequence[dict[str, Any]], first_of: Sequence[NDArray[np.int64]]
) -> list[dict[str, Any]]:
    bounds = np.cumsum([0, *map(len, first_of)])
    rows = []
    for at in evenly(int(bounds[-1])).tolist():
        number = int(bounds.searchsorted(at, side="right")) - 1
        record, file, line = first_of[number][at - bounds[number]].tolist()
        of_document = place(plan.shards[number], reports[number], record)
        rows.append({**of_document, "benchmark": plan.benchmark_files[file].uri, "text": line})
    return rows
