"""Adds the pages to Airflow (an application on the API server, an entry in the navigation), and the notes of runs."""

import logging
from typing import Any

from airflow.plugins_manager import AirflowPlugin

from retro_airflow import links, run_notes

log = logging.getLogger(__name__)

VIEWS: list[Any] = [
    {
        "name": "RETRO",
        "href": f"{links.prefix()}{links.PREFIX}/",
        "url_route": links.ROUTE,
        "destination": "nav",
        "nav_top_level": True,
        "icon": f"{links.prefix()}{links.PREFIX}/static/icon.svg",
    }
]


LISTENERS: list[Any] = [run_notes]


class RetroPlugin(AirflowPlugin):
    name = "retro_datasets"
    external_views = VIEWS
    listeners = LISTENERS

    @property
    def fastapi_apps(self) -> list[Any]:  # type: ignore[override]
        """The pages. Only the API server reads this, at its start: other components never import FastAPI and the pages.

        Empty if they cannot be imported, since Airflow's own pages have to come up.
        """
        try:
            from retro_airflow.pages.app import app
        except Exception:
            log.exception("The pages of RETRO datasets are missing: they cannot be imported.")
            return []
        return [{"app": app, "url_prefix": links.PREFIX, "name": "RETRO datasets"}]
