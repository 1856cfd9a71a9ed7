"""What a run searches, and what it takes from it."""

from dataclasses import replace

import pytest
from plans import PLAN

from retro_ops.errors import BadInputError
from retro_ops.plan import digests, views
from retro_ops.plan.parameters import Parameters

SHARD = PLAN.shards[0]


def test_views_of_one_search_have_its_digest_of_the_tuning_and_one_of_their_own() -> None:
    plans = [
        replace(PLAN, parameters=replace(PLAN.parameters, keep_neighbours=8, num_neighbours=k, max_overlap=overlap))
        for k, overlap in ((8, None), (2, None), (2, 0.5))
    ]
    plain = replace(PLAN, parameters=replace(PLAN.parameters, num_neighbours=8))
    assert {digests.tuning_digest(plan) for plan in (*plans, plain)} == {digests.tuning_digest(plain)}
    assert len({digests.neighbours_digest(plan, SHARD) for plan in (*plans, plain)}) == 4


def test_what_is_kept_must_be_enough() -> None:
    views.check(Parameters(num_neighbours=4, keep_neighbours=4))
    with pytest.raises(BadInputError, match="num_neighbours is 5, but keep_neighbours is 4") as error:
        views.check(Parameters(num_neighbours=5, keep_neighbours=4))
    assert "--keep-neighbours (Kept neighbours on the form) to 5 or more" in str(error.value)
    with pytest.raises(BadInputError, match="seed"):
        views.check(Parameters(profile="seed", keep_neighbours=9))
