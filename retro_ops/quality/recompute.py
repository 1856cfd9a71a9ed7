"""Recomputes a sample of the embeddings and distances of a dataset and compares them with the stored ones."""

from collections.abc import Iterator

import numpy as np

from retro_ops.compute.device import choose
from retro_ops.embedding.embedder import open_embedder
from retro_ops.plan import paths
from retro_ops.plan.plan import Plan
from retro_ops.search.chunk_reader import IndexedChunks
from retro_ops.search.exact import unpack
from retro_ops.search.queries import QueryShard, query_shards
from retro_ops.search.reranking import rescore
from retro_ops.storage.npy import open_npy
from retro_ops.tokens.tokenizer import planned

BLOCK_ROWS = 64
LEAST_COSINE = 0.995
"""Least cosine of a stored and a recomputed embedding. Other devices and precisions stay well above it."""

Finding = tuple[str, str]
"""(file, rule it breaks)"""


def sampled_blocks(rows: int, share: float, seed: int) -> list[int]:
    """First row of each sampled block: ``share`` of all blocks, but at least one if there are rows."""
    starts = np.arange(0, rows, BLOCK_ROWS)
    count = min(len(starts), max(1, round(len(starts) * share)))
    return [int(start) for start in np.sort(np.random.default_rng(seed).choice(starts, count, replace=False))]


def embeddings(plan_uri: str, plan: Plan, share: float) -> Iterator[Finding]:
    """Decode and embed a sample of the chunks again; yields each row whose stored embedding differs.

    ConfigurationError if the model or the tokenizer of ``plan`` is another one by now.
    """
    parameters = plan.parameters
    tokenizer = planned(plan_uri, plan)
    embedder = open_embedder(parameters, choose(parameters.device, "torch"), plan.identity.model_digest)
    prepare = embedder.inputs(tokenizer, parameters.embed_input, fast=False)()
    for shard in plan.shards:
        chunks = open_npy(paths.chunks_files(plan, shard.name)["chunks"], ndim=2, kind="u")
        stored = open_npy(paths.embeddings_uri(plan, shard.name), ndim=2, kind="f")
        for start in sampled_blocks(len(chunks), share, parameters.seed):
            block = chunks.rows(start, start + BLOCK_ROWS)
            again = np.concatenate(list(embedder.vectors([prepare(block)]))).astype(np.float32)
            cosines = (again * stored.rows(start, start + BLOCK_ROWS).astype(np.float32)).sum(axis=1)
            for row in np.flatnonzero(~(cosines >= LEAST_COSINE)):
                yield stored.uri, f"row {start + row} is not the embedding of its chunk (cosine {cosines[row]:.4f})"


def distances(plan: Plan, share: float) -> Iterator[Finding]:
    """Recompute the distances of a sample of the stored neighbours. They are exact, so they must be equal."""
    for split in plan.splits():
        chunks = IndexedChunks(paths.index_shards(plan, split))
        for name, shard in query_shards(plan, split, chunks, with_tokens=False).items():
            yield from _distances_of_shard(plan, name, shard, chunks, share)


def _distances_of_shard(
    plan: Plan, name: str, queries: QueryShard, chunks: IndexedChunks, share: float
) -> Iterator[Finding]:
    neighbours = open_npy(paths.neighbours_uri(plan, name), ndim=2, kind="i")
    stored = open_npy(paths.distances_uri(neighbours.uri), ndim=2, kind="f")
    for start in sampled_blocks(len(queries), share, plan.parameters.seed):
        ids = neighbours.rows(start, start + BLOCK_ROWS)
        keys, _ = rescore(queries.rows(start, start + BLOCK_ROWS), ids, chunks.blocks)
        again_ids, again = unpack(keys)
        for row in np.flatnonzero((again_ids != ids).any(axis=1)):
            yield neighbours.uri, f"row {start + row} has a neighbour of its own document"
        for row in np.flatnonzero(((again_ids == ids) & (again != stored.rows(start, start + BLOCK_ROWS))).any(axis=1)):
            yield stored.uri, f"row {start + row} has wrong distances to its neighbours"
