"""Airflow looks for DAGs here; this one comes with the package."""

from retro_airflow.dags.retro_rollback import dag

__all__ = ["dag"]
