"""``--profile seed`` gives, element by element, what the plain re-statement of the formats gives."""

from pathlib import Path

import numpy as np
import pytest
import restatement
from samples import Run, synthetic_shard, tokenize_flags, write_corpus, write_index_spec
from transformers import AutoTokenizer

K = 4
INDEX_TYPES = ("Flat", "IVF8,Flat", "IVF8,PQ16x4")


def test_chunks_are_those_of_the_original(tmp_path: Path, run: Run, texts: list[str], tokenizer_dir: str) -> None:
    corpus = write_corpus(tmp_path / "data.jsonl", texts)
    run("tokenize-and-chunk", corpus, *tokenize_flags(tmp_path, tokenizer_dir))
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    expected = restatement.chunks(tokenizer, texts, tokenizer.pad_token_id)
    for name, array in zip(("chunks", "seq2chunk", "chunk2seq"), expected, strict=True):
        found = np.load(tmp_path / f"{name}.npy")
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


def test_an_empty_document_has_one_chunk_of_end_and_padding(tmp_path: Path, run: Run, t5_dir: str) -> None:
    run("tokenize-and-chunk", write_corpus(tmp_path / "d.jsonl", [""]), *tokenize_flags(tmp_path, t5_dir))
    assert np.load(tmp_path / "chunks.npy").tolist() == [[1] + [0] * 63]


@pytest.mark.parametrize("index_type", INDEX_TYPES)
def test_neighbours_are_those_of_the_original(tmp_path: Path, run: Run, index_type: str) -> None:
    """Two training shards, a validation shard in the extended index, and one that is in neither."""
    lengths = [[1, 9, 30, 2, 58], [40, 3, 7, 50], [5, 20, 1], [6, 6]]
    shards = [synthetic_shard(tmp_path / name, n, i) for i, (name, n) in enumerate(zip("abvx", lengths, strict=True))]
    train_spec = write_index_spec(tmp_path / "train.json", shards[:2])
    val_spec = write_index_spec(tmp_path / "val.json", shards[:3])
    trained, train, part, val = (tmp_path / f"{name}.index" for name in ("trained", "train", "part", "val"))
    run("train-faiss-index", "--spec", train_spec, "--index-type", index_type, "--output", trained)
    run("build-faiss-index", "--spec", train_spec, "--trained-index", trained, "--output-index", train)
    partial = ("--only-shard", 2, "--trained-index", trained, "--output-index", part)
    run("build-faiss-index", "--spec", val_spec, *partial)
    run("merge-indexes", "--base-index", train, "--partials", part, "--output-index", val)
    for index, spec, indexed, queries in (
        (train, train_spec, shards[:2], [*shards[:2], shards[3]]),
        (val, val_spec, shards[:3], [shards[2], shards[0]]),
    ):
        names = [(str(shard / "embeddings.npy"), str(shard / "chunk2seq.npy")) for shard in indexed]
        outputs = [tmp_path / f"{index.stem}.{query.name}.neighbours.npy" for query in queries]
        run(
            *("retrieve-neighbours", "--query-embeddings", *(q / "embeddings.npy" for q in queries)),
            *("--query-chunk2seq", *(q / "chunk2seq.npy" for q in queries), "--neighbours-output", *outputs),
            *("--index", index, "--index-spec", spec, "--num-neighbours", K, "--profile", "seed"),
        )
        for query, output in zip(queries, outputs, strict=True):
            files = str(query / "embeddings.npy"), str(query / "chunk2seq.npy")
            expected = restatement.neighbours(str(index), *files, names, K)
            np.testing.assert_array_equal(np.load(output), expected)
