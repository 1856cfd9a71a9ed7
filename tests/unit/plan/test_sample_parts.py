"""Parts of the vectors for the samples: none of a small index, and names that lead back."""

import pytest

from retro_ops.errors import BadInputError
from retro_ops.plan import sample_parts
from retro_ops.plan.sample_parts import LARGE, PART_VECTORS


def test_a_large_index_has_parts_of_a_bounded_size_and_a_small_one_none() -> None:
    assert sample_parts.parts(LARGE - 1) == []
    for vectors in (LARGE, 2 * 10**9):
        found = sample_parts.parts(vectors)
        assert vectors / len(found) <= PART_VECTORS
        assert [part.part for part in found] == list(range(found[0].parts))
        assert [sample_parts.parse_part(part.name) for part in found] == found


@pytest.mark.parametrize("name", ["", "1", "3-of-3", "1-of-", "-1-of-3", "a-of-3", "1-of-3 "])
def test_what_is_no_part_is_refused(name: str) -> None:
    with pytest.raises(BadInputError, match="is not a part"):
        sample_parts.parse_part(name)
