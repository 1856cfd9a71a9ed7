"""Settings of a deployment, read from the environment in one place."""

import math
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from retro_airflow import deployment
from retro_airflow.deployment import Deployment
from retro_ops.errors import ConfigurationError
from retro_ops.plan.name_lists import split_names
from retro_ops.plan.parameters import Parameters

RUNTIME_FILE = "runtime.toml"


@dataclass(frozen=True)
class Settings:
    """``stage_command``: how a worker calls the stages. ``mapped_tasks``: most tasks that a stage is mapped to; with
    more shards, each task takes several. ``page_roots``: roots whose datasets Airflow's pages show. ``approve``:
    whether runs ask before they publish, unless their form says otherwise."""

    deployment: Deployment
    stage_command: tuple[str, ...]
    jobs_dir: Path
    gpu_pool: str
    mapped_tasks: int
    retries: int
    retry_delay: timedelta
    root: str | None
    page_roots: tuple[str, ...]
    dataset: str | None
    corpus: str | None
    validation_corpus: str | None
    tokenizer: str
    model: str
    approve: bool
    refresh_schedule: str | None
    timezone: str
    refresh_watch: tuple[str, ...]
    refresh_watch_s: float


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from ``environ``; an empty variable counts as unset."""
    env = {key: value for key, value in (os.environ if environ is None else environ).items() if value}
    airflow_home = Path(env.get("AIRFLOW_HOME", "~/airflow")).expanduser()
    return Settings(
        deployment=deployment.load(_runtime_file(env.get("RETRO_RUNTIME_FILE")), env.get("RETRO_RUNTIME")),
        stage_command=tuple(shlex.split(env.get("RETRO_STAGE_COMMAND", "retro-ops"))),
        jobs_dir=Path(env.get("RETRO_JOBS_DIR", airflow_home / "retro-jobs")).expanduser(),
        gpu_pool=env.get("RETRO_GPU_POOL", "default_pool"),
        mapped_tasks=_number(
            "RETRO_MAPPED_TASKS", env.get("RETRO_MAPPED_TASKS", "256"), least=1, of="tasks, such as 256"
        ),
        retries=_number("RETRO_RETRIES", env.get("RETRO_RETRIES", "3"), least=0, of="retries, such as 3"),
        retry_delay=timedelta(seconds=_seconds("RETRO_RETRY_DELAY", env.get("RETRO_RETRY_DELAY", "30"), 0)),
        root=env.get("RETRO_ROOT"),
        page_roots=_roots(env.get("RETRO_ROOT", ""), env.get("RETRO_PAGE_ROOTS", "")),
        dataset=env.get("RETRO_DATASET"),
        corpus=env.get("RETRO_CORPUS"),
        validation_corpus=env.get("RETRO_VALIDATION_CORPUS"),
        tokenizer=env.get("RETRO_TOKENIZER", Parameters.tokenizer),
        model=env.get("RETRO_MODEL", Parameters.model),
        approve=_yes_or_no("RETRO_APPROVE", env.get("RETRO_APPROVE", "no")),
        refresh_schedule=env.get("RETRO_REFRESH_SCHEDULE"),
        timezone=env.get("RETRO_REFRESH_TIMEZONE", "UTC"),
        refresh_watch=tuple(folder.rstrip("/") for folder in split_names(env.get("RETRO_REFRESH_WATCH", ""))),
        refresh_watch_s=_seconds("RETRO_REFRESH_WATCH_SECONDS", env.get("RETRO_REFRESH_WATCH_SECONDS", "20"), 1),
    )


def _runtime_file(configured: str | None) -> Path:
    """The configured file, else the one beside the DAG files, else the one of this package.

    Airflow adds the folder of the DAG files to Python's path: its dags folder, or the version of the bundle with which
    the run started.
    """
    if configured:
        return Path(configured).expanduser()
    beside = (Path(folder) / RUNTIME_FILE for folder in sys.path)
    return next((path for path in beside if path.is_file()), Path(__file__).with_name(RUNTIME_FILE))


def _roots(root: str, others: str) -> tuple[str, ...]:
    """``root`` and the roots in ``others``, which are separated by commas, each once."""
    named = [name.strip().rstrip("/") for name in (root, *split_names(others))]
    for name in filter(None, named):
        if not name.startswith("/") and "://" not in name:
            raise ConfigurationError(f"RETRO_PAGE_ROOTS: {name!r} is a relative path", "use full paths or s3://…")
    return tuple(dict.fromkeys(filter(None, named)))


def _number(name: str, text: str, least: int, of: str) -> int:
    if not text.isdigit() or int(text) < least:
        raise ConfigurationError(f"{name} is {text!r}", f"set it to a number of {of}")
    return int(text)


def _yes_or_no(name: str, text: str) -> bool:
    if text.lower() not in ("yes", "no"):
        raise ConfigurationError(f"{name} is {text!r}", "set it to yes or no")
    return text.lower() == "yes"


def _seconds(name: str, text: str, least: float) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not least <= seconds < math.inf:  # NaN is not.
        raise ConfigurationError(f"{name} is {text!r}", f"set it to a number of seconds from {least:g}, such as 30")
    return seconds
