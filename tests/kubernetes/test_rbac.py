"""The role in deploy/kubernetes/rbac.yaml: each verb is needed, and nothing else is allowed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client import AuthorizationV1Api
from kubernetes.config import new_client_from_config
from one_node import DEPLOY, NAMESPACE, OneNode, wait_until
from retro_airflow.deployment import Kubernetes
from retro_airflow.runtimes import Handle, Job, Task
from retro_airflow.runtimes.kubernetes import KubernetesRuntime

from retro_ops.errors import ConfigurationError

DEPLOYMENTS = ("rbac",)
JOB = Job("retro-plan-0123456789ab", ["plan", "echo on; sleep 60"], {}, Task("dag", "run", "plan", -1))
ACCOUNTS = ("airflow-scheduler", "airflow-worker", "airflow-triggerer")

CALLS: dict[tuple[str, str], Callable[[KubernetesRuntime, Handle], object]] = {
    ("pods", "create"): lambda runtime, _: runtime.submit(JOB),
    ("pods", "get"): lambda runtime, handle: runtime.status(handle),
    ("pods", "list"): lambda runtime, _: runtime.jobs(),
    ("pods", "delete"): lambda runtime, handle: runtime.cancel(handle),
    ("pods/log", "get"): lambda runtime, handle: runtime.logs(handle, None),
}
"""A call of the runtime that needs each permission."""


def role() -> dict[str, Any]:
    return dict(next(yaml.safe_load_all((DEPLOY / "rbac.yaml").read_text())))


def permissions(rules: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}


@pytest.fixture
def runtime(shell_image: str, connected: None) -> KubernetesRuntime:
    settings = Kubernetes(namespace=NAMESPACE, connection="test_cluster", image=shell_image)
    return KubernetesRuntime(settings, "rbac")


@pytest.fixture
def whole_role(node: OneNode) -> Iterator[None]:
    yield
    node.apply(role())


@pytest.mark.usefixtures("whole_role")
@pytest.mark.parametrize("missing", CALLS, ids=" ".join)
def test_every_verb_of_the_role_is_needed(runtime: KubernetesRuntime, node: OneNode, missing: tuple[str, str]) -> None:
    handle = runtime.submit(JOB)
    wait_until(lambda: runtime.logs(handle, None)[0])
    if missing == ("pods", "create"):
        runtime.cancel(handle)
        wait_until(lambda: not node.pods())
    lesser = role()
    for rule in lesser["rules"]:
        rule["verbs"] = [verb for verb in rule["verbs"] if (rule["resources"][0], verb) != missing]
    lesser["rules"] = [rule for rule in lesser["rules"] if rule["verbs"]]
    assert permissions(role()["rules"]) - permissions(lesser["rules"]) == {missing}
    node.apply(lesser)

    resource, verb = missing
    refusals: list[str] = []

    def is_refused() -> bool:
        try:
            CALLS[missing](runtime, handle)
        except ConfigurationError as error:
            refusals.append(str(error))
        return bool(refusals)

    wait_until(is_refused, 10)
    assert f'cannot {verb} resource "{resource}"' in refusals[0]
    assert "rbac.yaml" in refusals[0]


def test_the_calls_cover_the_role() -> None:
    assert permissions(role()["rules"]) == set(CALLS)


@pytest.mark.parametrize("account", ACCOUNTS)
def test_nothing_else_is_allowed(node: OneNode, tmp_path: Path, account: str) -> None:
    config = node.kubeconfig(tmp_path / "config", account)
    api = AuthorizationV1Api(new_client_from_config(str(config)))
    for namespace, expected in ((NAMESPACE, permissions(role()["rules"])), ("airflow", set()), ("kube-system", set())):
        review = api.create_self_subject_rules_review({"spec": {"namespace": namespace}})
        rules = [rule.to_dict() for rule in review.status.resource_rules]
        assert permissions([rule for rule in rules if rule["api_groups"] != ["authorization.k8s.io"]]) == expected
        assert permissions(rules) - expected == EVERYBODY, "or the list would be empty for another reason"


EVERYBODY = {("selfsubjectaccessreviews", "create"), ("selfsubjectrulesreviews", "create")}
"""What every account may ask about itself."""
