"""The memory budget of a stage, as it was chosen, or as this container allows."""

from retro_ops import memory
from retro_ops.plan.parameters import Parameters
from retro_ops.sizes import parse_bytes


def chosen(parameters: Parameters) -> int | None:
    """``memory_budget`` in bytes; None at its default."""
    is_default = parameters.memory_budget == Parameters().memory_budget
    return None if is_default else parse_bytes(parameters.memory_budget)


def budget(parameters: Parameters) -> int:
    """Bytes that a search or a comparison may hold beside its model and index: more of them mean fewer passes, and the
    same result."""
    default = memory.at_least_of_container(parse_bytes(Parameters().memory_budget))
    return chosen(parameters) or default
