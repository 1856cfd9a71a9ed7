"""Each rule that arrays must follow, on arrays that break it."""

import numpy as np

from retro_ops.quality import rules


def test_each_rule_fires_on_what_breaks_it_and_not_on_good_blocks() -> None:
    starts, owners = np.array([0, 2, 3]), np.array([0, 0, 1, 2, 2])
    assert not rules.check_seq2chunk(starts, -1, 5)
    assert rules.check_seq2chunk(np.array([0, 0, 3]), -1, 5)
    assert rules.check_seq2chunk(np.array([1, 2]), -1, 5)
    assert rules.check_seq2chunk(np.array([0, 5]), -1, 5)
    assert not rules.check_chunk2seq(owners, 0, -1, starts, 3)
    assert rules.check_chunk2seq(np.array([0, 2]), 0, -1, np.array([0, 1, 1]), 3)
    assert rules.check_chunk2seq(owners, 0, -1, np.array([0, 1, 3]), 3)
    assert rules.check_chunk2seq(owners, 0, -1, starts, 2)
    unit = np.eye(4, dtype=np.float16)
    assert not rules.check_embeddings(unit)
    assert rules.check_embeddings(unit * np.float16(0.9))
    assert rules.check_embeddings(unit * np.float16(np.nan))
    own = np.array([0]), np.array([2])
    assert not rules.check_neighbours(np.array([[4, 2, -1]]), 5, *own)
    for bad in ([5, 2, -1], [-2, 2, 3], [-1, 2, -1], [1, 2, 3], [3, 3, -1]):
        assert rules.check_neighbours(np.array([bad]), 5, *own), bad
    row, near = np.array([[4, 2, -1]]), np.array([[0.1, 0.2, np.inf]], np.float32)
    assert not rules.check_distances(near, row)
    assert rules.check_distances(near[:, ::-1], row)
    assert rules.check_distances(np.array([[0.2, 0.1, np.inf]], np.float32), row)
    for wrong in (np.nan, -0.5):
        assert rules.check_distances(np.array([[wrong, 0.2, np.inf]], np.float32), row)
