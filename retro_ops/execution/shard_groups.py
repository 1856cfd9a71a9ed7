"""Some shards of a plan, one after the other in one process, so that what they share is loaded once."""

import logging
import traceback
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from retro_ops.errors import BadInputError, RetroError
from retro_ops.plan.plan import Plan
from retro_ops.progress import say

T = TypeVar("T")


class Shared(Generic[T]):
    """A value that the shards of a group share, such as a model: made for the first shard, kept for the others.

    It is kept until a shard needs the value of another key. The old value is dropped first, so that two indexes are
    never in memory together.
    """

    def __init__(self) -> None:
        self._kept: tuple[str, T] | None = None

    def get(self, key: str, make: Callable[[], T]) -> T:
        if self._kept is None or self._kept[0] != key:
            self._kept = None
            self._kept = key, make()
        return self._kept[1]


def names(text: str) -> list[str]:
    """``a,b`` -> ``["a", "b"]``: shards on a command line. No name holds a comma."""
    return [name for name in text.split(",") if name]


def each(stage: str, plan: Plan, shards: Sequence[str] | None, work: Callable[[str], object]) -> None:
    """``work`` for each of ``shards``, by name and in order.

    What is wrong with one does not keep the others from being done; it is raised after them, and names all that failed.
    What concerns them all (a store that does not answer, no GPU) ends it at once.
    """
    if not shards:
        raise BadInputError(f"{stage} runs on shards", "name one or more with --shard A,B")
    for name in shards:
        plan.shard(name)
    if len(shards) == 1:
        work(shards[0])
        return
    failed: dict[str, Exception] = {}
    for number, name in enumerate(shards, 1):
        say(f"{stage}: shard {name} ({number} of {len(shards)})", event="shard", shard=name)
        try:
            work(name)
        except Exception as error:
            if isinstance(error, RetroError) and not isinstance(error, BadInputError):
                raise
            # An error that nobody expected may be one shard's, too.
            said = str(error) if isinstance(error, RetroError) else traceback.format_exc()
            say(f"{stage}: shard {name} failed: {said}", logging.ERROR, event="shard_failed", shard=name)
            failed[name] = error
    if failed:
        raise _together(stage, failed, len(shards))


def _together(stage: str, failed: dict[str, Exception], count: int) -> Exception:
    """Bad input if all of it is, so that nobody tries again; else what may pass."""
    reasons = "; ".join(f"{name}: {str(error).partition(chr(10))[0]}" for name, error in failed.items())
    message = f"{stage}: {len(failed)} of {count} shards failed: {reasons}"
    if all(isinstance(error, BadInputError) for error in failed.values()):
        return BadInputError(message, "see above what to do about each; the other shards are done")
    return RuntimeError(message)
