"""Who may see a page and press a button, and what a browser may do with a page.

Airflow authenticates the user and decides about DAGs; this module only says which DAG a page belongs to.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import get_user, requires_access_dag
from fastapi import Depends, HTTPException, Request

DATASETS_DAG = "retro_dataset"
"""The right to read this DAG is the right to read its datasets."""

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; "
    "form-action 'self'; frame-ancestors 'self'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "private, no-cache",
}

CARD_HEADERS: Mapping[str, str] = {
    **HEADERS,
    # A file of the store: shown, but with no script, no form, and as if it came from another site.
    "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "frame-ancestors 'self'",
}

HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
"""Characters that change what a reader sees without being seen."""

MOST_SHOWN = 20_000
"""Longest text on a page, in characters."""

User = Annotated[BaseUser, Depends(get_user)]

READ = Depends(requires_access_dag("GET", param_dag_id=DATASETS_DAG))


def shown(text: object) -> str:
    """``text`` with invisible characters written as escapes, cut after MOST_SHOWN characters."""
    return HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", cut(str(text), MOST_SHOWN))


def cut(text: str, most: int) -> str:
    """The first ``most`` characters of ``text``, and its length if there are more."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text):,} characters)"


def may_trigger(user: Any, dag_id: str) -> bool:
    """Whether ``user`` may start runs of a DAG."""
    return get_auth_manager().is_authorized_dag(
        method="POST", access_entity=DagAccessEntity.RUN, details=DagDetails(id=dag_id), user=user
    )


def readable_dags(user: Any) -> set[str]:
    return get_auth_manager().get_authorized_dag_ids(user=user, method="GET")


def same_site(request: Request) -> None:
    """Refuse a form that another site has sent: the browser adds the user's cookie to it."""
    origin = request.headers.get("origin")
    if request.headers.get("sec-fetch-site", "same-origin") != "same-origin" or (
        origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    ):
        raise HTTPException(403, "This form was sent by another site.")
