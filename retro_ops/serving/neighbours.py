"""Finds the neighbours of any texts, tokens or vectors among the chunks of a version, as `retrieve-neighbours` does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ops import memory
from retro_ops.compute.device import choose
from retro_ops.embedding.embedder import Embedder
from retro_ops.embedding.model import chosen_model
from retro_ops.errors import BadInputError
from retro_ops.plan import paths
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Plan, Split
from retro_ops.search import reranking
from retro_ops.search.brute_force import exact_search
from retro_ops.search.chunk_reader import IndexedChunks
from retro_ops.search.exact import unpack
from retro_ops.search.hits import Queries
from retro_ops.search.open_index import SearchedIndex
from retro_ops.search.queries import UNKNOWN_DOCUMENT, query_shards, sample
from retro_ops.search.reranking import Effort, Width
from retro_ops.search.retrieval import CANDIDATE_BYTES, read_tuned
from retro_ops.search.tuning import tune, width_from_json
from retro_ops.sizes import parse_bytes
from retro_ops.tokens.tokenizer import Tokenizer, planned


@dataclass(frozen=True)
class Answer:
    """Neighbours of ``n`` queries, nearest first: ids int64 ``[n, k]`` (-1 = none), squared L2 distances float32
    ``[n, k]`` (infinity = none), and embeddings float16 ``[n, k, d]`` (zeros = none)."""

    ids: NDArray[np.int64]
    distances: NDArray[np.float32]
    vectors: NDArray[np.float16]


class ServedVersion:
    """The index of one split of a version, with nprobe and candidates as they were tuned for it.

    Nothing is filtered: a query of the dataset's own text finds that text. Not safe for several threads at a time.
    """

    def __init__(self, plan: Plan, plan_uri: str, split: Split, machine: Parameters) -> None:
        """``machine``: device and memory of this process; everything else is as in ``plan``."""
        if split not in plan.splits():
            raise BadInputError(f"the version has no split {split!r}", f"its splits are {', '.join(plan.splits())}")
        self._plan, self._plan_uri, self._split = plan, plan_uri, split
        self._parameters = replace(
            plan.parameters,
            device=machine.device,
            memory_budget=machine.memory_budget,
            search_memory=machine.search_memory,
            max_overlap=None,
            max_shared_run=None,
            max_shared_ngrams=None,
        )
        self._chunks = IndexedChunks(paths.index_shards(plan, split))
        self._searched = SearchedIndex(
            uri=paths.index_uri(plan, split),
            chunks=self._chunks,
            device=choose(self._parameters.device, "faiss"),
            parameters=self._parameters,
            split=split,
            pad_id=plan.identity.pad_id,
            trained=paths.trained_index_uri(plan),
            partials=paths.partial_indexes(plan, split),
        )
        self._width = self._tuned()
        self.total = self._chunks.total
        self.dimension = int(self._chunks.embeddings[0].shape[1])
        self.chunk_size = plan.parameters.chunk_size
        self.vocabulary_size = plan.identity.vocabulary_size

    def query(self, vectors: NDArray[np.float16], k: int) -> Answer:
        """The ``k`` nearest chunks of each of ``vectors`` ``[n, d]``, which are L2-normalised."""
        documents = UNKNOWN_DOCUMENT + np.arange(len(vectors), dtype=np.uint64)
        queries = Queries(vectors, documents, None)
        index = self._searched.index
        if self._width:
            width = Width(self._width.nprobe, max(self._width.candidates, k))
            cells = memory.search_batch(parse_bytes(self._parameters.memory_budget)) // CANDIDATE_BYTES
            found = reranking.find(queries, k, index, width, cells, Effort())
        else:
            found = exact_search(queries, k, self._chunks.blocks, None, compare=self._searched.compare)
        ids, distances = unpack(found.keys)
        near = np.zeros((*ids.shape, self.dimension), np.float16)
        near[ids >= 0] = self._chunks.vectors(ids[ids >= 0])
        return Answer(ids, distances, near)

    def embedded_texts(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """Embeddings ``[n, d]``; a text is cut to what the model reads."""
        return np.concatenate(list(self._embedder.vectors([self._embedder.inputs_of_texts(texts)])))

    def embedded_tokens(self, tokens: NDArray[Any]) -> NDArray[np.float16]:
        """Embeddings ``[n, d]`` of chunks ``[n, chunk_size]``, as `embed-chunks` computes them."""
        return np.concatenate(list(self._embedder.vectors([self._prepare(tokens)])))

    def texts(self, ids: NDArray[np.int64]) -> list[str]:
        """Text of the chunks ``ids`` ``[n]``."""
        return self._tokenizer.decode(self._chunks.tokens(ids)) if len(ids) else []

    def _tuned(self) -> Width | None:
        """None for an exact search. What was tuned on whole vectors of a GPU is too narrow for the codes of a CPU."""
        tuned = read_tuned(paths.report_uri(self._plan, "tune-search"), self._split)
        if tuned["width"] and tuned.get("searched", "codes") != "codes" and self._searched.device.chosen == "cpu":
            shards = list(query_shards(self._plan, self._split, self._chunks, with_tokens=False).values())
            some = sample(shards, self._parameters.recall_sample, self._parameters.seed)
            tuned = tune(some, self._searched.index, self._parameters).as_json()
        return width_from_json(tuned)

    @cached_property
    def _embedder(self) -> Embedder:
        model, device = chosen_model(self._parameters), choose(self._parameters.device, "torch")
        embedder = Embedder(model, device, self._parameters.batch_size)
        embedder.prepare()
        return embedder

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return planned(self._plan_uri, self._plan)

    @cached_property
    def _prepare(self) -> Callable[[NDArray[Any]], Any]:
        return self._embedder.inputs(self._tokenizer, self._parameters.embed_input, fast=False)()
