"""Sizes as people write them."""

import re

from retro_ops.errors import BadInputError


def parse_bytes(text: str) -> int:
    """``2GiB`` -> 2147483648. Units: none or B, KiB, MiB, GiB, TiB and kB, MB, GB, TB."""
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([kKMGT]?)(i?)B?\s*", text)
    if not match:
        raise BadInputError(f"{text[:80]!r} is not an amount of memory", "write it like 2GiB or 512MiB")
    number, prefix, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " KMGT".index(prefix.upper() or " "))
