"""Airflow looks for plugins here; this one comes with the package."""

from retro_airflow.plugin import RetroPlugin

__all__ = ["RetroPlugin"]
