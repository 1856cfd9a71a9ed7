"""Where plans and outputs lie."""

import pytest

from retro_ops.errors import BadInputError
from retro_ops.plan import paths


@pytest.mark.parametrize("after", paths.PLAN_SUFFIXES)
def test_every_plan_leads_to_the_first(after: str) -> None:
    uri = f"s3://b/root/d/runs/x/plan{after}"
    assert paths.first_plan_uri(uri) == "s3://b/root/d/runs/x/plan.json"
    assert paths.is_plan(uri)
    assert uri in paths.plans_after("s3://b/root/d/runs/x/plan.json")
    assert paths.duplicates_uri(uri) == "s3://b/root/d/runs/x/plan.duplicates.json"


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "", ".hidden", "a\n", "ü"])
def test_names_that_climb_are_refused(name: str) -> None:
    with pytest.raises(BadInputError):
        paths.dataset_folder("s3://b/root", name)
    assert "/../" not in paths.plan_uri("s3://b/root", "books", name)
