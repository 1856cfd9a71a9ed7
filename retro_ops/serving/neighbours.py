"""Finds the neighbours of any texts, tokens or vectors among the chunks of a version, as `retrieve-neighbours` does."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ops import memory
from retro_ops.compute.device import choose
from retro_ops.embedding.embedder import open_embedder
from retro_ops.errors import BadInputError
from retro_ops.execution import budgets
from retro_ops.plan import paths
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Plan, Split
from retro_ops.progress import say
from retro_ops.search import reranking
from retro_ops.search.brute_force import exact_search
from retro_ops.search.exact import unpack
from retro_ops.search.hits import Queries
from retro_ops.search.open_index import planned_index
from retro_ops.search.queries import UNKNOWN_DOCUMENT, query_shards, sample
from retro_ops.search.reranking import Effort, Width
from retro_ops.search.retrieval import CANDIDATE_BYTES, read_tuned
from retro_ops.search.tuning import tune, width_from_json
from retro_ops.tokens.tokenizer import planned

DECODED_TOKENS = 2**18
"""Tokens that are decoded at a time: a number in a list of Python takes some 36 bytes."""


@dataclass(frozen=True)
class Answer:
    """Neighbours of ``n`` queries, nearest first: ids int64 ``[n, k]`` (-1 = none) and squared L2 distances float32
    ``[n, k]`` (infinity = none)."""

    ids: NDArray[np.int64]
    distances: NDArray[np.float32]


class ServedVersion:
    """The index of one split of a version, with nprobe and candidates as they were tuned for it.

    Nothing is filtered: a query of the dataset's own text finds that text. Not safe for several threads at a time.
    Model, tokenizer and index are loaded when it is made, so that what is missing is found then.
    """

    def __init__(self, plan: Plan, plan_uri: str, split: Split, machine: Parameters) -> None:
        """``plan_uri``: the plan beside which its tokenizer is stored, that of the run. ``machine``: device and memory
        of this process; everything else is as in ``plan``.

        BadInputError if ``plan`` has no such split or its search cannot be served, ConfigurationError if the names of
        model or tokenizer mean others than those that ``plan`` was made with.
        """
        _check_served(plan, split)
        self._plan, self._split = plan, split
        self._parameters = replace(
            plan.parameters,
            device=machine.device,
            memory_budget=machine.memory_budget,
            search_memory=machine.search_memory,
            max_overlap=None,
            max_shared_run=None,
            max_shared_ngrams=None,
        )
        budget = budgets.budget(self._parameters)
        self.answer_bytes, self._cells = memory.answer(budget), memory.search_batch(budget) // CANDIDATE_BYTES
        self.device = choose(machine.device, "torch")
        self._tokenizer = planned(plan_uri, plan)
        self._embedder = open_embedder(self._parameters, self.device, plan.identity.model_digest)
        self._prepare = self._embedder.inputs(self._tokenizer, self._parameters.embed_input, fast=False)()
        # After the model: vectors take what is free on a GPU, and leave room for a search only.
        self._searched = planned_index(plan, split, self.device, self._parameters)
        self._chunks = self._searched.chunks
        self.total = self._chunks.total
        self.dimension = int(self._chunks.embeddings[0].shape[1])
        self.chunk_size = plan.parameters.chunk_size
        self.vocabulary_size = plan.identity.vocabulary_size
        self._width = self._tuned()
        if self._width:  # A GPU loads the vectors for the first search.
            self.query(np.eye(1, self.dimension, dtype=np.float16), 1)

    def query(self, vectors: NDArray[np.float16], k: int) -> Answer:
        """The ``k`` nearest chunks of each of ``vectors`` ``[n, d]``, which are L2-normalised."""
        documents = UNKNOWN_DOCUMENT + np.arange(len(vectors), dtype=np.uint64)
        queries = Queries(vectors, documents, None)
        if self._width:
            width = Width(self._width.nprobe, max(self._width.candidates, k))
            found = reranking.find(queries, k, self._searched.index, width, self._cells, Effort())
        else:
            found = exact_search(queries, k, self._chunks.blocks, None, compare=self._searched.compare)
        return Answer(*unpack(found.keys))

    def vectors(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embeddings ``[n, k, d]`` of the chunks ``ids`` ``[n, k]``, zeros for -1."""
        found = np.zeros((*ids.shape, self.dimension), np.float32)
        found[ids >= 0] = self._chunks.vectors(ids[ids >= 0])
        return found

    def embedded_texts(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """Embeddings ``[n, d]``; a text is cut to what the model reads."""
        return np.concatenate(list(self._embedder.vectors([self._embedder.inputs_of_texts(texts)])))

    def embedded_tokens(self, tokens: NDArray[Any]) -> NDArray[np.float16]:
        """Embeddings ``[n, d]`` of chunks ``[n, chunk_size]``, as `embed-chunks` computes them."""
        return np.concatenate(list(self._embedder.vectors([self._prepare(tokens)])))

    def texts(self, ids: NDArray[np.int64]) -> list[str]:
        """Text of the chunks ``ids`` ``[n]``."""
        rows = max(1, DECODED_TOKENS // self.chunk_size)
        parts = [ids[start : start + rows] for start in range(0, len(ids), rows)]
        return [text for part in parts for text in self._tokenizer.decode(self._chunks.tokens(part))]

    def _tuned(self) -> Width | None:
        """None for an exact search. What was tuned on whole vectors of a GPU is too narrow for the codes of a CPU."""
        tuned = read_tuned(paths.report_uri(self._plan, "tune-search"), self._split)
        if tuned["width"] and tuned.get("searched", "codes") != "codes" and self.device.chosen == "cpu":
            say("serve: the search was tuned on a GPU, so it is tuned again for this CPU")
            shards = list(query_shards(self._plan, self._split, self._chunks, with_tokens=False).values())
            some = sample(shards, self._parameters.recall_sample, self._parameters.seed)
            tuned = tune(some, self._searched.index, self._parameters).as_json()
        return width_from_json(tuned)


def _check_served(plan: Plan, split: Split) -> None:
    if split not in plan.splits():
        raise BadInputError(f"the version has no split {split!r}", f"its splits are {', '.join(plan.splits())}")
    if plan.parameters.profile == "seed":
        raise BadInputError(
            "the version was built with --profile seed, whose search cannot be served",
            "serve a version that was built with --profile default",
        )
