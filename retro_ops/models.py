"""Tokenizers and sentence-transformers, loaded by hub name or local folder."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ops.device import Device
from retro_ops.errors import BadInputError, ConfigurationError

LOADING_HINT = "name a model of the hub, or a local folder (then HF_HUB_OFFLINE=1 keeps it offline)"


class Tokenizer:
    """A fast Hugging Face tokenizer with truncation and padding off.

    ``digest`` identifies its content wherever it lies.
    """

    def __init__(self, name: str, pad_id: int | None = None) -> None:
        from transformers import AutoTokenizer
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()  # "sequence longer than 512" is no news here
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"cannot load tokenizer {name!r}: {error}", LOADING_HINT) from error
        if not self._tokenizer.is_fast:
            raise ConfigurationError(f"tokenizer {name!r} has no tokenizer.json", "use one with a fast version")
        self.backend: Any = self._tokenizer.backend_tokenizer
        self.backend.no_truncation()
        self.backend.no_padding()
        found = self._tokenizer.pad_token_id if pad_id is None else pad_id
        if found is None:
            raise BadInputError(f"tokenizer {name!r} has no pad token", "give the id to pad with: --pad-id")
        self.pad_id: int = found
        ids = self.backend.get_vocab(with_added_tokens=True).values()
        self.vocabulary_size: int = max(max(ids, default=0), found) + 1
        self.digest = hashlib.sha256(self.backend.to_str().encode()).hexdigest()[:16]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included. Uses all cores."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=True)]

    def decode(self, chunks: NDArray[Any]) -> list[str]:
        """Text of each chunk ``[n, chunk_size]``, special tokens (padding too) skipped."""
        decoded: list[str] = self._tokenizer.batch_decode(chunks.tolist(), skip_special_tokens=True)
        return decoded


class Embedder:
    """A sentence-transformer that gives L2-normalised float16 vectors."""

    def __init__(self, name: str, device: Device) -> None:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        try:
            self._model = SentenceTransformer(name, device=device.chosen)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"cannot load model {name!r}: {error}", LOADING_HINT) from error
        self.dimension = int(self._model.get_embedding_dimension() or 0)
        self.digest = _weights_digest(self._model)

    def embed(self, texts: Sequence[str], batch_size: int) -> NDArray[np.float16]:
        """Embeddings float16 ``[len(texts), dimension]``."""
        vectors = self._model.encode(
            list(texts),
            batch_size=batch_size,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return np.asarray(vectors).astype(np.float16)


def absolute_name(name: str) -> str:
    """A local folder as an absolute path; a hub name as it is."""
    return str(Path(name).resolve()) if os.path.isdir(name) else name


def name_digest(name: str) -> str:
    """Identifies what ``name`` stands for without loading it: the files of a local folder, else the name."""
    if not os.path.isdir(name):
        return name
    digest = hashlib.sha256()
    for path in sorted(p for p in Path(name).rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(name)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _weights_digest(model: Any) -> str:
    """SHA-256 over module types, their settings and all weights: the same wherever the model lies."""
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
