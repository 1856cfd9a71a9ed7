"""The trigger form and the flags of ``plan`` that follow from it."""

import json
import re
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from airflow.sdk import Context
from airflow.sdk.definitions.param import ParamsDict
from airflow.sdk.exceptions import AirflowException, AirflowFailException, ParamValidationError
from retro_airflow import form_fields, forms, settings, stage_arguments

from retro_ops.plan import paths
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Identity, Plan, plan_to_json

CONFIG = settings.load(
    {"RETRO_ROOT": "/data/", "RETRO_DATASET": "d", "RETRO_CORPUS": "/c", "RETRO_TOKENIZER": "tok", "RETRO_MODEL": "m"}
)


def values(**changes: Any) -> dict[str, Any]:
    form = ParamsDict(forms.form(CONFIG))
    form.update(changes)
    return form.validate()


def context(conf: dict[str, Any]) -> Context:
    run = SimpleNamespace(conf=conf, run_id="manual__1")
    known = {name: conf.get(name, value) for name, value in values().items()}
    return cast(Context, {"dag_run": run, "dag": SimpleNamespace(params=forms.form(CONFIG)), "params": known})


def test_defaults_are_those_of_parameters_and_the_standard_preset() -> None:
    arguments = stage_arguments.arguments(values(), "manual__2026-01-01T00:00:00+00:00")
    assert arguments == {
        "root": "/data",
        "dataset": "d",
        "corpus": "/c",
        "validation-corpus": None,
        "indexed": None,
        "queried": None,
        "output": "/data/d/runs/manual__2026-01-01T00-00-00-00-00/plan.json",
        "tokenizer": "tok",
        "model": "m",
        "index-type": "auto",
        "index-too-small": "fail",
        "chunk-size": "64",
        "token-dtype": "auto",
        "text-field": "text",
        "on-bad-record": "quarantine",
        "max-bad-share": "0.5",
        "duplicates": "keep",
        "duplicate-threshold": "0.8",
        "contaminated": "drop",
        "longest-line": "8MiB",
        "embed-input": "text",
        "seed": "0",
        "num-neighbours": "4",
        "profile": "default",
        "target-recall": "0.95",
        "recall-sample": "2000",
        "min-recall": "0.8",
        "min-full-rows": "0.0",
        "max-duplicates": "1.0",
        "max-leaked": "1.0",
        "max-removed-share": "0.5",
        "max-drift": "0.25",
        "device": "auto",
        "memory-budget": "2GiB",
    }


def test_a_field_wins_over_the_preset() -> None:
    assert stage_arguments.arguments(values(preset="tiny"), "r")["index-type"] == "IVF64,Flat"
    assert stage_arguments.arguments(values(preset="tiny", index_type="Flat"), "r")["index-type"] == "Flat"


def test_zero_is_a_value() -> None:
    arguments = stage_arguments.arguments(values(retrieval_margin=0, max_bad_share=0), "r")
    assert arguments["retrieval-margin"] == "0"
    assert arguments["max-bad-share"] == "0"


def test_presets_set_fields_that_exist() -> None:
    names = {field.name for field in fields(Parameters)}
    assert all(set(preset) <= names for preset in forms.PRESETS.values())


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
    form = forms.form(settings.load({}))
    assert [name for name, param in form.items() if not param.has_value and "null" not in param.schema["type"]] == [
        "dataset",
        "root",
    ]


def test_documents_come_from_a_corpus_or_a_recipe() -> None:
    arguments = stage_arguments.arguments(values(recipe="/r.yaml"), "r")
    assert arguments["sources"] == "/data/d/runs/r/sources.json"
    assert not {"corpus", "validation-corpus"} & set(arguments)


def test_massive_open_text_requires_only_the_source_folder() -> None:
    form = forms.massive_open_text_form(settings.load({}))
    asked = [name for name, param in form.items() if not param.has_value and "null" not in param.schema["type"]]
    assert asked == ["root", "source_folder"]
    filled = ParamsDict(form)
    filled.update({"root": "/data", "source_folder": "/sources"})
    assert stage_arguments.arguments(filled.validate(), "r")["index-type"] == "IVF131072,PQ32"


def test_the_arguments_of_list_sources_follow_from_the_form() -> None:
    told = stage_arguments.sources_arguments(
        context({"recipe": "massive_open_text", "source_folder": "/s", "memory_budget": "1GiB"})
    )
    assert told == {
        "recipe": "massive_open_text",
        "source-folder": "/s",
        "root": "/data",
        "dataset": "d",
        "output": "/data/d/runs/manual__1/sources.json",
        "on-bad-record": "quarantine",
        "max-bad-share": "0.5",
        "memory-budget": "1GiB",
        "longest-line": "8MiB",
    }
    assert stage_arguments.sources_arguments(context({})) == {}
    for conf in ({"recipe": "r.yaml"}, {"recipe": "x", "source_folder": "here"}):
        with pytest.raises(AirflowFailException, match="full path"):
            stage_arguments.sources_arguments(context(conf))


FORMS = (forms.form, forms.refresh_form, forms.repair_form, forms.massive_open_text_form)


@pytest.mark.parametrize("form", FORMS)
def test_no_field_disables_the_trigger_button(form: Any) -> None:
    assert all(param.value != "" for param in form(settings.load({})).values())


@pytest.mark.parametrize("form", FORMS)
def test_every_field_has_a_title_and_help(form: Any) -> None:
    for name, param in form(CONFIG).items():
        assert param.schema["title"], name
        assert param.schema["description_md"].endswith("."), name


def test_a_misspelt_key_names_the_nearest_field() -> None:
    with pytest.raises(AirflowFailException, match=r"'num_neighbors'.*'num_neighbours'"):
        stage_arguments.plan_arguments(context({"num_neighbors": 2}))
    with pytest.raises(AirflowFailException, match=r"'zzz'.*dataset, root"):
        stage_arguments.plan_arguments(context({"zzz": 2}))


RELATIVE = {
    "root": ["data", "~/data", "./data"],
    "corpus": ["train", "../train/*.jsonl", "~/train", "train/{a,b}.jsonl"],
    "validation_corpus": ["val"],
    "recipe": ["recipes/a.yaml", "a.yaml", "~/a"],
    "source_folder": ["sources"],
    "tokenizer": ["./t5", "../t5", "~/t5"],
    "model": [".", "~/model"],
    "benchmarks": ["benchmarks", "../mmlu.jsonl"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, some in RELATIVE.items() for value in some])
def test_a_relative_path_is_refused(tmp_path: Path, name: str, value: str) -> None:
    """It would name another file on each worker and in each container. The command line takes it."""
    said = rf"(?s){name} '{re.escape(value)}' is a relative path.*full path or a URL"
    with pytest.raises(AirflowFailException, match=said):
        stage_arguments.plan_arguments(context({name: value}))
    conf = {"root": str(tmp_path), name: value}
    with pytest.raises(AirflowFailException, match=said):
        stage_arguments.refresh_arguments(of_form(forms.refresh_form(CONFIG), conf, tmp_path))
    if name == "root":
        for told, form in (
            (stage_arguments.repair_arguments, forms.repair_form(CONFIG)),
            (stage_arguments.rollback_arguments, forms.rollback_form(CONFIG)),
            (stage_arguments.prune_arguments, forms.prune_form(CONFIG)),
        ):
            filled = {"root": value, "dataset": "d", **({"version": 1} if "version" in form else {})}
            with pytest.raises(AirflowFailException, match=said):
                told(of_form(form, filled, tmp_path))


def test_names_of_the_hub_and_of_recipes_are_no_paths() -> None:
    for conf in ({"model": "owner/name"}, {"tokenizer": "t5-base"}, {"recipe": "massive_open_text"}):
        stage_arguments.plan_arguments(context(conf))


@pytest.mark.parametrize("name", ["corpus", "validation_corpus"])
def test_a_refresh_does_not_take_a_relative_path_of_the_published_version(tmp_path: Path, name: str) -> None:
    """Which was built on a command line."""
    publish(tmp_path, **{"corpus": "/c", name: "relative"})
    with pytest.raises(AirflowFailException, match=f"{name} 'relative' of the published version is a relative path"):
        refreshed(tmp_path, {})
    assert refreshed(tmp_path, {"corpus": "/c", "validation_corpus": "/v"})["corpus"] == "/c"


def test_a_refresh_does_not_take_relative_benchmarks_of_the_published_version(tmp_path: Path) -> None:
    publish(tmp_path, corpus="/c", parameters=Parameters(benchmarks="bench"))
    with pytest.raises(AirflowFailException, match="benchmarks 'bench' of the published version is a relative path"):
        refreshed(tmp_path, {})
    assert refreshed(tmp_path, {"benchmarks": "/b"})["benchmarks"] == "/b"
    assert refreshed(tmp_path, {"unset": ["benchmarks"]})["unset"] == "benchmarks"


def test_what_returns_to_its_default_is_told_to_both_stages(tmp_path: Path) -> None:
    publish(tmp_path, recipe="/r.yaml")
    filled = of_form(forms.refresh_form(CONFIG), {"unset": ["max_bad_share", "seed"]}, tmp_path)
    assert stage_arguments.refresh_sources_arguments(filled)["unset"] == "max_bad_share,seed"
    assert stage_arguments.refresh_arguments(filled)["unset"] == "max_bad_share,seed"


def test_a_refresh_does_not_take_a_relative_recipe_of_the_published_version(tmp_path: Path) -> None:
    publish(tmp_path, recipe="a.yaml")
    with pytest.raises(AirflowFailException, match=r"recipe 'a.yaml' of the published version"):
        refreshed(tmp_path, {})
    assert refreshed(tmp_path, {"corpus": "/c"})["corpus"] == "/c"


def test_plan_arguments_follow_the_conf() -> None:
    assert stage_arguments.plan_arguments(context({"num_neighbours": 2}))["num-neighbours"] == "2"


def test_a_corpus_of_ones_own_is_not_validated_on_the_deployments() -> None:
    """A REST call names what it changes; the form in the UI sends every field, so that its user has seen both."""

    def chosen(**conf: str) -> tuple[str | None, str | None]:
        filled = context(conf)
        filled["params"] |= {"corpus": "/theirs", "validation_corpus": "/theirs/val"} | conf
        arguments = stage_arguments.plan_arguments(filled)
        return arguments["corpus"], arguments["validation-corpus"]

    assert chosen() == ("/theirs", "/theirs/val")
    assert chosen(corpus="/mine") == ("/mine", None)
    assert chosen(corpus="/mine", validation_corpus="/theirs/val") == ("/mine", "/theirs/val")


def of_form(form: dict[str, Any], conf: dict[str, Any], tmp_path: Path, **run: Any) -> Context:
    conf = {"root": str(tmp_path), **conf}
    known = ParamsDict(form)
    known.update(conf)
    of_run = {"conf": conf, "run_id": "r", "run_type": "manual", "data_interval_end": None, **run}
    return cast(
        Context,
        {"dag_run": SimpleNamespace(**of_run), "dag": SimpleNamespace(params=form), "params": known.validate()},
    )


def refreshed(tmp_path: Path, conf: dict[str, Any], **run: Any) -> dict[str, Any]:
    return stage_arguments.refresh_arguments(of_form(forms.refresh_form(CONFIG), conf, tmp_path, **run))


def publish(root: Path, **of_plan: Any) -> None:
    """A version, as far as a form looks at it."""
    current = Path(paths.current_uri(str(root), "d"))
    current.parent.mkdir()
    identity = Identity("t", 1, 0, "m", 1)
    parameters = of_plan.pop("parameters", Parameters())
    plan = Plan("d", str(root), parameters, identity, (), **of_plan)
    (current.parent / "plan.json").write_text(plan_to_json(plan))
    entry = {"version": 1, "path": "versions/1", "plan": "plan.json", "published_at": "then", "counts": {}}
    current.write_text(json.dumps(entry))


def test_a_refresh_uses_the_recipe_of_the_version_or_of_the_form(tmp_path: Path) -> None:
    def sources(conf: dict[str, Any]) -> dict[str, Any]:
        return stage_arguments.refresh_sources_arguments(of_form(forms.refresh_form(CONFIG), conf, tmp_path))

    publish(tmp_path, recipe="/r.yaml")
    uri = f"{tmp_path}/d/runs/r/sources.json"
    told = sources({})
    assert (told["recipe"], told["source-folder"], told["refresh"], told["output"]) == (None, None, True, uri)
    plan = refreshed(tmp_path, {})
    assert (plan["sources"], plan["corpus"], plan["refresh"]) == (uri, None, True)
    assert sources({"recipe": "/other.yaml"})["recipe"] == "/other.yaml"
    assert sources({"corpus": "/c"}) == {}
    assert "sources" not in refreshed(tmp_path, {"corpus": "/c"})


def test_a_refresh_passes_on_only_fields_that_are_set(tmp_path: Path) -> None:
    publish(tmp_path)
    expected = {
        "root": str(tmp_path),
        "dataset": "d",
        "corpus": None,
        "validation-corpus": None,
        "indexed": None,
        "queried": None,
        "as-of": None,
        "output": f"{tmp_path}/d/runs/r/plan.json",
        "refresh": True,
        "unset": None,
    }
    assert refreshed(tmp_path, {}) == expected
    unset = {"unset": ["keep_neighbours", "max_overlap"]}
    assert refreshed(tmp_path, unset) == expected | {"unset": "keep_neighbours,max_overlap"}
    more = refreshed(tmp_path, {"num_neighbours": 2, "max_drift": 0, "corpus": "/e", "as_of": "2026-01-02"})
    assert more == expected | {"num-neighbours": "2", "max-drift": "0", "corpus": "/e", "as-of": "2026-01-02"}
    assert refreshed(tmp_path, {"queried": "0[0-8]_*,val_*"}) == expected | {"queried": "0[0-8]_*,val_*"}


def test_only_the_dataset_of_the_deployment_starts_from_its_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("ROOT", f"{tmp_path}/"), ("DATASET", "d"), ("CORPUS", "/wiki"), ("VALIDATION_CORPUS", "/val")):
        monkeypatch.setenv(f"RETRO_{name}", value)
    own = refreshed(tmp_path, {})
    assert (own["corpus"], own["validation-corpus"]) == ("/wiki", "/val")
    other = refreshed(tmp_path, {"dataset": "news"})
    assert (other["corpus"], other["validation-corpus"]) == (None, None)
    assert refreshed(tmp_path, {"dataset": "news", "corpus": "/news"})["corpus"] == "/news"
    changed = refreshed(tmp_path, {"corpus": "/news"})
    assert (changed["corpus"], changed["validation-corpus"]) == ("/news", None)


def test_a_refresh_of_nothing_is_a_first_build(tmp_path: Path) -> None:
    arguments = refreshed(tmp_path, {"chunk_size": 32})
    assert arguments["refresh"] is True
    assert (arguments["tokenizer"], arguments["index-type"], arguments["chunk-size"]) == (
        Parameters.tokenizer,
        "auto",
        "32",
    )


@pytest.mark.parametrize(
    ("kind", "zone", "days", "day"),
    [
        ("scheduled", "UTC", 1, "2026-01-02"),
        ("backfill", "Asia/Tokyo", 1, "2026-01-03"),
        ("manual", "UTC", 1, None),
        # A week, or a weekend without runs: up to the last whole day.
        ("scheduled", "UTC", 7, "2026-01-08"),
    ],
)
def test_the_day_of_a_run(
    tmp_path: Path, kind: str, zone: str, days: int, day: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETRO_REFRESH_TIMEZONE", zone)
    end = datetime(2026, 1, 2, 18, tzinfo=UTC) + timedelta(days=days)
    assert refreshed(tmp_path, {}, run_type=kind, data_interval_end=end)["as-of"] == day


@pytest.mark.parametrize("change", [{"as_of": "2026-1-2"}, {"max_drift": -1}, {"device": "tpu"}, {"chunk_size": 0}])
def test_the_form_of_a_refresh_refuses(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ParamValidationError):
        refreshed(tmp_path, change)


def test_the_arguments_of_a_repair_follow_from_the_form(tmp_path: Path) -> None:
    def told(conf: dict[str, Any]) -> dict[str, Any]:
        return stage_arguments.repair_arguments(of_form(forms.repair_form(CONFIG), conf, tmp_path))

    arguments = told({"shards": ["a", "b"], "run": "x"})
    assert arguments == {
        "root": str(tmp_path),
        "dataset": "d",
        "output": f"{tmp_path}/d/runs/r/plan.json",
        "repair": True,
        "run": "x",
        "shards": "a,b",
        "quick": False,
    }
    assert told({})["shards"] is None
    with pytest.raises(ParamValidationError):
        told({"shards": ["a,b"]})
    with pytest.raises(AirflowFailException, match="unknown parameter 'shard'"):
        told({"shard": "a"})


def test_an_invalid_setting_is_named() -> None:
    with pytest.raises(Exception, match="RETRO_RETRY_DELAY is 'soon'"):
        settings.load({"RETRO_RETRY_DELAY": "soon"})


def test_bad_memory_budget_fails_without_retry() -> None:
    bad = context({})
    bad["params"]["memory_budget"] = "much"
    with pytest.raises(AirflowException, match="2GiB") as caught:
        stage_arguments.plan_arguments(bad)
    assert isinstance(caught.value, AirflowFailException)


def test_values_as_templates_and_other_systems_write_them() -> None:
    """JSON of other systems has 64.0; a template that is empty gives an empty text."""
    conf = {"chunk_size": 64.0, "nprobe": 8.0, "max_drift": 1.0, "root": " s3://retro/x \n", "corpus": " /c "}
    blank = dict.fromkeys(("index_type", "indexed", "queried", "as_of", "recipe", "validation_corpus", "tokenizer"), "")
    cleaned = stage_arguments.clean({**conf, **blank, "embed_prompt": "passage: ", "quick": False, "shards": ["a"]})
    assert cleaned == {
        "chunk_size": 64,
        "nprobe": 8,
        "max_drift": 1.0,
        "root": "s3://retro/x",
        "corpus": "/c",
        **dict.fromkeys(blank),
        "embed_prompt": "passage: ",
        "quick": False,
        "shards": ["a"],
    }
    assert isinstance(cleaned["chunk_size"], int)
    assert stage_arguments.clean({"embed_prompt": "", "chunk_size": 64.5}) == {"embed_prompt": "", "chunk_size": 64.5}
    conf.pop("max_drift")  # Only of a refresh.
    blank = {"index_type": "", "indexed": "", "validation_corpus": ""}
    arguments = stage_arguments.plan_arguments(context({**conf, **blank}))
    assert (arguments["root"], arguments["chunk-size"], arguments["nprobe"]) == ("s3://retro/x", "64", "8")
    assert (arguments["index-type"], arguments["indexed"], arguments["validation-corpus"]) == ("auto", None, None)


@pytest.mark.parametrize("value", ["a\0b", "\ud800", "x" * 1_000_000])
@pytest.mark.parametrize("name", ["root", "corpus", "model", "embed_prompt", "indexed"])
def test_a_text_that_no_field_can_have_fails_without_retry(name: str, value: str) -> None:
    with pytest.raises(AirflowFailException, match=name):
        stage_arguments.plan_arguments(context({name: value}))


@pytest.mark.parametrize("form", FORMS)
def test_the_fields_that_matter_are_open_and_first(form: Any) -> None:
    sections = [param.schema.get("section") for param in form(CONFIG).values()]
    opened = [name for name, section in zip(form(CONFIG), sections, strict=True) if section is None]
    assert opened[:2] == ["dataset", "root"]
    assert opened[-1] == "plan_only"
    assert len(opened) <= 6
    assert None not in sections[len(opened) :]


@pytest.mark.parametrize("form", FORMS)
def test_help_has_no_code_marks(form: Any) -> None:
    """Airflow's form draws them over the lines above and below."""
    assert not [name for name, param in form(CONFIG).items() if "`" in param.schema["description_md"]]


def test_help_without_marks_keeps_its_text() -> None:
    assert form_fields.plain("`auto` or `{00..08}_*,val_*`") == r"auto or {00..08}\_\*,val\_\*"
    assert form_fields.plain("such as `passage: `, or none") == 'such as "passage: ", or none'


def test_presets_say_for_which_size_they_are() -> None:
    for name in forms.PRESETS:
        assert f"**{name}**: " in forms.PRESET_HELP


def test_an_empty_choice_says_what_it_means() -> None:
    field = forms.refresh_form(CONFIG)["embed_input"].schema
    assert field["enum"][0] is None
    assert field["values_display"] == {"null": "as in the published version", "text": "text", "ids": "ids"}
