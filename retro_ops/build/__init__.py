"""A whole run by one command, in one process: the same as the DAGs, without Airflow."""
