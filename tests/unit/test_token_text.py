"""The pages' text of token ids equals that of `tokenizers`, up to white space."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from retro_airflow.pages.token_text import vocabulary
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXTS = [
    "Grüße, “world”! It's 5 o'clock.",
    "naïve café 日本語 🙂 don't stop",
    "a b  c\td\n e",
    "tokenisation ##of words",
]


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=150, special_tokens=["[UNK]", "[PAD]"]))
    return tokenizer


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}, "▁a": 257, "b": 258, "▁": 259}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>"])
    return tokenizer


FAMILIES = {make.__name__: make() for make in (word_piece, byte_level, unigram, byte_fallback)}


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=150)
@given(draw=st.data())
def test_text_equals_that_of_tokenizers(family: str, draw: st.DataObject) -> None:
    tokenizer = FAMILIES[family]
    ids = draw.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=30))
    expected = tokenizer.decode(ids, skip_special_tokens=True)
    found = vocabulary(tokenizer.to_str()).text(ids)
    assert found == " ".join(expected.split())


@pytest.mark.parametrize("make", [lambda: "{", lambda: "{}", lambda: '{"model": {"vocab": 3}}', lambda: "[]"])
def test_what_is_no_tokenizer_is_an_error(make: Callable[[], str]) -> None:
    with pytest.raises((ValueError, LookupError, TypeError)):
        vocabulary(make())


def test_unknown_ids_are_visible() -> None:
    assert vocabulary('{"model": {"vocab": {"a": 0}}}').text([0, 7, 2**40]) == "a \ufffd \ufffd"
