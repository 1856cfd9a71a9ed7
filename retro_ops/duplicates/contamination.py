"""Reads benchmark texts, and counts the documents that hold parts of them."""

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ops import memory
from retro_ops.corpus import json_lines, source_lines
from retro_ops.duplicates.benchmarks import BYTES_PER_WORD, LEAST_WORDS, NGRAM_WORDS, BenchmarkTexts
from retro_ops.duplicates.minhash import words_of
from retro_ops.duplicates.summary import EXAMPLES, place
from retro_ops.errors import BadInputError
from retro_ops.plan.parameters import PARAMETERS, TEXT_FIELD
from retro_ops.plan.plan import Plan, category
from retro_ops.sizes import parse_bytes

CONTAMINATION_FORMAT = 1


@dataclass(frozen=True)
class Benchmarks:
    """The texts of some benchmark files."""

    texts: BenchmarkTexts
    places: NDArray[np.int64]
    """``[texts, 2]``: number of the file, and line from 1."""
    too_short: NDArray[np.int64]
    """Number of texts of each file that have too few words to be compared."""

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
        for source, number, line in source_lines.lines([uri], line_bytes, TEXT_FIELD):
            record = json_lines.parse(line, source, number, line_bytes, TEXT_FIELD)
            if isinstance(record, json_lines.BadRecord):
                raise BadInputError(
                    f"benchmark text {record}", f"give each record one text, under the key {TEXT_FIELD!r}"
                )
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
        raise BadInputError(f"no benchmark text in {', '.join(uris[:5])}", "name files with texts")
    found = np.array(places, np.int64).reshape(-1, 2)
    short = np.array([len(text) < LEAST_WORDS for text in words], np.bool_)
    return Benchmarks(BenchmarkTexts(words), found, np.bincount(found[short, 0], minlength=len(uris)))


def figures(
    plan: Plan, benchmarks: Benchmarks, reports: Sequence[dict[str, Any]], overlaps: Sequence[NDArray[np.int64]]
) -> dict[str, Any]:
    """Counts and examples. ``reports``: of `sign-documents`; ``overlaps``: what it found; both by shard."""
    categories: dict[str, Counter[str]] = {}
    shards: dict[str, int] = {}
    examples: list[dict[str, Any]] = []
    for shard, done, found in zip(plan.shards, reports, overlaps, strict=True):
        if shard.split != "train":
            continue
        documents, first = np.unique(found[:, 0], return_index=True)
        counts = {"documents": done["counts"]["documents"], "contaminated": len(documents)}
        categories.setdefault(category(shard.name), Counter()).update(counts)
        if len(documents):
            shards[shard.name] = len(documents)
        for record, file, line in found[first].tolist():
            examples.append({**place(shard, done, record), "benchmark": plan.benchmark_files[file].uri, "text": line})
    texts = np.unique(np.concatenate([found[:, 1:] for found in overlaps]), axis=0)
    files = zip(
        plan.benchmark_files,
        np.bincount(benchmarks.places[:, 0], minlength=len(plan.benchmark_files)).tolist(),
        benchmarks.too_short.tolist(),
        np.bincount(texts[:, 0], minlength=len(plan.benchmark_files)).tolist(),
        strict=True,
    )
    chosen = np.unique(np.linspace(0, len(examples) - 1, EXAMPLES).astype(np.int64)) if examples else ()
    return {
        "format": CONTAMINATION_FORMAT,
        "contaminated_are": plan.parameters.contaminated,
        "ngram_words": NGRAM_WORDS,
        "least_words": LEAST_WORDS,
        "documents": sum(counter["documents"] for counter in categories.values()),
        "contaminated": sum(shards.values()),
        "categories": {name: dict(counter) for name, counter in sorted(categories.items())},
        "shards": shards,
        "benchmarks": [
            {**asdict(file), "texts": count, "too_short": short, "found": held} for file, count, short, held in files
        ],
        "examples": [examples[at] for at in chosen],
    }
