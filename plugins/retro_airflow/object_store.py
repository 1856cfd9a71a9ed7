"""The object store: its keys, taken from an Airflow connection, and the published versions in it."""

import os
from typing import Any

from airflow.sdk import BaseHook

from retro_ops.errors import ConfigurationError
from retro_ops.plan import paths
from retro_ops.plan.series import Series, series_from_json
from retro_ops.storage import s3_client

_EXTRA = {
    "endpoint_url": "AWS_ENDPOINT_URL",
    "region_name": "AWS_DEFAULT_REGION",
    "aws_session_token": "AWS_SESSION_TOKEN",
}
"""Variable for each key of the connection's extra field, as the Amazon provider names them."""


def use_connection(name: str | None) -> None:
    """Set the AWS variables of this process from connection ``name``; None keeps those of the worker.

    Each task has a process of its own, so no other task sees them. Airflow masks the secret in its logs.
    Raises ConfigurationError if the connection has no access key.
    """
    if name is None:
        return
    connection: Any = BaseHook.get_connection(name)
    if not connection.login or not connection.password:
        raise ConfigurationError(
            f"connection {name!r} has no access key", "set its login (access key id) and password (secret access key)"
        )
    before = dict(os.environ)
    os.environ["AWS_ACCESS_KEY_ID"] = connection.login
    os.environ["AWS_SECRET_ACCESS_KEY"] = connection.password
    extra = connection.extra_dejson
    for key, variable in _EXTRA.items():
        if extra.get(key):
            os.environ[variable] = str(extra[key])
        elif key == "aws_session_token":  # The worker's token belongs to other keys.
            os.environ.pop(variable, None)
    if os.environ != before:  # A client keeps the keys that it began with, and a triggerer runs for weeks.
        s3_client.client.cache_clear()


def read_series(root: str, dataset: str) -> Series:
    """The published versions of ``dataset``."""
    from retro_ops.storage import store

    uri = paths.current_uri(root, dataset)
    return series_from_json(store.at(uri).read_tagged(uri), uri)
