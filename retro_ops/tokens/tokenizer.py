"""Loads tokenizers by hub name or local folder, and identifies the content behind the name of a model."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from numpy.typing import NDArray

from retro_ops.errors import BadInputError, ConfigurationError
from retro_ops.plan import documents, paths
from retro_ops.plan.plan import Plan
from retro_ops.storage import store
from retro_ops.tokens import encoders, hub_names, model_inputs


class Tokenizer:
    """A fast Hugging Face tokenizer without truncation and padding.

    ``json``: its ``tokenizer.json``; ``cleans_up``: decoding removes spaces before punctuation; ``digest`` identifies
    its content, wherever it is stored.
    """

    def __init__(self, content: str, pad_id: int, *, cleans_up: bool) -> None:
        from tokenizers import Tokenizer as Backend

        self.json, self.pad_id, self.cleans_up = content, pad_id, cleans_up
        self.backend: Any = Backend.from_str(content)
        ids = self.backend.get_vocab(with_added_tokens=True).values()
        self.vocabulary_size: int = max(max(ids, default=0), pad_id) + 1
        self.digest = text_digest(content)

    @classmethod
    def load(cls, name: str, pad_id: int | None = None) -> "Tokenizer":
        """The tokenizer ``name``, a hub name or local folder; ``pad_id`` replaces its padding token.

        Importing transformers takes seconds, so the tasks of a plan read what `plan` stored: see ``planned``.
        """
        hub_names.check_folder("tokenizer", name)
        from transformers import AutoTokenizer
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()  # Sequences longer than the model allows are usual here.
        try:
            found = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except Exception as error:  # Of a damaged or unknown tokenizer: loading raises any type.
            if "trust_remote_code" in str(error):
                raise ConfigurationError(
                    f"tokenizer {name!r} contains Python code of its own, which is never run",
                    "use a tokenizer with a tokenizer.json that needs no code",
                ) from error
            raise hub_names.not_loaded("tokenizer", name, error) from error
        if not found.is_fast:
            raise ConfigurationError(f"tokenizer {name!r} has no tokenizer.json", "use one with a fast version")
        backend = found.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        padding = found.pad_token_id if pad_id is None else pad_id
        if padding is None:
            raise BadInputError(f"tokenizer {name!r} has no pad token", "give the id to pad with: --pad-id")
        # transformers never cleans up after BPE, even if the setting is on.
        cleans_up = found.clean_up_tokenization_spaces and type(backend.model).__name__ != "BPE"
        return cls(backend.to_str(), padding, cleans_up=bool(cleans_up))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included, computed on all cores."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=True)]

    def decode(self, chunks: NDArray[Any]) -> list[str]:
        """Text of each chunk ``[n, chunk_size]``, without special tokens and padding."""
        return model_inputs.texts(self.decoding)(chunks)

    @property
    def encoding(self) -> encoders.Encoding:
        """Picklable: lets another process encode with this tokenizer."""
        return encoders.Encoding(self.json)

    @property
    def decoding(self) -> model_inputs.Decoding:
        """Picklable: lets another process decode with this tokenizer."""
        return model_inputs.Decoding(self.json, self.cleans_up)


class _Stored(TypedDict):
    tokenizer: str
    cleans_up: bool


def store_for_tasks(tokenizer: Tokenizer, plan_location: str) -> None:
    """Write ``tokenizer`` beside the plan, for ``planned``."""
    content = {"tokenizer": tokenizer.json, "cleans_up": tokenizer.cleans_up}
    store.write(paths.tokenizer_uri(plan_location), json.dumps(content).encode())


def planned(plan_location: str, plan: Plan) -> Tokenizer:
    """The tokenizer of ``plan``: as `plan` stored it, or loaded by name where it did not or stored another.

    ConfigurationError if the name means another tokenizer by now.
    """
    uri = paths.tokenizer_uri(plan_location)
    if store.exists(uri):
        content = documents.read(store.read(uri), uri, _Stored, "delete it; the stage then loads the tokenizer by name")
        text = content["tokenizer"]
        if text_digest(text) == plan.identity.tokenizer_digest:
            return Tokenizer(text, plan.identity.pad_id, cleans_up=content["cleans_up"])
    name = plan.parameters.tokenizer
    loaded = Tokenizer.load(name, plan.parameters.pad_id)
    check_is_planned("tokenizer", name, loaded.digest, plan.identity.tokenizer_digest)
    return loaded


def check_is_planned(kind: str, name: str, loaded: str, planned_with: str) -> None:
    """ConfigurationError if the digest of the tokenizer or model (``kind``) that was ``loaded`` by ``name`` differs
    from the digest in the plan, ``planned_with``."""
    if loaded != planned_with:
        raise ConfigurationError(
            f"{kind} {name!r} has changed: its digest is {loaded}, the dataset was made with {planned_with}",
            "put the earlier files back under that name (for a name on the hub, into the local cache, with "
            f"HF_HUB_OFFLINE=1), or build a version with the {kind} as it is now. If the files are the same, other "
            "versions of retro-ops, transformers or tokenizers read them differently: install those that built it",
        )


def text_digest(text: str) -> str:
    """Identifies a tokenizer by its ``tokenizer.json``."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def name_digest(name: str) -> str:
    """Identifies the model ``name`` without loading it: by the files of a local folder, else by the name."""
    if not os.path.isdir(name):
        return name
    digest = hashlib.sha256()
    for path in sorted(p for p in Path(name).rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(name)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
