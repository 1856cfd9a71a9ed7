"""Encodes texts as Hugging Face tokenizers do, with a faster package where that proves equal."""

import functools
import importlib
import importlib.metadata
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np

from retro_ops.errors import RetroError
from retro_ops.execution.checkpoints import Checkpoints
from retro_ops.progress import say
from retro_ops.tokens.packing import Rows, from_lists

T = TypeVar("T")

PACKAGES = {"WordPiece": "nanotoken", "BPE": "fastokens"}
"""Packages of the extra ``fast``, by the model in ``tokenizer.json``. Both are young, so their results are compared."""

DIFFICULT = (
    "",
    " ",
    "\n\t \r\n",
    "One word.",
    "naïve café — 東京 🎉 Ünïcödé e\u0301 ﬁ ½ ™",
    "ΑΣ ς İstanbul ǅ ẞ",
    "a\u200bb\u00adc\u2028d\x85e\x0bf\x0cg\x00h\ufeffi\u0301",
    "👩‍👩‍👧‍👦 🇩🇪 ❤️",
    "مرحبا नमस्ते สวัสดี 안녕하세요 こんにちは",
    "don't won't I'LL he's 'tis   three  spaces",
    "x" * 300 + " " + "ab" * 150,
    "[CLS] [SEP] [UNK] [PAD] [MASK] <s> </s> <pad> <unk> <|endoftext|>",
    "for (int i = 0; i < n; ++i) { sum += x[i]*y[i]; }  // 3.14159e-10",
    "1234567890 12,345.67 0x1F 2026-01-01T00:00:00Z",
    "https://example.org/a?b=c&d=e#f user@example.org",
    "\ud7ff\ue000\uffff\U0010ffff",
)
FIRST_CHARACTERS = 2**16
"""Characters of the first batch that are compared before any result is used."""

SPOT_CHARACTERS = 2**11
"""Characters of one text of each batch that are compared: some 1 % of the work that is saved."""

Encode: TypeAlias = Callable[[Sequence[str]], Rows]


@dataclass(frozen=True)
class Encoding:
    """A tokenizer for encoding. ``json``: its ``tokenizer.json``; ``longest``: ids to keep, special ones included, or
    None for all."""

    json: str
    longest: int | None = None


class DisagreementError(RetroError):
    """A faster package gave other ids than Hugging Face tokenizers, after it had given the same before."""


@functools.cache
def exact(encoding: Encoding) -> Encode:
    """The function that encodes with Hugging Face tokenizers, special tokens included. Cached in each process."""
    from tokenizers import Tokenizer

    tokenizer = _cut_at(Tokenizer.from_str(encoding.json), encoding.longest)

    def encode(texts: Sequence[str]) -> Rows:
        found = tokenizer.encode_batch_fast(list(texts), add_special_tokens=True)
        return from_lists((entry.ids for entry in found), len(texts))

    return encode


def fastest(encoding: Encoding) -> tuple[Encode, str]:
    """The fastest function that gives the same ids, and the package behind it or the reason why there is none.

    The function raises DisagreementError once the package gives other ids.
    """
    reference = exact(encoding)
    fast, name = _package(encoding)
    if fast is None:
        return reference, name
    if not _same(fast, reference, DIFFICULT):
        return reference, f"tokenizers: {name} gives other ids for difficult text"
    first = True

    def encode(texts: Sequence[str]) -> Rows:
        nonlocal first
        found = fast(texts)
        checked = _beginnings(texts, FIRST_CHARACTERS) if first else _spot(texts)
        if not _same(fast, reference, checked):
            raise DisagreementError(f"{name} gives other ids than tokenizers", "uninstall it, or report the text")
        first = False
        return found

    return encode, name


def retry_with_reference(stage: str, unfinished: Checkpoints, work: Callable[[bool], T]) -> T:
    """Result of ``work(True)``, with a faster package; if that proves wrong, of ``work(False)`` from the beginning."""
    try:
        return work(True)
    except DisagreementError as error:
        say(f"{stage}: {error}; starting again with tokenizers", logging.WARNING, event="disagreement")
        unfinished.restart()
        return work(False)


def _package(encoding: Encoding) -> tuple[Encode | None, str]:
    """The function of the faster package and its name, or None and the reason."""
    kind = _kind(encoding.json)
    if kind not in PACKAGES:
        return None, f"tokenizers: no faster package for {kind}"
    package = PACKAGES[kind]
    try:
        module = importlib.import_module(package)
        version = importlib.metadata.version(package)
        return _OPENED[package](module, encoding), f"{package} {version}"
    except ImportError:
        return None, f"tokenizers: {package} is not installed"
    except Exception as error:  # The reference can always encode.
        return None, f"tokenizers: {package} does not read this tokenizer: {error}"


def _cut_at(tokenizer: Any, longest: int | None) -> Any:
    """``tokenizer`` without padding, set to keep the first ``longest`` ids."""
    tokenizer.no_padding()
    if longest is None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(longest)
    return tokenizer


@functools.cache
def _kind(json: str) -> str:
    import tokenizers

    return type(tokenizers.Tokenizer.from_str(json).model).__name__


def _nanotoken(module: Any, encoding: Encoding) -> Encode:
    tokenizer = module.Tokenizer.from_json(encoding.json)

    def encode(texts: Sequence[str]) -> Rows:
        found = tokenizer.encode_batch(list(texts), max_length=encoding.longest)
        return Rows(found.ids.astype(np.int32), np.diff(found.offsets).astype(np.int32))

    return encode


def _fastokens(module: Any, encoding: Encoding) -> Encode:
    tokenizer = _cut_at(module.Tokenizer.from_json_str(encoding.json), encoding.longest)

    def encode(texts: Sequence[str]) -> Rows:
        ids, offsets = tokenizer.encode_batch_flat(list(texts), add_special_tokens=True)
        lengths = np.diff(np.frombuffer(offsets, np.uint64)).astype(np.int32)
        return Rows(np.frombuffer(ids, np.uint32).astype(np.int32), lengths)

    return encode


_OPENED: dict[str, Callable[[Any, Encoding], Encode]] = {"nanotoken": _nanotoken, "fastokens": _fastokens}


def _same(a: Encode, b: Encode, texts: Sequence[str]) -> bool:
    one, other = a(texts), b(texts)
    return np.array_equal(one.lengths, other.lengths) and np.array_equal(one.ids, other.ids)


def _beginnings(texts: Sequence[str], characters: int) -> list[str]:
    """The first texts, with ``characters`` in all; the last one is cut."""
    taken: list[str] = []
    for text in texts:
        if characters <= 0:
            break
        taken.append(text[:characters])
        characters -= len(text)
    return taken


def _spot(texts: Sequence[str]) -> list[str]:
    """A piece of one of the texts, which their lengths choose."""
    if not texts:
        return []
    text = texts[sum(map(len, texts)) % len(texts)]
    start = len(text) // 2 if len(text) > 2 * SPOT_CHARACTERS else 0
    return [text[start : start + SPOT_CHARACTERS]]
