"""Lists of names in one text, as command lines and the arguments of mapped tasks hold them: ``a,b``."""

from collections.abc import Sequence


def split_names(text: str) -> list[str]:
    """``a,b`` -> ``["a", "b"]``. Names of shards and files hold no comma, and an empty one names nothing."""
    return [name for name in text.split(",") if name]


def join_names(names: Sequence[str]) -> str:
    return ",".join(names)
