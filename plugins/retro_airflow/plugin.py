"""Adds the pages to Airflow (an application on the API server, an entry in the navigation), and the notes of runs."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from airflow.plugins_manager import AirflowPlugin

from retro_airflow import links, run_notes


class Pages:
    """The application. It is imported with the first request, since schedulers and workers load plugins, too."""

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        from retro_airflow.pages.app import app

        await app(scope, receive, send)


APPS: list[Any] = [{"app": Pages(), "url_prefix": links.PREFIX, "name": "RETRO datasets"}]

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
    fastapi_apps = APPS
    external_views = VIEWS
    listeners = LISTENERS
