"""The pages under Airflow's other authentication manager, FAB, whose users and roles are in its database."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from live_airflow import LiveAirflow
from stored_dataset import write_dataset
from test_pages import HOSTILE, Server, addresses

from retro_ops.plan import paths

ROLES = {"ann": "Admin", "vic": "Viewer", "pat": "Public"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("airflow")
    root = home / "datasets"
    write_dataset(root, "news", versions=2)
    manager = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
    environment = {
        "AIRFLOW__CORE__AUTH_MANAGER": manager,
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "",
        "RETRO_ROOT": str(root),
    }
    airflow = LiveAirflow(home, environment)
    try:
        airflow.start_api_server()
        airflow.serialize_dags()
        create_users(airflow, home)
        tokens = {name: airflow.token(name, "secret") for name in ROLES}
        yield Server(root, airflow.url, f"/retro/{paths.root_key(str(root))}/news", tokens)
    finally:
        airflow.stop()


def create_users(airflow: LiveAirflow, home: Path) -> None:
    """All in one process: each start of Airflow's command takes seconds."""
    program = """
import sys
from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder
with get_application_builder() as builder:
    manager = builder.sm
    for entry in sys.argv[1:]:
        name, role = entry.split(":")
        assert manager.add_user(name, name, name, f"{name}@example.org", manager.find_role(role), "secret")
"""
    users = [f"{name}:{role}" for name, role in ROLES.items()]
    done = subprocess.run(
        [sys.executable, "-c", program, *users], env=airflow.environment, cwd=home, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_pages_need_a_user_with_the_right_to_read(server: Server) -> None:
    for address in addresses(server.news):
        assert server.get(address, user=None).status_code == 401, address
        assert server.get(address, "pat").status_code == 403, address
        assert server.get(address, "vic").status_code == 200, address


def test_the_session_of_the_browser_is_enough(server: Server) -> None:
    answer = httpx.get(f"{server.url}/retro/", cookies={"_token": server.tokens["vic"]}, timeout=60)
    assert answer.status_code == 200
    assert "news" in answer.text


def test_buttons_need_the_right_to_trigger_their_dag(server: Server) -> None:
    address = f"{server.news}/confirm/rollback?version=1"
    for user, status in ((None, 401), ("pat", 403), ("vic", 403)):
        assert server.get(address, user).status_code == status
        assert server.post(address, user).status_code == status
    assert "Roll back…" not in server.get(server.news, "vic").text
    assert "Roll back…" in server.get(server.news, "ann").text
    assert server.runs("retro_rollback") == []
    assert server.post(address, "ann").status_code == 303
    (run,) = server.runs("retro_rollback")
    assert run["triggering_user_name"] == "ann"


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_addresses_are_refused(server: Server, text: str) -> None:
    hostile = quote(text, safe="")
    for address in (f"{server.news}/runs/{hostile}", f"{server.news}/versions/2/bad-records?shard={hostile}"):
        answer = server.get(address)
        assert answer.status_code == 404, (address, answer.text)
        assert "<script>alert" not in answer.text
