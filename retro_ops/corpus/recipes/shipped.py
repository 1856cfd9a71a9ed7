"""The recipes shipped with this package: YAML files next to this module."""

from importlib import resources

from retro_ops.plan.plan import check_name


def is_shipped(name: str) -> bool:
    """Whether ``name`` is a shipped recipe rather than a file."""
    return "/" not in name and not name.endswith((".yaml", ".yml"))


def text(name: str) -> str | None:
    """Text of the shipped recipe ``name``, or None if there is no such recipe."""
    file = resources.files(__package__) / f"{check_name('recipe', name)}.yaml"
    return file.read_text("utf-8") if file.is_file() else None


def names() -> list[str]:
    """Names of all shipped recipes, sorted."""
    files = (entry.name for entry in resources.files(__package__).iterdir())
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))
