"""The recipes that come with this package: YAML files beside this module."""

from importlib import resources

from retro_ops.plan.plan import check_name


def is_shipped(name: str) -> bool:
    """Whether a recipe is named that comes with this package, not a file."""
    return "/" not in name and not name.endswith((".yaml", ".yml"))


def text(name: str) -> str | None:
    """Text of the recipe ``name`` that comes with this package."""
    file = resources.files(__package__) / f"{check_name('recipe', name)}.yaml"
    return file.read_text("utf-8") if file.is_file() else None


def names() -> list[str]:
    found = (entry.name for entry in resources.files(__package__).iterdir())
    return sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml"))
