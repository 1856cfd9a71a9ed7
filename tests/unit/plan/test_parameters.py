"""The table of parameters: what it says of each is what the digests, a refresh and the commands do."""

import json
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from retro_ops.errors import BadInputError
from retro_ops.plan import digests, parameters
from retro_ops.plan.parameters import PARAMETERS, Parameter, Parameters, read_by
from retro_ops.plan.plan import Identity, Plan, Shard, Source
from retro_ops.plan.stage_graph import STAGES
from retro_ops.planning.base_version import published_base
from retro_ops.versions import history

SHARD = Shard("a", "train", (Source("/c/a.jsonl", 10, "sha256:1"),))
PLAN = Plan("d", "/r", Parameters(), Identity("sha256:t", 100, 0, "sha256:m", 384), (SHARD,))

ANOTHER: dict[str, Any] = {
    "longest_line": "4MiB",
    "tokenizer": "gpt2",
    "model": "other",
    "index_type": "IVF16,PQ32",
    "index_memory": "1GiB",
    "memory_budget": "1GiB",
    "search_memory": "1GiB",
    "shard_index": True,
}


def another_value(parameter: Parameter) -> Any:
    """A value that differs from the default."""
    if parameter.name in ANOTHER:
        return ANOTHER[parameter.name]
    if parameter.choices:
        return next(choice for choice in parameter.choices if choice != parameter.default)
    if parameter.kind == "integer":
        return (parameter.default or 7) + 1
    return 0.5 if parameter.default != 0.5 else 0.25


def changed(plan: Plan, name: str) -> Plan:
    """``plan`` with another value of the parameter; in the identity as well, which holds what a name stands for."""
    value = another_value(PARAMETERS[name])
    identity = {"tokenizer": {"tokenizer_digest": "sha256:t2"}, "model": {"model_digest": "sha256:m2"}}
    identity["pad_id"] = {"pad_id": 8}
    plan = replace(plan, identity=replace(plan.identity, **identity.get(name, {})))
    return replace(plan, parameters=replace(plan.parameters, **{name: value}))


OF_STAGE: dict[str, Callable[[Plan], str]] = {
    "tokenize-and-chunk": lambda plan: digests.tokenize_digest(plan, SHARD),
    "embed-chunks": lambda plan: digests.embed_digest(plan, SHARD),
    "train-faiss-index": digests.train_digest,
    "tune-search": digests.tuning_digest,
    "retrieve-neighbours": lambda plan: digests.neighbours_digest(plan, SHARD),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_is_in_the_digest_of_the_stage_it_decides_and_in_none_before(name: str) -> None:
    differing = [stage for stage, of in OF_STAGE.items() if of(changed(PLAN, name)) != of(PLAN)]
    decides = PARAMETERS[name].decides
    if name == "memory_budget":  # Below 2 GiB it limits the length of a document.
        decides = "tokenize-and-chunk"
    chain = list(OF_STAGE)
    expected = chain[chain.index(decides) :] if decides in chain else []
    assert differing == expected


@pytest.fixture
def published(tmp_path: Path) -> history.Series:
    """The series of a dataset whose one version was made by PLAN: the files that `write-specs` and `publish` leave."""
    version, shard = tmp_path / "d" / "versions" / "1", "../../shards/a"
    version.mkdir(parents=True)
    chunks = {key: f"{shard}/tokenize-and-chunk-x/{key}.npy" for key in ("chunks", "seq2chunk", "chunk2seq")}
    embeddings = f"{shard}/embed-chunks-{digests.embed_digest(PLAN, SHARD)}/embeddings.npy"
    neighbours = f"{shard}/retrieve-neighbours-{digests.neighbours_digest(PLAN, SHARD)}/neighbours.npy"
    index = f"../../index/merge-indexes-{digests.merge_digest(PLAN)}/train.index"
    files: dict[str, Any] = {
        "manifest.json": {
            "parameters": asdict(PLAN.parameters),
            "identity": asdict(PLAN.identity),
            "code_versions": dict(digests.CODE_VERSIONS),
            "trained_index": f"../../index/train-faiss-index-{digests.train_digest(PLAN)}/trained.index",
            "index_type": "Flat",
            "tuning": digests.tuning_digest(PLAN),
            "shards": [{"name": "a", "split": "train", "counts": {"chunks": 10}}],
        },
        "train.index.spec.json": [{**chunks, "embeddings": embeddings}],
        "train.data.spec.json": {
            "shards": [{**chunks, "neighbours": neighbours}],
            "neighbours": {"faiss_index": index, "index_spec": "train.index.spec.json"},
        },
        "../../current.json": {
            "version": 1,
            "path": "versions/1",
            "plan": "versions/1/plan.json",
            "published_at": "then",
            "counts": {"chunks": 10},
        },
    }
    for name, content in files.items():
        (version / name).write_text(json.dumps(content))
    return history.read(str(tmp_path), "d")


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_refresh_rebuilds_every_output_that_a_changed_parameter_decides(name: str, published: history.Series) -> None:
    base, why = published_base(changed(PLAN, name), published)
    decides = "tokenize-and-chunk" if name == "memory_budget" else PARAMETERS[name].decides
    if decides in ("tokenize-and-chunk", "embed-chunks", "train-faiss-index"):
        assert base is None
        assert name in why
        return
    assert base is not None
    searched_again = decides == "tune-search"
    assert (base.tuning is None) == searched_again
    assert (base.shards[0].neighbours is None) == searched_again


def test_an_unchanged_run_uses_all_of_the_published_version(published: history.Series) -> None:
    base, _ = published_base(PLAN, published)
    assert base is not None
    assert base.tuning == digests.tuning_digest(PLAN)
    assert base.shards[0].neighbours == digests.neighbours_digest(PLAN, SHARD)


def test_code_that_writes_other_bytes_is_named_by_its_stage(
    published: history.Series, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(digests.CODE_VERSIONS, "build-faiss-index", 99)
    base, why = published_base(PLAN, published)
    assert base is None
    assert "build-faiss-index" in why


def test_the_table_names_real_stages_and_every_field() -> None:
    assert list(PARAMETERS) == [field.name for field in fields(Parameters)]
    for parameter in PARAMETERS.values():
        assert parameter.decides is None or parameter.decides in STAGES
        assert set(parameter.read_by) <= {*STAGES, "serve", "show"}
        assert parameter.default is not None or parameter.unset, f"{parameter.name}: say what no value means"
        assert parameter.meaning.endswith((".", ".)"))


def test_a_parameter_added_later_is_in_the_digest_only_where_it_is_not_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    later = replace(PARAMETERS["target_recall"], name="recall_sample", default=2000, added_later=True)
    monkeypatch.setitem(parameters.PARAMETERS, "recall_sample", later)
    assert list(parameters.set_later(Parameters(), "tune-search")) == []
    assert list(parameters.set_later(Parameters(recall_sample=5), "tune-search")) == [["recall_sample", 5]]
    assert list(parameters.set_later(Parameters(recall_sample=5), "embed-chunks")) == []


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("chunk_size", "8", 8), ("target_recall", "1", 1.0), ("memory_budget", "2GiB", "2GiB"), ("device", "cpu", "cpu")],
)
def test_a_text_becomes_a_value(name: str, text: str, value: Any) -> None:
    assert PARAMETERS[name].parse(text) == value


@pytest.mark.parametrize(
    ("name", "text", "advice"),
    [
        ("chunk_size", "0", "a whole number from 1 to 4096"),
        ("chunk_size", "1.5", "a whole number"),
        ("max_chunks", "-1", "a whole number of at least 1"),
        ("target_recall", "nan", "a number from 0 to 1"),
        ("target_recall", "1.1", "a number from 0 to 1"),
        ("memory_budget", "much", "2GiB"),
        ("device", "gpu", "auto, cpu, cuda"),
    ],
)
def test_a_text_that_is_no_value_is_refused_with_the_bounds(name: str, text: str, advice: str) -> None:
    with pytest.raises(BadInputError, match=advice):
        PARAMETERS[name].parse(text)


def test_stages_take_their_parameters_as_flags_in_the_order_of_the_table() -> None:
    assert read_by("train-faiss-index") == (
        *("index_type", "index_memory", "index_too_small", "max_training_vectors", "seed", "device", "memory_budget"),
    )
    assert read_by("write-specs") == ()


def test_a_plan_never_allows_code_of_a_model() -> None:
    allowed = Parameters(trust_remote_code=True)
    assert "trust_remote_code" not in parameters.as_written(allowed)
    written = {**parameters.as_written(allowed), "trust_remote_code": True}
    assert not parameters.from_written(written, "plan.json").trust_remote_code


WRONG: dict[str, list[Any]] = {
    "pad_id": [-1, 1.5, True, "3", 2**70],
    "max_chunks": [-1, 0, 10**400],
    "chunk_size": [0, 5000, None, "64"],
    "on_bad_record": ["maybe", None, 1, ["fail"]],
    "min_recall": [float("nan"), -0.1, 1.1, "0.5", True],
    "max_drift": [float("inf"), -1],
    "max_imbalance": [0.5, float("inf")],
    "search_memory": ["inf", "-1GiB", "0", "0.5B", "9" * 400, 5],
    "model": ["", "a\0b", "\ud800", "x" * 20_000, 1],
    "shard_index": ["yes", 1],
    "index_type": ["", None],
    "typo": [1],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_value_that_no_flag_takes_is_refused_in_a_plan_too(name: str) -> None:
    good = parameters.as_written(Parameters())
    assert parameters.from_written(good, "plan.json") == Parameters()
    for value in WRONG[name]:
        with pytest.raises(BadInputError, match=r"plan\.json: "):
            parameters.from_written(good | {name: value}, "plan.json")


@pytest.mark.parametrize("name", sorted(set(WRONG) - {"typo", "shard_index"}))
def test_a_flag_refuses_what_a_plan_refuses(name: str) -> None:
    for value in WRONG[name]:
        if isinstance(value, str) or (isinstance(value, float) and PARAMETERS[name].kind == "number"):
            if name == "pad_id" or (name, value) == ("min_recall", "0.5") or (name, value) == ("chunk_size", "64"):
                continue  # A text that is a number.
            with pytest.raises(BadInputError, match=name):
                PARAMETERS[name].parse(str(value))
