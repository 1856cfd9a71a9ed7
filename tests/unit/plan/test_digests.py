"""The inputs and parameters that digests of outputs depend on."""

import dataclasses

import pytest
from plans import IDENTITY, PLAN, SHARD, VALIDATION, plan_of

from retro_ops.plan import digests, paths, stage_graph
from retro_ops.plan.parameters import PARAMETERS, Parameters
from retro_ops.plan.plan import Plan, Source, plan_from_json, plan_to_json

STAGES = (*stage_graph.SHARD_STAGES, "train-faiss-index", "merge-indexes", "tune-search", "write-specs")


def _folders(plan: Plan) -> set[str]:
    return {paths.stage_folder(plan, stage, "00_a") for stage in STAGES}


def test_a_shard_leaves_out_only_listed_records() -> None:
    without = dataclasses.replace(SHARD, without=Source("s3://b/root/without.npy", 9, "sha256:1"))
    plan = dataclasses.replace(PLAN, shards=(without, VALIDATION), deduplicated=True)
    assert plan_from_json(plan_to_json(plan), "plan.json") == plan
    assert "without" not in plan_to_json(PLAN)
    assert "deduplicated" not in plan_to_json(PLAN)
    assert digests.tokenize_digest(plan, without) != digests.tokenize_digest(PLAN, SHARD)
    assert digests.tokenize_digest(plan, VALIDATION) == digests.tokenize_digest(PLAN, VALIDATION)
    assert digests.sign_digest(plan, without) == digests.sign_digest(PLAN, SHARD)
    # The digest from before duplicates could be left out.
    assert digests.tokenize_digest(PLAN, SHARD) == "4c749ac9fe81eea2"


def test_benchmarks_count_for_the_signatures_of_training_shards_and_by_content() -> None:
    file = Source("s3://b/questions.jsonl", 9, "sha256:1")
    plan = dataclasses.replace(PLAN, benchmark_files=(file,))
    assert plan_from_json(plan_to_json(plan), "plan.json") == plan
    assert "benchmark" not in plan_to_json(PLAN)
    assert "contaminated" not in plan_to_json(PLAN)
    assert digests.sign_digest(plan, SHARD) != digests.sign_digest(PLAN, SHARD)
    assert digests.sign_digest(plan, VALIDATION) == digests.sign_digest(PLAN, VALIDATION)
    moved = dataclasses.replace(PLAN, benchmark_files=(dataclasses.replace(file, uri="/questions.jsonl"),))
    assert digests.sign_digest(moved, SHARD) == digests.sign_digest(plan, SHARD)
    assert digests.merge_digest(plan) == digests.merge_digest(PLAN)
    assert digests.version_digest(plan) != digests.version_digest(PLAN), "a version names its benchmarks"
    holding = dataclasses.replace(SHARD, contaminated=file)
    assert digests.tokenize_digest(plan_of(), holding) != digests.tokenize_digest(PLAN, SHARD)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Parameters)])
def test_a_parameter_changes_folders_exactly_if_it_changes_content(field: str) -> None:
    value = getattr(PLAN.parameters, field)
    other = not value if isinstance(value, bool) else 7 if value is None or isinstance(value, int | float) else "x"
    other = {"memory_budget": "4GiB", "longest_line": "4MiB"}.get(field, other)
    changed = dataclasses.replace(PLAN, parameters=dataclasses.replace(PLAN.parameters, **{field: other}))
    # Tokenizer, model and pad id count by their content, in the identity of the plan.
    how = {name for name, parameter in PARAMETERS.items() if not parameter.decides} | {"tokenizer", "model", "pad_id"}
    # Duplicates and benchmarks count by the records that shards leave out, once these were looked for.
    how |= {"duplicates", "duplicate_threshold", "benchmarks", "contaminated"}
    assert (_folders(changed) == _folders(PLAN)) == (field in how)


def test_identity_and_content_change_folders() -> None:
    for field in ("tokenizer_digest", "model_digest", "pad_id"):
        other = dataclasses.replace(PLAN, identity=dataclasses.replace(IDENTITY, **{field: 9}))  # type: ignore[arg-type]
        assert digests.version_digest(other) != digests.version_digest(PLAN)
    renamed = dataclasses.replace(SHARD.sources[0], uri="s3://elsewhere/x.jsonl")
    moved = dataclasses.replace(PLAN, shards=(dataclasses.replace(SHARD, sources=(renamed,)), VALIDATION))
    assert _folders(moved) == _folders(PLAN), "a corpus file counts by content"


def test_a_condemned_output_goes_elsewhere_with_all_that_depends_on_it() -> None:
    plan = plan_of()
    bad = digests.embed_digest(plan, plan.shards[0])
    repaired = plan_of(condemned=(bad,))
    for stage in ("tokenize-and-chunk",):
        assert paths.stage_folder(repaired, stage, "a") == paths.stage_folder(plan, stage, "a")
    for stage in ("embed-chunks", "build-faiss-index", "retrieve-neighbours"):
        assert paths.stage_folder(repaired, stage, "a") != paths.stage_folder(plan, stage, "a")
    assert paths.stage_folder(repaired, "embed-chunks", "b") == paths.stage_folder(plan, "embed-chunks", "b")
    again = plan_of(condemned=(bad, digests.embed_digest(repaired, repaired.shards[0])))
    assert len({digests.embed_digest(p, p.shards[0]) for p in (plan, repaired, again)}) == 3
