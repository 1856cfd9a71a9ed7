"""Chooses the shards that are indexed and the shards that are queried."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from retro_ops.corpus.recipes.shard_patterns import check_pattern, matching, no_match, split_patterns
from retro_ops.errors import BadInputError
from retro_ops.plan.plan import Shard, check_choice
from retro_ops.sizes import some


def chosen(
    shards: Sequence[Shard], indexed: Sequence[str] | None, queried: Sequence[str] | None, where: str = ""
) -> list[Shard]:
    """``shards``, each indexed or queried if its name matches one of the patterns; None leaves them unchanged.

    Raises BadInputError for a shard that is neither: otherwise the documents of a new file, for example, would be
    missing silently. ``where``: prefix of the error, with the location of the patterns.
    """
    names = [shard.name for shard in shards]
    of_index, of_queries = _matching(indexed, names, where), _matching(queried, names, where)
    found = [
        replace(
            shard,
            indexed=shard.indexed if of_index is None else shard.name in of_index,
            queried=shard.queried if of_queries is None else shard.name in of_queries,
        )
        for shard in shards
    ]
    if idle := [shard.name for shard in found if not (shard.indexed or shard.queried)]:
        are = "1 shard is" if len(idle) == 1 else f"{len(idle):,} shards are"
        raise BadInputError(
            f"{where}{are} neither indexed nor queried: {some(idle)}",
            "add them to 'indexed' or 'queried', or leave their documents out of the corpus",
        )
    check_choice(found)
    return found


def _matching(patterns: Sequence[str] | None, names: Sequence[str], where: str) -> set[str] | None:
    if patterns is None:
        return None
    found: set[str] = set()
    for pattern in patterns:
        try:
            found |= matching(pattern, names)
        except ValueError as error:
            raise BadInputError(f"{where}bad pattern {pattern!r} of shards: {error}") from error
    return found


def check_patterns(shards: Sequence[Shard], given: Mapping[str, str | None]) -> None:
    """Raise BadInputError for an invalid pattern and for one that matches no shard. ``given``: patterns by key."""
    names = [shard.name for shard in shards]
    for key, patterns in given.items():
        for pattern in split_patterns(patterns or ""):
            try:
                check_pattern(pattern)
            except ValueError as error:
                raise BadInputError(f"bad pattern {pattern!r} of {key!r}: {error}") from error
            if not matching(pattern, names):
                raise BadInputError(*no_match(pattern, key, names))
