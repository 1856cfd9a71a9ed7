"""Buttons: each triggers a DAG after a question. The user needs the right to trigger that DAG."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from airflow.api.common.trigger_dag import trigger_dag
from airflow.sdk.exceptions import AirflowException
from airflow.utils.types import DagRunTriggeredByType
from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from retro_airflow.pages import dag_runs, security
from retro_airflow.pages.addresses import PlaceDep
from retro_airflow.pages.place import NAME_LENGTH, Place
from retro_airflow.pages.rendering import page
from retro_ops.plan.paths import root_key
from retro_ops.plan.plan import NAME_PATTERN
from retro_ops.sizes import counted

MOST_SHARDS = 500
"""Most shards that a repair names from a page."""

router = APIRouter()

ShardName = Annotated[str, Query(pattern=f"^{NAME_PATTERN}$", max_length=NAME_LENGTH)]


@dataclass(frozen=True)
class Choice:
    """What the user chose on a page; each action reads what it needs."""

    version: Annotated[int | None, Query(ge=1, le=10**9)] = None
    keep: Annotated[int | None, Query(ge=1, le=10**6)] = None
    shard: Annotated[list[ShardName], Query(max_length=MOST_SHARDS)] = ()  # type: ignore[assignment]

    @property
    def query(self) -> str:
        given = {"version": self.version, "keep": self.keep, "shard": list(self.shard) or None}
        return urlencode({name: value for name, value in given.items() if value is not None}, doseq=True)


@dataclass(frozen=True)
class Action:
    """``conf``: of the run. ``question`` is answered by the button called ``title``."""

    title: str
    dag_id: str
    conf: Mapping[str, Any]
    question: str


def _rollback(place: Place, choice: Choice) -> Action:
    series = place.series()
    entry = series.entry(choice.version or 0)
    return Action(
        "Roll back",
        "retro_rollback",
        {"version": entry["version"]},
        f"Make version {entry['version']} of {place.dataset} the current one, instead of version {series.current}? "
        "Readers see it from then on. No file is removed, so you can undo it in the same way.",
    )


def _repair(place: Place, choice: Choice) -> Action:
    place.series().entry()  # Without a version there is nothing to repair.
    names = ", ".join(choice.shard)
    chosen = f"{names} (even if the files are intact)" if names else "missing and damaged files"
    return Action(
        "Repair",
        "retro_repair",
        {"shards": list(choice.shard) or None},
        f"In {place.dataset}, rebuild {chosen} and all that depends on them, and publish the next version?",
    )


def _prune(place: Place, choice: Choice) -> Action:
    keep = choice.keep or 7
    return Action(
        "Preview",
        "retro_prune",
        {"keep": keep, "remove": False},
        f"Keep the newest {counted(keep, 'version')} of {place.dataset} and the current one, and list the files that "
        "only older versions use? No file is removed: the log of the run has the list.",
    )


Name = Literal["rollback", "repair", "prune"]

ACTIONS: Mapping[Name, Callable[[Place, Choice], Action]] = {
    "rollback": _rollback,
    "repair": _repair,
    "prune": _prune,
}


def allowed(user: Any) -> dict[str, bool]:
    """Which actions ``user`` may start, by name."""
    return {name: security.may_trigger(user, f"retro_{name}") for name in ACTIONS}


def _allowed(name: Name, place: PlaceDep, choice: Annotated[Choice, Depends()], user: security.User) -> Action:
    action = ACTIONS[name](place, choice)
    if not security.may_trigger(user, action.dag_id):
        raise HTTPException(403, f"You may not trigger the DAG {action.dag_id}.")
    return action


AllowedAction = Annotated[Action, Depends(_allowed)]


@router.get("/{root}/{dataset}/confirm/{name}", dependencies=[security.READ])
def ask(request: Request, place: PlaceDep, action: AllowedAction, choice: Annotated[Choice, Depends()]) -> HTMLResponse:
    return page(request, "confirm.html.j2", place=place, action=action, query=choice.query)


@router.post("/{root}/{dataset}/confirm/{name}", dependencies=[security.READ, Depends(security.same_site)])
def start(request: Request, place: PlaceDep, action: AllowedAction, user: security.User) -> RedirectResponse:
    conf = {"root": place.root, "dataset": place.dataset, **action.conf}
    try:
        run = trigger_dag(
            action.dag_id,
            triggered_by=DagRunTriggeredByType.UI,
            triggering_user_name=user.get_name(),
            conf=conf,
        )
    except (AirflowException, ValueError) as error:
        raise HTTPException(409, f"{action.dag_id} was not triggered: {error}") from error
    assert run is not None
    at = f"{request.scope['root_path']}/{root_key(place.root)}/{place.dataset}/started/{action.dag_id}"
    return RedirectResponse(f"{at}?{urlencode({'run': run.run_id})}", status_code=303, headers=dict(security.HEADERS))


@router.get("/{root}/{dataset}/started/{dag_id}", dependencies=[security.READ])
def started(
    request: Request,
    place: PlaceDep,
    user: security.User,
    dag_id: Literal["retro_rollback", "retro_repair", "retro_prune"],
    run: Annotated[str, Query(max_length=NAME_LENGTH)],
) -> HTMLResponse:
    found = dag_runs.find(dag_id, run) if dag_id in security.readable_dags(user) else None
    if found is None:
        raise HTTPException(404, "There is no such run.")
    return page(request, "started.html.j2", place=place, run=found)
