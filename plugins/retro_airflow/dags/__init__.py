"""The DAGs. A file in Airflow's dags folder imports one: ``from retro_airflow.dags.retro_dataset import dag``."""
