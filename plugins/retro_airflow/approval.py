"""A person approves a version before it is published, if the run is set to ask."""

from collections.abc import Iterator, Mapping
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Context

from retro_airflow import failures, links, object_store, run_notes, settings
from retro_ops.plan import card, paths
from retro_ops.plan.plan import Plan, plan_from_json
from retro_ops.plan.published_changes import read_changes
from retro_ops.plan.series import Entry
from retro_ops.sizes import in_words, some

MOST_NAMES = 20
"""Most shards of each kind that a request names."""

DOC = (
    "With *Approve before publishing* the run waits here until a person decides: under *Required Actions* of this task "
    "or of the run, which shows the figures of the card beside those of the current version. *Reject* publishes "
    "nothing. Without it this task passes at once."
)


class PublishApproval(ApprovalOperator):
    """Waits for a decision on the version of ``plan_uri`` if the run's parameter ``approve`` is set."""

    template_fields = (*ApprovalOperator.template_fields, "plan_uri")

    def __init__(self, *, plan_uri: str, **kwargs: Any) -> None:
        super().__init__(subject="Publish this version?", **kwargs)
        self.plan_uri = plan_uri

    def execute(self, context: Context) -> Any:
        if not context["params"].get("approve"):
            self.log.info("Approve before publishing is off, so no approval is requested")
            return None
        from retro_ops.storage import store

        with failures.airflow_errors():
            object_store.use_connection(settings.load().deployment.object_store.connection)
            self.subject, self.body = request(self.plan_uri)
            store.write(paths.approval_uri(self.plan_uri), b"{}\n")  # So that prune keeps what the run has made.
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        from retro_ops.storage import store

        if "error" in event:
            return super().execute_complete(context, event)
        with failures.airflow_errors():
            object_store.use_connection(settings.load().deployment.object_store.connection)
            waits = paths.approval_uri(self.plan_uri)
            store.at(waits).delete(waits)
            dataset = _plan(self.plan_uri).dataset
        if self.REJECT in event["chosen_options"]:
            note = f"Dataset {dataset}, [rejected]({links.of_run(self.plan_uri)})"
            user = (event.get("responded_by_user") or {}).get("name")
            context["ti"].xcom_push(
                key=run_notes.SUMMARY, value=f"{note}{f' by {user}' if user else ''}: nothing was published"
            )
        return super().execute_complete(context, event)


def request(plan_uri: str) -> tuple[str, str]:
    """Subject and text (Markdown) of the request for the version of a plan. Raises RetroError."""
    from retro_ops.storage import store

    plan = _plan(plan_uri)
    series = object_store.read_series(plan.root, plan.dataset)
    uri = paths.card_uri(plan, "json")
    new = _figures(card.read_card(store.read(uri), uri))
    current = _published(series.entry()) if series.current else {}
    heading = f"version {series.current}" if current else "nothing is published"
    rows = [f"| | {heading} | this version |", "|---|---:|---:|"]
    rows += [f"| {name} | {current.get(name, '-')} | {value} |" for name, value in new.items()]
    pages = f"[Dataset card]({links.of_run(plan_uri, '/card')}), [neighbours]({links.of_run(plan_uri, '/neighbours')})"
    changes_uri = paths.changes_uri(plan_uri)
    changes = read_changes(store.read(changes_uri), changes_uri) if store.exists(changes_uri) else None
    return f"Publish {plan.dataset}?", "\n".join([*rows, "", *(_changes(changes) if changes else ()), "", pages])


def _plan(uri: str) -> Plan:
    from retro_ops.storage import store

    return plan_from_json(store.read(uri), uri)


def _figures(found: Mapping[str, Any]) -> dict[str, str]:
    """Figures of a card by the name that a reader knows, in the order of the request."""
    totals = found["totals"]
    counts = {name.capitalize(): f"{totals[name]:,}" for name in ("documents", "chunks") if name in totals}
    return {**counts, **_quality(card.figures(found))}


def _published(entry: Entry) -> dict[str, str]:
    counts = {name.capitalize(): f"{entry['counts'][name]:,}" for name in entry["counts"]}
    return counts | (_quality(entry["figures"]) if "figures" in entry else {})


def _quality(figures: Mapping[str, Any]) -> dict[str, str]:
    found = {"Size": in_words(figures["stored_bytes"])}
    for split, of in figures["quality"].items():
        found |= {f"{name.replace('_', ' ').capitalize()}, {split}": f"{100 * of[name]:.1f} %" for name in of}
    return found


def _changes(changes: Mapping[str, Any]) -> Iterator[str]:
    yield f"Shards: {changes['unchanged']:,} unchanged"
    for kind in ("added", "changed", "removed"):
        names = changes[kind]
        shown = some([f"`{name}`" for name in names], MOST_NAMES)
        yield f"- {len(names):,} {kind}" + (f": {shown}" if names else "")
