"""Amounts of memory as people write them."""

import pytest

from retro_ops import sizes
from retro_ops.errors import BadInputError


def test_amounts_of_memory() -> None:
    assert sizes.parse_bytes("2GiB") == 2**31
    assert sizes.parse_bytes("1.5 kB") == 1500
    assert sizes.parse_bytes("7") == 7
    for bad in ("", "2 GiBs", "-1", "lots"):
        with pytest.raises(BadInputError):
            sizes.parse_bytes(bad)


def test_sizes_in_words() -> None:
    found = {count: sizes.in_words(count) for count in (0, 999, 1000, 35_254_138, 4.5e12, 2e19)}
    assert list(found.values()) == ["0 B", "999 B", "1.0 kB", "35.3 MB", "4.5 TB", "20,000.0 PB"]


def test_limits_have_the_units_in_which_they_are_set() -> None:
    assert sizes.limit_in_words(sizes.parse_bytes("1.5GiB")) == "1.5 GiB"


def test_counts_and_times_in_words() -> None:
    assert [sizes.counted(count, "part") for count in (0, 1, 2000)] == ["0 parts", "1 part", "2,000 parts"]
    assert [sizes.of_key(1, key) for key in ("bad_records", "queries", "left_out")] == [
        "1 bad record", "1 query", "1 left out",
    ]  # fmt: skip
    assert sizes.of_key(2000, "bad_records") == "2,000 bad records"
    found = {seconds: sizes.time_in_words(seconds) for seconds in (0.4, 59, 200, 3599, 9000)}
    assert list(found.values()) == [
        "less than a minute", "about 1 minute", "about 3 minutes", "about 60 minutes", "about 2.5 hours",
    ]  # fmt: skip


def test_a_long_list_of_names_is_cut_and_counted() -> None:
    assert [sizes.some(list("abc")[:count], 2) for count in range(4)] == ["", "a", "a, b", "a, b and 1 more"]
    assert sizes.some([f"{n:04}" for n in range(2010)]).endswith("0009 and 2,000 more")
