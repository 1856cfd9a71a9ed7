"""Runs stages as containers of a Docker Engine, on this machine or at ``docker.host``.

All state is in the engine: a container has the name of its job, so a second submission finds the first; its labels
hold its task; its exit code and log stay until ``forget``.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from functools import cached_property
from typing import Any

from airflow.providers.docker.hooks.docker import DockerHook
from airflow.sdk.exceptions import AirflowException
from docker.api import APIClient
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import DeviceRequest, LogConfig, Mount
from requests.exceptions import RequestException

from retro_airflow.deployment import Docker, Resources
from retro_airflow.runtimes import OF_THE_STORE, Handle, Job, Position, Status
from retro_airflow.runtimes.outages import OutageError
from retro_airflow.runtimes.stamped_logs import read_on
from retro_ops.errors import ConfigurationError, TransientError
from retro_ops.sizes import limit_in_words, parse_bytes

DEFAULT_HOST = "unix:///var/run/docker.sock"

GRACE_S = 3
"""Seconds between SIGTERM and SIGKILL. Airflow gives on_kill 5 s before it kills the task process itself."""

SUBMIT_TRIES = 50
SUBMIT_PAUSE_S = 0.1

DEPLOYMENT_LABEL = "retro-ops.deployment"
TASK_LABEL = "retro-ops.task"

# `logs` reads it back, so the driver must keep lines locally. Bounded, since the task log keeps all of them.
LOG_CONFIG = LogConfig(type=LogConfig.types.JSON, config={"max-size": "64m", "max-file": "2"})

SCRATCH = "/scratch"

_GPU_REFUSALS = ("device driver", "nvidia", "cdi")


class DockerRuntime:
    """``deployment`` distinguishes the containers of several Airflows on one engine."""

    def __init__(self, settings: Docker, deployment: str) -> None:
        self._settings = settings
        self._deployment = deployment
        self._host = settings.host or os.environ.get("DOCKER_HOST") or DEFAULT_HOST

    def command(self, arguments: Sequence[str]) -> list[str]:
        """Contains no keys of the object store: `--env NAME` takes them from the caller's environment."""
        network = ["--network", self._settings.network] if self._settings.network else []
        mounts = [word for mount in self._settings.mounts for word in ("--volume", mount)]
        keys = [word for name in OF_THE_STORE if name in os.environ for word in ("--env", name)]
        return ["docker", "run", "--rm", *network, *mounts, *keys, self._settings.image, *arguments]

    def submit(self, job: Job) -> Handle:
        with self._engine_errors():
            image = self._image()
            container = self._create(job, image)
            for _ in range(SUBMIT_TRIES):
                if container is not None:
                    return self._start(container["Id"], job)
                # The name is taken: by this job, by an earlier try, or by a container that is being created or removed.
                with suppress(NotFound):
                    found = self._client.inspect_container(job.name)
                    if found["State"]["Running"]:
                        return self._handle(found)
                    if found["State"]["Status"] == "created":
                        return self._start(found["Id"], job)
                    self._remove(found["Id"])
                time.sleep(SUBMIT_PAUSE_S)
                container = self._create(job, image)
            raise TransientError(f"the name {job.name} is still in use on the engine at {self._host}", "run again")

    def status(self, handle: Handle) -> Status:
        with self._engine_errors():
            try:
                container = self._client.inspect_container(handle["id"])
            except NotFound:
                return Status("lost", reason=f"container {handle['name']} was removed")
        return _status(container["State"], container["HostConfig"]["Memory"])

    def logs(self, handle: Handle, position: Position) -> tuple[list[str], Position]:
        with self._engine_errors():
            # In this order: a log that is read after the end is complete.
            ended = self.status(handle).state != "running"
            try:
                since = _seconds(position[0]) if position else None
                data: bytes = self._client.logs(handle["id"], timestamps=True, since=since)
            except NotFound:
                return [], position
        return read_on(data, position, ended)

    def cancel(self, handle: Handle) -> None:
        with self._engine_errors(), suppress(NotFound):
            self._client.stop(handle["id"], timeout=GRACE_S)
            self._remove(handle["id"])

    def forget(self, handle: Handle) -> None:
        with self._engine_errors():
            self._remove(handle["id"])

    def jobs(self) -> list[Handle]:
        with self._engine_errors():
            found = self._client.containers(filters={"label": f"{DEPLOYMENT_LABEL}={self._deployment}"})
            handles = []
            for container in found:
                with suppress(NotFound):  # It may have ended since.
                    handles.append(self._handle(self._client.inspect_container(container["Id"])))
            return handles

    @cached_property
    def _client(self) -> APIClient:
        # Without a connection the hook does not log in to a registry: most images are local.
        hook = DockerHook(docker_conn_id=self._settings.registry_connection, base_url=self._host)
        try:
            return hook.api_client
        except AirflowException as error:
            raise TransientError(
                f"no Docker Engine answers at {self._host}",
                "start it, or set `docker.host` in runtime.toml (or DOCKER_HOST) to its address; "
                "a retry reconnects to a running stage",
            ) from error

    def _image(self) -> dict[str, Any]:
        name = self._settings.image
        try:
            return dict(self._client.inspect_image(name))
        except ImageNotFound as missing:
            hint = "build it there (`make images`), or set `docker.image` in runtime.toml to another one"
            where = f"image {name!r} is not on the engine at {self._host}"
            if self._settings.pull == "never":
                raise ConfigurationError(where, hint) from missing
            try:
                repository, _, tag = name.rpartition(":") if ":" in name.rpartition("/")[2] else (name, "", "latest")
                self._client.pull(repository, tag=tag)
                return dict(self._client.inspect_image(name))
            except APIError as error:
                raise ConfigurationError(f"{where} and cannot be pulled: {error.explanation}", hint) from error

    def _create(self, job: Job, image: Mapping[str, Any]) -> dict[str, Any] | None:
        """The new container; None if the name is taken."""
        digest = next(iter(image.get("RepoDigests") or []), image["Id"])
        environment = {name: job.environment[name] for name in OF_THE_STORE if name in job.environment}
        try:
            created = self._client.create_container(
                self._settings.image,
                command=list(job.arguments),
                name=job.name,
                user=self._settings.user,
                environment={
                    **environment,
                    **self._settings.environment,
                    "RETRO_IMAGE": f"{self._settings.image} {digest}",
                },
                labels={DEPLOYMENT_LABEL: self._deployment, TASK_LABEL: json.dumps(asdict(job.task))},
                host_config=self._host_config(job.resources),
            )
        except APIError as error:
            if error.status_code == 409:
                return None
            raise
        return dict(created)

    def _host_config(self, resources: Resources) -> dict[str, Any]:
        memory = parse_bytes(resources.memory) if resources.memory else None
        return dict(
            self._client.create_host_config(
                read_only=True,
                mounts=[Mount(target=SCRATCH, source=None, type="volume"), *map(_mount, self._settings.mounts)],
                network_mode=self._settings.network,
                nano_cpus=int(resources.cpus * 1e9) if resources.cpus else None,
                mem_limit=memory,
                # No swap beyond it: a stage that swaps would run for days unnoticed.
                memswap_limit=memory,
                shm_size=parse_bytes(resources.shared_memory) if resources.shared_memory else None,
                device_requests=_device_requests(resources),
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                log_config=LOG_CONFIG,
            )
        )

    def _start(self, container: str, job: Job) -> Handle:
        try:
            self._client.start(container)
        except APIError as error:
            self._remove(container)
            raise _start_error(error, job.resources) from error
        return self._handle(self._client.inspect_container(container))

    def _handle(self, container: Mapping[str, Any]) -> Handle:
        return {
            "runtime": "docker",
            "name": container["Name"].removeprefix("/"),
            "task": json.loads(container["Config"]["Labels"][TASK_LABEL]),
            "id": container["Id"],
            "image": container["Image"],
        }

    def _remove(self, container: str) -> None:
        with suppress(NotFound):
            try:
                self._client.remove_container(container, v=True, force=True)
            except APIError as error:
                if error.status_code != 409:  # Another process is removing it.
                    raise

    @contextmanager
    def _engine_errors(self) -> Iterator[None]:
        try:
            yield
        except (NotFound, ImageNotFound):
            raise
        except APIError as error:
            if error.status_code < 500:
                raise ConfigurationError(
                    f"the Docker Engine at {self._host} refused the request: {error.explanation}",
                    "check `docker` in runtime.toml; if there is a socket proxy, allow this call",
                ) from error
            raise OutageError(f"the Docker Engine at {self._host} failed: {error.explanation}", "run again") from error
        except (RequestException, DockerException) as error:
            raise OutageError(
                f"the Docker Engine at {self._host} does not answer: {error}",
                "check that it is running; a retry reconnects",
            ) from error


def _status(state: Mapping[str, Any], memory_limit: int) -> Status:
    if state["Status"] in ("created", "running", "paused", "restarting"):
        return Status("running", reason="" if state["Running"] else f"its container is {state['Status']}")
    code = int(state["ExitCode"])
    reason = str(state["Error"])
    if state["OOMKilled"]:
        reason = f"it ran out of memory (limit {limit_in_words(memory_limit)})"
    return Status("failed" if code else "succeeded", exit_code=code, reason=reason)


def _seconds(stamp: str) -> int:
    return int(datetime.fromisoformat(f"{stamp[:19]}+00:00").timestamp())


def _mount(text: str) -> Mount:
    """``source:target`` or ``source:target:ro``."""
    source, target, *mode = text.split(":")
    return Mount(
        target=target, source=source, type="bind" if source.startswith("/") else "volume", read_only=mode == ["ro"]
    )


def _device_requests(resources: Resources) -> list[DeviceRequest] | None:
    if not resources.gpus:
        return None
    if isinstance(resources.gpus, int):
        return [DeviceRequest(count=resources.gpus, capabilities=[["gpu"]])]
    return [DeviceRequest(device_ids=list(resources.gpus), capabilities=[["gpu"]])]


def _start_error(error: APIError, resources: Resources) -> Exception:
    """The error for a container that the engine created but could not start."""
    explanation = str(error.explanation)
    if resources.gpus and any(word in explanation.lower() for word in _GPU_REFUSALS):
        return ConfigurationError(
            f"no GPU is available on the engine: {explanation}",
            "install the NVIDIA driver and the NVIDIA Container Toolkit on its machine, or set gpus = 0",
        )
    return ConfigurationError(
        f"the container cannot start: {explanation}", "check `docker` and `resources` in runtime.toml"
    )
