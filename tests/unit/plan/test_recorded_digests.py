"""Digests, locations and plans are those of the former version, recorded in tests/data/former; see the README there."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retro_ops.corpus.recipes import file_list
from retro_ops.corpus.recipes.parser import parse_recipe
from retro_ops.plan import paths, stage_graph
from retro_ops.plan.digests import output_digest
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Plan, plan_from_json, plan_to_json

RECORDED = Path(__file__).resolve().parents[2] / "data/former/digests.json"
FORMER: dict[str, Any] = json.loads(RECORDED.read_text())
CASES: dict[str, Any] = FORMER["cases"]
CHANGED_SINCE = "rerun `record_digests.py` only for a change of format that is meant, and say so in the changelog"


def changed(document: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``changes`` laid over ``document``: mappings are merged, everything else is replaced."""
    merged = dict(document)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(document.get(key), dict)
        merged[key] = changed(document[key], value) if both else value
    return merged


def planned(changes: dict[str, Any]) -> Plan:
    return plan_from_json(json.dumps(changed(FORMER["plan"], changes)), "digests.json")


def tasks(plan: Plan) -> Iterator[tuple[str, str | None]]:
    return stage_graph.tasks(plan, dict.fromkeys(("sign-documents", *stage_graph.stages(plan), "validate", "publish")))


def digests(plan: Plan) -> dict[str, str]:
    return {f"{stage} {shard}" if shard else stage: output_digest(plan, stage, shard) for stage, shard in tasks(plan)}


def test_a_plan_has_the_digests_and_the_text_that_it_had() -> None:
    assert digests(planned({})) == FORMER["digests"], CHANGED_SINCE
    assert plan_to_json(planned({})) == FORMER["text"]


@pytest.mark.parametrize("name", CASES)
def test_every_change_to_a_plan_changes_the_digests_that_it_changed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A plan without code versions has those of the code that reads it.
    monkeypatch.setattr("retro_ops.plan.digests.CODE_VERSIONS", FORMER["plan"]["code_versions"])
    case = CASES[name]
    plan = planned(case["changes"])
    kept = {output: digest for output, digest in FORMER["digests"].items() if output not in case["gone"]}
    # A plan without code versions means those of today.
    raised = () if plan.code_versions else ("sign-documents",)
    found, expected = (
        {output: digest for output, digest in of.items() if not output.startswith(raised)}
        for of in (digests(plan), kept | case["differ"])
    )
    assert found == expected, CHANGED_SINCE
    assert hashlib.sha256(plan_to_json(plan).encode()).hexdigest() == case["sha256"]
    assert plan_from_json(plan_to_json(plan), "again") == plan


def test_a_value_other_than_the_default_is_recorded_for_every_earlier_parameter() -> None:
    """A parameter that was added later is in no recorded plan: at its default it changes no digest."""
    former: dict[str, Any] = FORMER["plan"]["parameters"]
    assert {name: getattr(Parameters(), name) for name in former} == former
    for name, value in former.items():
        assert CASES[f"parameter {name}"]["changes"]["parameters"][name] != value


def test_every_file_lies_where_it_lay() -> None:
    plan, former = planned({}), FORMER["locations"]
    run = paths.plan_uri(plan.root, plan.dataset, "manual__2026-01-01T00:00:00+00:00")
    chunks = paths.chunks_files(plan, "a")
    found = {
        "run": run,
        "sources": paths.sources_uri(plan.root, plan.dataset, "a-run"),
        "plans_after": paths.plans_after(run),
        "beside_the_plan": [
            *(paths.estimate_uri(run), paths.changes_uri(run), paths.duplicates_uri(run), paths.drift_uri(run)),
        ],
        "dataset": [paths.current_uri(plan.root, plan.dataset), paths.condemned_uri(plan.root, plan.dataset)],
        "split_corpus": paths.part_uri(paths.parts_folder(plan.root, plan.dataset, "file", "0"), "a"),
        "reports": [paths.report_uri(plan, stage, shard) for stage, shard in tasks(plan)],
        "signatures": paths.signature_files(plan, "a"),
        "without": paths.without_uri(plan, "a", "0"),
        "chunks": chunks,
        "beside_the_chunks": [
            *(paths.documents_uri(chunks["chunks"]), paths.document_ids_uri(chunks["chunks"])),
            *(paths.quarantine_uri(chunks["chunks"]), paths.unfinished_folder(chunks["chunks"], "0")),
        ],
        "embeddings": paths.embeddings_uri(plan, "a"),
        "indexes": [
            *(paths.trained_index_uri(plan), paths.partial_index_uri(plan, "a")),
            *(paths.index_uri(plan, "train"), paths.index_uri(plan, "val")),
        ],
        "neighbours": [paths.neighbours_uri(plan, "a"), paths.distances_uri(paths.neighbours_uri(plan, "a"))],
        "version": [
            *(paths.index_spec_uri(plan, "train"), paths.dataset_spec_uri(plan, "val"), paths.manifest_uri(plan)),
            *(paths.version_plan_uri(plan), paths.card_uri(plan, "json"), paths.card_uri(plan, "html")),
        ],
    }
    assert {kind: found[kind] for kind in former} == former, CHANGED_SINCE


def test_source_files_of_a_recipe_have_the_names_and_digests_that_they_had(tmp_path: Path) -> None:
    """Names of fields and classes of a recipe's rules are part of these digests."""
    former = FORMER["recipe"]
    for name, text in former["files"].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    recipe = parse_recipe(former["text"], f"{tmp_path}/recipe.yaml")
    files, _ = file_list.find(recipe, str(tmp_path))
    listed = [file_list.source_file(recipe, str(tmp_path), file, tuple(former["settings"])) for file in files]
    found = {str(Path(of.uri).relative_to(tmp_path)): {"name": of.name, "digest": of.digest} for of in listed}
    assert found == former["found"], CHANGED_SINCE
