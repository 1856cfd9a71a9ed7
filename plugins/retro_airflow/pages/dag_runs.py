"""Airflow's runs of the DAGs, found by the name of their folder in the store."""

from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import quote

from airflow.models.dagrun import DagRun
from airflow.utils.session import create_session
from sqlalchemy import select

from retro_airflow.run_notes import BUILDING_DAGS
from retro_ops.plan import paths

NEWEST = 500
"""Runs of each DAG that are searched; older ones are shown without a link."""


@dataclass(frozen=True)
class AirflowRun:
    dag_id: str
    run_id: str
    state: str

    @property
    def path(self) -> str:
        """Its address in Airflow's UI."""
        return f"/dags/{self.dag_id}/runs/{quote(self.run_id, safe='')}"


def find(dag_id: str, run_id: str) -> AirflowRun | None:
    with create_session() as session:
        state = session.scalar(select(DagRun.state).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id))
    return None if state is None else AirflowRun(dag_id, run_id, str(state))


def by_name(names: Collection[str], readable: Collection[str]) -> dict[str, AirflowRun]:
    """Runs by the name of their folder, only those of DAGs that the user may read."""
    found: dict[str, AirflowRun] = {}
    if not names:
        return found
    with create_session() as session:
        for dag_id in set(BUILDING_DAGS) & set(readable):
            newest = (
                select(DagRun.run_id, DagRun.state)
                .where(DagRun.dag_id == dag_id)
                .order_by(DagRun.id.desc())
                .limit(NEWEST)
            )
            for run_id, state in session.execute(newest):
                name = paths.run_name(run_id)
                if name in names:
                    found.setdefault(name, AirflowRun(dag_id, run_id, str(state)))
    return found
