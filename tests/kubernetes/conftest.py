"""Fixtures of the tests on a real cluster: `make test-kubernetes` starts it and says where it is."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from airflow_environment import let_airflow_warn
from one_node import ADDRESS, NAMESPACE, STAGE_IMAGE, OneNode, connection, install, names, wait_until
from seaweedfs import S3, seaweedfs


def pytest_configure(config: pytest.Config) -> None:
    let_airflow_warn(config)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """Where pods reach it."""
    with seaweedfs(tmp_path_factory.mktemp("s3"), tls=False, address=ADDRESS) as server:
        yield server


@pytest.fixture(scope="session")
def node(s3_server: S3) -> OneNode:
    """The cluster with deploy/kubernetes installed."""
    folder = os.environ.get("ONE_NODE")
    if not folder:
        pytest.fail("these tests need a cluster: make test-kubernetes")
    node = OneNode(Path(folder))
    install(node, s3_server.environment)
    return node


@pytest.fixture(scope="session")
def kubeconfig(node: OneNode, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the permissions of the component that runs tasks, and no others."""
    return node.kubeconfig(tmp_path_factory.mktemp("kubeconfig") / "config", "airflow-scheduler")


@pytest.fixture
def connected(kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_TEST_CLUSTER", connection(kubeconfig))


@pytest.fixture(autouse=True)
def no_pod_left(node: OneNode, request: pytest.FixtureRequest) -> Iterator[None]:
    """Deletes the pods of the module's DEPLOYMENTS, so that two modules may run side by side."""
    yield
    selector = f"retro-ops/deployment in ({','.join(request.module.DEPLOYMENTS)})"
    for name in names(node.pods(selector)):
        node.core.delete_namespaced_pod(name, NAMESPACE, grace_period_seconds=0)
    wait_until(lambda: not node.pods(selector))


@pytest.fixture(scope="session")
def shell_image(node: OneNode) -> str:
    """The stages' image, but it runs the shell script in its second argument. The first names a stage."""
    return node.build(
        "retro-ops-test:shell", f'FROM {STAGE_IMAGE}\nENTRYPOINT ["/bin/sh", "-c", "eval \\"$2\\"", "sh"]\n'
    )


@pytest.fixture(scope="session")
def door_image(node: OneNode) -> str:
    """The stages' image behind the door; see door_stage.py."""
    return node.build(
        "retro-ops-test:door",
        f'FROM {STAGE_IMAGE}\nCOPY door_stage.py /\nENTRYPOINT ["python3", "/door_stage.py"]\n'
        'ENV RETRO_TEST_DOOR=/door RETRO_TEST_STAGE="python3 -m retro_ops.cli"\n',
    )
