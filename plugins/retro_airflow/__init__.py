"""The Airflow side of RETRO datasets: an operator for every stage, and the runtimes that run it."""
