"""docker-compose.yaml and the Dockerfiles: no default secrets, no more rights and connections than needed."""

import os
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
TEXT = (REPOSITORY / "docker-compose.yaml").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(TEXT)["services"]
DEPLOYMENT = (REPOSITORY / "docs/deployment.md").read_text()
AIRFLOW = {"airflow-init", "api-server", "scheduler", "dag-processor", "triggerer"}
ENDS = {"airflow-init", "seed", "stage-cpu", "stage-gpu"}
"""Services that do their work and end."""

DOCKERFILES = sorted((REPOSITORY / "docker").glob("*.Dockerfile"))


def networks(service: str) -> set[str]:
    return set(SERVICES[service].get("networks", ["default"]))


def test_no_secret_has_a_default() -> None:
    variables = set(re.findall(r"\$\{(\w+)(?::[^}]*)?\}", TEXT))
    secret = {name for name in variables if re.search(r"PASSWORD|SECRET|KEY", name)}
    assert secret == set(runpy.run_path(str(REPOSITORY / "docker/make_env.py"))["keys"]())
    for name in secret:
        uses = re.findall(rf"\$\{{{name}[^}}]*\}}", TEXT)
        assert set(uses) == {f"${{{name}:?run python3 docker/make_env.py}}"}


def test_keys_are_random_private_and_kept(tmp_path: Path) -> None:
    main = runpy.run_path(str(REPOSITORY / "docker/make_env.py"))["main"]
    files = [tmp_path / "a", tmp_path / "b"]
    assert [main(file) for file in files] == [0, 0]
    made = [file.read_text().partition("make_env.py.\n")[2] for file in files]
    first, second = ({line for line in text.splitlines() if line} for text in made)
    assert len(first) == 6
    assert not first & second
    assert os.stat(files[0]).st_mode & 0o777 == 0o600
    kept = files[0].read_text()
    assert main(files[0]) == 0
    assert files[0].read_text() == kept


def test_no_service_can_gain_rights() -> None:
    for name, service in SERVICES.items():
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "pid", "network_mode", "ipc"} & set(service), name
    assert {name for name, service in SERVICES.items() if service.get("cap_drop") != ["ALL"]} == {"postgres"}
    assert {name: service["cap_add"] for name, service in SERVICES.items() if "cap_add" in service} == {
        "docker-proxy": ["DAC_OVERRIDE"]
    }
    assert {name for name, service in SERVICES.items() if "user" in service} == {"docker-proxy"}


def test_services_of_our_images_write_to_volumes_and_memory_alone() -> None:
    """Not those of others' images, nor stage-gpu: with them it was not tried."""
    written = {name: service.get("tmpfs") for name, service in SERVICES.items() if service.get("read_only")}
    assert written == {
        **{name: ["/tmp", "/opt/airflow:uid=50000,gid=0,mode=0775"] for name in AIRFLOW},
        **{name: ["/tmp"] for name in ("store", "seed", "stage-cpu")},
    }


def test_a_stage_reaches_the_store_and_nothing_else() -> None:
    """Stages join the network `default`; the API server asks for no login, and the proxy creates containers."""
    assert {name for name in SERVICES if "default" in networks(name)} == {"store", "seed", "stage-cpu", "stage-gpu"}
    assert {name for name in SERVICES if "engine" in networks(name)} == {"docker-proxy", "scheduler", "triggerer"}
    assert {name for name in SERVICES if "airflow" in networks(name)} == AIRFLOW | {"postgres", "store"}


def test_ports_are_published_on_this_machine_alone() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(ports) == {"store", "api-server"}
    assert all(port.startswith("127.0.0.1:") for published in ports.values() for port in published)


def test_the_socket_is_mounted_once_and_services_are_checked_for_their_health() -> None:
    assert [name for name, of in SERVICES.items() if "docker.sock" in str(of.get("volumes"))] == ["docker-proxy"]
    assert {name for name, service in SERVICES.items() if "healthcheck" not in service} == ENDS


def test_images_of_others_have_a_tag_and_can_be_pinned_by_digest() -> None:
    """By a variable each, with the same default in .env.example."""
    others = {of["image"] for of in SERVICES.values() if not of["image"].startswith("retro-ops-")}
    found = [re.fullmatch(r"\$\{(\w+_IMAGE):-(\w+:\d[\w.]*-\w+)\}", image) for image in others]
    assert all(found), others
    defaults = dict(re.findall(r"^(\w+_IMAGE)=(\S+)$", (REPOSITORY / ".env.example").read_text(), re.MULTILINE))
    assert {image[1]: image[2] for image in found if image} == defaults
    assert all(f"{name}={image}@sha256:" in DEPLOYMENT for name, image in defaults.items())


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_has_a_pinned_base_a_user_and_no_secret(dockerfile: Path) -> None:
    lines = dockerfile.read_text().replace("\\\n", " ").splitlines()
    assert [line for line in lines if line.startswith("ARG BASE_IMAGE=")] == [
        "ARG BASE_IMAGE=python:3.12-slim-bookworm"
    ]
    stages = {line.split(" AS ")[1] for line in lines if line.startswith("FROM ") and " AS " in line}
    bases = {line.split()[1] for line in lines if line.startswith("FROM ")}
    assert bases - stages == {"${BASE_IMAGE}"}, "an image that is not named by the builder"
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users[-1] in ("50000:0", "10001:10001", "10002:10002")
    assert not [line for line in lines if line.startswith("ADD ") or "curl" in line or "wget" in line]
    settings = [line for line in lines if line.startswith(("ENV ", "ARG "))]
    assert not [line for line in settings if re.search(r"PASSWORD|TOKEN|SECRET", line)]
    copied = [line for line in lines if line.startswith("COPY ") and "--from" not in line]
    assert not [line for line in copied if ".env" in line or re.search(r"COPY \S*\. ", line)]
    assert all("--no-install-recommends" in line for line in lines if "apt-get install" in line)
