"""Embeds chunks with a sentence-transformer: by one of ``backends``, or by its own ``encode`` if none fits."""

import copy
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retro_ops.compute import device
from retro_ops.embedding import backends, bert
from retro_ops.embedding.backends import Backend, Vectors
from retro_ops.errors import BadInputError, ConfigurationError
from retro_ops.progress import say
from retro_ops.tokens import model_inputs, packing
from retro_ops.tokens.encoders import Encoding, exact
from retro_ops.tokens.tokenizer import LOADING_HINT, Tokenizer

BATCH_ROWS = {"cpu": 16, "cuda": 8192}
"""Fastest number of chunks at a time, of ROW_TOKENS ids each: they stay in the cache of a core, or fill a GPU."""

ROW_TOKENS = 64
LEAST_COSINE = 0.999
"""Least cosine similarity of a backend with ``encode`` in float32, on ``SAMPLE``."""

SAMPLE = (
    "One word.",
    "The quick brown fox jumps over the lazy dog, and the dog says nothing at all about it.",
    "naïve café — 東京 🎉 Ünïcödé",
    "for (int i = 0; i < n; ++i) { sum += x[i] * y[i]; }  // dot product",
    " ".join(f"Chapter {number} speaks of the sea, the wind and the number {number * number}." for number in range(40)),
)

Inputs: TypeAlias = packing.Rows | list[str]


class Embedder:
    """A sentence-transformer that gives L2-normalised float16 vectors. ``prepare`` comes before all other methods."""

    def __init__(self, name: str, where: device.Device, batch_size: int | None = None) -> None:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        try:
            self._model = SentenceTransformer(name, device="cpu")
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"cannot load model {name!r}: {error}", LOADING_HINT) from error
        self.device = where
        self._batch_rows = batch_size or BATCH_ROWS[where.chosen]
        self._backend: Backend | None = None
        self.how: dict[str, str] = {}
        """How vectors are computed and why, for the report; set by ``prepare``."""
        self.dimension = int(self._model.get_embedding_dimension() or 0)
        self.digest = _weights_digest(self._model)

    def prepare(self) -> None:
        """Choose the fastest backend whose vectors are those of sentence-transformers."""
        refusal = _refusal(self._model)
        precision = device.precision(self.device.chosen)
        if refusal is None:
            sample = exact(self._encoding)(list(SAMPLE))
            wanted = self._model.encode(list(SAMPLE), normalize_embeddings=True, show_progress_bar=False)
            for name, backend in self._backends(precision):
                try:
                    cosine = _least_cosine(backend, sample, np.asarray(wanted, np.float32))
                except Exception as error:  # Of an unknown model or library version: another backend may work.
                    refusal = f"{name} in {precision.dtype} fails: {error}"
                    say(f"{refusal}: not used", logging.WARNING, event="way_refused")
                    continue
                if cosine >= LEAST_COSINE:
                    self._backend, self.how = backend, {"way": name, "dtype": precision.dtype, "why": precision.why}
                    return
                refusal = f"{name} in {precision.dtype} gives other vectors (cosine {cosine:.4f})"
                say(f"{refusal}: not used", logging.WARNING, event="way_refused")
        self.how = {"way": "encode", "dtype": "float32", "why": str(refusal)}
        say(
            f"falling back to the slower encode of sentence-transformers: {refusal}",
            logging.WARNING,
            event="way_encode",
        )
        self._model.to(self.device.chosen)

    def inputs(
        self, tokenizer: Tokenizer, how: str, *, fast: bool = True
    ) -> Callable[[], Callable[[NDArray[Any]], Inputs]]:
        """A picklable factory of the function that turns chunks of ``tokenizer`` into inputs for ``vectors``.

        ``fast``: a faster package tokenises the text; the function raises DisagreementError once that proves wrong.
        BadInputError if ``how`` is ``ids`` and the model cannot read the ids of these chunks.
        """
        if how == "ids" and (self._backend is None or self.tokenizer_digest != tokenizer.digest):
            why = (
                self.how["why"]
                if self._backend is None
                else "the chunks were made by another tokenizer than the model's own"
            )
            raise BadInputError(
                f"--embed-input ids does not work here: {why}", "use --embed-input text, which works with any tokenizer"
            )
        if how == "ids":
            return partial(model_inputs.wrapper, self._encoding)
        if self._backend is None:
            return partial(model_inputs.texts, tokenizer.decoding)
        return partial(model_inputs.reencoder, tokenizer.decoding, self._encoding, fast)

    def vectors(self, inputs: Iterable[Any]) -> Iterator[Vectors]:
        """Embeddings of the rows of ``inputs``, in order: arrays float16 ``[n, dimension]`` of some rows each."""
        if self._backend is not None:
            yield from self._backend(inputs)
            return
        for texts in inputs:
            found = self._model.encode(
                texts, batch_size=self._batch_rows, normalize_embeddings=True, show_progress_bar=False
            )
            yield np.asarray(found).astype(np.float16)

    @property
    def tokenizer_digest(self) -> str:
        """Digest of the model's tokenizer, comparable with that of a ``Tokenizer``."""
        return hashlib.sha256(_own_tokenizer(self._model).to_str().encode()).hexdigest()[:16]

    @property
    def _encoding(self) -> Encoding:
        return Encoding(_own_tokenizer(self._model).to_str(), int(self._model.max_seq_length))

    def _backends(self, precision: device.Precision) -> Iterator[tuple[str, Backend]]:
        """Backends for the model by description, the fastest first."""
        import torch

        dtype, tokens = getattr(torch, precision.dtype), self._batch_rows * ROW_TOKENS
        # No row may be longer than a batch.
        tokens = max(tokens, int(self._model.max_seq_length))
        module = copy.deepcopy(self._model[0].model).to(dtype).eval()
        if getattr(module, "pooler", None) is not None:
            module.pooler = None  # It only computes an output that is not used.
        if self.device.chosen == "cuda":
            if bert.is_bert(module):
                yield backends.packed("packed, own layers", tokens, partial(backends.own_layers, module))
            yield backends.packed(
                "packed", tokens, partial(backends.its_layers, module, int(self._model.max_seq_length))
            )
        module.to(self.device.chosen)
        pad_id = int(_tokenizer(self._model).pad_token_id or 0)
        yield "padded", partial(backends.padded, module, self.device.chosen, tokens, pad_id)


def _refusal(model: Any) -> str | None:
    """The reason why no backend can run ``model``, None if there is none."""
    names = [type(module).__name__ for module in model]
    if names != ["Transformer", "Pooling", "Normalize"] and names != ["Transformer", "Pooling"]:
        return f"its modules are {', '.join(names)}"
    if model[1].pooling_mode != "mean":
        return f"it pools by {model[1].pooling_mode}"
    if model.default_prompt_name is not None:
        return "it puts a prompt before each text"
    if not getattr(_tokenizer(model), "is_fast", False):
        return "its tokenizer has no tokenizer.json"
    return None


def _tokenizer(model: Any) -> Any:
    return model.tokenizer


def _own_tokenizer(model: Any) -> Any:
    """The model's tokenizer without truncation and padding, so that it can be compared with that of the chunks."""
    backend = _tokenizer(model).backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return backend


def _least_cosine(backend: Backend, sample: packing.Rows, wanted: NDArray[np.float32]) -> float:
    (found,) = backend([sample])
    cosines = (found.astype(np.float32) * wanted).sum(axis=1)
    return float(np.nan_to_num(cosines, nan=-1.0).min())


def _weights_digest(model: Any) -> str:
    """SHA-256 over module types, their settings and all weights: independent of where the model is stored."""
    digest = hashlib.sha256()
    for module in model:
        settings = module.get_config_dict() if hasattr(module, "get_config_dict") else {}
        digest.update(type(module).__name__.encode())
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    digest.update(str(model.max_seq_length).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
