"""Runs a stage on several shards or files in one process, so that shared data is loaded once."""

import logging
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

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


def each(stage: str, plan: Plan, shards: Sequence[str] | None, work: Callable[[str], object]) -> None:
    """Call ``work`` with the name of each of ``shards``, which ``plan`` must have, as ``one_by_one`` does."""
    for name in shards or ():
        plan.shard(name)
    one_by_one(stage, "shard", shards, work)


def one_by_one(stage: str, kind: str, names: Sequence[str] | None, work: Callable[[str], object]) -> None:
    """Call ``work`` with each of ``names``, in order. ``kind`` names them, and their flag: shard or file.

    An error in one does not stop the others; afterwards one error that names all that failed is raised. An error that
    affects all (an unreachable store, no GPU) is raised at once.
    """
    if not names:
        raise BadInputError(f"{stage} needs --{kind}", f"name one or more {kind}s: --{kind} A,B")
    if len(names) == 1:
        work(names[0])
        return
    failed: dict[str, Exception] = {}
    for number, name in enumerate(names, 1):
        fields: dict[str, Any] = {kind: name}
        say(f"{stage}: {kind} {name} ({number} of {len(names)})", event=kind, **fields)
        try:
            work(name)
        except Exception as error:
            if isinstance(error, RetroError) and not isinstance(error, BadInputError):
                raise
            # An unexpected error may concern only this one, too.
            reason = str(error) if isinstance(error, RetroError) else traceback.format_exc()
            say(f"{stage}: {kind} {name} failed: {reason}", logging.ERROR, event=f"{kind}_failed", **fields)
            failed[name] = error
    if failed:
        raise _together(f"{stage}: {len(failed)} of {len(names)} {kind}s failed", kind, failed)


def _together(message: str, kind: str, failed: dict[str, Exception]) -> Exception:
    """One error for all that ``failed``: BadInputError (no retry) if all are, else an error that is retried."""
    reasons = "; ".join(f"{name}: {str(error).partition(chr(10))[0]}" for name, error in failed.items())
    if all(isinstance(error, BadInputError) for error in failed.values()):
        return BadInputError(f"{message}: {reasons}", f"see the message of each above; the other {kind}s are done")
    return RuntimeError(f"{message}: {reasons}")
