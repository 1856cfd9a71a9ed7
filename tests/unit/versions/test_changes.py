"""Differences between two versions."""

from plans import shard

from retro_ops.plan.shard_changes import compare


def test_changes_are_by_content_not_by_order() -> None:
    former = [shard("a", "1"), shard("b", "2"), shard("c", "3"), shard("v", "4", "val")]
    now = [shard("c", "3"), shard("b", "9"), shard("d", "1"), shard("v", "4")]
    found = compare(former, now)
    assert (found.added, found.changed, found.removed, found.unchanged) == (("d",), ("b", "v"), ("a",), 1)
