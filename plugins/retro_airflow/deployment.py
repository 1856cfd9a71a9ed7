"""``runtime.toml``: the runtime of the stages, and the resources of each. Read and checked in one place."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from retro_ops.errors import BadInputError, ConfigurationError
from retro_ops.plan.stage_graph import STAGES
from retro_ops.sizes import parse_bytes

RuntimeName = Literal["local", "docker", "kubernetes"]


def _size(text: str) -> str:
    try:
        parse_bytes(text)
    except BadInputError as error:
        raise ValueError(str(error)) from error
    return text


Size = Annotated[str, AfterValidator(_size)]
"""An amount of memory with its unit, such as ``8GiB``."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Resources(_Strict):
    """Resources of a stage; None: no limit. The last three apply to Kubernetes only."""

    cpus: Annotated[float, Field(gt=0)] | None = None
    memory: Size | None = None
    shared_memory: Size | None = None
    gpus: Annotated[int, Field(ge=0)] | tuple[str, ...] = 0
    scratch: Size | None = None
    node_selector: dict[str, str] = {}
    tolerations: tuple[dict[str, str], ...] = ()


class ObjectStore(_Strict):
    connection: str | None = None


class Grid(_Strict):
    """What retrieval is divided for: ``gpu_memory`` for vectors on all GPUs of a worker, and ``workers`` at a time."""

    gpu_memory: Size
    workers: Annotated[int, Field(gt=0)] = 1


class Docker(_Strict):
    image: str = "retro-ops-stage:cpu"
    pull: Literal["missing", "never"] = "missing"
    host: str | None = None
    registry_connection: str | None = None
    network: str | None = None
    user: str | None = None
    mounts: tuple[Annotated[str, Field(pattern=r"^[^:]+:/[^:]*(:ro)?$")], ...] = ()
    environment: dict[str, str] = {}


class Kubernetes(_Strict):
    image: str = "retro-ops-stage:cpu"
    namespace: str = "default"
    pod_template: str = str(Path(__file__).with_name("stage-pod.yaml"))
    connection: str | None = None
    start_timeout_s: Annotated[float, Field(gt=0)] = 3600
    deferrable: bool = False
    environment: dict[str, str] = {}


class Placement(_Strict):
    """Where Airflow runs the tasks of a stage; None: as Airflow decides."""

    queue: str | None = None
    executor: str | None = None
    pool: str | None = None


class Notification(_Strict):
    """``notifier``: dotted path of a class. ``arguments`` of it may be templates, where the class allows them."""

    notifier: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")]
    on: Annotated[tuple[Literal["failure", "success", "deadline"], ...], Field(min_length=1)] = ("failure",)
    arguments: dict[str, Any] = {}


class Deployment(_Strict):
    """The whole file. ``resources`` and ``placement`` map a stage, or ``default``, to what is set for it.

    ``gpu_hour_price``: in any currency, for the cost of a run on its card.
    ``deadline_minutes``: how long a run may take, from when it is queued, until the notifications on a deadline.
    """

    runtime: RuntimeName = "local"
    deployment: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$")] = "default"
    object_store: ObjectStore = ObjectStore()
    resources: dict[str, dict[str, Any]] = {}
    placement: dict[str, Placement] = {}
    notifications: tuple[Notification, ...] = ()
    deadline_minutes: Annotated[float, Field(gt=0)] | None = None
    gpu_hour_price: Annotated[float, Field(ge=0)] | None = None
    grid: Grid | None = None
    docker: Docker = Docker()
    kubernetes: Kubernetes = Kubernetes()

    def defers(self, runtime: str) -> bool:
        """Whether the triggerer waits for jobs of ``runtime``."""
        return runtime == "kubernetes" and self.kubernetes.deferrable

    def placement_of(self, stage: str, pool: str | None) -> dict[str, str]:
        """Arguments of an operator: of ``default``, then ``pool``, then of the stage, each overriding those before."""
        default, own = (
            self.placement[name].model_dump(exclude_none=True) if name in self.placement else {}
            for name in ("default", stage)
        )
        return {**default, **({"pool": pool} if pool else {}), **own}

    def resources_of(self, stage: str, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> Resources:
        """Entries of ``default``, then of the stage, each first from the file and then from ``overrides``."""
        merged: dict[str, Any] = {}
        for name in ("default", stage):
            for tables in (self.resources, overrides or {}):
                merged |= tables.get(name, {})
        return Resources.model_validate(merged)


def load(path: Path, runtime: str | None = None) -> Deployment:
    """Read the file at ``path``; ``runtime``, if given, replaces its own. Raises ConfigurationError."""
    try:
        tables = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(
            f"cannot read {path}: {error}", "fix it, or set RETRO_RUNTIME_FILE to another file"
        ) from error
    if runtime is not None:
        tables["runtime"] = runtime
    try:
        deployment = Deployment.model_validate(tables)
    except ValidationError as error:
        raise _configuration_error(str(path), error) from error
    check_resources(deployment.resources, str(path))
    _check_stages("placement", deployment.placement, str(path))
    _check_deadline(deployment, str(path))
    template = str(path.parent / deployment.kubernetes.pod_template)
    kubernetes = deployment.kubernetes.model_copy(update={"pod_template": template})
    return deployment.model_copy(update={"kubernetes": kubernetes})


def check_resources(tables: Mapping[str, Mapping[str, Any]], source: str) -> None:
    """Raise ConfigurationError with ``source``, stage and entry if a table of resources is invalid."""
    _check_stages("resources", tables, source)
    for name, table in tables.items():
        try:
            Resources.model_validate(table)
        except ValidationError as error:
            raise _configuration_error(f"{source}, resources of {name}", error) from error


def _check_stages(kind: str, tables: Mapping[str, Any], source: str) -> None:
    for name in tables:
        if name not in (*STAGES, "default"):
            raise ConfigurationError(
                f"{source}: {kind} for {name!r}, which is no stage", f"use one of: default, {', '.join(STAGES)}"
            )


def _check_deadline(deployment: Deployment, source: str) -> None:
    told = any("deadline" in entry.on for entry in deployment.notifications)
    if told != (deployment.deadline_minutes is not None):
        raise ConfigurationError(
            f"{source}: deadline_minutes and a notification on a deadline need each other",
            'set deadline_minutes, and on = ["deadline"] in one of [[notifications]], or neither',
        )


def _configuration_error(source: str, error: ValidationError) -> ConfigurationError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return ConfigurationError(f"{source}: {where}: {first['msg']}", f"fix `{where}` (found: {first['input']!r})")
