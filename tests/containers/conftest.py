"""Fixtures of the tests that need a Docker Engine. Without one they fail, as a deployment would."""

import os
import subprocess
from collections.abc import Iterator

import pytest
from airflow_environment import REPOSITORY, let_airflow_warn
from docker.errors import DockerException

from docker import APIClient

DOCKER = os.environ.get("DOCKER", "docker")

STAGE_IMAGE = "retro-ops-stage:cpu"


def pytest_configure(config: pytest.Config) -> None:
    let_airflow_warn(config)


@pytest.fixture(scope="session")
def engine() -> Iterator[APIClient]:
    """The low-level client of the engine that the environment names."""
    try:
        client = APIClient(base_url=os.environ.get("DOCKER_HOST"), version="auto")
        client.inspect_image(STAGE_IMAGE)
    except DockerException as error:
        pytest.fail(f"these tests need a Docker Engine with the image {STAGE_IMAGE}: make images ({error})")
    yield client
    client.close()


def build(tag: str, dockerfile: str, context: str = "tests/airflow") -> str:
    """An image on top of the stages' own, made from the text of a Dockerfile."""
    subprocess.run(
        [DOCKER, "build", "-q", "-t", tag, "-f", "-", context],
        input=dockerfile.encode(),
        cwd=REPOSITORY,
        env={**os.environ, "DOCKER_BUILDKIT": "1"},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return tag


@pytest.fixture(scope="session")
def shell_image(engine: APIClient) -> str:
    """The stages' image, but its arguments are a shell script."""
    return build("retro-ops-test:shell", f'FROM {STAGE_IMAGE}\nENTRYPOINT ["/bin/sh", "-c"]\n')


@pytest.fixture(scope="session")
def door_image(engine: APIClient) -> str:
    """The stages' image behind the door; see door_stage.py."""
    return build(
        "retro-ops-test:door",
        f'FROM {STAGE_IMAGE}\nCOPY door_stage.py /\nENTRYPOINT ["python3", "/door_stage.py"]\n'
        'ENV RETRO_TEST_DOOR=/door RETRO_TEST_STAGE="python3 -m retro_ops.cli"\n',
    )
