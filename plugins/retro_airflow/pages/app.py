"""The pages: addresses, rights and errors. What they show comes from the modules beside this one.

Every page is HTML made on the server. `static/frame.js` adds only what HTML cannot do within Airflow's frame.
"""

import contextlib
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse

from retro_airflow.pages import actions, catalog, chunks, dag_runs, security
from retro_airflow.pages import build as builds
from retro_airflow.pages import format as shown_as
from retro_airflow.pages.addresses import BuildDep, PlaceDep, open_stores, roots
from retro_airflow.pages.place import NAME_LENGTH
from retro_airflow.pages.rendering import page as _page
from retro_ops.errors import BadInputError, DamagedError, RetroError, TransientError
from retro_ops.plan.parameters import as_written
from retro_ops.plan.paths import root_key
from retro_ops.plan.shard_changes import compare

HERE = Path(__file__).parent
SHARDS_ON_A_PAGE = 25
"""Each costs a request to the store."""

RUNS_SHOWN = 10
MOST_LISTED = 100
"""Most names of shards that a list on a page spells out."""

Position = Annotated[int, Query(ge=0, le=2**40)]


@contextlib.asynccontextmanager
async def _started(_: FastAPI) -> AsyncIterator[None]:
    """Open the stores while the API server starts, in the background since a store may not answer."""
    threading.Thread(target=open_stores, daemon=True).start()
    yield


app = FastAPI(title="RETRO datasets", docs_url=None, redoc_url=None, openapi_url=None, lifespan=_started)


@app.get("/static/{file}")
def static(file: Literal["retro.css", "frame.js", "icon.svg"]) -> Response:
    kind = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}[file.rpartition(".")[2]]
    headers = {"Cache-Control": "public, max-age=3600", "X-Content-Type-Options": "nosniff"}
    return Response((HERE / "static" / file).read_bytes(), media_type=kind, headers=headers)


app.include_router(actions.router)  # Before the routes of versions and runs, which have the same number of parts.


@app.get("/", dependencies=[security.READ])
def list_of_datasets(request: Request, user: security.User) -> HTMLResponse:
    found = {root: catalog.datasets(root) for root in roots().values()}
    rows = [dataset for datasets in found.values() for dataset in datasets]
    airflow_runs = dag_runs.by_name({row.last_run.name for row in rows if row.last_run}, security.readable_dags(user))
    figures = {row.place: catalog.figures_of_all(row.place, [row.current])[0] if row.current else {} for row in rows}
    return _page(
        request, "datasets.html.j2", key=root_key, found=found, figures=figures, airflow_runs=airflow_runs,
        recall=catalog.recall,
    )  # fmt: skip


@app.get("/{root}/{dataset}", dependencies=[security.READ])
def dataset_page(request: Request, place: PlaceDep, user: security.User) -> HTMLResponse:
    series = place.series()
    runs = catalog.runs(place)
    if not series.entries and not runs:
        raise HTTPException(404, "There is no dataset with this name, or it has neither a version nor a run.")
    entries = list(series.entries.values())
    figures = catalog.figures_of_all(place, entries)
    charts = [
        ("Chunks", [entry["counts"].get("chunks") for entry in entries], shown_as.number),
        ("Recall", [catalog.recall(found) for found in figures], shown_as.share),
        ("Near-duplicates", [_of_training(found, "near_duplicate") for found in figures], shown_as.share),
        ("Size", [found.get("stored_bytes") for found in figures], shown_as.size),
    ]
    airflow_runs = dag_runs.by_name({run.name for run in runs[:RUNS_SHOWN]}, security.readable_dags(user))
    versions = list(zip(entries, figures, strict=True))[::-1]
    current = list(series.entries).index(series.current) if series.current else -1
    return _page(
        request, "dataset.html.j2", place=place, series=series, versions=versions, charts=charts, current=current,
        runs=runs[:RUNS_SHOWN], run_count=len(runs), airflow_runs=airflow_runs, recall=catalog.recall,
        may=actions.allowed(user),
    )  # fmt: skip


def _of_training(figures: Any, name: str) -> float | None:
    return figures.get("quality", {}).get("train", {}).get(name)  # type: ignore[no-any-return]


@app.get("/{root}/{dataset}/diff", dependencies=[security.READ])
def diff_page(
    request: Request,
    place: PlaceDep,
    before: Annotated[int, Query(alias="from", ge=1, le=10**9)],
    after: Annotated[int, Query(alias="to", ge=1, le=10**9)],
) -> HTMLResponse:
    series = place.series()
    old, new = builds.of_version(place, before), builds.of_version(place, after)
    figures = catalog.figures_of_all(place, [series.entry(before), series.entry(after)])
    written = [as_written(build.plan.parameters) for build in (old, new)]
    names = sorted({*written[0], *written[1]})
    parameters = [(n, written[0].get(n), written[1].get(n)) for n in names if written[0].get(n) != written[1].get(n)]
    counts = [series.entry(number)["counts"] for number in (before, after)]
    return _page(
        request, "diff.html.j2", place=place, before=before, after=after, numbers=list(series.entries),
        changes=compare(old.plan.shards, new.plan.shards), parameters=parameters, counts=counts, figures=figures,
        most=MOST_LISTED,
    )  # fmt: skip


@app.get("/{root}/{dataset}/{kind}/{name}", dependencies=[security.READ])
def build_page(request: Request, build: BuildDep, user: security.User) -> HTMLResponse:
    names = {build.run} if build.run else set()
    airflow_run = dag_runs.by_name(names, security.readable_dags(user)).get(build.run)
    return _page(
        request, "build.html.j2", build=build, airflow_run=airflow_run, card=builds.card(build),
        changes=builds.changes(build), estimate=builds.estimate(build), common=builds.common_states(build),
    )  # fmt: skip


@app.get("/{root}/{dataset}/{kind}/{name}/card", dependencies=[security.READ])
def card(build: BuildDep) -> HTMLResponse:
    return HTMLResponse(builds.card_page(build), headers=dict(security.CARD_HEADERS))


@app.get("/{root}/{dataset}/{kind}/{name}/shards", dependencies=[security.READ])
def shards_page(
    request: Request,
    build: BuildDep,
    user: security.User,
    page: Annotated[int, Query(ge=1, le=10**6)] = 1,
    search: Annotated[str, Query(max_length=NAME_LENGTH)] = "",
) -> HTMLResponse:
    matching = [shard for shard in build.plan.shards if search.lower() in shard.name.lower()]
    first = (page - 1) * SHARDS_ON_A_PAGE
    rows = builds.states(build, matching[first : first + SHARDS_ON_A_PAGE])
    return _page(
        request, "shards.html.j2", build=build, rows=rows, stages=builds.shard_stages(build.plan), page=page,
        pages=-(-len(matching) // SHARDS_ON_A_PAGE), matching=len(matching), search=search,
        counts=builds.counts(build), common=builds.common_states(build), may=actions.allowed(user),
    )  # fmt: skip


@app.get("/{root}/{dataset}/{kind}/{name}/bad-records", dependencies=[security.READ])
def bad_records_page(
    request: Request, build: BuildDep, shard: Annotated[str, Query(max_length=NAME_LENGTH)] = ""
) -> HTMLResponse:
    where = chunks.find_shard(build, shard)
    found = builds.bad_records(build, where)
    return _page(
        request, "bad_records.html.j2", build=build, shard=where, records=found, most=builds.MOST_BAD_RECORDS,
        count=builds.counts(build).get(where.name, {}).get("bad_records"),
    )  # fmt: skip


@app.get("/{root}/{dataset}/{kind}/{name}/neighbours", dependencies=[security.READ])
def neighbours_page(
    request: Request,
    build: BuildDep,
    shard: Annotated[str, Query(max_length=NAME_LENGTH)] = "",
    start: Position = 0,
    chunk: Annotated[str, Query(max_length=20, pattern=r"^\d*$")] = "",
    document: Annotated[str, Query(max_length=20, pattern=r"^\d*$")] = "",
) -> HTMLResponse:
    """A form leaves unused fields empty, so that numbers are texts here."""
    where = chunks.find_shard(build, shard)
    total = chunks.rows_of(build, where, "chunks").count
    number = int(chunk) if chunk else None
    if document and number is None:
        number = chunks.first_chunk(build, where, int(document))
    values: dict[str, Any] = {"build": build, "shard": where, "total": total, "step": chunks.PAGE_ROWS}
    values["has_text"] = chunks.tokens(build) is not None
    if number is None:
        return _page(request, "chunks.html.j2", start=start, rows=chunks.browse(build, where, start), **values)
    of = chunks.chunk(build, where, number)
    return _page(request, "neighbours.html.j2", chunk=of, neighbours=chunks.neighbours(build, of), **values)


@app.exception_handler(HTTPException)
def refused(request: Request, error: HTTPException) -> HTMLResponse:
    return _page(request, "error.html.j2", status=error.status_code, code=error.status_code, message=str(error.detail))


@app.exception_handler(RequestValidationError)
def malformed(request: Request, error: RequestValidationError) -> HTMLResponse:
    fields = ", ".join(sorted({str(problem["loc"][-1]) for problem in error.errors()}))
    return _page(request, "error.html.j2", status=404, code=404, message=f"This address is malformed: {fields}.")


@app.exception_handler(RetroError)
def failed(request: Request, error: RetroError) -> HTMLResponse:
    damaged = isinstance(error, DamagedError)
    status = (
        503 if isinstance(error, TransientError) else 404 if isinstance(error, BadInputError) and not damaged else 500
    )
    return _page(request, "error.html.j2", status=status, code=status, message=str(error))


@app.exception_handler(Exception)
def crashed(request: Request, error: Exception) -> HTMLResponse:
    """Airflow logs the error as well."""
    message = (
        "This page cannot be made: a file of the dataset may be damaged. The log of the API server has the reason; "
        "`retro-ops status --thorough` checks the files."
    )
    return _page(request, "error.html.j2", status=500, code=500, message=message)
