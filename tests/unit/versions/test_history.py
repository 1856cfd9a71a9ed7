"""The series of versions after publishing."""

from typing import Any

import pytest
from plans import plan_of

from retro_ops.errors import BadInputError
from retro_ops.versions import history


def entry(path: str, as_of: str | None = None) -> dict[str, Any]:
    return {"path": path, "plan": f"plan of {path}", "published_at": "then", "as_of": as_of, "counts": {}}


def series(current: int, *entries: dict[str, Any]) -> history.Series:
    numbered = {number: {"version": number, **of} for number, of in enumerate(entries, 1)}
    return history.Series("/d/current.json", "tag", current, numbered, last=len(numbered))


STAYS = "published earlier, and version 3 stays the current one"


@pytest.mark.parametrize(
    ("before", "path", "plan", "current", "count", "said"),
    [
        (series(0), "a", {"supersedes": 0}, 1, 1, "version 1 is published"),
        (series(1, entry("a")), "b", {"supersedes": 1}, 2, 2, "version 2 is published"),
        (series(1, entry("a")), "a", {"supersedes": 0}, 1, 1, "already"),
        (series(1, entry("a"), entry("b")), "b", {"supersedes": 1}, 2, 2, "current one again"),
        # After a rollback numbers continue; an old plan supersedes no version.
        (series(1, entry("a"), entry("b")), "c", {"supersedes": 1}, 3, 3, "version 3 is published"),
        (series(2, entry("a"), entry("b")), "c", {}, 3, 3, "version 3 is published"),
        # A version that was overtaken does not become current by publishing it again, except after a rollback.
        (series(3, entry("a"), entry("b"), entry("c")), "b", {"supersedes": 1}, 3, 3, STAYS),
        (series(3, entry("a"), entry("b"), entry("c")), "a", {"supersedes": 0}, 3, 3, STAYS),
        (series(3, entry("a"), entry("b"), entry("c")), "a", {"supersedes": 3}, 1, 3, "current one again"),
        # The day decides before the order of publishing.
        (series(1, entry("a", "2026-01-03")), "b", {"as_of": "2026-01-02"}, 1, 2, "stays the current one"),
        (series(1, entry("a", "2026-01-03")), "b", {"as_of": "2026-01-04", "supersedes": 0}, 2, 2, "is published"),
    ],
)  # fmt: skip
def test_what_publishing_does(
    before: history.Series, path: str, plan: dict[str, Any], current: int, count: int, said: str
) -> None:
    after, words = history.published(before, entry(path, plan.get("as_of")), plan_of(**plan))
    assert (after.current, len(after.entries)) == (current, count)
    assert said in words
    assert after.entries[current]["path"] in (path, before.entries.get(current, {}).get("path"))


@pytest.mark.parametrize("plan", [{"supersedes": 1}, {"supersedes": 0}, {"supersedes": 1, "as_of": "2026-01-03"}])
def test_an_overtaken_run_is_refused(plan: dict[str, Any]) -> None:
    before = series(2, entry("a"), entry("b", "2026-01-03"))
    with pytest.raises(BadInputError, match="version 2 was published meanwhile"):
        history.published(before, entry("c", plan.get("as_of")), plan_of(**plan))


def test_an_overtaken_run_with_the_result_of_an_older_version_is_refused() -> None:
    before = series(3, entry("a"), entry("b"), entry("c"))
    with pytest.raises(BadInputError, match="version 3 was published meanwhile"):
        history.published(before, entry("a"), plan_of(supersedes=2))
