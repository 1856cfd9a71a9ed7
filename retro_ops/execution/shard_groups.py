"""Runs a stage on several shards in one process, so that shared data is loaded once."""

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
    """Split a list on the command line: ``a,b`` -> ``["a", "b"]``. Shard names contain no comma."""
    return [name for name in text.split(",") if name]


def each(stage: str, plan: Plan, shards: Sequence[str] | None, work: Callable[[str], object]) -> None:
    """Call ``work`` with the name of each of ``shards``, in order.

    An error in one shard does not stop the others; afterwards one error that names all failed shards is raised. An
    error that affects all shards (an unreachable store, no GPU) is raised at once.
    """
    if not shards:
        raise BadInputError(f"{stage} needs --shard", "name one or more shards: --shard A,B")
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
            # An unexpected error may concern only this shard, too.
            reason = str(error) if isinstance(error, RetroError) else traceback.format_exc()
            say(f"{stage}: shard {name} failed: {reason}", logging.ERROR, event="shard_failed", shard=name)
            failed[name] = error
    if failed:
        raise _together(stage, failed, len(shards))


def _together(stage: str, failed: dict[str, Exception], count: int) -> Exception:
    """One error for all ``failed`` shards: BadInputError (no retry) if all are, else an error that is retried."""
    reasons = "; ".join(f"{name}: {str(error).partition(chr(10))[0]}" for name, error in failed.items())
    message = f"{stage}: {len(failed)} of {count} shards failed: {reasons}"
    if all(isinstance(error, BadInputError) for error in failed.values()):
        return BadInputError(message, "see above for what to do about each; the other shards are done")
    return RuntimeError(message)
