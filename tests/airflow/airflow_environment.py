"""Airflow reads its configuration on import, so the tests that import it import this first."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent

_home = tempfile.TemporaryDirectory(prefix="retro-airflow-tests-")
for _name in [name for name in os.environ if name.startswith(("AIRFLOW", "RETRO_"))]:
    del os.environ[_name]
os.environ.update(
    AIRFLOW_HOME=_home.name,
    AIRFLOW__CORE__DAGS_FOLDER=str(REPOSITORY / "dags"),
    AIRFLOW__CORE__PLUGINS_FOLDER=str(REPOSITORY / "plugins"),
    AIRFLOW__CORE__LOAD_EXAMPLES="False",
    RETRO_RETRY_DELAY="0.1",
)
for _folder in (HERE, REPOSITORY / "plugins", REPOSITORY):
    sys.path.insert(0, str(_folder))


def let_airflow_warn(config: pytest.Config) -> None:
    """Warnings are errors, but not those that Airflow and what it stands on raise about themselves."""
    # Airflow and its web framework warn about each other; our own modules must not warn at all.
    config.addinivalue_line("filterwarnings", "default")
    for module in ("airflow", "fastapi", "pathspec", "starlette"):
        config.addinivalue_line("filterwarnings", f"ignore:::{module}.*")
