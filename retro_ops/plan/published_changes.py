"""The changes that a run makes to the published shards, and how many of them it may remove."""

from collections.abc import Collection, Mapping
from typing import Any, NotRequired, TypedDict

from retro_ops.errors import BadInputError
from retro_ops.plan import documents
from retro_ops.plan.parameters import PARAMETERS
from retro_ops.sizes import some


class _Document(TypedDict):
    nothing: bool
    base: int | None
    added: list[str]
    changed: list[str]
    removed: list[str]
    unchanged: int
    of_earlier_day: NotRequired[bool]


def read_changes(data: bytes, uri: str) -> dict[str, Any]:
    """The changes since the published version, as `plan` wrote them to ``uri``. BadInputError if they are none."""
    return dict(documents.read(data, uri, _Document, "clear the task `plan`, or run `retro-ops plan` again"))


def check_removed(changes: Mapping[str, Any], limit: float, failed: Collection[str] = ()) -> None:
    """Raise BadInputError if more than ``limit``, a share, of the published shards would be removed.

    An empty mount looks like a corpus that shrank.

    ``changes``: since the published version, as `plan` writes them; ``failed``: shards that are left out besides. A
    version of an earlier day may be as small as it was.
    """
    if changes.get("of_earlier_day"):
        return
    removed = [*changes["removed"], *sorted(set(failed) - set(changes["added"]))]
    published = changes["unchanged"] + len(changes["changed"]) + len(changes["removed"])
    if not published or len(removed) <= limit * published:
        return
    raise BadInputError(
        f"{len(removed):,} of {published:,} shards of version {changes['base']} would be removed "
        f"({len(removed) / published:.0%}, more than max_removed_share of {limit:.0%}): {some(removed)}",
        "check that the corpus is mounted and complete; if the removal is intended, raise "
        f"{PARAMETERS['max_removed_share'].where}",
    )
