"""The example chunks and neighbours on a dataset card."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from retro_ops.plan import paths
from retro_ops.plan.plan import Plan, Shard, Split
from retro_ops.quality.shared_words import shared_words
from retro_ops.storage.npy import open_npy
from retro_ops.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    from retro_ops.quality.measure import Sampled
    from retro_ops.search.chunk_reader import IndexedChunks


EXAMPLES = 20


def draw_examples(
    plan: Plan, split: Split, chunks: "IndexedChunks", drawn: "Sequence[Sampled]", tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """The first sampled chunks of each shard in turn, as text with their neighbours."""
    rows = [(shard, i) for i in range(EXAMPLES) for shard in drawn if i < len(shard.rows)][:EXAMPLES]
    examples = []
    for sampled, i in rows:
        assert sampled.queries.tokens is not None
        text = " ".join(tokenizer.decode(sampled.queries.tokens[i : i + 1])[0].split())
        kept = sampled.neighbours[i] >= 0
        ids = sampled.neighbours[i][kept]
        others = [" ".join(other.split()) for other in tokenizer.decode(chunks.tokens(ids))] if len(ids) else []
        examples.append(
            {
                "split": split,
                "place": _place(plan, sampled.shard, int(sampled.rows[i])),
                "text": text,
                "neighbours": [
                    {
                        "place": _place_of_id(plan, chunks, int(number), split),
                        "distance": float(distance),
                        "words": shared_words(text, other),
                    }
                    for number, distance, other in zip(ids, sampled.distances[i][kept], others, strict=True)
                ],
            }
        )
    return examples


def _place_of_id(plan: Plan, chunks: "IndexedChunks", number: int, split: Split) -> str:

    position = int(np.searchsorted(chunks.offsets, number, side="right")) - 1
    return _place(plan, plan.indexed(split)[position], number - int(chunks.offsets[position]))


def _place(plan: Plan, shard: Shard, row: int) -> str:
    """``00_books / 17 / 403``: shard, document and chunk, both numbered within the shard."""

    document = int(open_npy(paths.chunks_files(plan, shard.name)["chunk2seq"]).rows(row, row + 1)[0])
    return f"{shard.name} / {document} / {row}"


def spread(examples: dict[Split, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """EXAMPLES in all, taken from the splits in turn, sorted by split."""
    longest = max(map(len, examples.values()), default=0)
    turns = [rows[i] for i in range(longest) for rows in examples.values() if i < len(rows)]
    return sorted(turns[:EXAMPLES], key=lambda example: example["split"])
