"""The pages in Airflow's UI: datasets, versions, shards and neighbours, rendered on the API server."""
