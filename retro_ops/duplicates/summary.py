"""Counts and examples of duplicates for the report of `find-duplicates`."""

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retro_ops.plan.plan import Plan, Shard, category

if TYPE_CHECKING:
    from retro_ops.duplicates.signatures import SignedShards


EXAMPLES = 20


def figures(
    plan: Plan, signed: "SignedShards", repeats: NDArray[np.int64], canonical: NDArray[np.int64]
) -> dict[str, Any]:
    """Counts of the duplicates ``repeats`` (ascending), each a copy of the document in ``canonical``."""

    unique, places = np.unique(canonical, return_inverse=True)
    exact = signed.contents_of(repeats) == signed.contents_of(unique)[places]
    own, other = signed.shard_of(repeats), signed.shard_of(canonical)
    train = np.array([shard.split == "train" for shard in plan.shards], np.bool_)
    crosses = train[own] != train[other]
    by_shard = np.bincount(own, minlength=len(plan.shards))
    categories: dict[str, Counter[str]] = {}
    for shard, count, documents in zip(plan.shards, by_shard.tolist(), np.diff(signed.offsets).tolist(), strict=True):
        counter = categories.setdefault(f"{category(shard.name)}, {shard.split}", Counter())
        counter.update({"documents": documents, "duplicates": count})
    return {
        "documents": signed.total,
        "duplicates": len(repeats),
        "exact": int(exact.sum()),
        "near": int((~exact).sum()),
        "within_shards": int((own == other).sum()),
        "across_shards": int(((own != other) & ~crosses).sum()),
        "across_splits": int(crosses.sum()),
        "categories": {name: dict(counter) for name, counter in sorted(categories.items())},
        "shards": {s.name: count for s, count in zip(plan.shards, by_shard.tolist(), strict=True) if count},
    }


def evenly(total: int) -> NDArray[np.int64]:
    """Positions of EXAMPLES out of ``total``, evenly spread over all of them; of all if they are fewer."""
    return np.unique(np.linspace(0, total - 1, EXAMPLES).astype(np.int64)) if total else np.zeros(0, np.int64)


def examples(
    plan: Plan,
    signed: "SignedShards",
    reports: list[dict[str, Any]],
    repeats: NDArray[np.int64],
    canonical: NDArray[np.int64],
    budget: int,
) -> list[dict[str, Any]]:
    """EXAMPLES of the duplicates, evenly spread over all of them."""

    from retro_ops.duplicates import document_pairs, minhash
    from retro_ops.duplicates.lsh import shared

    chosen = evenly(len(repeats))
    shown = np.unique(np.concatenate((repeats[chosen], canonical[chosen])))
    records = dict(zip(shown.tolist(), signed.records_of(shown).tolist(), strict=True))

    def place_of(document: int) -> dict[str, Any]:
        shard = int(signed.shard_of(np.array([document]))[0])
        return place(plan.shards[shard], reports[shard], records[document])

    rows = []
    for document, other in zip(repeats[chosen].tolist(), canonical[chosen].tolist(), strict=True):
        pair = document_pairs.pack(np.array([document]), np.array([other]))
        in_common = int(shared(signed, pair, budget)[0])
        rows.append({**place_of(document), "repeats": place_of(other), "similarity": in_common / minhash.PERMUTATIONS})
    return rows


def place(shard: Shard, signed: dict[str, Any], record: int) -> dict[str, Any]:
    """Shard, file and line (from 1) of a record, which is counted from 0 over the files of ``shard``.

    ``signed``: the report of `sign-documents`.
    """
    line = record + 1
    for source, count in zip(shard.sources, signed["details"]["records_of_sources"], strict=True):
        if line <= count:
            return {"shard": shard.name, "source": source.uri, "line": line}
        line -= count
    raise AssertionError(f"{shard.name} has no record {record}")
