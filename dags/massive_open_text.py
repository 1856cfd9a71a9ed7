"""Airflow looks for DAGs here; this one comes with the package."""

from retro_airflow.dags.massive_open_text import dag

__all__ = ["dag"]
