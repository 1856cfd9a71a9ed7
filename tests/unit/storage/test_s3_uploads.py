"""Multipart uploads whose parts grow: the arithmetic for the largest object, and real uploads with small parts."""

import hashlib
import random
import re
from collections.abc import Iterator
from functools import partial
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retro_ops.errors import BadInputError
from retro_ops.storage import s3_uploads, store
from retro_ops.storage.npy import NpyWriter
from retro_ops.storage.s3_client import bucket_key, client, sends_checksums
from retro_ops.storage.s3_uploads import MOST_BYTES, MOST_PART_BYTES, MOST_PARTS, PART_BYTES, part_bytes

Writer = s3_uploads.S3Writer
MIB = 2**20


def test_the_largest_object_of_s3_fits_in_its_parts() -> None:
    sizes = [part_bytes(number) for number in range(1, MOST_PARTS + 1)]
    assert sum(sizes) >= MOST_BYTES == 5 * 2**40
    assert max(sizes) <= MOST_PART_BYTES
    assert sizes == sorted(sizes), "a part that shrinks would make more of them"


def test_small_objects_have_the_parts_that_they_had() -> None:
    """So common objects take no more memory than before parts could grow."""
    assert {part_bytes(number) for number in range(1, 900)} == {PART_BYTES} == {16 * 2**20}


@given(st.integers(0, MOST_BYTES))
@example(MOST_BYTES)
def test_parts_of_a_known_length_are_as_small_as_their_number_allows(length: int) -> None:
    size = part_bytes(1, length)
    assert -(-length // size) <= MOST_PARTS
    assert size == PART_BYTES or -(-length // (size - 1)) > MOST_PARTS, "smaller parts would be too many"
    assert size <= 525 * MIB


def held_bytes(sizes: list[int]) -> Iterator[int]:
    """Most memory while each part is filled: it, the first one, and what the schedule lets be in flight."""
    for size in sizes:
        at_once = max(1, s3_uploads.PARTS_IN_FLIGHT * PART_BYTES // size)
        yield PART_BYTES + size + at_once * size


def test_memory_is_what_split_corpus_counts_with_up_to_42_gib() -> None:
    from retro_ops.corpus.splitting import WRITER_BYTES

    sizes = [part_bytes(number) for number in range(1, MOST_PARTS + 1)]
    ends = list(accumulate(sizes))
    compressor = PART_BYTES
    held = list(held_bytes(sizes))
    assert all(of + compressor <= WRITER_BYTES for of, end in zip(held, ends, strict=True) if end <= 42 * 2**30)
    assert max(held) < 4 * 2**30


SMALLEST = 5 * MIB
"""The least that S3, and the server of the tests, takes as a part that is not the last one."""


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 5, 10, 10, 25, 25 … MiB."""
    monkeypatch.setattr(s3_uploads, "PART_BYTES", SMALLEST)
    monkeypatch.setattr(s3_uploads, "PARTS_OF_ONE_SIZE", 2)


def arrives_whole(bucket: str, length: int, head: bytes) -> None:
    rng = random.Random(length)
    content = rng.randbytes(length)
    uri = f"{bucket}/growing/{length}-{len(head)}.bin"
    with store.create(uri) as writer:
        assert isinstance(writer, Writer)
        rest = memoryview(content)
        while rest:
            size = rng.choice([1, 999, MIB, SMALLEST, 3 * SMALLEST + 7])
            writer.write(rest[:size])
            rest = rest[size:]
            sizes = [of for of, _ in writer._sending]
            assert sum(sizes) <= max([s3_uploads.PARTS_IN_FLIGHT * SMALLEST, *sizes]), "one large part, or small ones"
            assert len(writer._buffer) < part_bytes(writer._number)
        if head:
            writer.set_head(head)
            content = head + content[len(head) :]
        written = writer.close()
    assert store.read(uri) == content
    assert (written.bytes, written.sha256) == (length, hashlib.sha256(content).hexdigest())
    ends = list(accumulate(part_bytes(number) for number in range(1, 20)))
    parts = next(number for number, end in enumerate(ends, 1) if end >= length)
    found = re.fullmatch(r"etag:[0-9a-f]+-(\d+):\d+", store.at(uri).fingerprint(uri))
    # Less than a whole part is one request, without parts.
    assert (int(found[1]) if found else 0) == (parts if length >= SMALLEST else 0)


@pytest.mark.parametrize("length", [0, 1, SMALLEST - 1, SMALLEST, SMALLEST + 1, 15 * MIB, 25 * MIB, 77 * MIB + 1])
def test_an_object_of_growing_parts_arrives_whole(s3: str, small_parts: None, length: int) -> None:
    arrives_whole(s3, length, b"")


def test_an_array_of_a_known_length_arrives_in_as_many_parts_as_there_may_be(
    s3: str, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_uploads, "MOST_PARTS", 3)
    uri = f"{s3}/growing/known.npy"
    rows = np.frombuffer(random.Random(0).randbytes(31 * MIB), np.uint8).reshape(-1, MIB)
    with NpyWriter(uri, np.uint8, rows.shape[1:], rows=len(rows)) as writer:
        for row in rows:
            writer.append(row[None])
        writer.close()
    assert store.read(uri)[-rows.nbytes :] == rows.tobytes()
    assert re.fullmatch(r"etag:[0-9a-f]+-3:\d+", store.at(uri).fingerprint(uri))


def test_its_head_may_be_known_last(s3: str, small_parts: None) -> None:
    arrives_whole(s3, 1000, b"known last")
    arrives_whole(s3, 31 * MIB, b"known last")


def test_over_tls_it_arrives_whole_too(s3_tls: str, small_parts: None) -> None:
    """There boto3 sends checksums in trailers."""
    arrives_whole(s3_tls, 51 * MIB, b"")


def test_an_object_beyond_the_limit_of_s3_is_refused_before_the_store_does(
    s3: str, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_uploads, "MOST_BYTES", 17 * MIB)
    uri = f"{s3}/growing/beyond.bin"

    def write(length: int) -> None:
        with store.create(uri) as writer:
            writer.write(bytes(length - 1))
            writer.write(b"x")
            writer.close()

    write(17 * MIB)
    with pytest.raises(BadInputError, match=r"growing/beyond.bin would have more than 17,825,792 bytes"):
        write(17 * MIB + 1)
    with pytest.raises(BadInputError, match=r"growing/beyond.npy would have 17,825,793 bytes"):
        NpyWriter(f"{s3}/growing/beyond.npy", np.uint8, (), rows=17 * MIB + 1 - 128)  # Before any row is sent.
    bucket = uri.split("/")[2]
    assert not client().list_multipart_uploads(Bucket=bucket, Prefix="growing/beyond").get("Uploads")


def test_content_is_known_by_its_tag_if_the_store_compared_it_with_a_checksum(
    s3: str, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{s3}/tagged"
    for length in (1000, SMALLEST + 1000):
        data = random.Random(length).randbytes(length)
        written = store.write(uri, data)
        assert written.tag == store.at(uri).fingerprint(uri)
        store.write(uri, data[:-1] + bytes([data[-1] ^ 1]))
        assert written.tag != store.at(uri).fingerprint(uri)
    monkeypatch.setattr(s3_uploads, "client", partial(client, checksums=False))
    monkeypatch.setattr(s3_uploads, "sends_checksums", partial(sends_checksums, checksums=False))
    assert store.write(uri, b"1").tag is None


def test_content_that_another_writer_replaced_is_not_known_by_its_tag(
    s3: str, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{s3}/replaced"
    asked = store.at(uri).fingerprint
    for length in (1000, SMALLEST + 1000):
        writer = store.at(uri).create(uri)
        writer.write(b"a" * length)

        def other_came_first(name: str, length: int = length) -> str:
            client().put_object(**bucket_key(name), Body=b"b" * length)
            return asked(name)

        with monkeypatch.context() as patch:
            patch.setattr(store.at(uri), "fingerprint", other_came_first)
            assert writer.close().tag is None
