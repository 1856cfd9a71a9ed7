"""Plans in the store."""

from retro_ops import store
from retro_ops.specs import Plan, plan_from_json, plan_to_json


def read_plan(uri: str) -> Plan:
    return plan_from_json(store.read(uri), uri)


def write_plan(plan: Plan, uri: str) -> store.Written:
    return store.write(uri, plan_to_json(plan).encode())
