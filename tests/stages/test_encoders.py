"""Faster packages are used while they agree with tokenizers, and no longer."""

import importlib.metadata
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from samples import Run, tokenize_flags, write_corpus

from retro_ops.execution import report
from retro_ops.tokens import encoders
from retro_ops.tokens.encoders import DisagreementError, Encoding, exact, fastest
from retro_ops.tokens.tokenizer import Tokenizer

SPOILT = "zzqx"
"""A word that the false package gets wrong."""


@pytest.fixture
def encoding(model_dir: str) -> Encoding:
    return Tokenizer.load(model_dir).encoding


def _pretend(patch: pytest.MonkeyPatch, wrong: str) -> None:
    """A package in the place of nanotoken that is right but for texts with ``wrong`` in them."""

    class Pretended:
        def __init__(self, json: str) -> None:
            self.encode = exact(Encoding(json))

        @classmethod
        def from_json(cls, json: str) -> "Pretended":
            return cls(json)

        def encode_batch(self, texts: list[str], max_length: int | None) -> Any:
            rows = self.encode(texts)
            ids = rows.ids + np.repeat([wrong in text for text in texts], rows.lengths)
            return SimpleNamespace(ids=ids.astype(np.uint32), offsets=rows.starts)

    module = ModuleType("nanotoken")
    module.Tokenizer = Pretended  # type: ignore[attr-defined]
    patch.setitem(sys.modules, "nanotoken", module)
    version = importlib.metadata.version
    patch.setattr(importlib.metadata, "version", lambda name: "9" if name == "nanotoken" else version(name))


def test_the_fastest_encoder_gives_the_ids_of_tokenizers(encoding: Encoding, texts: list[str]) -> None:
    encode, package = fastest(encoding)
    found, wanted = encode(texts), exact(encoding)(texts)
    assert np.array_equal(found.ids, wanted.ids)
    assert np.array_equal(found.lengths, wanted.lengths)
    assert package.startswith(("nanotoken ", "tokenizers: nanotoken is not installed"))


def test_a_tokenizer_without_a_faster_package_says_so(t5_dir: str) -> None:
    assert fastest(Tokenizer.load(t5_dir).encoding)[1] == "tokenizers: no faster package for Unigram"


def test_a_package_that_is_wrong_about_difficult_text_is_not_used(
    encoding: Encoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend(monkeypatch, "naïve")
    assert fastest(encoding)[1] == "tokenizers: nanotoken 9 gives other ids for difficult text"


@pytest.mark.parametrize("batch", [0, 3])
def test_a_package_that_goes_wrong_later_is_detected(
    encoding: Encoding, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend(monkeypatch, SPOILT)
    encode, package = fastest(encoding)
    assert package == "nanotoken 9"
    for _ in range(batch):
        encode(["Right."])
    with pytest.raises(DisagreementError):
        encode([f"Wrong: {SPOILT}."])


def test_a_spot_is_of_the_text_and_short() -> None:
    text = "".join(map(chr, range(33, 33 + 3 * encoders.SPOT_CHARACTERS)))
    (spot,) = encoders._spot([text])
    assert spot in text
    assert len(spot) == encoders.SPOT_CHARACTERS
    assert encoders._spot([]) == []


def test_the_stage_does_all_again_without_a_package_that_disagrees(
    tmp_path: Path, run: Run, texts: list[str], model_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retro_ops.execution import checkpoints
    from retro_ops.stages import tokenize_and_chunk

    monkeypatch.setattr(tokenize_and_chunk, "BATCH_DOCUMENTS", 1)
    monkeypatch.setattr(checkpoints, "COMMIT_SECONDS", 0)
    corpus = write_corpus(tmp_path / "d.jsonl", [*(text[:500] for text in texts[:6]), f"Wrong: {SPOILT}."])
    run("tokenize-and-chunk", corpus, *tokenize_flags(tmp_path / "plain", model_dir))
    _pretend(monkeypatch, SPOILT)
    run("tokenize-and-chunk", corpus, *tokenize_flags(tmp_path / "again", model_dir))
    made = report.read(str(tmp_path / "again/chunks.report.json"))
    assert made is not None
    assert made["details"]["encoded_by"] == "tokenizers"
    for name in ("chunks", "seq2chunk", "chunk2seq", "chunks.document_ids"):
        assert (tmp_path / f"again/{name}.npy").read_bytes() == (tmp_path / f"plain/{name}.npy").read_bytes()
    assert not [path for path in tmp_path.rglob("*") if ".unfinished-" in path.name]
