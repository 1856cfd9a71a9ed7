"""Ids move with their shards."""

import numpy as np
import pytest

from retro_ops.search.renumbering import GONE, renumber


def test_ids_move_with_their_shards() -> None:
    # Shards of 3, 2 and 4 chunks; the second goes, the others move to 10 and 20.
    counts, offsets = np.array([3, 2, 4]), np.array([10, -1, 20])
    ids = np.array([[0, 2, 3], [4, 5, 8], [-1, 5, -1]])
    expected = [[10, 12, GONE], [GONE, 20, 23], [-1, 20, -1]]
    np.testing.assert_array_equal(renumber(ids, counts, offsets), expected)


def test_an_id_beyond_all_shards_is_an_error() -> None:
    with pytest.raises(ValueError, match="beyond"):
        renumber(np.array([[9]]), np.array([3, 2, 4]), np.array([0, 3, 5]))
