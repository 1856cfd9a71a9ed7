"""Texts -> token ids: as Hugging Face tokenizers give them, by a faster package where it proves equal."""

import functools
import importlib
import importlib.metadata
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from retro_ops.errors import RetroError
from retro_ops.progress import say
from retro_ops.tokens.packing import Rows, from_lists

if TYPE_CHECKING:
    from retro_ops.execution.checkpoints import Unfinished

T = TypeVar("T")

PACKAGES = {"WordPiece": "nanotoken", "BPE": "fastokens"}
"""Of the extra ``fast``, by the model in ``tokenizer.json``. Both are young, so neither is taken at its word."""

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
"""Of the first batch of texts, compared before anything is used."""

SPOT_CHARACTERS = 2**11
"""Of one text of each batch, compared throughout: some 1 % of the work that is saved."""

Encode: TypeAlias = Callable[[Sequence[str]], Rows]


@dataclass(frozen=True)
class Encoding:
    """A tokenizer that encodes: its ``tokenizer.json``; ``longest``: ids kept, special ones included, None: all."""

    json: str
    longest: int | None = None


class DisagreementError(RetroError):
    """A faster package gave other ids than Hugging Face tokenizers, after it had given the same."""


@functools.cache
def exact(encoding: Encoding) -> Encode:
    """Ids of each text, special tokens included. Made once: the shards of a group have one tokenizer."""
    from tokenizers import Tokenizer

    tokenizer = _cut_at(Tokenizer.from_str(encoding.json), encoding.longest)

    def encode(texts: Sequence[str]) -> Rows:
        found = tokenizer.encode_batch_fast(list(texts), add_special_tokens=True)
        return from_lists((entry.ids for entry in found), len(texts))

    return encode


def fastest(encoding: Encoding) -> tuple[Encode, str]:
    """The same ids, and which package gives them or why none does.

    ``encode`` raises DisagreementError once the package gives other ids.
    """
    sure = exact(encoding)
    fast, name = _package(encoding)
    if fast is None:
        return sure, name
    if not _same(fast, sure, DIFFICULT):
        return sure, f"tokenizers: {name} gives other ids for difficult text"
    first = True

    def encode(texts: Sequence[str]) -> Rows:
        nonlocal first
        found = fast(texts)
        checked = _beginnings(texts, FIRST_CHARACTERS) if first else _spot(texts)
        if not _same(fast, sure, checked):
            raise DisagreementError(f"{name} gives other ids than tokenizers", "uninstall it, or report the text")
        first = False
        return found

    return encode, name


def sure_if_wrong(stage: str, unfinished: "Unfinished", work: Callable[[bool], T]) -> T:
    """What ``work`` gives with the faster package; once that proves wrong, all of it again without."""
    try:
        return work(True)
    except DisagreementError as error:
        say(f"{stage}: {error}; all is done again by tokenizers", logging.WARNING, event="disagreement")
        unfinished.restart()
        return work(False)


def _package(encoding: Encoding) -> tuple[Encode | None, str]:
    """The package for the tokenizer and its name, or None and why not."""
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
    except Exception as error:  # Whatever it cannot do, the reference can.
        return None, f"tokenizers: {package} does not read this tokenizer: {error}"


def _cut_at(tokenizer: Any, longest: int | None) -> Any:
    """``tokenizer`` without padding, which keeps the first ``longest`` ids."""
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
    """The first texts, until they have ``characters``; the last one cut."""
    taken: list[str] = []
    for text in texts:
        if characters <= 0:
            break
        taken.append(text[:characters])
        characters -= len(text)
    return taken


def _spot(texts: Sequence[str]) -> list[str]:
    """A piece of one text, another one for other texts."""
    if not texts:
        return []
    text = texts[sum(map(len, texts)) % len(texts)]
    start = len(text) // 2 if len(text) > 2 * SPOT_CHARACTERS else 0
    return [text[start : start + SPOT_CHARACTERS]]
