"""The trigger form and the flags of ``plan`` that follow from it."""

from dataclasses import fields
from types import SimpleNamespace
from typing import Any, cast

import pytest
from airflow.sdk import Context
from airflow.sdk.definitions.param import ParamsDict
from airflow.sdk.exceptions import AirflowException, AirflowFailException, ParamValidationError
from retro_airflow import params, settings

from retro_ops.specs import Parameters

CONFIG = settings.load(
    {"RETRO_ROOT": "/data/", "RETRO_DATASET": "d", "RETRO_CORPUS": "/c", "RETRO_TOKENIZER": "tok", "RETRO_MODEL": "m"}
)


def values(**changes: Any) -> dict[str, Any]:
    form = ParamsDict(params.form(CONFIG))
    form.update(changes)
    return form.validate()


def context(conf: dict[str, Any]) -> Context:
    run = SimpleNamespace(conf=conf, run_id="manual__1")
    known = {name: conf.get(name, value) for name, value in values().items()}
    return cast(Context, {"dag_run": run, "dag": SimpleNamespace(params=params.form(CONFIG)), "params": known})


def test_defaults_are_those_of_parameters_and_the_standard_preset() -> None:
    arguments = params.arguments(values(), "manual__2026-01-01T00:00:00+00:00")
    assert arguments == {
        "root": "/data",
        "dataset": "d",
        "corpus": "/c",
        "validation-corpus": None,
        "output": "/data/d/runs/manual__2026-01-01T00-00-00-00-00/plan.json",
        "tokenizer": "tok",
        "model": "m",
        "index-type": "auto",
        "index-too-small": "fail",
        "chunk-size": "64",
        "token-dtype": "auto",
        "on-bad-record": "quarantine",
        "max-bad-share": "0.5",
        "batch-size": "256",
        "seed": "0",
        "num-neighbours": "4",
        "profile": "default",
        "target-recall": "0.95",
        "recall-sample": "2000",
        "min-recall": "0.8",
        "min-full-rows": "0.0",
        "max-duplicates": "1.0",
        "max-leaked": "1.0",
        "device": "auto",
        "memory-budget": "2GiB",
    }


def test_a_field_wins_over_the_preset() -> None:
    assert params.arguments(values(preset="tiny"), "r")["index-type"] == "IVF64,Flat"
    assert params.arguments(values(preset="tiny", index_type="Flat"), "r")["index-type"] == "Flat"


def test_zero_is_a_value() -> None:
    arguments = params.arguments(values(retrieval_margin=0, max_bad_share=0), "r")
    assert arguments["retrieval-margin"] == "0"
    assert arguments["max-bad-share"] == "0"


def test_presets_set_fields_that_exist() -> None:
    names = {field.name for field in fields(Parameters)}
    assert all(set(preset) <= names for preset in params.PRESETS.values())


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "../up"},
        {"dataset": ""},
        {"root": ""},
        {"preset": "huge"},
        {"chunk_size": 0},
        {"num_neighbours": 1.5},
        {"max_bad_share": 1.1},
        {"device": "tpu"},
        {"memory_budget": "much"},
        {"allow_partial": "yes"},
    ],
)
def test_the_form_refuses(change: dict[str, Any]) -> None:
    with pytest.raises(ParamValidationError):
        values(**change)


def test_a_field_that_must_be_filled_has_no_default_when_the_deployment_gives_none() -> None:
    form = params.form(settings.load({}))
    assert [name for name, param in form.items() if not param.has_value and "null" not in param.schema["type"]] == [
        "dataset",
        "root",
        "corpus",
    ]


def test_no_field_greys_out_the_trigger_button() -> None:
    assert all(param.value != "" for param in params.form(settings.load({})).values())


def test_every_field_has_a_title_and_help() -> None:
    for name, param in params.form(CONFIG).items():
        assert param.schema["title"], name
        assert param.schema["description_md"].endswith("."), name


def test_a_misspelt_key_names_the_nearest_field() -> None:
    with pytest.raises(AirflowFailException, match=r"'num_neighbors'.*'num_neighbours'"):
        params.plan_arguments(context({"num_neighbors": 2}))
    with pytest.raises(AirflowFailException, match=r"'zzz'.*dataset, root"):
        params.plan_arguments(context({"zzz": 2}))


def test_a_relative_root_is_refused() -> None:
    with pytest.raises(AirflowFailException, match="full path"):
        params.plan_arguments(context({"root": "data"}))


def test_plan_arguments_follow_the_conf() -> None:
    assert params.plan_arguments(context({"num_neighbours": 2}))["num-neighbours"] == "2"


def test_settings_say_what_is_wrong() -> None:
    with pytest.raises(Exception, match="RETRO_RETRY_DELAY is 'soon'"):
        settings.load({"RETRO_RETRY_DELAY": "soon"})


def test_bad_memory_budget_fails_without_retry() -> None:
    bad = context({})
    bad["params"]["memory_budget"] = "much"
    with pytest.raises(AirflowException, match="2GiB") as caught:
        params.plan_arguments(bad)
    assert isinstance(caught.value, AirflowFailException)
