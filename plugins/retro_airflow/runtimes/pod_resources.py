"""Resources of a job as requests, limits and volumes of a pod."""

from typing import Any

from retro_airflow.deployment import Resources
from retro_ops.errors import ConfigurationError
from retro_ops.sizes import parse_bytes


def requirements(resources: Resources) -> dict[str, Any] | None:
    """Requests equal limits, so that a stage is not evicted while it stays within them. None: those of the template."""
    if not isinstance(resources.gpus, int):
        raise ConfigurationError(
            f"gpus = {list(resources.gpus)}: Kubernetes gives GPUs by number",
            "set gpus = 1, and a node_selector for the type",
        )
    amounts = {
        "cpu": f"{resources.cpus:g}" if resources.cpus else None,
        "memory": _quantity(resources.memory),
        "ephemeral-storage": _quantity(resources.scratch),
        "nvidia.com/gpu": str(resources.gpus) if resources.gpus else None,
    }
    given = {name: amount for name, amount in amounts.items() if amount}
    return {"limits": given, "requests": dict(given)} if given else None


def volumes(resources: Resources) -> list[tuple[str, str, dict[str, Any]]]:
    """Name, mount path and emptyDir."""
    scratch = _quantity(resources.scratch)
    volumes: list[tuple[str, str, dict[str, Any]]] = [
        ("scratch", "/scratch", {"sizeLimit": scratch} if scratch else {})
    ]
    if resources.shared_memory:
        size = _quantity(resources.shared_memory)
        volumes.append(("shared-memory", "/dev/shm", {"medium": "Memory", "sizeLimit": size}))  # noqa: S108
    return volumes


def _quantity(size: str | None) -> str | None:
    """``size`` in bytes: Kubernetes writes Gi, not GiB."""
    return str(parse_bytes(size)) if size else None
