"""Lists this package among Airflow's providers (``airflow providers list``)."""

from typing import Any

INTEGRATION = "RETRO datasets"


def provider_info() -> dict[str, Any]:
    return {
        "package-name": "retro-airflow",
        "name": INTEGRATION,
        "description": "Builds, refreshes and repairs RETRO retrieval datasets.",
        "operators": [{"integration-name": INTEGRATION, "python-modules": ["retro_airflow.stage_operator"]}],
        "triggers": [{"integration-name": INTEGRATION, "python-modules": ["retro_airflow.triggers"]}],
    }
