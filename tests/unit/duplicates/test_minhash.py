"""Word n-grams and signatures of texts."""

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
