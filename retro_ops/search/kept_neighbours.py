"""Takes the neighbours of a version from the kept ones (``plan.views``): the nearest that pass the filters.

A row whose kept neighbours are too few after the filters is searched in the whole index, with the filters. If the index
holds no more chunks of other documents than were kept, a search would find no others, so the row stays short.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from retro_ops.search.exact import NOTHING, Keys
from retro_ops.search.hits import Found, HitFilter, QueryRows, nearest_passing


@dataclass
class Taken:
    """Rows whose neighbours were taken from the kept ones, and rows that were searched again."""

    taken_rows: int = 0
    searched_rows: int = 0


@dataclass(frozen=True)
class View:
    """Neighbours of a version: the ``k`` nearest that pass ``hit_filter``."""

    k: int
    hit_filter: HitFilter | None

    def take(self, queries: QueryRows, kept: Keys, search: Callable[[QueryRows], Found], taken: Taken) -> Found:
        """The neighbours of ``queries`` by their ``kept`` ones, uint64 ``[m, keep]``, ascending.

        ``search``: finds neighbours of this view in the whole index. ``taken`` is added to.
        """
        best, removed = nearest_passing(queries, kept, self.k, self.hit_filter)
        found = Found(best, removed.nearer_than(best).counts(len(best)))
        too_few = (best == NOTHING).any(axis=1) & (kept != NOTHING).all(axis=1)
        again = np.flatnonzero(too_few)
        if len(again):
            found.put(again, search(queries.select(again)))
        taken.taken_rows += len(best) - len(again)
        taken.searched_rows += len(again)
        return found
