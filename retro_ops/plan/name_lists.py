"""Lists of names as one text, ``a,b``: the form in command lines and arguments of mapped tasks."""

from collections.abc import Sequence


def split_names(text: str) -> list[str]:
    """``a,b`` -> ``["a", "b"]``. Names of shards and files contain no comma. Empty names are left out."""
    return [name for name in text.split(",") if name]


def join_names(names: Sequence[str]) -> str:
    return ",".join(names)
