"""Token ids -> text, from a ``tokenizer.json`` and the standard library.

The API server has no tokenizers library. A page needs only the way back from ids to text, which is a table and a few
rules on its entries, so they are here. Texts equal those of `tokenizers` except for white space.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MOST_OF_A_TOKEN = 1000
"""Characters of a token that are shown: the tokens of tokenizers in use have at most a few hundred."""

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, and the steps that make text of them."""

    tokens: Mapping[int, str]
    special: frozenset[int]
    steps: Sequence[Mapping[str, Any]] = field(default=())

    def text(self, ids: Sequence[int]) -> str:
        """The text of ``ids`` without special tokens, white space collapsed. Unknown ids become U+FFFD."""
        pieces = [self.tokens.get(number, "\ufffd") for number in ids if number not in self.special]
        for step in self.steps:
            pieces = _RULES.get(str(step.get("type")), _same)(pieces, step)
        joined = "".join(pieces) if self.steps else " ".join(pieces)
        return " ".join(joined.split())


def vocabulary(text: str) -> Vocabulary:
    """Read a ``tokenizer.json``. Raises ValueError, KeyError or TypeError if it is not one."""
    document = json.loads(text)
    vocab, added = document["model"]["vocab"], document.get("added_tokens") or []
    if isinstance(vocab, dict):
        tokens = {int(number): _cut(token) for token, number in vocab.items()}
    else:  # Unigram: [token, score] in the order of ids.
        tokens = {number: _cut(entry[0]) for number, entry in enumerate(vocab)}
    tokens |= {int(entry["id"]): _cut(entry["content"]) for entry in added}
    special = frozenset(int(entry["id"]) for entry in added if entry.get("special"))
    return Vocabulary(tokens, special, tuple(_steps(document.get("decoder"))))


def _cut(token: object) -> str:
    return str(token)[:MOST_OF_A_TOKEN]


def _steps(decoder: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if decoder and decoder["type"] == "Sequence":
        for step in decoder["decoders"]:
            yield from _steps(step)
    elif decoder:
        yield decoder


def _same(pieces: list[str], step: Mapping[str, Any]) -> list[str]:
    return pieces


def _word_piece(pieces: list[str], step: Mapping[str, Any]) -> list[str]:
    prefix = str(step.get("prefix", "##"))
    later = (piece.removeprefix(prefix) if piece.startswith(prefix) else f" {piece}" for piece in pieces[1:])
    joined = [*pieces[:1], *later]
    return [_BEFORE.get(piece, piece) for piece in joined] if step.get("cleanup", True) else joined


def _byte_level(pieces: list[str], step: Mapping[str, Any]) -> list[str]:
    data = b"".join(
        bytes(_BYTES[c] for c in piece) if all(c in _BYTES for c in piece) else piece.encode() for piece in pieces
    )
    return [data.decode(errors="replace")]


def _byte_fallback(pieces: list[str], step: Mapping[str, Any]) -> list[str]:
    joined: list[str] = []
    pending = b""
    for piece in [*pieces, ""]:
        if found := BYTE.fullmatch(piece):
            pending += bytes([int(found[1], 16)])
            continue
        joined += [_decoded(pending), piece]
        pending = b""
    return joined


def _decoded(run: bytes) -> str:
    try:
        return run.decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(run)


def _metaspace(pieces: list[str], step: Mapping[str, Any]) -> list[str]:
    return [piece.replace(str(step.get("replacement", "▁")), " ") for piece in pieces]


def _replace(pieces: list[str], step: Mapping[str, Any]) -> list[str]:
    old = step["pattern"].get("String")
    return [piece.replace(old, step["content"]) for piece in pieces] if old else pieces


def _bpe(pieces: list[str], step: Mapping[str, Any]) -> list[str]:
    return [piece.replace(str(step.get("suffix", "</w>")), " ") for piece in pieces]


_BEFORE = {f" {mark}": mark for mark in (".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re")}
"""Pieces that WordPiece joins to the word before."""

_RULES: Mapping[str, Callable[[list[str], Mapping[str, Any]], list[str]]] = {
    "WordPiece": _word_piece,
    "ByteLevel": _byte_level,
    "ByteFallback": _byte_fallback,
    "Metaspace": _metaspace,
    "Replace": _replace,
    "BPEDecoder": _bpe,
}


def _byte_of_character() -> dict[str, int]:
    """The bytes that the characters of a byte-level vocabulary stand for (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_of_character()
