"""Plans in the store, and what is published of them."""

import json
from typing import Any

from retro_ops import layout, store
from retro_ops.errors import BadInputError
from retro_ops.specs import Plan, plan_from_json, plan_to_json


def read_plan(uri: str) -> Plan:
    return plan_from_json(store.read(uri), uri)


def read_current(root: str, dataset: str, hint: str) -> tuple[str, dict[str, Any]]:
    """Where the published version of ``dataset`` is named, and what is said there. BadInputError when there is none."""
    uri = layout.current_uri(root, dataset)
    if not store.exists(uri):
        raise BadInputError(f"{uri} does not exist: {dataset!r} was never published", hint)
    return uri, json.loads(store.read(uri))


def write_plan(plan: Plan, uri: str) -> None:
    store.write(uri, plan_to_json(plan).encode())
