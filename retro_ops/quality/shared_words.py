"""The words that a chunk and its neighbour share. Standard library only, because Airflow's pages use it."""

from difflib import SequenceMatcher

LEAST_SHARED_WORDS = 3
MOST_COMPARED = 500
"""Words of each text that are compared: with equal words the time grows with the square of their number."""


def shared_words(text: str, other: str) -> list[tuple[str, bool]]:
    """Cut ``other`` into pieces (words, whether ``text`` contains the same run of LEAST_SHARED_WORDS words or more).

    Only the first MOST_COMPARED words of each are compared.
    """
    words, of = other.split(), text.split()[:MOST_COMPARED]
    runs = SequenceMatcher(None, of, words[:MOST_COMPARED], autojunk=False).get_matching_blocks()
    pieces, at = [], 0
    for run in runs:
        if run.size >= LEAST_SHARED_WORDS:
            pieces += [(" ".join(words[at : run.b]), False), (" ".join(words[run.b : run.b + run.size]), True)]
            at = run.b + run.size
    return [piece for piece in [*pieces, (" ".join(words[at:]), False)] if piece[0]]
