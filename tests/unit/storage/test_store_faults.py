"""Faults of the network and of the store, one kind at a time, between the store's client and a real server."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from store_proxy import FAULTS, Weather, store_proxy

from retro_ops.errors import TransientError
from retro_ops.storage import s3_retries, store
from retro_ops.storage.base import ConflictError
from retro_ops.storage.s3_client import client

UNNOTICED = ("stale list",)
"""What no client can notice: S3 itself never returns a stale list."""


@contextmanager
def weather_of(monkeypatch: pytest.MonkeyPatch, weather: Weather) -> Iterator[Weather]:
    """The client goes through the proxy, after it has reached the store once."""
    with store_proxy(os.environ["AWS_ENDPOINT_URL"], weather) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setattr(s3_retries, "FIRST_WAIT_S", 0.05)
        monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.02)
        s3_retries.be_patient(60)
        client.cache_clear()
        share, weather.share = weather.share, 0.0
        store.exists("s3://test/ready")
        weather.share = share
        yield weather
    s3_retries.be_patient(0)


@pytest.mark.parametrize("kind", [kind for kind in FAULTS if kind not in UNNOTICED])
def test_a_fault_of_the_store_changes_nothing(kind: str, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retro_ops.storage.s3_uploads.PART_BYTES", 5 * 2**20)
    folder, large = f"{s3}/faults/{kind.replace(' ', '-')}", os.urandom(6_000_000)
    share = 0.05 if kind == "outage" else 0.6
    with weather_of(monkeypatch, Weather(seed=1, share=share, kinds=(kind,), outage_s=1.0)) as weather:
        for _ in range(2):
            written = store.write(f"{folder}/large", large)
        for number in range(3):
            store.write(f"{folder}/{number}", b"%d" % number)
        at, current = store.at(folder), f"{folder}/current"
        at.write_if(current, b"1", None)
        for number in range(2, 6):
            tagged = at.read_tagged(current)
            assert tagged
            assert tagged[0] == b"%d" % (number - 1)
            at.write_if(current, b"%d" % number, tagged[1])
        with pytest.raises(ConflictError):
            at.write_if(current, b"another", tagged[1])
        assert [store.read(f"{folder}/{number}") for number in range(3)] == [b"0", b"1", b"2"]
        if kind != "wrong bytes read":  # Of an object in parts, or a range, the store sends no checksum.
            assert store.read(f"{folder}/large") == large
            assert store.sha256(f"{folder}/large") == written.sha256
        assert at.read_range(f"{folder}/large", 300_000, 100) == large[300_000:300_100]
        at.delete(f"{folder}/0")
        assert at.list(folder) == [f"{folder}/{name}" for name in ("1", "2", "current", "large")]
        weather.share = 0.0
        left = {"Bucket": s3.removeprefix("s3://"), "Prefix": f"faults/{kind.replace(' ', '-')}"}
        time.sleep(1.0 if kind == "outage" else 0.0)
        assert not client().list_multipart_uploads(**left).get("Uploads")
    assert weather.met[kind] > 0


def test_a_store_that_never_answered_is_not_waited_for(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)
    s3_retries.be_patient(600)
    client.cache_clear()
    with pytest.raises(TransientError, match="cannot reach the store"):
        store.exists(f"{s3}/x")
    s3_retries.be_patient(0)


def test_over_tls_too(s3_tls: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There boto3 sends checksums in trailers, in chunks."""
    certificate = Path(os.environ["AWS_CA_BUNDLE"])
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.02)
    weather = Weather(seed=2, share=0.4, kinds=("lost reply", "reset request", "truncated reply", "503"))
    pair = (certificate, certificate.with_name("key.pem"))
    with store_proxy(os.environ["AWS_ENDPOINT_URL"], weather, pair) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        client.cache_clear()
        data = os.urandom(2**20)
        for number in range(8):
            store.write(f"{s3_tls}/faults/{number}", data)
            assert store.read(f"{s3_tls}/faults/{number}") == data
    assert sum(weather.met.values()) > 5
