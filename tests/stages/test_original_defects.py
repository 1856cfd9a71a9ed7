"""The nine defects of the original (docs/formats.md), each with a test that fails where it is."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
import zstandard
from samples import Run, synthetic_shard, tokenize_flags, write_corpus, write_index_spec

from retro_ops.execution import report

Capture = pytest.CaptureFixture[str]


def _train_and_build(run: Run, folder: Path, spec: Path, index_type: str = "IVF8,Flat") -> Path:
    run("train-faiss-index", "--spec", spec, "--index-type", index_type, "--output", folder / "trained.index")
    filled = folder / "filled.index"
    run("build-faiss-index", "--spec", spec, "--trained-index", folder / "trained.index", "--output-index", filled)
    return filled


def _retrieve(run: Run, folder: Path, spec: Path, index: Path, query: Path, *options: str, code: int = 0) -> Path:
    output = folder / f"{query.name}.neighbours.npy"
    run(
        *("retrieve-neighbours", "--query-embeddings", query / "embeddings.npy"),
        *("--query-chunk2seq", query / "chunk2seq.npy", "--neighbours-output", output),
        *("--index", index, "--index-spec", spec, *options),
        code=code,
    )
    return output


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_defect_1_a_full_chunk_buffer_leaves_consistent_arrays(
    tmp_path: Path, run: Run, t5_dir: str, limit: int
) -> None:
    corpus = write_corpus(tmp_path / "d.jsonl", ["one", "two", "three", "four"])
    run("tokenize-and-chunk", corpus, *tokenize_flags(tmp_path, t5_dir), "--max-chunks", limit)
    chunks, starts, owners = (np.load(tmp_path / f"{n}.npy") for n in ("chunks", "seq2chunk", "chunk2seq"))
    assert len(chunks) == len(owners) == min(limit, 4)
    np.testing.assert_array_equal(starts, np.arange(min(limit, 4)))


def test_defect_2_large_token_ids_do_not_wrap(tmp_path: Path, run: Run) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<unk>": 1, **{f"w{i}": i for i in range(2, 70_000)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(tmp_path / "large")
    corpus = write_corpus(tmp_path / "d.jsonl", ["w65535 w65536 w69999"])
    flags = tokenize_flags(tmp_path, str(tmp_path / "large"))
    run("tokenize-and-chunk", corpus, *flags)
    chunks = np.load(tmp_path / "chunks.npy")
    assert chunks.dtype == np.uint32
    assert chunks[0, :3].tolist() == [65535, 65536, 69999]
    run("tokenize-and-chunk", corpus, *flags, "--token-dtype", "uint16", code=65)


def test_defect_3_a_missing_shard_is_an_error_that_names_it(tmp_path: Path, run: Run, capfd: Capture) -> None:
    shard = synthetic_shard(tmp_path / "a", [50, 50], 0)
    spec = write_index_spec(tmp_path / "spec.json", [shard, tmp_path / "gone"])
    run("train-faiss-index", "--spec", spec, "--index-type", "Flat", "--output", tmp_path / "t.index", code=65)
    assert f"{tmp_path}/gone/embeddings.npy does not exist" in capfd.readouterr().err


def test_defect_3_a_tiny_shard_builds(tmp_path: Path, run: Run) -> None:
    spec = write_index_spec(tmp_path / "spec.json", [synthetic_shard(tmp_path / "a", [1], 0)])
    assert faiss.read_index(str(_train_and_build(run, tmp_path, spec, "Flat"))).ntotal == 1


BAD_LINES = {
    3: (b'{"text": \n', "bad JSON"),
    4: (b'{"title": "x"}\n', "no key 'text'"),
    5: (b'{"text": 7}\n', "not a string but int"),
    6: (b'{"text": "\xff"}\n', "invalid UTF-8"),
    7: (b'["text"]\n', "not a JSON object but list"),
    8: (b'{"text": "\\ud800"}\n', "lone surrogate"),
}


def test_defect_4_bad_records_are_set_aside_with_file_line_and_reason(
    tmp_path: Path, run: Run, t5_dir: str, capfd: Capture
) -> None:
    good = b'{"text": "good", "id": "first", "url": "u"}\n'
    corpus = tmp_path / "data.jsonl.gz"
    corpus.write_bytes(gzip.compress(good + b"\n" + b"".join(line for line, _ in BAD_LINES.values()) + good * 7))
    run("tokenize-and-chunk", corpus, *tokenize_flags(tmp_path, t5_dir))
    entries = [json.loads(line) for line in (tmp_path / "chunks.quarantine.jsonl").read_text().splitlines()]
    assert [(e["source"], e["line"]) for e in entries] == [(str(corpus), line) for line in BAD_LINES]
    assert all(reason in e["reason"] for e, (_, reason) in zip(entries, BAD_LINES.values(), strict=True))
    assert len(np.load(tmp_path / "chunks.npy")) == 8
    flags = tokenize_flags(tmp_path / "other", t5_dir)
    run("tokenize-and-chunk", corpus, *flags, "--on-bad-record", "fail", code=65)
    assert f"{corpus}, line 3: bad JSON" in capfd.readouterr().err
    run("tokenize-and-chunk", corpus, *flags, "--max-bad-share", "0.1", code=65)
    assert "6 of 14 records (42.9%) are bad" in capfd.readouterr().err
    assert not (tmp_path / "other/chunks.npy").exists()


def test_defect_5_training_vectors_come_from_every_shard(tmp_path: Path, run: Run) -> None:
    """Shards far from each other: trained on the first alone, no centroid would be near the last."""
    shards = [synthetic_shard(tmp_path / name, [200], i) for i, name in enumerate("abcd")]
    for i, shard in enumerate(shards):
        vectors = np.load(shard / "embeddings.npy") * 0.1
        vectors[:, i] += 1
        np.save(shard / "embeddings.npy", vectors)
    spec = write_index_spec(tmp_path / "spec.json", shards)
    options = ("--index-type", "IVF4,Flat", "--max-training-vectors", "160", "--output", tmp_path / "t.index")
    run("train-faiss-index", "--spec", spec, *options)
    index = faiss.read_index(str(tmp_path / "t.index"))
    centroids = index.quantizer.reconstruct_n(0, 4)
    assert sorted(centroids.argmax(axis=1).tolist()) == [0, 1, 2, 3]
    found = report.read(str(tmp_path / "t.report.json"))
    assert found is not None
    assert found["counts"]["training_vectors"] == 160


def test_defect_5_long_documents_have_all_their_neighbours(tmp_path: Path, run: Run) -> None:
    """With nprobe 1 and a margin of 4 such rows are full of holes; the default fills every one."""
    shard = synthetic_shard(tmp_path / "a", [150, 150, 4], 0)
    spec = write_index_spec(tmp_path / "spec.json", [shard])
    index = _train_and_build(run, tmp_path, spec)
    seed = np.load(_retrieve(run, tmp_path, spec, index, shard, "--profile", "seed"))
    default = np.load(_retrieve(run, tmp_path, spec, index, shard))
    assert (seed == -1).any(axis=1).mean() > 0.1
    assert (default != -1).all()


def test_defect_6_a_copy_of_a_shard_keeps_the_same_document_filter(tmp_path: Path, run: Run) -> None:
    shard = synthetic_shard(tmp_path / "a", [30, 30], 0)
    copy = Path(shutil.copytree(shard, tmp_path / "copy"))
    spec = write_index_spec(tmp_path / "spec.json", [shard])
    index = _train_and_build(run, tmp_path, spec, "Flat")
    original, copied = (np.load(_retrieve(run, tmp_path, spec, index, query)) for query in (shard, copy))
    np.testing.assert_array_equal(original, copied)
    assert (original[:30] >= 30).all()


def test_defect_6_a_spec_that_resolves_to_nothing_is_refused(tmp_path: Path, run: Run, capfd: Capture) -> None:
    (tmp_path / "index.json").write_text("[]")
    entry = {name: f"elsewhere/{name}.npy" for name in ("chunks", "seq2chunk", "chunk2seq", "embeddings")}
    (tmp_path / "index.json").write_text(json.dumps([entry]))
    run("validate", "--spec", tmp_path / "index.json", code=65)
    assert f"{tmp_path}/elsewhere/chunks.npy does not exist" in capfd.readouterr().err


def test_defect_7_a_changed_input_rebuilds_and_an_unchanged_one_does_not(
    tmp_path: Path, run: Run, t5_dir: str, capfd: Capture
) -> None:
    corpus = write_corpus(tmp_path / "d.jsonl", ["a", "b"])
    flags = tokenize_flags(tmp_path, t5_dir)
    run("tokenize-and-chunk", corpus, *flags)
    first = (tmp_path / "chunks.report.json").read_bytes()
    run("tokenize-and-chunk", corpus, *flags)
    assert "already done" in capfd.readouterr().err
    assert (tmp_path / "chunks.report.json").read_bytes() == first
    write_corpus(corpus, ["a", "b", "c"])
    run("tokenize-and-chunk", corpus, *flags)
    assert len(np.load(tmp_path / "chunks.npy")) == 3
    (tmp_path / "chunk2seq.npy").unlink()
    run("tokenize-and-chunk", corpus, *flags)
    assert len(np.load(tmp_path / "chunk2seq.npy")) == 3


def test_defect_8_artefacts_of_different_tokenizers_do_not_mix(
    tmp_path: Path, run: Run, t5_dir: str, small_model: str, capfd: Capture
) -> None:
    corpus = write_corpus(tmp_path / "d.jsonl", ["a", "b"])
    run("tokenize-and-chunk", corpus, *tokenize_flags(tmp_path, t5_dir))
    names = (tmp_path / "chunks.npy", tmp_path / "e.npy", "--model", small_model)
    run("embed-chunks", *names, "--tokenizer", small_model, code=65)
    assert "do not belong together: tokenizer is" in capfd.readouterr().err
    run("embed-chunks", *names)
    found = report.read(str(tmp_path / "e.report.json"))
    assert found is not None
    assert set(found["identity"]) == {"tokenizer", "chunk_size", "pad_id", "model", "dimension"}


def test_defect_9_training_vectors_beyond_the_budget_are_refused_before_they_are_read(
    tmp_path: Path, run: Run, capfd: Capture
) -> None:
    spec = write_index_spec(tmp_path / "spec.json", [synthetic_shard(tmp_path / "a", [3000], 0, dimension=384)])
    options = ("--index-type", "IVF8,Flat", "--output", tmp_path / "t.index", "--memory-budget", "1MiB")
    run("train-faiss-index", "--spec", spec, *options, code=65)
    assert "set --max-training-vectors to 682 or less" in capfd.readouterr().err
    run("train-faiss-index", "--spec", spec, *options, "--max-training-vectors", 682)


def _peak(folder: Path, documents: int, tokenizer: str) -> int:
    corpus = write_corpus(folder / "d.jsonl", [""] * documents)
    arguments = ["tokenize-and-chunk", str(corpus), *tokenize_flags(folder, tokenizer)]
    subprocess.run([sys.executable, "-m", "retro_ops.cli", *arguments], check=True, stderr=subprocess.DEVNULL)
    found = report.read(str(folder / "chunks.report.json"))
    assert found is not None
    return int(found["peak_rss_bytes"])


def test_defect_9_ten_times_the_documents_cost_no_more_memory(tmp_path: Path, t5_dir: str) -> None:
    """Empty ones, whose text alone would never fill a batch."""
    assert _peak(tmp_path / "ten", 300_000, t5_dir) < _peak(tmp_path / "one", 30_000, t5_dir) + 60 * 2**20


def test_defect_9_a_line_beyond_a_small_budget_comes_back_with_a_larger_one(
    tmp_path: Path, run: Run, t5_dir: str
) -> None:
    corpus = write_corpus(tmp_path / "d.jsonl", ["word " * 20_000, "short"])
    command = ("tokenize-and-chunk", corpus, *tokenize_flags(tmp_path, t5_dir))
    run(*command, "--memory-budget", "16MiB")
    assert len(np.load(tmp_path / "seq2chunk.npy")) == 1
    run(*command)
    assert len(np.load(tmp_path / "seq2chunk.npy")) == 2


def test_the_sidecar_keeps_every_key_of_a_record(tmp_path: Path, run: Run, t5_dir: str) -> None:
    record = {"id": 7, "source": "wikipedia", "line": 99, "meta": {"a": [1]}}
    corpus = write_corpus(tmp_path / "d.jsonl", [{"text": "x", **record}])
    run("tokenize-and-chunk", corpus, *tokenize_flags(tmp_path, t5_dir))
    stored = (tmp_path / "chunks.documents.jsonl.zst").read_bytes()
    data = zstandard.ZstdDecompressor().decompressobj().decompress(stored)
    assert json.loads(data) == {"source": str(corpus), "line": 1, "record": record}


def test_another_name_for_an_output_is_written(tmp_path: Path, run: Run, t5_dir: str) -> None:
    corpus = write_corpus(tmp_path / "d.jsonl", ["a"])
    flags = tokenize_flags(tmp_path, t5_dir)
    run("tokenize-and-chunk", corpus, *flags)
    run("tokenize-and-chunk", corpus, *[flag.replace("seq2chunk.npy", "other.npy") for flag in flags])
    assert len(np.load(tmp_path / "other.npy")) == 1
