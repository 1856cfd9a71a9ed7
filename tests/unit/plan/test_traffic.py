"""Bytes to and from the store, hours, and limits, as `plan` estimates them."""

from dataclasses import replace

import pytest
from works import ORIGINAL_INDEX, sized

from retro_ops.plan import estimate, grid, limits, traffic

ROW = 384 * 2 + 8


def test_vectors_that_fit_are_loaded_once_a_task_and_others_once_a_range() -> None:
    chunks, slot = 1_000_000, 384 * 2 + grid.SLOT_BYTES
    fitting = traffic.traffic(sized(chunks), ORIGINAL_INDEX, 1, chunks * slot)["retrieve-neighbours"]
    assert fitting.read == 100 * chunks * (ROW + traffic.LIST_BYTES) + chunks * ROW
    made = traffic.traffic(sized(chunks), ORIGINAL_INDEX, 20, chunks * slot // 10)
    ranges = made["search-parts"].tasks // 10
    assert ranges == 2
    assert made["search-parts"].read == ranges * chunks * (ROW + traffic.LIST_BYTES) + 10 * chunks * ROW
    assert made["retrieve-neighbours"].read == made["search-parts"].written == 10 * chunks * (4 * 8 + 16)


def test_only_what_compares_all_with_all_grows_faster_than_the_corpus() -> None:
    assert traffic.faster_than_linear(sized(10**10), ORIGINAL_INDEX, 64).keys() == {
        "search-parts",
        "retrieve-neighbours",
    }
    assert not traffic.faster_than_linear(sized(10**6), ORIGINAL_INDEX, 1)


def test_no_stage_that_runs_once_reads_what_grows_with_the_corpus_but_the_merge() -> None:
    one, ten = (traffic.traffic(sized(n, val=n // 100), ORIGINAL_INDEX, 64) for n in (2 * 10**8, 2 * 10**9))
    once = [stage for stage, of in one.items() if of.tasks == 1]
    assert once == ["train-faiss-index", "merge-indexes", "tune-search", "describe", "validate"]
    for stage in once:
        assert ten[stage].read < 0.2 * 2 * 10**9 * ROW, stage
    assert ten["describe"].read < 1.5 * one["describe"].read


def test_stages_that_run_once_do_not_gain_from_workers_nor_does_the_largest_shard() -> None:
    even, skewed = sized(10**9), sized(10**9, largest=5 * 10**8)
    seconds = estimate.estimate(even, ORIGINAL_INDEX).seconds["cuda"]
    one, many, uneven = (
        traffic.hours(work, seconds, traffic.traffic(work, ORIGINAL_INDEX, workers), workers)
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
    found = limits.exceeded(sized(chunks, shards=1000), ORIGINAL_INDEX, finds_duplicates=False)
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


def test_a_short_run_is_shown_in_seconds_and_a_long_one_in_hours() -> None:
    for chunks, unit in ((1_000, "seconds"), (10**9, "hours")):
        work = sized(chunks)
        expected, moved = estimate.estimate(work, ORIGINAL_INDEX), traffic.traffic(work, ORIGINAL_INDEX, 1)
        head, *rows = traffic.table(expected, moved, traffic.hours(work, expected.seconds["cuda"], moved, 1))
        assert head.split()[-1] == unit
        assert any(float(row.split()[-1].replace(",", "")) >= 0.1 for row in rows)
