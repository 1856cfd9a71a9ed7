"""Leases of readers, in every order of opening, publishing and pruning."""

import itertools
import json
import uuid
from typing import Any

import pytest

from retro_ops.errors import BadInputError, ConfigurationError
from retro_ops.plan.series import Series
from retro_ops.storage import store
from retro_ops.versions import history, leases
from retro_ops.versions.unused import kept_versions


def published(root: str, numbers: list[int]) -> Series:
    entries = {
        number: {
            "format": 1,
            "version": number,
            "path": f"versions/{number}",
            "plan": f"versions/{number}/plan.json",
            "published_at": "2026-01-01T00:00:00+00:00",
            "specs": {},
            "card": "card.html",
            "counts": {},
        }
        for number in numbers
    }
    before = history.read(root, "d")
    series = Series(before.uri, before.tag, max(numbers), entries, max(numbers))
    history.write(series)
    return history.read(root, "d")


@pytest.fixture
def root() -> str:
    return f"memory://leases/{uuid.uuid4().hex}"


def test_a_lease_keeps_its_version_until_it_is_closed(root: str) -> None:
    published(root, [1, 2])
    lease, series = leases.take(root, "d", 1)
    assert series.current == 1
    newest, _ = leases.take(root, "d", None)
    assert {number: entry["path"] for number, entry in leases.leased(root, "d").items()} == {
        1: "versions/1",
        2: "versions/2",
    }
    lease.close()
    lease.close()
    assert list(leases.leased(root, "d")) == [2]
    newest.close()
    assert leases.leased(root, "d") == {}
    with pytest.raises(BadInputError, match="d has no version 3"):
        leases.take(root, "d", 3)
    assert store.at(root).list(f"{root}/d/readers") == []


def test_a_lease_of_a_killed_reader_ends(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    published(root, [1])
    leases.take(root, "d", 1)
    leases.sweep(root, "d")
    assert list(leases.leased(root, "d")) == [1]
    now = leases.time.time()
    monkeypatch.setattr(leases.time, "time", lambda: now + leases.LEASE_S + 1)
    assert leases.leased(root, "d") == {}
    leases.sweep(root, "d")
    assert store.at(root).list(f"{root}/d/readers") == []


def test_a_reader_renews_its_lease(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_S", 0.01)
    published(root, [1])
    lease, _ = leases.take(root, "d", 1)
    store.at(lease.uri).delete(lease.uri)
    for _ in range(1000):
        if store.exists(lease.uri):
            break
        leases.threading.Event().wait(0.01)
    assert json.loads(store.read(lease.uri))["entry"]["version"] == 1
    lease.close()


def test_a_reader_that_may_not_write_is_told_what_to_do(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    published(root, [1])

    def refuse(uri: str, data: bytes) -> Any:
        raise ConfigurationError("the store refused it")

    monkeypatch.setattr(leases.store, "write", refuse)
    with pytest.raises(ConfigurationError, match="prune --keep-version 1"):
        leases.take(root, "d", None)


@pytest.mark.parametrize("turns", sorted(set(itertools.permutations("rrpp"))))
def test_prune_never_removes_what_was_opened(root: str, turns: tuple[str, ...]) -> None:
    """The two steps of a reader (lease, look) and those of prune (drop, list), in every order."""
    published(root, [1, 2])
    before = history.read(root, "d")
    taken: list[leases.Lease] = []
    found: dict[str, bool] = {}
    reader = iter(
        [
            lambda: taken.append(leases.Lease(root, "d", before.entry(1))),
            lambda: found.update(opened=1 in history.read(root, "d").entries),
        ]
    )
    pruner = iter(
        [
            lambda: history.write(kept_versions(before, 1, [])),
            lambda: found.update(removed=1 not in leases.leased(root, "d")),
        ]
    )
    for turn in turns:
        next(reader if turn == "r" else pruner)()
    taken[0].close()
    assert not (found["opened"] and found["removed"])
