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
