"""Loads tokenizers by hub name or local folder, and identifies the content behind the name of a model."""

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
    """A fast Hugging Face tokenizer without truncation and padding.

    ``digest`` identifies its content, wherever it is stored.
    """

    def __init__(self, name: str, pad_id: int | None = None) -> None:
        from transformers import AutoTokenizer
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()  # Sequences longer than the model allows are usual here.
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError) as error:
            if "trust_remote_code" in str(error):
                raise ConfigurationError(
                    f"tokenizer {name!r} contains Python code of its own, which is never run",
                    "use a tokenizer with a tokenizer.json that needs no code",
                ) from error
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
        """Token ids of each text, special tokens included, computed on all cores."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=True)]

    def decode(self, chunks: NDArray[Any]) -> list[str]:
        """Text of each chunk ``[n, chunk_size]``, without special tokens and padding."""
        return model_inputs.texts(self.decoding)(chunks)

    @property
    def encoding(self) -> encoders.Encoding:
        """Picklable: lets another process encode with this tokenizer."""
        return encoders.Encoding(self.backend.to_str())

    @property
    def decoding(self) -> model_inputs.Decoding:
        """Picklable: lets another process decode with this tokenizer."""
        # transformers never cleans up after BPE, even if the setting is on.
        cleans_up = self._tokenizer.clean_up_tokenization_spaces and type(self.backend.model).__name__ != "BPE"
        return model_inputs.Decoding(self.backend.to_str(), bool(cleans_up))


def name_digest(name: str) -> str:
    """Identifies the model ``name`` without loading it: by the files of a local folder, else by the name."""
    if not os.path.isdir(name):
        return name
    digest = hashlib.sha256()
    for path in sorted(p for p in Path(name).rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(name)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
