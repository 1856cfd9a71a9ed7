"""All distributions as wheels, in environments of their own, where nothing of the checkout is on Python's path."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from live_airflow import REPOSITORY, LiveAirflow, wait_for

HERE = Path(__file__).resolve().parent
STAGES_PYTHON = REPOSITORY / ".venv" / "stages" / "bin" / "python"

PROBE = """
import importlib.metadata, json, sys
import retro_airflow, retro_ops
from airflow.dag_processing.dagbag import DagBag
from airflow.plugins_manager import ensure_plugins_loaded, get_fastapi_plugins, get_import_errors
from airflow.providers_manager import ProvidersManager
from retro_airflow import runtimes, settings
from retro_airflow.runtimes import Job
ensure_plugins_loaded()
bag = DagBag(sys.argv[1])
pages_are_imported = "fastapi" in sys.modules  # Only the API server needs them.
from retro_airflow.pages.rendering import page
config = settings.load({})
pod = runtimes.choose("kubernetes", config).pod(Job("job", ["plan"]))
print(json.dumps({
    "path": sys.path,
    "packages": [retro_airflow.__file__, retro_ops.__file__],
    "versions": [importlib.metadata.version(name) for name in ("retro-airflow", "retro-ops")],
    "dags": sorted(bag.dags),
    "pages_are_imported": pages_are_imported,
    "apps": [app["url_prefix"] for app in get_fastapi_plugins()[0]],
    "templates": len(page.__globals__["_templates"].list_templates()),
    "errors": list(bag.import_errors.values()) + list(get_import_errors().values()),
    "provider": ProvidersManager().providers["retro-airflow"].version,
    "command": config.stage_command,
    "docker": type(runtimes.choose("docker", config)).__name__,
    "pod": pod.spec.containers[0].image,
}))
"""

UNMET = """
import importlib.metadata, sys
from packaging.requirements import Requirement
name, *extras = sys.argv[1:]
for requirement in map(Requirement, importlib.metadata.requires(name)):
    asked = not requirement.marker or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)
    if asked and importlib.metadata.version(requirement.name) not in requirement.specifier:
        print(requirement)
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with our wheels, and the libraries of the environment that it was made from."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def run(self, *command: str | Path, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Outside the checkout, without PYTHONPATH."""
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "AIRFLOW__CORE__PLUGINS_FOLDER")}
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        return done


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Built from a copy, as a build leaves files beside its sources."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("retro_ops", "plugins", "reader"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
    pip("wheel", "--no-deps", "--wheel-dir", built, source, source / "plugins", source / "reader")
    return sorted(built.glob("*.whl"))


@pytest.fixture(scope="module")
def of_airflow(wheels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return install(tmp_path_factory.mktemp("of_airflow"), Path(sys.executable), wheels)


@pytest.fixture(scope="module")
def of_stages(wheels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    without_airflow = [wheel for wheel in wheels if not wheel.name.startswith("retro_airflow")]
    return install(tmp_path_factory.mktemp("of_stages"), STAGES_PYTHON, without_airflow)


def install(folder: Path, libraries_of: Path, wheels: list[Path]) -> Environment:
    subprocess.run([libraries_of, "-m", "venv", "--without-pip", folder], check=True)
    made = Environment(folder)
    listing = "import site, sys; print(*[path for path in sys.path if path.endswith('site-packages')], sep='\\n')"
    libraries = subprocess.run([libraries_of, "-c", listing], capture_output=True, text=True, check=True).stdout
    (own,) = (folder / "lib").glob("python3*/site-packages")
    (own / "libraries.pth").write_text(libraries)
    pip("--python", made.python, "install", "--no-deps", "--no-index", "--force-reinstall", *wheels)
    return made


def pip(*arguments: str | Path) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "-q", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_wheels_hold_their_licence(wheels: list[Path]) -> None:
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            assert [name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE")], wheel


def test_pinned_libraries_meet_what_the_wheels_require(
    of_airflow: Environment, of_stages: Environment, tmp_path: Path
) -> None:
    for made, asked in (
        (of_airflow, ("retro-airflow", "docker", "kubernetes")),
        (of_airflow, ("retro-ops", "s3")),
        (of_stages, ("retro-ops", "cpu", "stages", "s3", "fast", "parquet")),
        (of_stages, ("retro-data", "s3", "text", "torch")),
    ):
        assert made.run(made.python, "-c", UNMET, *asked, cwd=tmp_path).stdout == ""


def test_airflow_finds_the_dags_and_the_provider(of_airflow: Environment, tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "dags", tmp_path / "dags", ignore=shutil.ignore_patterns("__pycache__"))
    done = of_airflow.run(of_airflow.python, "-c", PROBE, tmp_path / "dags", cwd=tmp_path)
    found = json.loads(done.stdout.splitlines()[-1])
    of_checkout = [path for path in found["path"] if path.startswith(str(REPOSITORY)) and "/.venv/" not in path]
    assert of_checkout == []
    assert all(path.startswith(str(of_airflow.folder)) for path in found["packages"])
    assert found["versions"] == [found["provider"]] * 2
    names = ["massive_open_text", "retro_dataset", "retro_housekeeping", "retro_prune", "retro_refresh", "retro_repair"]
    names += ["retro_rollback"]
    assert found["dags"] == names
    assert found["errors"] == []
    assert not found["pages_are_imported"]
    assert "/retro" in found["apps"]
    templates = REPOSITORY / "plugins/retro_airflow/pages/templates"
    assert found["templates"] == len(list(templates.iterdir())) > 0
    assert found["command"] == ["retro-ops"]
    assert found["docker"] == "DockerRuntime"
    assert found["pod"] == "retro-ops-stage:cpu"


def test_retro_ops_without_the_libraries_of_the_stages_names_the_extras(
    of_airflow: Environment, tmp_path: Path
) -> None:
    done = of_airflow.run(of_airflow.folder / "bin" / "retro-ops", "status", cwd=tmp_path, code=78)
    assert "install retro-ops[cpu] or retro-ops[gpu]" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_stage_runs(of_stages: Environment, model_dir: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a document"}\n')
    outputs = [f"--{name}-out={name}.npy" for name in ("chunks", "seq2chunk-index", "chunk2seq-index")]
    command = of_stages.folder / "bin" / "retro-ops"
    of_stages.run(command, "tokenize-and-chunk", "a.jsonl", "--tokenizer", model_dir, *outputs, cwd=tmp_path)
    assert (tmp_path / "chunks.npy").exists()


class Bundle:
    """A Git repository that Airflow takes its DAGs from, in its folder ``dags``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "dags").mkdir(parents=True)
        self._git("init", "--initial-branch", "main")

    def commit(self, name: str, text: str) -> str:
        """Write one file of ``dags``; the new version."""
        (self.folder / "dags" / name).write_text(text)
        self._git("add", "--all")
        self._git("-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "--message", name)
        return self._git("rev-parse", "HEAD")

    def settings(self) -> dict[str, str]:
        arguments = {"repo_url": str(self.folder), "tracking_ref": "main", "subdir": "dags", "refresh_interval": 2}
        bundle = {"name": "git", "classpath": "airflow.providers.git.bundles.git.GitDagBundle", "kwargs": arguments}
        return {"AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([bundle])}

    def _git(self, *arguments: str) -> str:
        command = ["git", "-C", str(self.folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle(tmp_path / "repository")


@pytest.fixture
def door(tmp_path: Path) -> Path:
    (tmp_path / "door").mkdir()
    return tmp_path / "door"


@pytest.fixture
def airflow(
    of_airflow: Environment, of_stages: Environment, bundle: Bundle, door: Path, tmp_path: Path
) -> Iterator[LiveAirflow]:
    """Airflow from the wheels, the DAGs from the bundle, and stub stages in the environment of the stages."""
    home, scripts = tmp_path / "airflow", tmp_path / "scripts"
    for folder in (home, scripts):
        folder.mkdir()
    commands = {
        name: f"{of_stages.python} {shutil.copy(HERE / name, scripts)}" for name in ("door_stage.py", "stub_stage.py")
    }
    shutil.copy(HERE / "stored_dataset.py", scripts)  # The stub imports it.
    live = LiveAirflow(
        home,
        {
            **bundle.settings(),
            "PYTHONPATH": "",
            "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(home / "plugins"),
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH": str(home / "bundles"),
            "AIRFLOW__DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "1",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "10",
            "RETRO_STAGE_COMMAND": commands["door_stage.py"],
            "RETRO_TEST_STAGE": commands["stub_stage.py"],
            "RETRO_TEST_DOOR": str(door),
            "RETRO_RETRY_DELAY": "0.1",
        },
        python=str(of_airflow.python),
    )
    bundle.commit("retro_dataset.py", (REPOSITORY / "dags" / "retro_dataset.py").read_text())
    try:
        live.start()
        yield live
    finally:
        live.stop()


def test_a_run_keeps_the_version_of_the_bundle_that_it_started_with(
    airflow: LiveAirflow, bundle: Bundle, door: Path, tmp_path: Path
) -> None:
    conf = {"root": str(tmp_path / "root"), "corpus": str(tmp_path / "corpus"), "preset": "tiny"}
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.jsonl").write_text('{"text": "a document"}\n')
    held = door / "hold.tokenize-and-chunk.a"
    held.touch()
    first = airflow.trigger(dataset="first", **conf)
    journal = door / "journal"
    wait_for(lambda: journal.exists() and "tokenize-and-chunk a" in journal.read_text())
    before = version(airflow, first)
    # From now on stages are containers of an engine that is not there.
    after = bundle.commit("runtime.toml", 'runtime = "docker"\ndocker.host = "unix:///nowhere.sock"\n')
    wait_for(lambda: airflow.call("GET", f"dags/{airflow.dag}/details")["bundle_version"] == after)
    second = airflow.trigger(dataset="second", **conf)
    held.unlink()
    assert airflow.finish(first) == "success"
    assert version(airflow, first) == before
    assert airflow.finish(second) == "failed"
    assert version(airflow, second) == after
    assert "no Docker Engine answers at unix:///nowhere.sock" in airflow.log(second, ("plan", -1), 1)


def version(airflow: LiveAirflow, run: str) -> str:
    return str(airflow.call("GET", f"dags/{airflow.dag}/dagRuns/{run}")["bundle_version"])
