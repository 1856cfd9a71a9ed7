"""Reads and writes plans in the store."""

from retro_ops.errors import BadInputError
from retro_ops.plan import digests
from retro_ops.plan.plan import Plan, plan_from_json, plan_to_json
from retro_ops.storage import store
from retro_ops.storage.base import Written


def read_plan(uri: str) -> Plan:
    """The plan at ``uri``. Raises BadInputError if it is missing or incomplete."""
    return plan_from_json(store.read(uri), uri)


def write_plan(plan: Plan, uri: str) -> Written:
    return store.write(uri, plan_to_json(plan).encode())


def check_code(plan: Plan, uri: str) -> None:
    """BadInputError if a stage of this package writes other bytes than when ``plan`` (of ``uri``) was made."""
    if other := digests.other_code(plan):
        raise BadInputError(
            f"{uri} was made by another version of this package, whose {', '.join(other)} writes other bytes",
            "make the plan again: clear the task `plan` with all after it, or run `retro-ops plan`",
        )
