"""Build, refresh and repair RETRO retrieval datasets. This package never imports airflow."""

__version__ = "0.2.0"
