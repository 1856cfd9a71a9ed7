"""The choice of a width: it reaches its target on queries it has not seen."""

import faiss
import numpy as np
import pytest
from vectors import blocks_of, clustered

from retro_ops.compute.device import Device
from retro_ops.index import training
from retro_ops.search import brute_force, exact, reranking, tuning
from retro_ops.search.faiss_search import searcher
from retro_ops.search.hits import Queries
from retro_ops.search.reranking import Effort, Index

CPU = Device("cpu", "test")


@pytest.fixture(scope="module")
def index() -> tuple[Index, Queries]:
    vectors = clustered(6000, 3)
    documents = np.arange(6000, dtype=np.uint64) // np.uint64(7)
    made = faiss.index_factory(32, "IVF32,PQ8")
    training.train(made, vectors.astype(np.float32), 0, "IVF32,PQ8", CPU)
    made.add(vectors.astype(np.float32))
    blocks = blocks_of(vectors, documents, 1000)
    return Index(searcher(made, CPU, shard_over_gpus=False), blocks, 6000, 32, 6000), Queries(vectors, documents)


@pytest.mark.parametrize("target", [0.5, 0.9, 0.99])
def test_the_chosen_width_reaches_its_target_on_queries_it_has_not_seen(
    index: tuple[Index, Queries], target: float
) -> None:
    of, everything = index
    sample, others = everything.take(np.arange(0, 6000, 8)), everything.take(np.arange(1, 6000, 8))
    made = tuning.trials(sample, brute_force.exact_search(sample, 4, of.blocks).keys, of)
    choice = tuning.choose(made, target, of, least=4)
    assert choice.reached
    assert choice.recall > choice.lower_bound >= target
    truth, _ = exact.unpack(brute_force.exact_search(others, 4, of.blocks).keys)
    found, _ = exact.unpack(reranking.find(others, 4, of, choice.width, 10**6, Effort()).keys)
    recall = np.mean([len(set(a) & set(b)) / 4 for a, b in zip(truth.tolist(), found.tolist(), strict=True)])
    assert recall > target - 0.02
    assert recall > choice.recall - 0.03, "what the trial foretells, or more, since short rows are widened"


def test_more_recall_costs_more_and_unreachable_recall_is_reported(index: tuple[Index, Queries]) -> None:
    of, everything = index
    sample = everything.take(np.arange(0, 6000, 8))
    made = tuning.trials(sample, brute_force.exact_search(sample, 4, of.blocks).keys, of)
    costs = [tuning._cost(tuning.choose(made, target, of, 4).width, of) for target in (0.5, 0.8, 0.9, 0.99)]
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]
    truth = brute_force.exact_search(sample, 4, of.blocks).keys
    hopeless = tuning.choose(tuning.trials(sample, truth, of, 1), 0.9999, of, 4)
    assert (hopeless.reached, hopeless.width.nprobe) == (False, 1)
