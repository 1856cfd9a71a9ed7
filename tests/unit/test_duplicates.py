"""Duplicates among signed documents, compared with the Jaccard similarity of all pairs, whatever the memory."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retro_ops.duplicates import document_pairs, lsh, minhash
from retro_ops.duplicates.signatures import SignatureWriter, Signed, SignedShards

WORDS = [f"word{number}" for number in range(3000)]


def made(count: int, seed: int = 0) -> list[str]:
    """Texts of random words, and copies of them of which more and more words were replaced."""
    random = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        words = random.choice(WORDS, int(random.integers(40, 400))).tolist()
        texts.append(" ".join(words))
        for share in (0.0, 0.01, 0.02, 0.03, 0.06, 0.15):
            copy = [random.choice(WORDS) if random.random() < share else word for word in words]
            texts.append(" ".join(copy))
    return [texts[i] for i in random.permutation(len(texts))]


def jaccard(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)


def sign(folder: Path, shards: list[list[str]], budget: int = 2**30) -> SignedShards:
    files = []
    for number, texts in enumerate(shards):
        of = {name: str(folder / f"{number}/{name}.npy") for name in ("signatures", "contents", "records")}
        with SignatureWriter(of, budget) as out:
            for start in range(0, len(texts), 50):
                part = texts[start : start + 50]
                hashes, signed = minhash.content_hashes(part), minhash.signatures(part)
                out.append(Signed("x", len(part), np.arange(len(part)), hashes, signed))
            out.close()
        files.append(of)
    return SignedShards(files)


def clusters_of(signed: SignedShards, threshold: float = 0.8, budget: int = 2**30) -> list[list[int]]:
    alike = lsh.find(signed, threshold, budget, lambda _: None)
    documents, of = document_pairs.clusters(document_pairs.joined([alike.exact, alike.near]))
    return sorted(documents[of == number].tolist() for number in range(int(of.max(initial=-1)) + 1))


@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.9])
def test_found_are_those_above_the_threshold(tmp_path: Path, threshold: float) -> None:
    texts = made(60)
    found = lsh.find(sign(tmp_path, [texts]), threshold, 2**30, lambda _: None)
    documents, of = document_pairs.clusters(document_pairs.joined([found.exact, found.near]))
    number = dict(zip(documents.tolist(), of.tolist(), strict=True))
    grams = [set(minhash.ngrams(text)) for text in texts]
    pairs = {
        (a, b): similarity
        for a, b in itertools.combinations(range(len(texts)), 2)
        if (similarity := jaccard(grams[a], grams[b])) > 0.05
    }
    together = {pair for pair in pairs if number.get(pair[0], -1) == number.get(pair[1], -2)}
    # An estimate of 128 numbers has a standard deviation of 0.035 to 0.043: three of them on either side are left out.
    sure = {pair for pair, similarity in pairs.items() if similarity >= threshold + 0.12 or similarity == 1}
    assert len(sure) > 60
    assert len(sure & together) / len(sure) > 0.98
    edges = set(zip(*(of.tolist() for of in document_pairs.unpack(found.near)), strict=True))
    best = {a: max((s for pair, s in pairs.items() if a in pair), default=0.0) for edge in edges for a in edge}
    # Whoever was found is really like another one.
    assert edges
    assert min(best.values()) > threshold - 0.13
    # Of all pairs at or above the threshold, those near it included.
    above = {pair for pair, similarity in pairs.items() if similarity >= threshold}
    assert len(above & together) / len(above) > 0.85


def test_exact_copies_are_told_from_near_ones(tmp_path: Path) -> None:
    text = " ".join(WORDS[:60])
    shouted = text.upper() + "!"
    signed = sign(tmp_path, [[text, "other words", shouted], [text, "", "…", "", "..."]])
    alike = lsh.find(signed, 0.8, 2**30, lambda _: None)
    assert [of.tolist() for of in document_pairs.unpack(alike.exact)] == [[0, 4], [3, 6]]
    assert [of.tolist() for of in document_pairs.unpack(alike.near)] == [[0], [2]]


def test_texts_without_words_are_alike_only_if_they_are_equal() -> None:
    assert minhash.ngrams("") != minhash.ngrams("...") != minhash.ngrams("…")
    assert minhash.ngrams("One, two") == ["one two"]
    assert minhash.ngrams("a b c d e f") == ["a b c d e", "b c d e f"]
    assert len(minhash.signatures([])) == 0


def test_neither_memory_nor_division_into_shards_changes_what_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = made(80, seed=3)
    whole = clusters_of(sign(tmp_path / "whole", [texts]))
    assert len(whole) > 70
    monkeypatch.setattr(lsh, "LEAST_AT_ONCE", 64)
    # So little that keys come in parts, bands one by one, pairs in batches, and numbers of signatures in turn.
    parted = sign(tmp_path / "parted", [texts[:7], [], texts[7:300], texts[300:]], budget=4096)
    assert clusters_of(parted, budget=20_000) == whole
    assert lsh._parts(len(texts), 10_000) > 1


def test_a_signature_does_not_depend_on_what_is_signed_with_it() -> None:
    a, b = minhash.signatures(made(5)), minhash.signatures(made(5)[::-1])
    assert (a == b[::-1]).all()


@given(st.lists(st.integers(0, 5), max_size=60))
def test_groups_and_pairs(keys: list[int]) -> None:
    documents = np.arange(len(keys), dtype=np.int64) * 3
    members, starts = document_pairs.groups(np.array(keys, np.uint64), documents)
    expected = {key: [3 * i for i, k in enumerate(keys) if k == key] for key in set(keys)}
    groups = [part.tolist() for part in np.split(members, starts[1:])] if len(starts) else []
    assert sorted(groups) == sorted(of for of in expected.values() if len(of) > 1)
    pairs = document_pairs.candidates(members, starts)
    low, high = document_pairs.unpack(pairs)
    assert (low < high).all()
    small = {
        p for of in expected.values() if len(of) <= document_pairs.ALL_PAIRS for p in itertools.combinations(of, 2)
    }
    assert small <= set(zip(low.tolist(), high.tolist(), strict=True))
    # Whoever hangs together does so by the pairs of a forest, too.
    if len(pairs):
        for of in (pairs, document_pairs.star(members, starts)):
            assert _partition(document_pairs.forest(of)) == _partition(of) == sorted(sorted(g) for g in groups)


def _partition(pairs: document_pairs.Pairs) -> list[list[int]]:
    documents, of = document_pairs.clusters(pairs)
    return sorted(documents[of == number].tolist() for number in np.unique(of))


def test_the_canonical_document_is_the_first_of_the_lowest_rank() -> None:
    documents = np.array([2, 3, 5, 7, 11, 13])
    clusters = np.array([0, 1, 0, 1, 0, 2])
    rank: NDArray[np.int64] = np.array([1, 1, 0, 1, 0, 1])  # 5 and 11 are validation documents
    assert document_pairs.canonical_of(documents, clusters, rank).tolist() == [5, 3, 5, 3, 5, 13]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_bring_what_is_at_the_threshold(threshold: float) -> None:
    rows = document_pairs.rows_per_band(threshold)
    bands = minhash.PERMUTATIONS // rows
    assert 1 - (1 - threshold**rows) ** bands >= document_pairs.LEAST_RECALL
    if rows < minhash.PERMUTATIONS:
        more = rows + 1
        assert 1 - (1 - threshold**more) ** (minhash.PERMUTATIONS // more) < document_pairs.LEAST_RECALL
