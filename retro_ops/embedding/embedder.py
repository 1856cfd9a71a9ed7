"""Embeds chunks with a sentence-transformer: by the fastest backend whose vectors are those of ``encode``."""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retro_ops.compute import device
from retro_ops.embedding import backends, pooling, trial
from retro_ops.embedding.backends import Backend, Vectors
from retro_ops.embedding.generic import Encode
from retro_ops.embedding.model import Model, chosen_model
from retro_ops.errors import BadInputError
from retro_ops.plan.parameters import Parameters
from retro_ops.progress import say
from retro_ops.tokens import model_inputs, packing
from retro_ops.tokens.encoders import Encoding, exact
from retro_ops.tokens.tokenizer import Tokenizer, check_is_planned, text_digest

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


@dataclass(frozen=True)
class Candidate:
    """A backend to try. ``make``: from the number of ids in a batch."""

    name: str
    precision: device.Precision
    make: Callable[[int], Backend]


class Embedder:
    """A sentence-transformer that gives L2-normalised float16 vectors. ``prepare`` comes before all other methods."""

    def __init__(self, model: Model, where: device.Device, batch_size: int | None = None) -> None:
        self.model = model
        self.device = where
        self._requested_rows = batch_size
        self._backend: Backend | None = None
        self._encode: Encode | None = None
        self.how: dict[str, str] = {}
        """How vectors are computed and why, for the report; set by ``prepare``."""

    def prepare(self) -> None:
        """Choose the fastest backend whose vectors are those of sentence-transformers."""
        encode = Encode(self.model, self.device.chosen, self._requested_rows)
        reference = encode.reference(list(SAMPLE))
        refusal = _refusal(self.model) or self._choose_backend(reference)
        if refusal is None:
            return
        self._encode = encode
        dtypes = [precision.dtype for precision in _precisions(self.model, self.device.chosen)]
        dtype = encode.choose_dtype(list(SAMPLE), reference, LEAST_COSINE, dtypes)
        self.how = {"way": "encode", "dtype": dtype, "why": refusal}
        say(
            f"falling back to the slower encode of sentence-transformers: {refusal}",
            logging.WARNING,
            event="way_encode",
        )

    def _choose_backend(self, reference: NDArray[np.float32]) -> str | None:
        """Take the first backend that gives ``reference``. None, or the reason why the last one does not."""
        if self.model.prompt:
            self._check_prompt()
        sample = exact(self.encoding)([self.model.prompt + text for text in SAMPLE])
        refusal = "there is no backend for it"
        for candidate in self._candidates():
            self._backend, refusal = self._tried(candidate, sample, reference)
            if self._backend:
                precision = candidate.precision
                self.how = {"way": candidate.name, "dtype": precision.dtype, "why": precision.why}
                return None
            say(f"{refusal}: not used", logging.WARNING, event="way_refused")
        return refusal

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
            return partial(model_inputs.wrapper, self.encoding, self.model.prompt)
        if self._backend is None:
            return partial(model_inputs.texts, tokenizer.decoding)
        return partial(model_inputs.reencoder, tokenizer.decoding, self.encoding, self.model.prompt, fast)

    def inputs_of_texts(self, texts: Sequence[str]) -> Inputs:
        """Inputs for ``vectors`` of any texts, as ``encode`` reads them."""
        if self._backend is None:
            return list(texts)
        return packing.filled(exact(self.encoding)([self.model.prompt + text for text in texts]))

    def vectors(self, inputs: Iterable[Any], first: int = 0) -> Iterator[Vectors]:
        """Embeddings of the rows of ``inputs``, in order: arrays float16 ``[n, dimension]`` of some rows each.

        BadInputError if the model gives NaN; ``first``: number of the first row in its file.
        """
        assert self._backend or self._encode
        found = self._backend(inputs) if self._backend else self._encode(inputs)  # type: ignore[misc]
        done = first
        for vectors in found:
            bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
            if len(bad):
                raise BadInputError(
                    f"the model gives NaN for chunk {done + int(bad[0]):,}",
                    "check the model's weights, or use a model whose values do not overflow half precision",
                )
            done += len(vectors)
            yield vectors

    @property
    def tokenizer_digest(self) -> str:
        """Digest of the model's tokenizer, comparable with that of a ``Tokenizer``."""
        return text_digest(self.encoding.json)

    @functools.cached_property
    def encoding(self) -> Encoding:
        """The model's tokenizer without padding, cut at what the model reads."""
        assert self.model.tokenizer
        backend = self.model.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        return Encoding(backend.to_str(), self.model.longest)

    def _check_prompt(self) -> None:
        """BadInputError if the prompt fills what the model reads, so that all texts would be cut away."""
        ids = exact(replace(self.encoding, longest=None))([self.model.prompt]).lengths[0]
        if ids >= self.model.longest:
            raise BadInputError(
                f"the prompt has {ids:,} ids, but the model reads {self.model.longest:,} of a text",
                "give a shorter --embed-prompt",
            )

    def _tried(
        self, candidate: Candidate, sample: packing.Rows, reference: NDArray[np.float32]
    ) -> tuple[Backend | None, str]:
        """A backend with the vectors of ``encode``, in batches that fit in memory; or None and the reason."""
        name = f"{candidate.name} in {candidate.precision.dtype}"
        # No row may be longer than a packed batch.
        longest = self.model.longest if self.device.chosen == "cuda" else int(sample.lengths.max())
        tokens = max((self._requested_rows or BATCH_ROWS[self.device.chosen]) * ROW_TOKENS, longest)
        least = max(min(trial.LEAST_TOKENS, tokens), int(sample.lengths.max()))
        try:
            cosine = trial.least_cosine(candidate.make(least), sample, reference)
            if not cosine >= LEAST_COSINE:
                return None, f"{name} gives other vectors (cosine {cosine:.4f})"
            fitting = trial.fitting_tokens(candidate.make, sample, least, tokens, self.device.chosen)
            if fitting < longest:
                return None, f"{name} needs too much memory for rows of {self.model.longest:,} ids"
        except Exception as error:  # Of an unknown model or library version: another backend may work.
            return None, f"{name} fails: {error or type(error).__name__}"
        if fitting < tokens:
            say(f"{name}: batches of {fitting:,} ids, which fit in memory", event="smaller_batch", tokens=fitting)
        return candidate.make(fitting), ""

    def _candidates(self) -> Iterator[Candidate]:
        """Backends for the model, the fastest first."""
        where, model = self.device.chosen, self.model
        precisions = _precisions(model, where)
        if where == "cuda" and pooling.refusal(model) is None:
            devices = device.gpus()
            count = f"{len(devices)} GPU{'s' if len(devices) > 1 else ''}"
            for name, layers in (("packed, own layers", backends.own_layers), ("packed", backends.its_layers)):
                for precision in precisions:
                    load = functools.cache(partial(layers, model, precision.dtype))
                    yield Candidate(f"{name}, {count}", precision, partial(backends.packed, load, devices))
        assert model.tokenizer
        pad_id = int(model.tokenizer.pad_token_id or 0)
        for precision in precisions:
            load_padded = functools.cache(partial(backends.padded_layers, model, precision.dtype, where))
            yield Candidate("padded", precision, partial(backends.padded, load_padded, model.dimension, where, pad_id))


def open_embedder(parameters: Parameters, where: device.Device, planned_with: str | None = None) -> Embedder:
    """The model that ``parameters`` name, on ``where``, prepared.

    ``planned_with``: digest of the model in a plan. ConfigurationError if the name means another model by now.
    """
    model = chosen_model(parameters)
    if planned_with is not None:
        check_is_planned("model", parameters.model, model.digest, planned_with)
    embedder = Embedder(model, where, parameters.batch_size)
    embedder.prepare()
    return embedder


def _precisions(model: Model, chosen: str) -> list[device.Precision]:
    """Types to compute in, the best first. Weights that were trained in bfloat16 may not fit in float16."""
    best = device.precision(chosen)
    if chosen == "cuda":
        wide = device.Precision("bfloat16", "GPU: tensor cores; the range of bfloat16, in which the weights are stored")
        if model.stored_dtype == "bfloat16":
            return [wide, best]
        return [best, device.Precision("bfloat16", "GPU: tensor cores; the numbers do not fit in float16")]
    if best.dtype == "float32":
        return [best]
    return [best, device.Precision("float32", "CPU: half precision gives other vectors")]


def _refusal(model: Model) -> str | None:
    """The reason why no backend can run ``model`` from token ids, None if there is none."""
    if model.modules[0] != "Transformer" or model.transformer is None:
        return f"its first module is {model.modules[0]}"
    if model.tokenizer is None:
        return "its tokenizer has no tokenizer.json"
    rope = getattr(model.transformer.config, "rope_parameters", None) or {}
    if isinstance(rope, dict) and rope.get("rope_type") in ("dynamic", "longrope"):
        return "its rotation depends on the longest row of a batch"
    if model.prompt and not all(getattr(module, "include_prompt", True) for module in model.network):
        return "it leaves the prompt out of the pooling"
    return None
