"""The gate and the other tasks between the stages."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from retro_airflow import mapped_tasks, tasks

from retro_ops.plan import digests, grid, paths, source_list, stage_graph
from retro_ops.plan.plan import Plan, plan_from_json, plan_to_json
from retro_ops.storage import store
from retro_ops.storage.local import LocalStore

Params = dict[str, Any]


def write(uri: str, text: str) -> None:
    Path(uri).parent.mkdir(parents=True, exist_ok=True)
    Path(uri).write_text(text)


def embed(plan: Plan, *names: str) -> None:
    for name in names:
        write(paths.report_uri(plan, "embed-chunks", name), "{}")


EMBED = "embed-chunks"


def listed(uri: str) -> list[str]:
    entries = mapped_tasks.list_shards(uri, EMBED)
    assert {entry["plan"] for entry in entries} == {uri}
    return [entry["shard"] for entry in entries]


def test_list_shards(uri: str) -> None:
    assert listed(uri) == ["a", "b", "v"]


@pytest.mark.parametrize("variable", ["RETRO_MAPPED_TASKS", "AIRFLOW__CORE__MAX_MAP_LENGTH"])
def test_more_shards_than_tasks_go_in_groups(uri: str, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "2")
    assert listed(uri) == ["b,v", "a"]
    monkeypatch.setenv(variable, "1")
    assert listed(uri) == ["a,b,v"]


def test_the_search_is_divided_only_if_the_vectors_exceed_the_gpus_of_a_worker(
    uri: str, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shard, chunks in zip(plan.shards, (6000, 4000, 500), strict=True):
        write(paths.report_uri(plan, "tokenize-and-chunk", shard.name), json.dumps({"counts": {"chunks": chunks}}))
    plain = mapped_tasks.list_shards(uri, "retrieve-neighbours")
    vector = plan.identity.dimension * 2 + grid.SLOT_BYTES
    for memory, shape in ((None, None), (20_000 * vector, None), (3000 * vector, "4x2")):
        runtime = tmp_path / "runtime.toml"
        table = "" if memory is None else f'[grid]\ngpu_memory = "{memory}B"\nworkers = 8\n'
        write(str(runtime), f'runtime = "local"\n{table}')
        monkeypatch.setenv("RETRO_RUNTIME_FILE", str(runtime))
        shards = mapped_tasks.list_shards_to_query(uri, "retrieve-neighbours")
        if shape is None:
            assert shards == plain
            with pytest.raises(AirflowSkipException):
                mapped_tasks.list_cells(uri)
            continue
        cells = mapped_tasks.list_cells(uri)
        assert shards == [{**entry, "grid": shape} for entry in plain]
        names = [entry["cell"] for entry in cells]
        assert names[0] == "train-part-0-of-4-range-0-of-2"
        assert len(names) == 4 * 2 + 4


def test_only_a_large_corpus_has_tasks_that_relieve_those_that_run_once(uri: str, plan: Plan) -> None:
    for chunks, parts, shards in ((6_000_000, 0, []), (50_000_000, 4, ["a", "b", "v"])):
        for shard, of in zip(plan.shards, (chunks, 4000, 500), strict=True):
            write(paths.report_uri(plan, "tokenize-and-chunk", shard.name), json.dumps({"counts": {"chunks": of}}))
        assert [entry["part"] for entry in mapped_tasks.list_sample_parts(uri)] == [
            f"{n}-of-{parts}" for n in range(parts)
        ]
        checked = mapped_tasks.list_shards_to_validate(uri, True)
        assert checked == [{"plan": uri, "shard": name, "changed-only": True} for name in shards]


class Counting(LocalStore):
    """Counts how often each file is read or looked for."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()

    def read(self, uri: str) -> bytes:
        self.requests[uri] += 1
        return super().read(uri)

    def exists(self, uri: str) -> bool:
        self.requests[uri] += 1
        return super().exists(uri)


def test_lists_read_each_small_report_at_most_once(tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """So their reads grow as the number of shards: the plan, and for some lists one report of a shard."""
    shards = tuple(dataclasses.replace(plan.shards[0], name=f"{number:04}") for number in range(400))
    many, uri = dataclasses.replace(plan, shards=shards), str(tmp_path / "plan.json")
    write(uri, plan_to_json(many))
    chunks, embedded = (
        [paths.report_uri(many, stage, shard.name) for shard in shards] for stage in ("tokenize-and-chunk", EMBED)
    )
    for report in chunks:
        write(report, json.dumps({"counts": {"chunks": 50_000}}))
    monkeypatch.setenv("RETRO_RUNTIME_FILE", str(tmp_path / "runtime.toml"))
    write(str(tmp_path / "runtime.toml"), 'runtime = "local"\n[grid]\ngpu_memory = "1GiB"\nworkers = 8\n')
    for lists, reads in (
        (lambda: mapped_tasks.list_shards(uri, EMBED), []),
        (lambda: mapped_tasks.list_unfinished_shards(uri, EMBED), embedded),
        (lambda: mapped_tasks.list_sample_parts(uri), chunks),
        (lambda: mapped_tasks.list_cells(uri), chunks),
        (lambda: mapped_tasks.list_shards_to_query(uri, "retrieve-neighbours"), chunks),
        (lambda: mapped_tasks.list_shards_to_validate(uri, False), chunks),
    ):
        counting = Counting()
        monkeypatch.setattr(store, "_LOCAL", counting)
        assert lists()
        assert counting.requests == Counter([uri, *reads])


@pytest.mark.parametrize("count", [1, 255, 256, 257, 1000, 2000, 5003])
def test_groups_are_never_more_than_the_limit_and_miss_no_shard(tmp_path: Path, plan: Plan, count: int) -> None:
    shards = tuple(dataclasses.replace(plan.shards[0], name=f"{number:04}") for number in range(count))
    uri = str(tmp_path / "plan.json")
    write(uri, plan_to_json(dataclasses.replace(plan, shards=shards)))
    groups = listed(uri)
    assert len(groups) <= 256
    assert sorted(",".join(groups).split(",")) == [shard.name for shard in shards]
    assert max(len(group.split(",")) for group in groups) == -(-count // 256)


def test_the_largest_shards_come_first_and_groups_are_of_even_size(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sized(*sizes: int) -> list[str]:
        source = plan.shards[0].sources[0]
        shards = tuple(
            dataclasses.replace(plan.shards[0], name=name, sources=(dataclasses.replace(source, bytes=size),))
            for name, size in zip("abcdefgh", sizes, strict=False)
        )
        uri = str(tmp_path / "plan.json")
        write(uri, plan_to_json(dataclasses.replace(plan, shards=shards)))
        return listed(uri)

    assert sized(1, 5, 3) == ["b", "c", "a"]
    monkeypatch.setenv("RETRO_MAPPED_TASKS", "3")
    assert sized(10, 10, 90, 10, 10, 10) == ["c", "d,e,f", "a,b"]
    assert sized(2, 2, 2, 2, 2, 2) == ["a,b", "c,d", "e,f"]
    assert sized(900, 10, 10, 10) == ["a", "b,c,d"]


def test_source_files_are_split_one_by_one_or_together_where_they_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tuple(source_list.SourceFile(f"f{n}", f"/f{n}", 1, "x", 0, "d") for n in range(5))
    listed = source_list.Sources("/r", "d", "/recipe.yaml", "", "/", None, files, "quarantine", 0.5, 1, "2GiB")
    uri = str(tmp_path / "sources.json")
    Path(uri).write_text(source_list.to_json(listed))
    assert mapped_tasks.list_source_files(uri) == [{"sources": uri, "file": f"f{n}"} for n in range(5)]
    monkeypatch.setenv("AIRFLOW__CORE__MAX_MAP_LENGTH", "2")
    assert [entry["file"] for entry in mapped_tasks.list_source_files(uri)] == ["f0,f1,f2", "f3,f4"]


def test_only_unfinished_shards_are_grouped(plan: Plan, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRO_MAPPED_TASKS", "2")
    embed(plan, "a")
    assert [entry["shard"] for entry in mapped_tasks.list_unfinished_shards(uri, EMBED)] == ["b", "v"]


@pytest.mark.parametrize("which", [mapped_tasks.list_shards, mapped_tasks.list_unfinished_shards])
def test_a_stage_gets_the_shards_that_it_runs_on(plan: Plan, uri: str, which: Any) -> None:
    a, b, v = plan.shards
    shards = (dataclasses.replace(a, queried=False), dataclasses.replace(b, indexed=False), v)
    write(uri, plan_to_json(dataclasses.replace(plan, shards=shards)))
    found = {stage: [entry["shard"] for entry in which(uri, stage)] for stage in stage_graph.SHARD_STAGES}
    assert found == {
        "tokenize-and-chunk": ["a", "b", "v"],
        "embed-chunks": ["a", "b", "v"],
        "build-faiss-index": ["a", "v"],
        "retrieve-neighbours": ["b", "v"],
    }


@pytest.mark.parametrize(
    ("chosen", "compared"), [({}, False), ({"duplicates": "report"}, True), ({"benchmarks": "/benchmarks"}, True)]
)
def test_documents_are_compared_on_request_and_once(
    plan: Plan, uri: str, chosen: dict[str, Any], compared: bool
) -> None:
    asked = dataclasses.replace(plan, parameters=dataclasses.replace(plan.parameters, **chosen))
    write(uri, plan_to_json(asked))
    assert tasks.look_for_duplicates(uri) is compared
    write(uri, plan_to_json(dataclasses.replace(asked, deduplicated=True)))
    assert tasks.look_for_duplicates(uri) is False


def silent(**causes: str) -> Any:
    """A task instance of the gate. ``causes``: what a task of map index ``of_1`` said when it failed."""
    return SimpleNamespace(
        xcom_pull=lambda task_ids, map_indexes, key: causes.get(f"of_{map_indexes}"), xcom_push=lambda key, value: None
    )


def test_gate_lets_a_whole_plan_through(plan: Plan, uri: str) -> None:
    embed(plan, "a", "b", "v")
    assert tasks.gate(uri, mapped_tasks.list_shards(uri, EMBED), {"allow_partial": False}, silent()) == uri


def test_gate_names_the_missing_shards_and_what_to_do(plan: Plan, uri: str) -> None:
    embed(plan, "a")
    with pytest.raises(AirflowFailException) as caught:
        tasks.gate(uri, mapped_tasks.list_shards(uri, EMBED), {"allow_partial": False}, silent())
    message = str(caught.value)
    assert "2 of 3 shards" in message
    assert "b (map index 1), v (map index 2)" in message
    assert "allow_partial" in message
    assert not Path(paths.next_plan_uri(uri, "selected")).exists()


def test_gate_says_why_the_shards_failed(plan: Plan, uri: str) -> None:
    embed(plan, "a")
    said = silent(of_1="s3://c/b.jsonl, line 3: no key 'text'\n  What to do: fix it", of_2="killed (signal 9)")
    with pytest.raises(AirflowFailException) as caught:
        tasks.gate(uri, mapped_tasks.list_shards(uri, EMBED), {"allow_partial": False}, said)
    lines = str(caught.value).splitlines()
    assert lines[1:3] == ["  b: s3://c/b.jsonl, line 3: no key 'text'", "  v: killed (signal 9)"]


def test_gate_names_the_failed_shards_of_a_group(plan: Plan, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRO_MAPPED_TASKS", "2")
    embed(plan, "a")
    with pytest.raises(AirflowFailException, match=r"2 of 3 shards.*: b .map index 0., v .map index 0."):
        tasks.gate(uri, mapped_tasks.list_shards(uri, EMBED), {"allow_partial": False}, silent())


def test_gate_needs_an_indexed_shard_and_a_queried_one(plan: Plan, uri: str) -> None:
    a, b, v = plan.shards
    shards = (dataclasses.replace(a, queried=False), dataclasses.replace(b, indexed=False), v)
    plan = dataclasses.replace(plan, shards=shards)
    write(uri, plan_to_json(plan))
    embed(plan, "b", "v")
    with pytest.raises(AirflowFailException, match=r"a .map index 0."):
        tasks.gate(uri, mapped_tasks.list_shards(uri, EMBED), {"allow_partial": True}, silent())


def test_gate_selects_the_embedded_shards(plan: Plan, uri: str) -> None:
    embed(plan, "b", "v")
    selected = tasks.gate(uri, mapped_tasks.list_shards(uri, EMBED), {"allow_partial": True}, silent())
    assert selected == paths.next_plan_uri(uri, "selected")
    expected = dataclasses.replace(plan, shards=plan.shards[1:], skipped=("a",))
    assert plan_from_json(Path(selected).read_text(), selected) == expected


def test_gate_keeps_most_of_the_published_shards(plan: Plan, uri: str) -> None:
    changes = {"base": 1, "nothing": False, "added": [], "changed": ["a"], "removed": ["c", "d"], "unchanged": 2}
    write(paths.changes_uri(uri), json.dumps(changes))
    embed(plan, "b", "v")
    with pytest.raises(AirflowFailException, match=r"3 of 5 shards of version 1 would be removed .*: c, d, a"):
        tasks.gate(uri, mapped_tasks.list_shards(uri, EMBED), {"allow_partial": True}, silent())
    write(paths.changes_uri(uri), json.dumps(changes | {"added": ["a"], "changed": []}))
    assert tasks.gate(uri, mapped_tasks.list_shards(uri, EMBED), {"allow_partial": True}, silent()) != uri


@pytest.mark.parametrize("embedded", [(), ("v",)])
def test_gate_needs_a_training_shard(plan: Plan, uri: str, embedded: tuple[str, ...]) -> None:
    embed(plan, *embedded)
    with pytest.raises(AirflowFailException, match=r"a .map index 0., b .map index 1."):
        tasks.gate(uri, mapped_tasks.list_shards(uri, EMBED), {"allow_partial": True}, silent())


def test_gate_without_a_plan() -> None:
    with pytest.raises(AirflowFailException, match="task `plan`"):
        tasks.gate("", None, {"allow_partial": True}, silent())


def test_gate_names_the_map_index_in_a_list_of_unfinished_shards(plan: Plan, uri: str) -> None:
    embed(plan, "a")
    listed = mapped_tasks.list_unfinished_shards(uri, "embed-chunks")
    embed(plan, "b")
    with pytest.raises(AirflowFailException, match=r"1 of 3 shards are not embedded: v .map index 1."):
        tasks.gate(uri, listed, {"allow_partial": False}, silent())


def test_gate_without_a_list(uri: str) -> None:
    with pytest.raises(AirflowFailException, match="`list_shards`"):
        tasks.gate(uri, None, {"allow_partial": False}, silent())


def test_an_invalid_plan_fails_without_retry(uri: str) -> None:
    write(uri, "{}")
    with pytest.raises(AirflowFailException, match="retro-ops plan"):
        mapped_tasks.list_shards(uri, EMBED)


@pytest.mark.parametrize("is_current", [True, False])
def test_announce_dataset(plan: Plan, uri: str, is_current: bool) -> None:
    ours = {
        "version": 3,
        "path": f"versions/{digests.version_digest(plan)}",
        "plan": "runs/x/plan.json",
        "published_at": "then",
        "as_of": "2026-01-02",
        "counts": {"chunks": 7},
    }
    ours["figures"] = {"stored_bytes": 1, "quality": {"train": {"recall": 0.9756}, "val": {"recall": 0.96}}}
    other = ours | {"version": 2, "path": "versions/x", "published_at": "before", "as_of": "2026-01-03"}
    newest, history = (ours, other) if is_current else (other, ours)
    write(paths.current_uri(plan.root, plan.dataset), json.dumps({**newest, "history": [history]}))
    changes = {"added": ["a"], "changed": [], "removed": ["x", "y"], "unchanged": 1, "nothing": False, "base": 2}
    write(paths.changes_uri(uri), json.dumps(changes))
    added: list[tuple[Any, Any]] = []
    events = {tasks.DATASETS: SimpleNamespace(add=lambda asset, extra: added.append((asset, extra)))}
    pushed: dict[str, str] = {}
    ti = SimpleNamespace(xcom_push=lambda key, value: pushed.update({key: value}))
    tasks.announce_dataset(cast(Context, {"outlet_events": events, "ti": ti}), {"plan": uri})
    page = f"/plugin/retro-datasets/retro/{paths.root_key(plan.root)}/d/versions/3"
    assert pushed == {"summary": f"Dataset d, [version 3]({page}): recall 97.6 % (train), 96.0 % (val)"}
    ((asset, extra),) = added
    assert asset.uri == f"file://{plan.root}/d"
    assert extra == {key: ours[key] for key in ("version", "path", "published_at", "as_of")} | {
        "chunks": 7,
        "is_current": is_current,
        "page": page,
        "train_recall": 0.9756,
        "val_recall": 0.96,
        **{kind: changes[kind] for kind in ("added", "changed", "removed")},
        "added_shards": 1,
        "changed_shards": 0,
        "removed_shards": 2,
    }


class Pushed(SimpleNamespace):
    """A task instance that keeps what is pushed."""

    def xcom_push(self, key: str, value: str) -> None:
        setattr(self, key, value)


def test_a_run_that_only_plans_ends_with_the_estimate(plan: Plan, uri: str) -> None:
    ti = Pushed(summary=None)
    assert tasks.goes_beyond_plan(uri, {"plan_only": False}, ti)
    assert tasks.goes_beyond_plan(uri, {}, ti)
    assert ti.summary is None
    seconds = {"cpu": {"embed-chunks": 600.0, "describe": 66.0}}
    estimate = {"chunks": {"all": 12345}, "bytes": {}, "peak_rss_bytes": {}, "seconds": seconds}
    write(paths.estimate_uri(uri), json.dumps(estimate))
    assert not tasks.goes_beyond_plan(uri, {"plan_only": True}, ti)
    assert ti.summary.startswith(
        "Dataset d, [planned only, 3 shards: about 12,345 chunks; work of 11 min on cpu](/plugin/retro-datasets/"
    )


def test_a_night_without_changes_says_so(uri: str) -> None:
    changes = {"added": [], "changed": [], "removed": [], "unchanged": 3, "nothing": True, "base": 7}
    write(paths.changes_uri(uri), json.dumps(changes))
    ti = Pushed()
    assert not tasks.anything_to_do(uri, {"plan_only": False}, ti)
    assert ti.summary == "Dataset d: nothing has changed since version 7"
    write(paths.changes_uri(uri), json.dumps(changes | {"nothing": False}))
    assert tasks.anything_to_do(uri, {"plan_only": False}, ti)
    assert not tasks.anything_to_do(uri, {"plan_only": True}, ti)
