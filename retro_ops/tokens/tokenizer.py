"""Tokenizers, loaded by hub name or local folder, and what the name of a model stands for."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from retro_ops.errors import BadInputError, ConfigurationError
from retro_ops.tokens import encoders, model_inputs

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
        return model_inputs.texts(self.decoding)(chunks)

    @property
    def encoding(self) -> encoders.Encoding:
        """What another process needs to encode as this tokenizer does."""
        return encoders.Encoding(self.backend.to_str())

    @property
    def decoding(self) -> model_inputs.Decoding:
        """What another process needs to decode as this tokenizer does."""
        # Byte pairs are never cleaned up: transformers refuses to, whatever the settings say.
        cleans_up = self._tokenizer.clean_up_tokenization_spaces and type(self.backend.model).__name__ != "BPE"
        return model_inputs.Decoding(self.backend.to_str(), bool(cleans_up))


def name_digest(name: str) -> str:
    """Identifies what ``name`` stands for without loading it: the files of a local folder, else the name."""
    if not os.path.isdir(name):
        return name
    digest = hashlib.sha256()
    for path in sorted(p for p in Path(name).rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(name)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
