"""The parts of an address: a configured root, a dataset, a version or run. Anything else is not found."""

import contextlib
import functools
from typing import Annotated, Literal

import fastapi
from fastapi import Depends, HTTPException

from retro_airflow import object_store, settings
from retro_airflow.pages import build as builds
from retro_airflow.pages.build import Build
from retro_airflow.pages.place import NAME_LENGTH, Place
from retro_ops.plan.paths import root_key
from retro_ops.plan.plan import NAME_PATTERN
from retro_ops.storage import store

_PLAIN_NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"

Name = Annotated[str, fastapi.Path(pattern=f"^{NAME_PATTERN}$", max_length=NAME_LENGTH)]
Root = Annotated[str, fastapi.Path(pattern="^[0-9a-f]{8}$")]
RunName = Annotated[str, fastapi.Path(pattern=_PLAIN_NAME, max_length=2 * NAME_LENGTH)]


@functools.cache
def roots() -> dict[str, str]:
    """Configured roots by their key in addresses. Prepares the store on the first call."""
    config = settings.load()
    object_store.use_connection(config.deployment.object_store.connection)
    return {root_key(root): root for root in config.page_roots}


def open_stores() -> None:
    """Load and connect the client of each root's store. A page reports the error if one cannot be opened."""
    with contextlib.suppress(Exception):
        for root in roots().values():
            with contextlib.suppress(Exception):
                store.at(root).folders(root)


def _place(root: Root, dataset: Name) -> Place:
    if root not in roots():
        raise HTTPException(404, "The root of this dataset is not shown here: add it to RETRO_PAGE_ROOTS.")
    return Place(roots()[root], dataset)


def _build(place: Annotated[Place, Depends(_place)], kind: Literal["versions", "runs"], name: RunName) -> Build:
    if kind == "runs":
        return builds.of_run(place, name)
    if not name.isdecimal() or len(name) > 9:
        raise HTTPException(404, "A version is a number.")
    return builds.of_version(place, int(name))


PlaceDep = Annotated[Place, Depends(_place)]
BuildDep = Annotated[Build, Depends(_build)]
