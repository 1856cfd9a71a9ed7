"""Names of tokenizers and models: a local folder or a name on the hub, and why one could not be loaded.

Imports no library that takes seconds.
"""

import os
from pathlib import Path

from retro_ops.errors import ConfigurationError

PATHS = ("/", "./", "../", "~")
"""Beginnings of paths, which no name on the hub has."""

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
TRUE = ("1", "ON", "YES", "TRUE")
"""Values of these variables that forbid the libraries to reach the hub."""

HINT = "give --tokenizer and --model a local folder (with HF_HUB_OFFLINE=1), or a name on the hub if it can be reached"


def check_folder(kind: str, name: str) -> None:
    """Raise ConfigurationError if ``name`` of a tokenizer or a model (``kind``) is a path without a folder."""
    if name.startswith(PATHS) and not Path(name).is_dir():
        raise ConfigurationError(
            f"cannot load {kind} {name!r}: there is no such folder",
            f"give --{kind} an existing folder of this machine, or a name on the hub",
        )


def not_loaded(kind: str, name: str, error: Exception, hint: str = HINT) -> ConfigurationError:
    """The error for a tokenizer or a model (``kind``) whose loading raised ``error``."""
    switch = next((variable for variable in OFFLINE if os.environ.get(variable, "").upper() in TRUE), None)
    if switch and "couldn't connect" in str(error):
        return ConfigurationError(
            f"cannot load {kind} {name!r}: it is neither a folder nor in the hub's cache, and {switch}="
            f"{os.environ[switch]} is set, so the hub is not contacted",
            f"give --{kind} a local folder, or unset {switch} where the hub can be reached",
        )
    return ConfigurationError(f"cannot load {kind} {name!r}: {error}", hint)
