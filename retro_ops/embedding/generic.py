"""Embeds texts with the modules of sentence-transformers as they are, for models that no backend can run."""

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ops.compute.workers import ahead
from retro_ops.embedding.backends import Vectors, half_units
from retro_ops.embedding.model import Model

FIRST_ROWS = 32
MOST_ROWS = 1024


class Encode:
    """What ``encode`` of sentence-transformers does, with three differences: half precision where that gives the same
    vectors, a batch that shrinks when memory is short, and texts that are tokenised ahead of the device."""

    def __init__(self, model: Model, where: str) -> None:
        self._model = model
        self._where = where
        self._network: Any = None
        self._rows = FIRST_ROWS

    def reference(self, texts: list[str]) -> NDArray[np.float32]:
        """Vectors of ``encode`` in float32, one text at a time: a tokenizer without a padding token can do that."""
        network = self._model.network
        if self._where != "cpu" or self._model.stored_dtype != "float32":
            network = copy.deepcopy(network).float().to(self._where)
        found = network.encode(
            texts,
            prompt=self._model.prompt or None,
            batch_size=1,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        return np.asarray(found, np.float32)

    def choose_dtype(self, texts: list[str], wanted: NDArray[np.float32], least_cosine: float, of: list[str]) -> str:
        """The first type of ``of`` that gives ``wanted`` for ``texts``, else float32."""
        import torch

        for dtype in (*of, "float32"):
            self._network = copy.deepcopy(self._model.network).to(self._where, getattr(torch, dtype)).eval()
            if dtype == "float32" or self._gives(texts, wanted, least_cosine):
                break
        self._rows = FIRST_ROWS
        return dtype

    def _gives(self, texts: list[str], wanted: NDArray[np.float32], least_cosine: float) -> bool:
        try:
            found = np.concatenate(list(self([texts])))
        except Exception:  # Such as an operation that this type lacks.
            return False
        return bool(np.nan_to_num((found.astype(np.float32) * wanted).sum(axis=1), nan=-1.0).min() >= least_cosine)

    def __call__(self, parts: Iterable[list[str]]) -> Iterator[Vectors]:
        """Embeddings of the texts of each part, float16 ``[n, dimension]``."""
        for part in parts:
            vectors = np.empty((len(part), self._model.dimension), np.float16)
            # The longest first, since they may not fit.
            order = np.argsort([-len(text) for text in part], kind="stable")
            done = 0
            while done < len(part):
                done = self._batches(part, order, done, vectors)
            yield vectors

    def _batches(self, texts: list[str], order: NDArray[np.int64], start: int, vectors: Vectors) -> int:
        """Fills ``vectors`` from ``start`` on; the place where a batch no longer fits in memory, else the end."""
        import torch

        rows = self._rows
        with ahead(self._features(texts, order, start, rows)) as batches:
            for features in batches:
                chosen = order[start : start + rows]
                try:
                    with torch.inference_mode():
                        moved = {k: v.to(self._where) if hasattr(v, "to") else v for k, v in features.items()}
                        found = self._network(moved)["sentence_embedding"]
                        vectors[chosen] = half_units(found[:, : self._model.dimension])
                except RuntimeError as error:
                    if "memory" not in str(error) or rows == 1:
                        raise
                    self._rows = max(1, rows // 2)
                    return start
                start += len(chosen)
        self._rows = min(2 * rows, MOST_ROWS)
        return start

    def _features(self, texts: list[str], order: NDArray[np.int64], start: int, rows: int) -> Iterator[Any]:
        for first in range(start, len(order), rows):
            chosen = [texts[row] for row in order[first : first + rows]]
            yield self._network.preprocess(chosen, prompt=self._model.prompt or None)
