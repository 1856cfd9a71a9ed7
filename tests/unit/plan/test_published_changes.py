"""Most of the published shards are not removed unless someone means it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro_ops.errors import BadInputError
from retro_ops.plan.published_changes import check_removed

NAMES = st.sets(st.integers(0, 9).map(str))


@given(NAMES, NAMES, NAMES, NAMES, st.floats(0, 1))
def test_the_share_of_removed_shards_is_limited(
    removed: set[str], changed: set[str], kept: set[str], failed: set[str], limit: float
) -> None:
    changed -= removed
    kept -= removed | changed
    added = {"new"} | failed - removed - changed - kept
    failed -= removed
    changes = {"base": 3, "added": [*added], "changed": [*changed], "removed": [*removed], "unchanged": len(kept)}
    published = len(removed | changed | kept)
    gone = len(removed | failed - added)
    if published and gone > limit * published:
        with pytest.raises(
            BadInputError, match=rf"^{gone} of {published} shards of version 3 .*\n.*--max-removed-share"
        ):
            check_removed(changes, limit, failed)
    else:
        check_removed(changes, limit, failed)
    check_removed(changes | {"of_earlier_day": True}, limit, failed)
