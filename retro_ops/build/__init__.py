"""A whole run by one command, in one process: what the DAGs do, without Airflow."""
