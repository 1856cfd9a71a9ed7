"""The DAG file, and a run of the whole DAG in this process with stub stages."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG, CronDataIntervalTimetable
from airflow.serialization.serialized_objects import DagSerialization
from live_airflow import REPOSITORY

from retro_ops.errors import ConfigurationError
from retro_ops.plan import paths, stage_graph
from retro_ops.plan.plan import plan_from_json
from retro_ops.plan.stage_graph import STAGES

HEAVY = ("numpy", "torch", "faiss", "transformers", "sentence_transformers", "boto3", "botocore")

PARSE = """
import sys, time
sys.path[:0] = {paths!r}
import airflow.sdk, airflow.providers.standard.operators.python
before = set(sys.modules)
started = time.process_time()  # What else the machine does must not count.
import massive_open_text, retro_dataset, retro_refresh, retro_repair
seconds = time.process_time() - started
import json
print(json.dumps([seconds, [name for name in {heavy!r} if name in sys.modules and name not in before]]))
"""


def load(name: str = "retro_dataset") -> DAG:
    """Loaded again, as a DAG reads the environment."""
    module = importlib.reload(importlib.import_module(f"retro_airflow.dags.{name}"))
    dag: DAG = module.dag
    return dag


def test_parsing_is_quick_and_imports_no_heavy_library() -> None:
    folders = [str(REPOSITORY / folder) for folder in ("dags", "plugins", "")]
    program = PARSE.format(paths=folders, heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", "-c", program], capture_output=True, text=True, check=True
    )
    seconds, heavy = json.loads(done.stdout.splitlines()[-1])
    assert heavy == []
    assert seconds < 1


def test_no_import_errors(airflow_database: None) -> None:
    bag = DagBag(str(REPOSITORY / "dags"))
    assert bag.import_errors == {}
    assert set(bag.dags) == {*DAGS, "retro_housekeeping", "retro_rollback", "retro_prune"}
    assert {Path(dag.fileloc) for dag in bag.dags.values()} == set((REPOSITORY / "dags").glob("*.py"))


def test_any_database_takes_the_dags() -> None:
    """Airflow stores them as JSON, and a PostgreSQL database that is not in UTF-8 refuses what is beyond ASCII."""
    for name in DAGS:
        assert json.dumps(DagSerialization.to_dict(load(name)), ensure_ascii=False).isascii()


DAGS = ("retro_dataset", "retro_refresh", "retro_repair", "massive_open_text")


@pytest.mark.parametrize("name", [*DAGS, "retro_housekeeping", "retro_rollback", "retro_prune"])
def test_no_task_carries_a_copy_of_the_form(name: str) -> None:
    """Airflow checks every copy several times when it parses the file, and stores all of them."""
    tasks = DagSerialization.to_dict(load(name))["dag"]["tasks"]
    assert tasks
    assert not [task for task in tasks if "params" in json.dumps(list(task["__var"]))]


@pytest.mark.parametrize("name", DAGS)
def test_tasks_are_named_like_their_stages(name: str) -> None:
    dag = load(name)
    staged = {task.task_id: task.stage for task in map(operator_of, dag.tasks) if hasattr(task, "stage")}
    stages = set(STAGES)
    stages -= set() if name == "retro_refresh" else {"check-drift"}
    stages -= {"list-sources", "split-corpus"} if name == "retro_repair" else set()
    stages -= {"search-parts"} if name in ("retro_refresh", "retro_repair") else set()
    assert set(staged.values()) == stages
    assert all(task_id.rpartition(".")[2] == stage.replace("-", "_") for task_id, stage in staged.items())


@pytest.mark.parametrize("name", DAGS)
def test_every_task_says_what_it_does(name: str) -> None:
    for task in load(name).tasks:
        doc = task.partial_kwargs["doc_md"] if task.is_mapped else task.doc_md
        assert len(doc) > 30, task.task_id
        if hasattr(operator_of(task), "stage"):
            assert f"retro-ops {operator_of(task).stage}" in doc


@pytest.mark.parametrize("name", DAGS)
def test_stages_run_in_the_order_of_their_table(name: str) -> None:
    dag, order = load(name), list(STAGES)
    staged = {task.task_id: operator_of(task).stage for task in dag.tasks if hasattr(operator_of(task), "stage")}
    for task_id, stage in staged.items():
        before = [
            staged[above] for above in dag.get_task(task_id).get_flat_relative_ids(upstream=True) if above in staged
        ]
        assert all(order.index(earlier) < order.index(stage) for earlier in before), (task_id, before)
        assert before or stage in ("list-sources", "plan")


def operator_of(task: Any) -> Any:
    """The operator of the instances of a mapped task; else the task itself."""
    return SimpleNamespace(task_id=task.task_id, **task.partial_kwargs) if task.is_mapped else task


@pytest.mark.parametrize("name", DAGS)
def test_stages_retry_with_back_off(name: str) -> None:
    for task in load(name).tasks:
        assert (task.retries or 0) >= 2
        assert task.retry_exponential_backoff


@pytest.mark.parametrize("name", DAGS)
def test_gpu_stages_share_the_pool(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRO_GPU_POOL", "gpus")
    pooled = {operator_of(task).stage for task in load(name).tasks if task.pool == "gpus"}
    stages = {stage.name for stage in STAGES.values() if stage.gpu}
    assert pooled == stages - ({"search-parts"} if name in ("retro_refresh", "retro_repair") else set())


def run(tmp_path: Path, corpus: Path, **conf: Any) -> Any:
    conf = {
        "root": str(tmp_path / "root"),
        "dataset": "demo",
        "corpus": str(corpus / "train"),
        "validation_corpus": str(corpus / "val"),
        "preset": "tiny",
    } | conf
    return load().test(run_conf=conf)


def test_the_price_of_a_gpu_hour_reaches_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runtime.toml").write_text("gpu_hour_price = 2.5\n")
    monkeypatch.setenv("RETRO_RUNTIME_FILE", str(tmp_path / "runtime.toml"))
    assert load().get_task("publish.describe").arguments["gpu-hour-price"] == "2.5"


def test_a_schedule_processes_the_day_before(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load("retro_refresh").schedule is None
    monkeypatch.setenv("RETRO_REFRESH_SCHEDULE", "0 3 * * *")
    with pytest.raises(ConfigurationError, match="RETRO_ROOT and RETRO_DATASET"):
        load("retro_refresh")
    monkeypatch.setenv("RETRO_ROOT", "/data")
    monkeypatch.setenv("RETRO_DATASET", "demo")
    dag = load("retro_refresh")
    assert isinstance(dag.schedule, CronDataIntervalTimetable)
    assert dag.schedule.expression == "0 3 * * *"
    assert dag.max_active_runs == 1
    monkeypatch.undo()
    load("retro_refresh")


@pytest.mark.usefixtures("airflow_database", "stub_command")
def test_a_refresh_signs_and_builds_new_shards_and_then_nothing(tmp_path: Path, corpus: Path) -> None:
    place = {"root": str(tmp_path / "root"), "dataset": "demo"}
    conf = {**place, "corpus": str(corpus / "train"), "duplicates": "report"}
    first = load("retro_refresh").test(run_conf=conf)
    assert states(first)["publish.publish", -1] == "success"
    of_shards = ("duplicates.sign_documents", "shards.embed_chunks")
    for stage in of_shards:
        assert {index for task, index in states(first) if task == stage} == {0, 1, 2}
    (corpus / "train/e.jsonl").write_text('{"text": "one more"}\n')
    more = load("retro_refresh").test(run_conf=conf)
    state = states(more)
    assert str(more.state) == "success"
    for stage in of_shards:
        assert {index for task, index in state if task == stage} == {0}
    assert state["duplicates.find_duplicates", -1] == "success"
    assert state["check_drift", -1] == state["publish.publish", -1] == "success"
    labels = {ti.rendered_map_index for ti in more.get_task_instances() if ti.task_id == "shards.embed_chunks"}
    assert labels == {"shard e"}
    # A document was removed, none added: every shard is signed already, but duplicates are looked for again.
    (corpus / "train/e.jsonl").unlink()
    fewer = states(load("retro_refresh").test(run_conf=conf))
    assert fewer["duplicates.sign_documents", -1] == "skipped"
    assert fewer["duplicates.find_duplicates", -1] == fewer["publish.publish", -1] == "success"
    idle = load("retro_refresh").test(run_conf=place)
    assert str(idle.state) == "success"
    expected = {"plan": "success", "anything_to_do": "success"}  # No recipe, so nothing before the plan.
    assert {task: state for (task, _), state in states(idle).items()} == {
        task.task_id: expected.get(task.task_id, "skipped") for task in load("retro_refresh").tasks
    }


@pytest.mark.usefixtures("airflow_database", "stub_command")
def test_a_repair_runs_what_is_missing_and_what_depends_on_it(tmp_path: Path, corpus: Path) -> None:
    place = {"root": str(tmp_path / "root"), "dataset": "demo"}
    load("retro_refresh").test(run_conf={**place, "corpus": str(corpus / "train")})
    current = json.loads(Path(paths.current_uri(place["root"], "demo")).read_text())
    plan = plan_from_json(Path(current["plan"]).read_text(), "plan")
    Path(paths.report_uri(plan, "embed-chunks", "b")).unlink()
    # The stub does not look for damage, so the version must be another one for it to go on.
    Path(paths.current_uri(place["root"], "demo")).write_text(json.dumps(current | {"path": "another"}))
    done = load("retro_repair").test(run_conf=place)
    state = states(done)
    assert str(done.state) == "success"
    assert state["shards.embed_chunks", 0] == "success"
    assert ("shards.embed_chunks", 1) not in state
    assert state["neighbours.retrieve_neighbours", -1] == "skipped"
    assert state["index.merge_indexes", -1] == state["publish.publish", -1] == "success"


def states(run: Any) -> dict[tuple[str, int], str]:
    return {(ti.task_id, ti.map_index): str(ti.state) for ti in run.get_task_instances()}


@pytest.mark.usefixtures("airflow_database", "stub_command")
def test_a_whole_run(tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(tmp_path, corpus)
    assert str(done.state) == "success"
    assert "Error while calling listener" not in capsys.readouterr().out
    plan_uri = paths.plan_uri(str(tmp_path / "root"), "demo", done.run_id)
    plan = plan_from_json(Path(plan_uri).read_text(), plan_uri)
    assert [shard.name for shard in plan.shards] == ["a", "b", "c", "d"]
    assert plan.parameters.index_type == "IVF64,Flat"
    for stage in (*stage_graph.stages(plan), "validate"):
        for shard in plan.shards if stage in stage_graph.SHARD_STAGES else (None,):
            assert Path(paths.report_uri(plan, stage, shard.name if shard else None)).exists()
    assert Path(paths.current_uri(plan.root, plan.dataset)).exists()
    labels = {ti.rendered_map_index for ti in done.get_task_instances() if ti.map_index >= 0}
    assert labels == {"shard a", "shard b", "shard c", "shard d"}
    state = states(done)
    assert state["duplicates.look_for_duplicates", -1] == "success"
    for task in ("list_shards_to_sign", "sign_documents", "find_duplicates"):
        assert state[f"duplicates.{task}", -1] == "skipped", "only on request"


RECIPE = """
categories: [docs, code]
sources:
  - files: mixed/{0,1}.jsonl
    category: {field: kind, values: {d: docs, c: code}}
  - files: val.jsonl
    split: val
    category: docs
    shard: "val_{category}"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    (folder / "mixed").mkdir(parents=True)
    for number, kinds in enumerate(("dcx", "d")):
        lines = "".join(json.dumps({"text": f"{kind} {number}", "kind": kind}) + "\n" for kind in kinds)
        (folder / f"mixed/{number}.jsonl").write_text(lines)
    (folder / "val.jsonl").write_text('{"text": "a document"}\n')
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "recipe.yaml"


@pytest.mark.usefixtures("airflow_database", "stub_command")
def test_a_whole_run_from_a_recipe(tmp_path: Path, recipe: Path) -> None:
    conf = {"root": str(tmp_path / "root"), "dataset": "demo", "recipe": str(recipe), "preset": "tiny"}
    done = load().test(run_conf=conf)
    assert str(done.state) == "success"
    plan_uri = paths.plan_uri(conf["root"], "demo", done.run_id)
    plan = plan_from_json(Path(plan_uri).read_text(), plan_uri)
    names = ["0_code", "0_docs", "1_docs", "val_docs"]
    assert [shard.name for shard in plan.shards] == names
    instances = done.get_task_instances()
    files = {ti.rendered_map_index for ti in instances if ti.task_id == "sources.split_corpus"}
    assert files == {"file mixed-0", "file mixed-1", "file val"}
    assert {ti.rendered_map_index for ti in instances if ti.task_id == "neighbours.retrieve_neighbours"} == {
        f"shard {name}" for name in names
    }
    # A refresh uses the same recipe, unless another one is given.
    (recipe.parent / "mixed/1.jsonl").write_text('{"text": "another", "kind": "d"}\n')
    more = load("retro_refresh").test(run_conf={"root": conf["root"], "dataset": "demo"})
    assert str(more.state) == "success"
    assert states(more)["sources.split_corpus", 2] == "success"


@pytest.mark.usefixtures("airflow_database", "stub_command")
def test_massive_open_text_is_the_same_tasks_with_its_recipe(tmp_path: Path) -> None:
    assert {task.task_id for task in load("massive_open_text").tasks} == {task.task_id for task in load().tasks}
    place = {"root": str(tmp_path / "root"), "source_folder": str(tmp_path / "nothing"), "preset": "tiny"}
    done = load("massive_open_text").test(run_conf=place)
    state = states(done)
    assert str(done.state) == "failed"
    assert state["sources.list_sources", -1] == "failed"
    assert state["plan", -1] == state["sources.list_source_files", -1] == "upstream_failed"


@pytest.mark.usefixtures("airflow_database")
def test_a_recipe_with_an_error_is_refused_before_anything_runs(
    tmp_path: Path, recipe: Path, stub_command: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe.write_text(RECIPE.replace("c: code", "c: cood"))
    conf = {"root": str(tmp_path / "root"), "dataset": "demo", "recipe": str(recipe), "preset": "tiny"}
    done = load().test(run_conf=conf)
    assert states(done)["sources.list_sources", -1] == "failed"
    assert {state for (task, _), state in states(done).items() if task not in ("sources.list_sources", "gate")} == {
        "upstream_failed"
    }
    assert f"{recipe}:5: unknown category 'cood'; did you mean 'code'?" in capfd.readouterr().out
    assert not (tmp_path / "root").exists()


@pytest.mark.usefixtures("airflow_database", "stub_command")
def test_duplicates_are_dropped_on_request(tmp_path: Path, corpus: Path) -> None:
    done = run(tmp_path, corpus, duplicates="drop")
    assert str(done.state) == "success"
    state = states(done)
    assert {index for task, index in state if task == "duplicates.sign_documents"} == {0, 1, 2, 3}
    assert state["duplicates.look_for_duplicates", -1] == state["duplicates.find_duplicates", -1] == "success"
    # The later stages use the plan without duplicates.
    (current,) = Path(tmp_path / "root/demo").glob("current.json")
    assert json.loads(current.read_text())["plan"].endswith("plan.deduplicated.json")


@pytest.mark.usefixtures("airflow_database")
def test_a_shard_that_cannot_be_signed_stops_the_run(tmp_path: Path, corpus: Path, stub_command: Path) -> None:
    (stub_command / "fail.sign-documents.b").write_text("65")
    done = run(tmp_path, corpus, duplicates="drop")
    assert str(done.state) == "failed"
    assert states(done)["gate", -1] == "failed"


@pytest.mark.usefixtures("airflow_database")
def test_a_run_stops_at_the_gate_when_a_shard_fails(tmp_path: Path, corpus: Path, stub_command: Path) -> None:
    (stub_command / "fail.tokenize-and-chunk.b").write_text("65")
    done = run(tmp_path, corpus)
    assert str(done.state) == "failed"
    state = states(done)
    assert state["shards.tokenize_and_chunk", 1] == "failed"
    assert state["shards.embed_chunks", 1] == "failed"
    assert {state["shards.embed_chunks", index] for index in (0, 2, 3)} == {"success"}
    assert state["gate", -1] == "failed"
    assert state["index.train_faiss_index", -1] == "upstream_failed"


@pytest.mark.usefixtures("airflow_database")
def test_a_bad_shard_of_a_group_fails_its_task_and_leaves_the_others_done(
    tmp_path: Path, corpus: Path, stub_command: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETRO_MAPPED_TASKS", "2")
    (stub_command / "fail.tokenize-and-chunk.b").write_text("65")
    done = run(tmp_path, corpus, allow_partial=True)
    state = states(done)
    assert {task: state[f"shards.{task}", 0] for task in ("tokenize_and_chunk", "embed_chunks")} == {
        "tokenize_and_chunk": "failed",
        "embed_chunks": "failed",
    }
    assert state["shards.embed_chunks", 1] == state["publish.publish", -1] == "success"
    labels = {ti.task_id: set[str]() for ti in done.get_task_instances()}
    for ti in done.get_task_instances():
        labels[ti.task_id].add(ti.rendered_map_index)
    assert labels["shards.tokenize_and_chunk"] == {"shards a to b (2)", "shards c to d (2)"}
    assert labels["neighbours.retrieve_neighbours"] == {"shard a", "shards c to d (2)"}
    plan_uri = paths.next_plan_uri(paths.plan_uri(str(tmp_path / "root"), "demo", done.run_id), "selected")
    assert plan_from_json(Path(plan_uri).read_text(), plan_uri).skipped == ("b",)


@pytest.mark.slow  # As the shard of a group above, but alone in its task, and failing a stage later.
@pytest.mark.usefixtures("airflow_database")
def test_a_run_may_go_on_without_failed_shards(tmp_path: Path, corpus: Path, stub_command: Path) -> None:
    (stub_command / "fail.embed-chunks.b").write_text("65")
    done = run(tmp_path, corpus, allow_partial=True)
    state = states(done)
    assert state["publish.publish", -1] == "success"
    assert {index for task, index in state if task == "neighbours.retrieve_neighbours"} == {0, 1, 2}
    plan_uri = paths.next_plan_uri(paths.plan_uri(str(tmp_path / "root"), "demo", done.run_id), "selected")
    plan = plan_from_json(Path(plan_uri).read_text(), plan_uri)
    assert plan.skipped == ("b",)


@pytest.mark.usefixtures("airflow_database")
def test_a_failed_plan_fails_the_run(tmp_path: Path, corpus: Path, stub_command: Path) -> None:
    (stub_command / "fail.plan.-").write_text("65")
    done = run(tmp_path, corpus)
    assert str(done.state) == "failed"
    assert states(done)["gate", -1] == "failed"


@pytest.mark.usefixtures("airflow_database")
def test_an_unknown_key_fails_before_anything_is_submitted(tmp_path: Path, corpus: Path, stub_command: Path) -> None:
    done = run(tmp_path, corpus, num_neighbors=3)
    assert states(done)["plan", -1] == "failed"
    assert not (stub_command / "journal").exists()


def test_airflow_does_not_load_the_package_as_top_level_modules(airflow_database: None) -> None:
    from airflow.plugins_manager import ensure_plugins_loaded

    ensure_plugins_loaded()
    ours = {path.stem for path in (REPOSITORY / "plugins" / "retro_airflow").rglob("*.py")}
    shadowed = {name for name in ours & set(sys.modules) if f"{REPOSITORY}/plugins" in str(sys.modules[name].__file__)}
    assert shadowed == set()
