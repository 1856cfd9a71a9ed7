"""The estimate of chunks, bytes, memory and seconds of a run."""

import gzip
import json
import random
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import zstandard
from works import MINILM

from retro_ops.corpus import source_lines
from retro_ops.index import faiss_index, index_types
from retro_ops.plan import estimate


def test_bytes_are_those_of_the_formats() -> None:
    found = estimate.estimate(MINILM, estimate.Index(1024, 72, 244_970))
    assert found.chunks == {"train": 200_000, "val": 44_970, "all": 244_970}
    assert found.bytes["embed-chunks"] == 244_970 * 384 * 2
    assert found.bytes["retrieve-neighbours"] == 244_970 * 4 * (8 + 4)
    assert found.bytes["merge-indexes"] == (200_000 + 244_970) * 72 + 2 * 1024 * 384 * 4


def test_ten_times_the_corpus_takes_ten_times_the_embedding_and_no_more_memory_for_it() -> None:
    more = estimate.Work(**{**vars(MINILM), "chunks": {"train": 2_000_000, "val": 449_700}, "shards": 50})
    once, ten = (estimate.estimate(work, estimate.Index(1024, 72, 244_970)) for work in (MINILM, more))
    assert ten.seconds["cpu"]["embed-chunks"] == pytest.approx(10 * once.seconds["cpu"]["embed-chunks"], rel=1e-3)
    assert ten.peak_rss_bytes["embed-chunks"] == once.peak_rss_bytes["embed-chunks"]
    assert ten.peak_rss_bytes["tune-search"] > once.peak_rss_bytes["tune-search"]
    assert once.seconds["cuda"]["embed-chunks"] < once.seconds["cpu"]["embed-chunks"] / 20
    assert set(once.seconds["cpu"]) == set(once.peak_rss_bytes)
    for stage in ("tokenize-and-chunk", "merge-indexes", "validate"):  # These know no device.
        assert once.seconds["cuda"][stage] == once.seconds["cpu"][stage]


def test_a_smaller_model_needs_more_cores_beside_a_gpu() -> None:
    larger = estimate.Work(**{**vars(MINILM), "chunk_operations": 8 * MINILM.chunk_operations})
    assert [estimate.cores_per_gpu(work) for work in (MINILM, larger)] == [20, 5]


@pytest.mark.parametrize(
    ("index_type", "lists", "size"),
    [("Flat", 1, 384 * 4), ("IVF64,Flat", 64, 384 * 4 + 8), ("IVF1024,PQ64", 1024, 72), ("OPQ32,IVF16,PQ32", 16, 40)],
)
def test_a_vector_takes_its_code_and_its_id(index_type: str, lists: int, size: int) -> None:
    index = index_types.make_index(index_type, 384)
    assert (faiss_index.list_count(index), faiss_index.bytes_per_vector(index)) == (lists, size)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_a_sample_tells_the_whole_file_within_a_tenth(tmp_path: Path, suffix: str) -> None:
    words, rng = " ".join(topics.values()).split(), random.Random(0)
    lines = [json.dumps({"text": " ".join(rng.choices(words, k=rng.randint(10, 200)))}) + "\n" for _ in range(20_000)]
    data = "".join(lines).encode()
    packed = {"jsonl": data, "jsonl.gz": gzip.compress(data), "jsonl.zst": zstandard.compress(data)}[suffix]
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(packed)
    documents, share = source_lines.sample(str(path), 2**20, "text", 2**21)
    assert 0 < share < 0.5
    expected = estimate.scaled([(len(packed), share, len(documents))], len(packed))
    assert expected == pytest.approx(len(lines), rel=0.1)
    everything, share = source_lines.sample(str(path), 2**20, "text", 2**40)
    assert (len(everything), share) == (len(lines), 1.0)


def test_nothing_sampled_is_nothing_expected() -> None:
    assert estimate.scaled([], 100) == 0
    assert estimate.scaled([(0, 1.0, 0)], 100) == 0
