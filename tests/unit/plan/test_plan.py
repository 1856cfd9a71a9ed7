"""The plan as JSON, and the names that it accepts."""

import json
from dataclasses import replace

import pytest
from plans import PLAN, plan_of

from retro_ops.errors import BadInputError
from retro_ops.plan.plan import Base, BaseShard, plan_from_json, plan_to_json


def test_a_plan_survives_the_way_to_json_and_back() -> None:
    assert plan_from_json(plan_to_json(PLAN), "plan.json") == PLAN


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 9}', '{"format": 1}', '{"format": 1, "dataset": ".."}'])
def test_an_invalid_plan_is_an_error_that_names_it(text: str) -> None:
    with pytest.raises(BadInputError, match=r"plan\.json|dataset name"):
        plan_from_json(text, "plan.json")


def test_the_validation_index_starts_with_the_training_shards() -> None:
    assert [s.name for s in PLAN.indexed("train")] == ["00_a"]
    assert [s.name for s in PLAN.indexed("val")] == ["00_a", "val_a"]


def test_a_plan_of_the_first_format_can_still_be_read() -> None:

    document = json.loads(plan_to_json(plan_of())) | {"format": 1}
    for key in ("corpus", "validation_corpus", "as_of", "base", "condemned", "supersedes"):
        del document[key]
    assert plan_from_json(json.dumps(document), "x") == plan_of()


def test_what_a_recipe_adds_to_a_plan_is_written_only_where_there_is_one() -> None:
    plain = plan_to_json(plan_of())
    assert not any(f'"{key}"' in plain for key in ("recipe", "source_folder", "indexed", "queried"))
    shards = tuple(replace(s, indexed=s.name == "a", queried=s.name != "a") for s in plan_of().shards)
    plan = replace(plan_of(recipe="massive_open_text", source_folder="/s"), shards=shards)
    assert plan_from_json(plan_to_json(plan), "x") == plan


def test_a_plan_with_a_base_survives_being_written() -> None:
    base = Base("versions/x", "t", None, "w", (BaseShard("a", "train", 3, "e", None),))
    plan = plan_of(base=base, condemned=("c",), as_of="2026-01-01", supersedes=3, corpus="/c/{date}")
    assert plan_from_json(plan_to_json(plan), "x") == plan
