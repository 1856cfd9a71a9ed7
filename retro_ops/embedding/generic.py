"""Embeds texts with the modules of sentence-transformers as they are, for models that no backend can run."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ops.compute.workers import ahead
from retro_ops.embedding import trial
from retro_ops.embedding.backends import Vectors, half_units
from retro_ops.embedding.model import Model

ROWS = {"cpu": 16, "cuda": 256}
"""Texts in a batch, until memory is short."""


class Encode:
    """What ``encode_document`` of sentence-transformers does, with three differences: half precision where that gives
    the same vectors, a batch that shrinks when memory is short, and texts that are tokenised ahead of the device."""

    def __init__(self, model: Model, where: str, rows: int | None = None) -> None:
        self._model = model
        self._where = where
        self._network: Any = None
        self._rows = (rows or ROWS[where]) if _pads(model) else 1

    def reference(self, texts: list[str]) -> NDArray[np.float32]:
        """Vectors of ``encode_document`` in float32, one text at a time; on the CPU if the device is too small."""
        try:
            network = self._float32(self._where)
        except RuntimeError as error:
            if not trial.is_out_of_memory(error):
                raise
            network = self._float32("cpu")
        found = network.encode_document(
            texts, prompt=self._model.prompt, batch_size=1, normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(found, np.float32)

    def choose_dtype(
        self, texts: list[str], wanted: NDArray[np.float32], least_cosine: float, dtypes: Sequence[str]
    ) -> str:
        """The first of ``dtypes`` that gives ``wanted`` for ``texts``, else float32."""
        import torch

        for dtype in (*dtypes, "float32"):
            self._network = None  # No two copies at a time.
            self._network = copy.deepcopy(self._model.network).to(self._where, getattr(torch, dtype)).eval()
            if dtype == "float32" or self._gives(texts, wanted, least_cosine):
                break
        return dtype

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

    def _float32(self, where: str) -> Any:
        network = self._model.network
        if where == "cpu" and self._model.stored_dtype == "float32":
            return network
        return copy.deepcopy(network).to(where).float()

    def _gives(self, texts: list[str], wanted: NDArray[np.float32], least_cosine: float) -> bool:
        try:
            return trial.least_cosine(self, texts, wanted) >= least_cosine
        except Exception:  # Such as an operation that this type lacks.
            return False

    def _batches(self, texts: list[str], order: NDArray[np.int64], start: int, vectors: Vectors) -> int:
        """Fills ``vectors`` from ``start`` on; the place where a batch did not fit in memory, else the end."""
        import torch

        rows = self._rows
        with ahead(self._features(texts, order, start, rows)) as batches:
            for features in batches:
                chosen = order[start : start + rows]
                try:
                    with torch.inference_mode():
                        moved = {k: v.to(self._where) if hasattr(v, "to") else v for k, v in features.items()}
                        found = self._network(moved, task="document")["sentence_embedding"]
                        vectors[chosen] = half_units(found[:, : self._model.dimension])
                except RuntimeError as error:
                    if rows == 1 or not trial.is_out_of_memory(error):
                        raise
                    self._rows = rows // 2
                    return start
                start += len(chosen)
        return start

    def _features(self, texts: list[str], order: NDArray[np.int64], start: int, rows: int) -> Iterator[Any]:
        for first in range(start, len(order), rows):
            chosen = [texts[row] for row in order[first : first + rows]]
            yield self._network.preprocess(chosen, prompt=self._model.prompt, task="document")


def _pads(model: Model) -> bool:
    """Whether texts of unequal length can be in one batch."""
    tokenizer = getattr(model.network, "tokenizer", None)
    return getattr(tokenizer, "pad_token", "") is not None
