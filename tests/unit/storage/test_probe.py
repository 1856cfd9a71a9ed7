"""What `plan` finds out about a store before any work: checksums it refuses, conditions it ignores."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from limited_s3 import Limits, limited_s3

from retro_ops.errors import ConfigurationError
from retro_ops.storage import probe, store
from retro_ops.storage.s3_client import client

REFUSALS = [(400, "InvalidArgument"), (403, "SignatureDoesNotMatch"), (403, "AccessDenied"), (501, "NotImplemented")]


@contextmanager
def limited(monkeypatch: pytest.MonkeyPatch, limits: Limits) -> Iterator[str]:
    with limited_s3(limits) as endpoint:
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
        }.items():
            monkeypatch.setenv(name, value)
        client.cache_clear()
        yield "s3://bucket/d"
    client.cache_clear()


@pytest.mark.parametrize(("status", "code"), REFUSALS)
def test_refused_checksums_are_told_apart_from_refused_keys(
    monkeypatch: pytest.MonkeyPatch, status: int, code: str
) -> None:
    limits = Limits(checksums=(status, code))
    with limited(monkeypatch, limits) as folder:
        with pytest.raises(ConfigurationError, match="refuses the checksums") as found:
            probe.check_writes(folder)
        assert "AWS_REQUEST_CHECKSUM_CALCULATION=when_required" in str(found.value)
        assert "ACCESS_KEY" not in str(found.value)
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        client.cache_clear()
        probe.check_writes(folder)
        store.write(f"{folder}/a", b"x")
        assert limits.objects == {"/bucket/d/a": b"x"}


def test_a_store_that_ignores_conditions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(conditions="ignored")
    with limited(monkeypatch, limits) as folder:
        with pytest.raises(ConfigurationError, match="ignores If-None-Match, so two runs could publish"):
            probe.check_writes(folder)
        assert limits.objects == {}


def test_a_store_that_refuses_conditions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        limited(monkeypatch, Limits(conditions="refused")) as folder,
        pytest.raises(ConfigurationError, match="refuses conditional writes, which publishing needs"),
    ):
        probe.check_writes(folder)


def test_refused_keys_stay_refused_keys(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    probe.check_writes(f"{s3}/probed")
    assert store.at(s3).list(f"{s3}/probed") == []
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    client.cache_clear()
    with pytest.raises(ConfigurationError, match="check AWS_ACCESS_KEY_ID"):
        probe.check_writes(f"{s3}/probed")


def test_what_a_store_says_about_checksums_later_is_not_blamed_on_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the store changes after the plan: its message is all there is."""
    with (
        limited(monkeypatch, Limits(checksums=(400, "x-amz-content-sha256 must be UNSIGNED-PAYLOAD"))) as folder,
        pytest.raises(ConfigurationError, match="it may not know checksums: set AWS_REQUEST"),
    ):
        store.write(f"{folder}/a", b"x")


def test_what_a_killed_check_left_is_removed_by_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = "memory://probe/d"
    for name, age in (("killed", 2 * probe.LEFTOVER_S), ("of another plan that runs now", 1)):
        monkeypatch.setattr("time.time", lambda age=age: 1e9 - age)
        store.write(f"{folder}/probe/{name}", b"1")
    monkeypatch.setattr("time.time", lambda: 1e9)
    probe.check_writes(folder)
    assert store.at(folder).list(folder) == [f"{folder}/probe/of another plan that runs now"]
