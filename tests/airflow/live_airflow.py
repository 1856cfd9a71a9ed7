"""A throwaway Airflow for the tests: API server, DAG processor and scheduler, as processes of the test."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from tenacity import retry, retry_if_result, stop_after_attempt, wait_fixed

REPOSITORY = Path(__file__).resolve().parents[2]

Task = tuple[str, int]
"""Task id and map index (-1: not mapped)."""


_TABLES: dict[str | None, bytes] = {}
"""An empty SQLite database of Airflow for each auth manager, which has tables of its own."""


class LiveAirflow:
    """Binds 127.0.0.1 only. Every process it starts leads a session, so that all its children can be found.

    What it is asked concerns ``dag``; it knows ``other_dags`` too. An empty variable of ``environment`` removes one.
    ``python`` has Airflow.
    """

    def __init__(
        self,
        home: Path,
        environment: Mapping[str, str],
        dag: str = "retro_dataset",
        other_dags: Sequence[str] = (),
        python: str = sys.executable,
    ) -> None:
        self.home = home
        self.dag, self._other_dags = dag, other_dags
        self._python = python
        self._port = free_port()
        self._environment = {k: v for k, v in (self._configuration() | dict(environment)).items() if v}
        self._sessions: list[subprocess.Popen[bytes]] = []
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=30)
        self.scheduler: subprocess.Popen[bytes] | None = None
        self._dag_processor: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def environment(self) -> Mapping[str, str]:
        """Of every process of this Airflow."""
        return self._environment

    def start_api_server(self) -> None:
        """The API server alone, for what needs no scheduler."""
        self._make_tables()
        self._api_server = self._airflow("api-server", "--host", "127.0.0.1", "--port", str(self._port))
        wait_for(self._answers)

    def _make_tables(self) -> None:
        """By `airflow db migrate`, which takes 8 s of CPU time; further ones get a copy of the first one's tables."""
        database = self.home / "airflow.db"
        made = _TABLES.get(self._environment.get("AIRFLOW__CORE__AUTH_MANAGER"))
        if made:
            database.write_bytes(made)
            return
        assert self._airflow("db", "migrate").wait() == 0, (self.home / "db.log").read_text()
        assert not Path(f"{database}-wal").exists(), "tables that are not in the main file of the database"
        _TABLES[self._environment.get("AIRFLOW__CORE__AUTH_MANAGER")] = database.read_bytes()

    def server(self) -> int:
        """Process id of the API server, which leads a session."""
        return self._api_server.pid

    def serialize_dags(self) -> None:
        """Store the DAGs as a DAG processor does."""
        assert self._airflow("dags", "reserialize").wait(120) == 0, (self.home / "dags.log").read_text()

    def start(self) -> None:
        self._keep_few_dags()
        self.start_api_server()
        self._dag_processor = self._airflow("dag-processor")
        # The first call of a task makes the server build its routes, 12 s of CPU time in which it answers no one else.
        self._client.get("/execution/health", timeout=300)
        self.start_scheduler()
        wait_for(self._authenticate)
        wait_for(lambda: self._client.get(f"/api/v2/dags/{self.dag}").status_code == 200)
        self.call("PATCH", f"dags/{self.dag}", {"is_paused": False})

    def _keep_few_dags(self) -> None:
        """Show the DAG processor only what the test needs, unless it has a folder of its own: parsing takes seconds."""
        if self._environment["AIRFLOW__CORE__DAGS_FOLDER"] == str(REPOSITORY / "dags"):
            folder = self.home / "dags"
            folder.mkdir()
            for dag in (self.dag, *self._other_dags):
                shutil.copy(REPOSITORY / "dags" / f"{dag}.py", folder)
            self._environment["AIRFLOW__CORE__DAGS_FOLDER"] = str(folder)

    def start_scheduler(self) -> None:
        # The server for task logs outlives a killed scheduler, so that each needs a port of its own.
        self._environment["AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT"] = str(free_port())
        self.scheduler = self._airflow("scheduler")

    def start_triggerer(self) -> None:
        self._environment["AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT"] = str(free_port())
        self._airflow("triggerer")

    def stop(self) -> None:
        self._client.close()
        for process in self._sessions:
            kill_session(process)

    def trigger(self, **conf: Any) -> str:
        run = self.call("POST", f"dags/{self.dag}/dagRuns", {"logical_date": None, "conf": conf})
        return str(run["dag_run_id"])

    def finish(self, run_id: str, timeout_s: float = 1200) -> str:
        """Wait for the end of a run; its state."""
        wait_for(lambda: self.run_state(run_id) in ("success", "failed"), timeout_s, lambda: str(self.states(run_id)))
        return self.run_state(run_id)

    def stop_run(self, run_id: str) -> None:
        """Mark a run failed, which ends its running tasks."""
        self.call("PATCH", f"dags/{self.dag}/dagRuns/{run_id}", {"state": "failed"})

    def run_state(self, run_id: str) -> str:
        return str(self.call("GET", f"dags/{self.dag}/dagRuns/{run_id}")["state"])

    def tasks(self, run_id: str) -> dict[Task, dict[str, Any]]:
        rows = self.call("GET", f"dags/{self.dag}/dagRuns/{run_id}/taskInstances?limit=1000")["task_instances"]
        return {(row["task_id"], row["map_index"]): row for row in rows}

    def states(self, run_id: str) -> dict[Task, str | None]:
        return {task: row["state"] for task, row in self.tasks(run_id).items()}

    def log(self, run_id: str, task: Task, try_number: int) -> str:
        task_id, map_index = task
        path = f"dags/{self.dag}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}?map_index={map_index}"
        # Whole entries: what an exception said is beside the event.
        return "\n".join(json.dumps(line) for line in self.call("GET", path)["content"])

    def clear(self, run_id: str, task: Task) -> None:
        """Clear one map index and what is downstream of it."""
        body = {"dry_run": False, "dag_run_id": run_id, "task_ids": [list(task)], "include_downstream": True}
        self.call("POST", f"dags/{self.dag}/clearTaskInstances", body | {"only_failed": True})

    def backfill(self, first: str, last: str, reprocess: str, conf: Mapping[str, Any]) -> None:
        """`airflow backfill create` for the days from ``first`` to ``last``, one run after the other.

        Nothing else writes meanwhile: the command writes many rows in one go, and SQLite has one writer.
        """
        assert self.scheduler
        assert self._dag_processor
        # A DAG has one at a time, and the scheduler closes it a while after its last run.
        wait_for(self._no_backfill, explain=lambda: "the last backfill is not complete")
        for process in (self.scheduler, self._dag_processor):
            kill_session(process)
        # A date alone is its first minute, and the interval of the last day begins later.
        arguments = ["--dag-id", self.dag, "--from-date", first, "--to-date", f"{last}T23:59", "--max-active-runs", "1"]
        arguments += ["--reprocess-behavior", reprocess, "--dag-run-conf", json.dumps(conf)]
        done = self._airflow("backfill", "create", *arguments)
        assert done.wait(120) == 0, (self.home / "backfill.log").read_text()
        self._dag_processor = self._airflow("dag-processor")
        self.start_scheduler()

    def _no_backfill(self) -> bool:
        rows = self.call("GET", f"backfills?dag_id={self.dag}")["backfills"]
        return all(row["completed_at"] for row in rows)

    def runs(self) -> dict[str, str]:
        """State by logical day, in order."""
        rows = self.call("GET", f"dags/{self.dag}/dagRuns?limit=1000")["dag_runs"]
        return dict(sorted((str(row["logical_date"])[:10], str(row["state"])) for row in rows))

    def token(self, user: str, password: str) -> str:
        answer = self._client.post("/auth/token", json={"username": user, "password": password})
        return str(answer.json()["access_token"])

    def call(self, method: str, path: str, body: Any = None) -> Any:
        response = self._request(method, path, body)
        assert response.is_success, f"{method} {path}: {response.status_code} {response.text}"
        return response.json()

    @retry(
        # SQLite refuses at once a transaction that has read before another process wrote and then writes itself. It
        # was rolled back whole, so that the request can be made again.
        retry=retry_if_result(lambda answer: answer.status_code == 500 and "Database error" in answer.text),
        stop=stop_after_attempt(10),
        wait=wait_fixed(0.5),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
    )
    def _request(self, method: str, path: str, body: Any) -> httpx.Response:
        return self._client.request(method, f"/api/v2/{path}", json=body)

    def _answers(self) -> bool:
        try:
            return self._client.get("/api/v2/version").is_success
        except httpx.TransportError:
            return False

    def _authenticate(self) -> bool:
        answer = self._client.get("/auth/token")
        if not answer.is_success:
            return False
        self._client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
        return True

    def _airflow(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.home / f"{arguments[0]}.log").open("ab") as log:
            process = subprocess.Popen(
                [self._python, "-m", "airflow", *arguments],
                cwd=self.home,  # Python puts it on its path.
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        self._sessions.append(process)
        return process

    def _configuration(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "_AIRFLOW", "RETRO_"))}
        return inherited | {
            "AIRFLOW_HOME": str(self.home),
            "PYTHONPATH": str(REPOSITORY),
            "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(REPOSITORY / "plugins"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{self._port}/execution/",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
            # Nobody edits a DAG during a test, and a parse of each costs seconds of CPU time.
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
            # Deaths are noticed in seconds rather than minutes.
            "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
            "AIRFLOW__SCHEDULER__JOB_HEARTBEAT_SEC": "1",
            "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "6",
            "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "2",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "12",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
            "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        }


def session_members(leader: int) -> list[int]:
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == leader and fields[0] != "Z":
                members.append(int(entry.name))
    return members


def kill_session(leader: subprocess.Popen[bytes]) -> None:
    for pid in session_members(leader.pid):
        os.kill(pid, signal.SIGKILL)
    leader.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(
    condition: Callable[[], object], timeout_s: float = 600, explain: Callable[[], str] = lambda: "it did not happen"
) -> None:
    """Wait until ``condition`` holds. The limit is generous, since containers start slowly on a busy machine."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(1)
