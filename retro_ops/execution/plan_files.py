"""Reads and writes plans in the store."""

from retro_ops.plan.plan import Plan, plan_from_json, plan_to_json
from retro_ops.storage import store
from retro_ops.storage.base import Written


def read_plan(uri: str) -> Plan:
    """The plan at ``uri``. Raises BadInputError if it is missing or incomplete."""
    return plan_from_json(store.read(uri), uri)


def write_plan(plan: Plan, uri: str) -> Written:
    return store.write(uri, plan_to_json(plan).encode())
