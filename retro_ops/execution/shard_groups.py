"""Several shards or files in one process, one after the other, so that what they share is loaded once."""

import logging
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from retro_ops.errors import BadInputError, RetroError
from retro_ops.plan.plan import Plan
from retro_ops.progress import say


def each(stage: str, plan: Plan, shards: Sequence[str] | None, work: Callable[[str], object]) -> None:
    """``work`` for each of ``shards``, which ``plan`` must have; as ``one_by_one``."""
    for name in shards or ():
        plan.shard(name)
    one_by_one(stage, "shard", shards, work)


def one_by_one(stage: str, kind: str, names: Sequence[str] | None, work: Callable[[str], object]) -> None:
    """``work`` for each of ``names``, in order. ``kind``: what they name, and the flag that does: shard or file.

    A fault of one does not keep the others from being done; it is raised after them, with the names of all that failed.
    What concerns them all (a store that does not answer, no GPU) ends it at once.
    """
    if not names:
        raise BadInputError(f"{stage} runs on {kind}s", f"name one or more with --{kind} A,B")
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
            said = str(error) if isinstance(error, RetroError) else traceback.format_exc()
            say(f"{stage}: {kind} {name} failed: {said}", logging.ERROR, event=f"{kind}_failed", **fields)
            failed[name] = error
    if failed:
        raise _together(f"{stage}: {len(failed)} of {len(names)} {kind}s failed", kind, failed)


def _together(message: str, kind: str, failed: dict[str, Exception]) -> Exception:
    """BadInputError if all errors are, so that Airflow does not retry; else one that it retries."""
    reasons = "; ".join(f"{name}: {str(error).partition(chr(10))[0]}" for name, error in failed.items())
    if all(isinstance(error, BadInputError) for error in failed.values()):
        return BadInputError(f"{message}: {reasons}", f"see above what to do about each; the other {kind}s are done")
    return RuntimeError(f"{message}: {reasons}")
