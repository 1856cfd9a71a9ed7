"""Refuses a version without many of the shards of the published one: an empty mount looks like a corpus that shrank."""

from collections.abc import Collection, Mapping
from typing import Any

from retro_ops.errors import BadInputError

SHOWN = 10


def check_removed(changes: Mapping[str, Any], limit: float, failed: Collection[str] = ()) -> None:
    """Raise BadInputError if more than ``limit``, a share, of the published shards would be removed.

    ``changes``: since the published version, as `plan` writes them; ``failed``: shards that are left out besides. A
    version of an earlier day may be as small as it was.
    """
    if changes.get("of_earlier_day"):
        return
    removed = [*changes["removed"], *sorted(set(failed) - set(changes["added"]))]
    published = changes["unchanged"] + len(changes["changed"]) + len(changes["removed"])
    if not published or len(removed) <= limit * published:
        return
    shown = ", ".join(removed[:SHOWN]) + (", …" if len(removed) > SHOWN else "")
    raise BadInputError(
        f"{len(removed):,} of {published:,} shards of version {changes['base']} would be removed "
        f"({len(removed) / published:.0%}, more than max_removed_share of {limit:.0%}): {shown}",
        "check that the corpus is mounted and complete; if they are to go, raise max_removed_share for this run",
    )
