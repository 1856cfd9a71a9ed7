"""Duplicates among signed documents, compared with the Jaccard similarity of all pairs, with much and little memory."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from near_copies import WORDS, made

from retro_ops.duplicates import document_pairs, lsh, minhash
from retro_ops.duplicates.signatures import SignatureWriter, Signed, SignedShards


def jaccard(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)


def sign(folder: Path, shards: list[list[str]], budget: int = 2**30) -> SignedShards:
    files = []
    for number, texts in enumerate(shards):
        of = {name: str(folder / f"{number}/{name}.npy") for name in ("signatures", "contents", "records")}
        with SignatureWriter(of, None, budget) as out:
            for start in range(0, len(texts), 50):
                part = texts[start : start + 50]
                hashes, signed = minhash.content_hashes(part), minhash.signatures(part)
                out.append(Signed("x", len(part), np.arange(len(part)), hashes, signed, np.zeros((0, 3), np.int64)))
            out.close()
        files.append(of)
    return SignedShards(files)


def clusters_of(signed: SignedShards, threshold: float = 0.8, budget: int = 2**30) -> list[list[int]]:
    alike = lsh.find(signed, threshold, budget, lambda _: None)
    documents, of = document_pairs.clusters(document_pairs.joined([alike.exact, alike.near]))
    return sorted(documents[of == number].tolist() for number in range(int(of.max(initial=-1)) + 1))


def similar_pairs(texts: list[str]) -> dict[tuple[int, int], float]:
    """Similarity of every pair above 0.05."""
    grams = [set(minhash.ngrams(text)) for text in texts]
    return {
        (a, b): similarity
        for a, b in itertools.combinations(range(len(texts)), 2)
        if (similarity := jaccard(grams[a], grams[b])) > 0.05
    }


@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.9])
def test_found_are_those_above_the_threshold(tmp_path: Path, threshold: float) -> None:
    texts = made(60)
    found = lsh.find(sign(tmp_path, [texts]), threshold, 2**30, lambda _: None)
    documents, of = document_pairs.clusters(document_pairs.joined([found.exact, found.near]))
    number = dict(zip(documents.tolist(), of.tolist(), strict=True))
    pairs = similar_pairs(texts)
    together = {pair for pair in pairs if number.get(pair[0], -1) == number.get(pair[1], -2)}
    # An estimate of 128 numbers has a standard deviation of 0.035 to 0.043: three of them on either side are left out.
    sure = {pair for pair, similarity in pairs.items() if similarity >= threshold + 0.12 or similarity == 1}
    assert len(sure) > 60
    assert len(sure & together) / len(sure) > 0.98
    edges = set(zip(*(of.tolist() for of in document_pairs.unpack(found.near)), strict=True))
    best = {a: max((s for pair, s in pairs.items() if a in pair), default=0.0) for edge in edges for a in edge}
    # Every document that was found is similar to another one.
    assert edges
    assert min(best.values()) > threshold - 0.13
    # Of all pairs at or above the threshold, those near it included.
    above = {pair for pair, similarity in pairs.items() if similarity >= threshold}
    assert len(above & together) / len(above) > 0.85


def test_exact_copies_are_distinguished_from_near_ones(tmp_path: Path) -> None:
    text = " ".join(WORDS[:60])
    shouted = text.upper() + "!"
    signed = sign(tmp_path, [[text, "other words", shouted], [text, "", "…", "", "..."]])
    alike = lsh.find(signed, 0.8, 2**30, lambda _: None)
    assert [of.tolist() for of in document_pairs.unpack(alike.exact)] == [[0, 4], [3, 6]]
    assert [of.tolist() for of in document_pairs.unpack(alike.near)] == [[0], [2]]


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
