"""Word n-grams and signatures of texts."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from near_copies import made

from retro_ops.duplicates import minhash


def test_texts_without_words_are_alike_only_if_they_are_equal() -> None:
    assert minhash.ngrams("") != minhash.ngrams("...") != minhash.ngrams("…")
    assert minhash.ngrams("One, two") == ["one two"]
    assert minhash.ngrams("a b c d e f") == ["a b c d e", "b c d e f"]
    assert len(minhash.signatures([])) == 0


def test_a_signature_does_not_depend_on_what_is_signed_with_it() -> None:
    a, b = minhash.signatures(made(5)), minhash.signatures(made(5)[::-1])
    assert (a == b[::-1]).all()


WORDS = st.text(st.characters(categories=["L", "M", "Nd"], max_codepoint=0x1FFFF), min_size=1, max_size=6).filter(
    lambda word: word[0].isalpha()
)


@pytest.mark.parametrize(
    "words", ["काल कील कुल कोल", "ไป ไปี ไปู", "নাম নিম নোম", "كَتَبَ كُتُب كتب", "cafe cafe\u0301 cafe\u0302", "א אַ אָ"]
)
def test_words_that_differ_in_a_vowel_sign_are_different(words: str) -> None:
    assert len({tuple(minhash.ngrams(word)) for word in words.split(" ")}) == len(words.split(" "))


@given(st.lists(WORDS, min_size=1, max_size=5))
def test_a_word_is_kept_whole_in_every_script(words: list[str]) -> None:
    (found,) = minhash.ngrams(" ,".join(words))
    # Lower case may add a mark of its own.
    assert found == " ".join(unicodedata.normalize("NFC", " ,".join(words)).lower().split(" ,"))


def test_composed_and_decomposed_text_is_the_same() -> None:
    assert minhash.ngrams("Café Ünïcödé") == minhash.ngrams(unicodedata.normalize("NFD", "Café Ünïcödé"))
