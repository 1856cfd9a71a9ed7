"""The fit of an index to its vectors, and the decision to retrain it."""

from typing import Any

import faiss
import numpy as np
import pytest

from retro_ops.index import drift


def test_imbalance_of_a_sample_is_that_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(1000, 2.0))
    truth = len(shares) * (shares**2).sum()
    apart = np.arange(500)
    estimates = [drift.imbalance(rng.choice(1000, 500, p=shares), apart, 1000) for _ in range(200)]
    assert np.mean(estimates) == pytest.approx(truth, rel=0.05)  # The plain factor would say about 3.5.
    assert drift.imbalance(np.zeros(1, np.int64), np.zeros(1, np.int64), 1) == 1


def test_runs_are_sampled_uniformly_and_stay_inside() -> None:
    counts = np.array([10, 0, 100_000, 64])
    firsts = drift.sample_runs(counts, seed=1)
    assert sum(map(len, firsts)) == drift.SAMPLED_RUNS
    for count, of in zip(counts, firsts, strict=True):
        assert ((of >= 0) & (of < count)).all()
        assert (of % drift.RUN_ROWS == 0).all()


def fit(**changes: Any) -> drift.Fit:
    return drift.Fit(**{"vectors": 1000, "sample": 500, "quantisation_error": 0.1, "imbalance": 1.2, **changes})


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (fit(), None),
        (fit(vectors=2000, quantisation_error=0.12, imbalance=1.49), None),
        (fit(vectors=2001), "2,001"),
        (fit(quantisation_error=0.126), "quantisation error"),
        (fit(quantisation_error=None), None),
        (fit(imbalance=1.51), "imbalance"),
    ],
)
def test_when_to_train_again(now: drift.Fit, reason: str | None) -> None:
    found = drift.reason_to_retrain(fit(), now, 0.25)
    assert (found is None) if reason is None else (reason in str(found))


def test_other_text_fits_worse() -> None:
    rng = np.random.default_rng(0)
    train = rng.standard_normal((4000, 16)).astype(np.float32) * np.linspace(0.1, 1, 16)
    index: Any = faiss.index_factory(16, "IVF16,PQ4x4")
    index.train(train)
    sample = train[:1000].astype(np.float16)
    same = drift.fit(faiss.clone_index(index), np.split(sample, 100), 4000)
    other = drift.fit(faiss.clone_index(index), np.split(sample[:, ::-1] + np.float16(1), 100), 4000)
    assert drift.reason_to_retrain(same, same, 0.25) is None
    assert drift.reason_to_retrain(same, other, 0.25)


def test_imbalance_does_not_count_that_a_document_lies_in_few_lists() -> None:
    rng = np.random.default_rng(0)
    lists, runs, rows = 4096, drift.SAMPLED_RUNS, drift.RUN_ROWS
    own = rng.integers(lists, size=(runs, 1))
    others = rng.integers(lists, size=(runs, rows))
    numbers = np.where(rng.random((runs, rows)) < 0.5, own, others).reshape(-1)
    of_run = np.repeat(np.arange(runs), rows)
    assert drift.imbalance(numbers, of_run, lists) == pytest.approx(1, rel=0.2)
    assert drift.imbalance(numbers, np.arange(len(numbers)), lists) > 4
