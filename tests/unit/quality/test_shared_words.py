"""The words that a chunk and its neighbour share."""

from retro_ops.quality.shared_words import MOST_COMPARED, shared_words


def test_runs_of_three_words_are_marked() -> None:
    found = shared_words("the cat sat on a mat", "so the cat sat by a mat")
    assert found == [("so", False), ("the cat sat", True), ("by a mat", False)]


def test_only_the_beginning_of_long_texts_is_compared() -> None:
    """The texts of one repeated word are the slowest: their time grows with the square of their length."""
    found = shared_words("a " * 50_000, "a " * 50_000)
    assert [(len(words.split()), is_shared) for words, is_shared in found] == [
        (MOST_COMPARED, True),
        (50_000 - MOST_COMPARED, False),
    ]
