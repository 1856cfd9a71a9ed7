"""Where plans and outputs lie."""

import pytest

from retro_ops.errors import BadInputError
from retro_ops.plan import paths


def test_a_plan_may_have_taken_any_of_the_steps_and_the_furthest_comes_first() -> None:
    assert [uri.removeprefix("plan.") for uri in paths.plans_after("plan.json")] == [
        *("deduplicated.selected.decided.json", "deduplicated.decided.json", "deduplicated.selected.json"),
        *("deduplicated.json", "selected.decided.json", "decided.json", "selected.json"),
    ]


@pytest.mark.parametrize("after", paths.plans_after("plan.json"))
def test_every_plan_leads_to_the_first(after: str) -> None:
    uri = f"s3://b/root/d/runs/x/{after}"
    assert paths.first_plan_uri(uri) == "s3://b/root/d/runs/x/plan.json"
    assert paths.is_plan(uri)
    assert uri in paths.plans_after("s3://b/root/d/runs/x/plan.json")
    assert paths.duplicates_uri(uri) == "s3://b/root/d/runs/x/plan.duplicates.json"


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "", ".hidden", "a\n", "ü"])
def test_names_that_climb_are_refused(name: str) -> None:
    with pytest.raises(BadInputError):
        paths.dataset_folder("s3://b/root", name)
    assert "/../" not in paths.plan_uri("s3://b/root", "books", name)


RUNS = (
    *(
        "a:b",
        "a+b",
        "a~b",
        "a b",
        "a::b",
        "a-b",
        "",
        "run",
        "-",
        "+",
        "ü",
        "\udcff",
        "x" * 250,
        "x:" * 125,
        "x~" * 125,
        "x" * 5000,
        "x" * 5001,
    ),
)


def test_no_two_runs_share_a_folder() -> None:
    names = [paths.run_name(run) for run in RUNS]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 250
    assert paths.run_name("x" * 250) == "x" * 250
    of_airflow = paths.run_name("scheduled__2026-01-01T00:00:00+00:00")
    assert of_airflow == "scheduled__2026-01-01T00-00-00-00-00", "runs that Airflow named keep their folders"
    assert paths.run_name("night-1") == "night-1"
