"""Bytes to and from the store, hours, and limits, as `plan` estimates them."""

from dataclasses import replace

import pytest

from retro_ops.plan import estimate, grid, limits, traffic

INDEX = estimate.Index(131_072, 40, 33_554_432)
ROW = 384 * 2 + 8


def sized(chunks: int, shards: int = 100, largest: int = 0) -> estimate.Work:
    return estimate.Work(
        chunks={"train": chunks},
        documents=chunks // 5,
        shards=shards,
        largest_shard=largest or chunks // shards,
        chunk_size=64,
        chunk_operations=1.36e9,
        model_bytes=90_000_000,
        token_bytes=2,
        dimension=384,
        num_neighbours=4,
        recall_sample=2000,
        memory_budget=2**45,
        corpus_bytes=chunks * 275,
    )


def test_vectors_that_fit_are_loaded_once_a_task_and_others_once_a_range() -> None:
    chunks, slot = 1_000_000, 384 * 2 + grid.SLOT_BYTES
    fitting = traffic.traffic(sized(chunks), INDEX, 1, chunks * slot)["retrieve-neighbours"]
    assert fitting.read == 100 * chunks * (ROW + traffic.LIST_BYTES) + chunks * ROW
    made = traffic.traffic(sized(chunks), INDEX, 20, chunks * slot // 10)
    ranges = made["search-parts"].tasks // 10
    assert ranges == 4
    assert made["search-parts"].read == ranges * chunks * (ROW + traffic.LIST_BYTES) + 10 * chunks * ROW
    assert made["retrieve-neighbours"].read == made["search-parts"].written == 10 * chunks * (4 * 8 + 16)


def test_only_what_compares_all_with_all_grows_faster_than_the_corpus() -> None:
    assert traffic.faster_than_linear(sized(10**10), INDEX, 64).keys() == {"search-parts", "retrieve-neighbours"}
    assert not traffic.faster_than_linear(sized(10**6), INDEX, 1)


def test_stages_that_run_once_do_not_gain_from_workers_nor_does_the_largest_shard() -> None:
    even, skewed = sized(10**9), sized(10**9, largest=5 * 10**8)
    seconds = estimate.estimate(even, INDEX).seconds["cuda"]
    one, many, uneven = (
        traffic.hours(work, seconds, traffic.traffic(work, INDEX, workers), workers)
        for work, workers in ((even, 1), (even, 50), (skewed, 50))
    )
    assert many["merge-indexes"] == one["merge-indexes"]
    assert many["embed-chunks"] == pytest.approx(one["embed-chunks"] / 50)
    assert uneven["embed-chunks"] == pytest.approx(one["embed-chunks"] / 2)


@pytest.mark.parametrize(
    ("chunks", "certain", "said"),
    [
        (4_000_000_000, None, ""),
        (4_400_000_000, False, "chunks of the index: about 4,400,000,000, the limit is 4,294,967,295"),
        (24_700_000_000, True, "chunks of the index: about 24,700,000,000"),
    ],
)
def test_a_corpus_beyond_the_ids_of_an_index_is_refused_unless_the_estimate_may_be_wrong(
    chunks: int, certain: bool | None, said: str
) -> None:
    found = limits.exceeded(sized(chunks, shards=1000), INDEX, finds_duplicates=False)
    assert [of.certain for of in found] == ([] if certain is None else [certain])
    assert all(said in of.problem for of in found)


def test_each_limit_is_found() -> None:
    large = sized(30_000_000_000, shards=2, largest=10_000_000_000)
    many = replace(large, documents=5_000_000_000)
    found = limits.exceeded(many, estimate.Index(2**20, 400, 10**7), finds_duplicates=True)
    assert [of.problem.split(": about")[0] for of in found] == [
        "chunks of the index",
        "documents to compare",
        "bytes of the largest shard's embeddings",
        "bytes of the merged index",
    ]
