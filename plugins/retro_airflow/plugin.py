"""Adds the pages to Airflow: an application on the API server, and an entry in the navigation."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from airflow.plugins_manager import AirflowPlugin
from airflow.sdk.configuration import conf

PREFIX = "/retro"
"""Address of the pages below that of the API server."""

ROUTE = "retro-datasets"


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


def address(page: str = "") -> str:
    """Address of a page within Airflow's UI, which shows it beside its navigation; ``page``: ``/root/dataset/…``."""
    return f"{_prefix()}/plugin/{ROUTE}{_prefix()}{PREFIX}{page or '/'}"


def _prefix() -> str:
    """Path of the API server, if it is not at the top of its host."""
    return urlsplit(str(conf.get("api", "base_url", fallback=""))).path.rstrip("/")


APPS: list[Any] = [{"app": Pages(), "url_prefix": PREFIX, "name": "RETRO datasets"}]

VIEWS: list[Any] = [
    {
        "name": "RETRO",
        "href": f"{_prefix()}{PREFIX}/",
        "url_route": ROUTE,
        "destination": "nav",
        "nav_top_level": True,
        "icon": f"{_prefix()}{PREFIX}/static/icon.svg",
    }
]


class RetroPlugin(AirflowPlugin):
    name = "retro_datasets"
    fastapi_apps = APPS
    external_views = VIEWS
