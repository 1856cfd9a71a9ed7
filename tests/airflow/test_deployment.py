"""runtime.toml: valid files, and the errors for invalid ones."""

import os
import sys
from pathlib import Path

import pytest
from airflow_environment import REPOSITORY
from retro_airflow import deployment, object_store, settings
from retro_airflow.deployment import Resources

from retro_ops.errors import ConfigurationError
from retro_ops.plan.stage_graph import STAGES


def load(tmp_path: Path, text: str, runtime: str | None = None) -> deployment.Deployment:
    path = tmp_path / "runtime.toml"
    path.write_text(text)
    return deployment.load(path, runtime)


def test_the_file_that_comes_with_the_package_holds_the_defaults() -> None:
    ours = settings.load({}).deployment
    default = deployment.Deployment()
    assert (ours.runtime, ours.deployment, ours.object_store) == ("local", "default", default.object_store)
    assert ours.docker == default.docker
    assert ours.resources_of("plan") == Resources(shared_memory="1GiB")


def test_the_files_of_the_compose_stack_are_sound() -> None:
    for name in ("cpu", "gpu"):
        assert deployment.load(REPOSITORY / f"docker/runtime.{name}.toml").runtime == "docker"


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_may_have_resources(stage: str, tmp_path: Path) -> None:
    assert load(tmp_path, f"[resources.{stage}]\ncpus = 3\n").resources_of(stage).cpus == 3


def test_a_command_that_is_no_stage_has_no_resources(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no stage"):
        load(tmp_path, "[resources.export]\ncpus = 3\n")


def test_the_most_specific_entry_wins_and_then_the_form(tmp_path: Path) -> None:
    made = load(tmp_path, '[resources.default]\ncpus = 1\nmemory = "1GiB"\n[resources.plan]\ncpus = 2\n')
    assert made.resources_of("publish") == Resources(cpus=1, memory="1GiB")
    assert made.resources_of("plan") == Resources(cpus=2, memory="1GiB")
    form = {"default": {"cpus": 3, "memory": "2GiB"}, "publish": {"cpus": 4, "gpus": 1}}
    assert made.resources_of("plan", form) == Resources(cpus=2, memory="2GiB")
    assert made.resources_of("publish", form) == Resources(cpus=4, memory="2GiB", gpus=1)


def test_the_environment_chooses_the_runtime_and_the_file(tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text('runtime = "docker"')
    assert settings.load({"RETRO_RUNTIME_FILE": str(path)}).deployment.runtime == "docker"
    both = {"RETRO_RUNTIME_FILE": str(path), "RETRO_RUNTIME": "kubernetes"}
    assert settings.load(both).deployment.runtime == "kubernetes"


def test_a_file_beside_the_dag_files_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [*sys.path, str(tmp_path / "dags.zip"), str(tmp_path)])
    assert settings.load({}).deployment.runtime == "local"
    (tmp_path / "runtime.toml").write_text('runtime = "docker"')
    assert settings.load({}).deployment.runtime == "docker"


def test_the_stages_are_called_by_name_by_default() -> None:
    assert settings.load({}).stage_command == ("retro-ops",)
    assert settings.load({"RETRO_STAGE_COMMAND": "'/my stages/retro-ops' -v"}).stage_command == (
        "/my stages/retro-ops",
        "-v",
    )


def test_a_pod_template_is_found_beside_the_file_that_names_it(tmp_path: Path) -> None:
    made = load(tmp_path, '[kubernetes]\npod_template = "pod.yaml"')
    assert made.kubernetes.pod_template == str(tmp_path / "pod.yaml")
    assert Path(load(tmp_path, "").kubernetes.pod_template).is_file()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("runtime = ", "cannot read"),
        ('runtime = "slurm"', "runtime: Input should be 'local', 'docker' or 'kubernetes'"),
        ('[docker]\nimge = "x"', "docker.imge: Extra inputs are not permitted"),
        ('[docker]\nmounts = ["/models"]', "docker.mounts.0"),
        ('deployment = "No Label"', "deployment: String should match"),
        ("[resources.embed_chunks]\ngpus = 1", "'embed_chunks', which is no stage"),
        ('[resources.default]\nmemory = "lots"', "resources of default: memory: .*'lots' is not an amount of memory"),
        ("[resources.plan]\ngpus = -1", "resources of plan: gpus"),
        ("[resources.plan]\ngpu = 1", "resources of plan: gpu"),
    ],
)
def test_an_error_names_the_file_and_the_entry(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        load(tmp_path, text)
    assert "runtime.toml" in str(caught.value)
    assert "What to do: " in str(caught.value)


def test_keys_of_the_store_come_from_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of the worker")
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "of the worker")
    connection = '{"conn_type": "aws", "login": "id", "password": "key", "extra": {"endpoint_url": "http://store"}}'
    monkeypatch.setenv("AIRFLOW_CONN_STORE", connection)
    object_store.use_connection(None)
    assert environment("AWS_ACCESS_KEY_ID") == ["of the worker"]
    object_store.use_connection("store")
    assert environment("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL") == [
        "id",
        "key",
        "http://store",
    ]
    assert environment("AWS_SESSION_TOKEN") == [], "what belongs to another key must not stay"


def environment(*names: str) -> list[str]:
    return [os.environ[name] for name in names if name in os.environ]


def test_a_connection_without_keys_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_STORE", '{"conn_type": "aws", "login": "id"}')
    with pytest.raises(ConfigurationError, match="'store' has no access key"):
        object_store.use_connection("store")


def test_the_number_of_retries_is_set_in_the_environment() -> None:
    assert settings.load({}).retries == 3
    assert settings.load({"RETRO_RETRIES": "0"}).retries == 0
    with pytest.raises(ConfigurationError, match="RETRO_RETRIES is 'many'"):
        settings.load({"RETRO_RETRIES": "many"})


def test_stages_are_placed_on_queues_executors_and_pools(tmp_path: Path) -> None:
    text = '[placement.default]\nqueue = "cpu"\n[placement.embed-chunks]\nqueue = "gpu"\nexecutor = "CeleryExecutor"\n'
    made = load(tmp_path, text)
    assert made.placement_of("plan", None) == {"queue": "cpu"}
    assert made.placement_of("embed-chunks", None) == {"queue": "gpu", "executor": "CeleryExecutor"}
    assert load(tmp_path, "").placement_of("plan", None) == {}
    pools = load(tmp_path, '[placement.default]\npool = "retro"\n[placement.describe]\npool = "own"\n')
    stages = (("plan", None), ("embed-chunks", "gpus"), ("describe", "gpus"))
    assert [pools.placement_of(*stage)["pool"] for stage in stages] == ["retro", "gpus", "own"]
    with pytest.raises(ConfigurationError, match="placement for 'embed', which is no stage"):
        load(tmp_path, '[placement.embed]\nqueue = "gpu"\n')


NOTIFIER = '[[notifications]]\nnotifier = "a.B"\n'


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("deadline_minutes = 5\n", "need each other"),
        (NOTIFIER + 'on = ["deadline"]\n', "need each other"),
        (NOTIFIER + 'on = ["late"]\n', "notifications.0.on.0"),
        ('[[notifications]]\nnotifier = "b"\n', "notifications.0.notifier"),
        ("deadline_minutes = 0\n" + NOTIFIER, "deadline_minutes"),
        ("gpu_hour_price = -1\n", "gpu_hour_price"),
    ],
)
def test_mistakes_in_the_entries_of_the_file_are_named(tmp_path: Path, text: str, error: str) -> None:
    with pytest.raises(ConfigurationError, match=error):
        load(tmp_path, text)


def test_the_gpu_stack_gives_each_stage_that_uses_a_gpu_one() -> None:
    made = deployment.load(REPOSITORY / "docker/runtime.gpu.toml", None)
    without = {name for name, stage in STAGES.items() if stage.gpu and not made.resources_of(name).gpus}
    assert without == set()
