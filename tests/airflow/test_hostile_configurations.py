"""Hostile configurations of runs through Airflow's own API: each is refused, or ends in one clear error.

The application of Airflow's API server answers in this process. What it lets through is given to the checks of the
first tasks, and what these let through to the stages themselves.
"""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
from airflow.models import DagRun
from airflow.sdk import Context
from airflow.sdk.definitions.param import process_params
from airflow.sdk.exceptions import AirflowFailException, ParamValidationError
from airflow.utils.session import create_session
from airflow_environment import REPOSITORY
from fastapi.testclient import TestClient
from retro_airflow import forms, settings, stage_arguments
from retro_airflow.stage_operator import flags
from sqlalchemy import select
from test_scheduler import REAL_STAGES, stage_settings

from retro_ops.errors import EXIT_CODES_WITHOUT_RETRY

HUGE = 10**30
NAN = float("nan")
RIGHT_TO_LEFT = "\u202egnp.jsonl"
TEMPLATE = "{{ conn.retro_object_store.password }}{{ 7 * 7 }}"

HOSTILE: list[dict[str, Any]] = [
    *({"dataset": name} for name in ("../other", "x" * 500, "", ".hidden", "a\nb", "a\0b", TEMPLATE, RIGHT_TO_LEFT, 7)),
    *({"root": root} for root in ("../up", "", "s3://", "ftp://h/x", "\0", ["/tmp"], TEMPLATE)),
    *({"corpus": text} for text in (f"/etc/{'x' * 5000}", "/etc/\0", "/dev/zero", TEMPLATE, RIGHT_TO_LEFT)),
    *({"corpus": text} for text in ("{a,b}" * 40, "**/" * 50, "--help", {"a": 1}, "x" * 100_000, "s3://", "\x1b[2J")),
    *({"chunk_size": size} for size in (-1, HUGE, "64; rm -rf /", NAN, float("inf"), "{{ 64 }}")),
    *({"seed": seed} for seed in (HUGE, None)),
    *({"index_type": kind} for kind in ("Flat\0", "F" * 20_000)),
    *({"max_bad_share": share} for share in (2, NAN, "NaN")),
    *({"memory_budget": size} for size in ("-1GiB", "0", "9" * 400)),
    *({"resources": {"plan": of}} for of in ({"cpus": "inf"}, {"user": "root"}, {"memory": "9" * 5000})),
    *({"recipe": text} for text in ("../../etc/passwd", "no-such", "/dev/zero", {"sources": []}, TEMPLATE)),
    {"resources": {"no-stage": {}}},
    {"runtime": "ssh"},
    {"unknown": 1},
    {"trust_remote_code": True},
    {"tokenizer": "../../etc"},
    {"indexed": "{a,b}" * 15 + "*"},
    {"indexed": json.loads("[" * 50 + "]" * 50)},
]

RUN_IDS = ("night-1", "../../up", "a/b", "a\nb", "x" * 5000, "", ".", RIGHT_TO_LEFT, TEMPLATE, "a:b", "a+b", "a~b")

RUN_STAGES = """
import contextlib, io, json, sys
from retro_ops.cli import main
ends = []
for command in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main(command)
        except SystemExit as end:
            code = end.code
    ends.append((code, said.getvalue()))
print(json.dumps(ends))
"""


class Api:
    """Airflow's API in this process, and a database with `retro_dataset`. ``right``: a conf without a fault."""

    def __init__(self, folder: Path) -> None:
        from airflow.api_fastapi.app import create_app

        self.folder = folder
        self.right = {"root": str(folder / "root"), "dataset": "d", "corpus": str(folder / "corpus")}
        DagBundlesManager().sync_bundles_to_db()
        sync_bag_to_db(DagBag(str(REPOSITORY / "dags" / "retro_dataset.py")), "dags-folder", None)
        self._client = TestClient(create_app("core"), raise_server_exceptions=False)
        self._client.headers["Authorization"] = f"Bearer {self._client.get('/auth/token').json()['access_token']}"

    def offer(self, conf: Mapping[str, Any], **body: str) -> tuple[int, str]:
        """Status and text of the answer to a request to start a run."""
        data = json.dumps({"logical_date": None, "conf": conf, **body})  # Python's JSON knows NaN.
        headers = {"Content-Type": "application/json"}
        answer = self._client.post("/api/v2/dags/retro_dataset/dagRuns", content=data, headers=headers)
        return answer.status_code, answer.text

    def command(self, answer: str) -> list[str]:
        """The first command of the run that the API has stored, as a worker finds it after its checks."""
        run_id = json.loads(answer)["dag_run_id"]
        with create_session() as session:
            conf = session.scalars(select(DagRun.conf).where(DagRun.run_id == run_id)).one()
        form = cast(Any, SimpleNamespace(params=forms.form(settings.load())))
        params = process_params(form, cast(Any, SimpleNamespace(params=None)), conf, suppress_exception=False)
        run = SimpleNamespace(conf=conf, run_id=run_id, run_type="manual")
        context = cast(Context, {"dag_run": run, "dag": form, "params": params})
        if of_sources := stage_arguments.sources_arguments(context):
            return ["list-sources", *flags(of_sources)]
        return ["plan", *flags(stage_arguments.plan_arguments(context))]

    def run_stages(self, commands: list[list[str]]) -> list[tuple[int, str]]:
        """Exit code and output of each command, in the environment of the stages; one process, as each takes seconds
        to start."""
        variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
        home = self.folder / "home"
        done = subprocess.run(
            [REAL_STAGES.parent / "python", "-c", RUN_STAGES],
            input=json.dumps(commands),
            env={**variables, "HOME": str(home)},
            cwd=home,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return [(code, said) for code, said in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, airflow_database: None) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("hostile")
    for name in ("corpus", "home"):
        (folder / name).mkdir()
    (folder / "corpus" / "a.jsonl").write_text(json.dumps({"text": "a document " * 100}) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stage_settings().items():
            patch.setenv(name, value)
        patch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS", "True")
        patch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "x" * 64)
        yield Api(folder)


def test_hostile_configurations_are_refused_or_end_in_one_clear_error(api: Api) -> None:
    let_through, messages = [], []
    for hostile in HOSTILE:
        status, answer = api.offer(api.right | hostile)
        if status >= 300:
            assert 400 <= status < 500, f"{str(hostile)[:200]}: {status} {answer}"
            messages.append(json.loads(answer)["detail"])
            continue
        try:
            let_through.append((hostile, api.command(answer)))
        except (ParamValidationError, AirflowFailException) as error:
            messages.append(str(error))
    assert all(messages)
    assert len(let_through) >= 10, "the stages check nothing here"
    ends = api.run_stages([command for _, command in let_through])
    for (hostile, _), (code, said) in zip(let_through, ends, strict=True):
        assert code in EXIT_CODES_WITHOUT_RETRY, f"{str(hostile)[:200]}: {code} {said}"
        assert "Traceback" not in said, said
        assert "\x1b" not in said
        assert "49" not in said or TEMPLATE not in hostile.values(), "a template was rendered"
    written = {
        path for path in api.folder.rglob("*") if path.is_file() and not path.is_relative_to(api.folder / "root")
    }
    assert written == {api.folder / "corpus" / "a.jsonl"}


@pytest.mark.parametrize("run_id", RUN_IDS, ids=[repr(run_id)[:20] for run_id in RUN_IDS])
def test_a_run_id_is_refused_or_names_one_folder_of_its_own(api: Api, run_id: str) -> None:
    status, answer = api.offer(api.right, dag_run_id=run_id)
    if status >= 300:
        assert 400 <= status < 500
        assert run_id != "night-1"
        return
    command = api.command(answer)
    output = Path(command[command.index("--output") + 1])
    assert output.resolve().parent.parent == api.folder / "root" / "d" / "runs"
    assert len(output.parent.name) < 256


def test_run_ids_that_differ_in_special_characters_have_two_folders(api: Api) -> None:
    commands = [api.command(api.offer(api.right, dag_run_id=f"x{sign}y")[1]) for sign in ":+~"]
    assert len({command[command.index("--output") + 1] for command in commands}) == 3
