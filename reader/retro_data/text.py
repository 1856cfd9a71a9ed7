"""Text of chunks, by the tokenizer of the dataset."""

import os
from dataclasses import dataclass
from typing import Any, TypedDict

from numpy.typing import NDArray

from retro_ops.errors import ConfigurationError
from retro_ops.plan import documents
from retro_ops.storage import store
from retro_ops.tokens.model_inputs import Decoding, texts


class _Stored(TypedDict):
    tokenizer: str
    cleans_up: bool


@dataclass(frozen=True)
class Decoder:
    """Decodes chunks of a dataset; the tokenizer is loaded when it is first used.

    ``stored``: the tokenizer as a run or an export stored it, or None. ``name``: its name on the hub, or its folder.
    """

    stored: str | None
    name: str | None

    def text(self, tokens: NDArray[Any]) -> list[str]:
        """Text of each row of ``tokens``, without special tokens and padding."""
        try:
            return texts(self._decoding())(tokens)
        except ImportError as error:
            raise ConfigurationError("decoding text needs tokenizers", "pip install retro-data[text]") from error

    def _decoding(self) -> Decoding:
        if self.stored and (found := store.at(self.stored).read_tagged(self.stored)):
            content = documents.read(found[0], self.stored, _Stored, "open the dataset with tokenizer=NAME")
            return Decoding(str(content["tokenizer"]), bool(content["cleans_up"]))
        if self.name is None:
            raise ConfigurationError(
                "the dataset does not say which tokenizer it was made with", "open it with tokenizer=NAME"
            )
        from tokenizers import Tokenizer

        file = os.path.join(self.name, "tokenizer.json")
        try:
            loaded = Tokenizer.from_file(file) if os.path.isdir(self.name) else Tokenizer.from_pretrained(self.name)
        except Exception as error:  # The library raises plain Exception.
            raise ConfigurationError(
                f"cannot load tokenizer {self.name!r}: {error}", "open the dataset with tokenizer=NAME or a folder"
            ) from error
        return Decoding(loaded.to_str(), cleans_up=False)
