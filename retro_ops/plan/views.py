"""Several views of one retrieval: with ``keep_neighbours``, what is searched does not depend on what is taken from it.

The search finds the ``keep_neighbours`` nearest chunks of other documents of each row. They are stored, and are those
that a run with as many ``num_neighbours`` and no filter would find, so its digests are the same. The neighbours of a
version are a view of them: the ``num_neighbours`` nearest that pass the filters.
"""

from dataclasses import replace
from typing import Any

from retro_ops.errors import BadInputError
from retro_ops.plan.parameters import PARAMETERS, Parameters


def searched(chosen: Parameters) -> Parameters:
    """The parameters of the search of a run with the parameters ``chosen``."""
    if chosen.keep_neighbours is None:
        return chosen
    return replace(
        chosen,
        keep_neighbours=None,
        num_neighbours=chosen.keep_neighbours,
        max_overlap=None,
        max_shared_run=None,
        max_shared_ngrams=None,
    )


def in_digest(chosen: Parameters) -> list[list[Any]]:
    """Entry of a digest of neighbours for the view; none where nothing is kept."""
    if chosen.keep_neighbours is None:
        return []
    return [["kept", chosen.keep_neighbours, chosen.max_overlap, chosen.max_shared_run, chosen.max_shared_ngrams]]


def check(chosen: Parameters) -> None:
    """Raise BadInputError unless what is kept is enough for ``num_neighbours``."""
    kept = chosen.keep_neighbours
    if kept is None:
        return
    if kept < chosen.num_neighbours:
        raise BadInputError(
            f"num_neighbours is {chosen.num_neighbours}, but keep_neighbours is {kept}",
            f"raise {PARAMETERS['keep_neighbours'].where} to {chosen.num_neighbours} or more, which searches all rows "
            "again, or lower num_neighbours",
        )
    if chosen.profile == "seed":
        raise BadInputError(
            "keep_neighbours needs the profile `default`: the `seed` profile stores what the original found",
            f"build the dataset without --refresh and without {PARAMETERS['keep_neighbours'].where}",
        )
